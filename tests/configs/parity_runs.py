"""Finished runs of parity, one for each method. Not a test."""

import functools
import pathlib
import shutil

from absl.testing import parameterized
import chex

import bad_values
from cxjax.configs import builders
from cxjax.configs import experiment
from experiments import parity_mlp
import faults

# Labels beside hidden activations that fade out, then the logits.
JOINT = (
  dict(
    name='joint',
    steps=30,
    terms=(
      dict(
        student='hidden0',
        target='hidden0',
        projection='gaussian',
        weight=dict(schedule='linear'),
      ),
      dict(target='labels', weight=0.5),
    ),
  ),
  dict(name='logits', terms=(dict(temperature=2.0, loss='kl'),)),
)
# Of each kind of curriculum one; configs_test.py plans all of them.
METHODS = ('supervised', 'one_shot', 'progressive', 'extracted', 'custom')


def config_of(method='extracted', **fields):
  config = parity_mlp.tiny(method)
  config.custom.stages = JOINT
  config.update_from_flattened_dict(fields)
  return config


def open_(config, workdir):
  return builders.open_experiment(config, workdir)


def files_of(folder):
  return {
    str(p.relative_to(folder)): p.read_bytes()
    for p in sorted(folder.rglob('*'))
    if p.is_file()
  }


class TestCase(parameterized.TestCase):
  def folder(self):
    return pathlib.Path(self.create_tempdir().full_path)

  @classmethod
  def shared_folder(cls):
    return pathlib.Path(cls('create_tempdir').create_tempdir().full_path)


@functools.cache
def finished():
  """A workdir with a finished run of each method, and their summaries."""
  workdir = bad_values.kept_folder() / 'finished'
  return workdir, {
    name: experiment.run(config_of(name), workdir) for name in METHODS
  }


class FinishedTest(TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir, cls.summaries = finished()

  def fresh(self):
    """A workdir of its own, with the teacher that all tests share."""
    workdir = self.folder()
    shutil.copytree(self.workdir / 'teacher', workdir / 'teacher')
    return workdir

  def assert_same_run(self, config, folder):
    whole = self.workdir / config.method
    texts = [(f / 'metrics.jsonl').read_text() for f in (whole, folder)]
    self.assertEqual(*texts)
    chex.assert_trees_all_equal(
      faults.arrays(config, whole), faults.arrays(config, folder)
    )
