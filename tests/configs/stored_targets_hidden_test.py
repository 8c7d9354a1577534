"""Runs from stored hidden states are the live runs, from a config."""

import pathlib
from unittest import mock

from absl.testing import parameterized
import chex
import jax
import numpy as np
import pytest

from cxjax import errors
from cxjax import files
from cxjax.configs import builders
from cxjax.configs import experiment
from cxjax.configs import stored_targets
from cxjax.configs import teachers
from cxjax.models import mlp
from cxjax.training import compiled_steps
from cxjax.training import metric_log
from cxjax.training import target_cache
from experiments import parity_mlp
import faults

METHOD = 'extracted'


def config_of(**fields):
  config = parity_mlp.tiny(METHOD)
  config[METHOD].steps = (25, 35)
  config.alpha, config.temperature = 0.3, 2.0
  config.update_from_flattened_dict(fields)
  return config


@pytest.mark.slow
class HiddenStatesTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(cls('create_tempdir').create_tempdir().full_path)
    cls.live = cls.root / 'live'
    opened = builders.open_experiment(config_of(), cls.live)
    teachers.train_teacher(opened, cls.live)
    cls.store('hidden')

  @classmethod
  def store(cls, name, folder=None):
    config = config_of(**{'cache.output': name})
    config.teacher.folder = str(cls.live / 'teacher')
    folder = folder or cls.root / name
    return stored_targets.cache_targets(config, cls.root / 'none', folder)

  def stored(self, **fields):
    """The config of a run from hidden states."""
    folder = str(self.root / 'hidden')
    return config_of(
      **{'cache.folder': folder, 'cache.output': 'hidden', **fields}
    )

  def fresh(self):
    return pathlib.Path(self.create_tempdir().full_path)

  def students(self, config, workdir):
    return experiment.load_students(config, workdir, METHOD)[1]

  def test_is_the_live_run(self):
    live = experiment.run(config_of(), self.live)
    workdir = self.fresh()
    summary = experiment.run(self.stored(), workdir)
    self.assertFalse((workdir / 'teacher').exists())
    losses = [
      [record['loss'] for record in metric_log.read(folder / METHOD)]
      for folder in (self.live, workdir)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-6)
    students = [self.students(config_of(), d) for d in (self.live, workdir)]
    chex.assert_trees_all_close(*students, rtol=0, atol=1e-7)
    self.assertTrue(summary['stored_targets'])
    for mine, theirs in zip(summary['stages'], live['stages'], strict=True):
      self.assertEqual(mine['student_flops'], theirs['student_flops'])
      self.assertLess(mine['teacher_flops'], theirs['teacher_flops'] / 2)
    *_, hidden, output = [one['teacher_flops'] for one in summary['stages']]
    self.assertEqual(hidden, 0)
    self.assertGreater(output, 0)

  def test_no_more_than_the_head_is_held(self):
    config = self.stored(**{'teacher.folder': str(self.live / 'teacher')})
    before = {id(array) for array in jax.live_arrays()}
    held = set()
    train_many_steps = compiled_steps.CompiledSteps.train_many_steps

    def note(self, *args):
      held.update(a.shape for a in jax.live_arrays() if id(a) not in before)
      return train_many_steps(self, *args)

    with mock.patch.object(
      compiled_steps.CompiledSteps, 'train_many_steps', note
    ):
      experiment.run(config, self.fresh())
    self.assertIn((16, 2), held)  # The kernel of the head,
    self.assertNotIn((8, 16), held)  # and not that of the layer.

  def test_an_interrupted_run_ends_where_a_whole_one_does(self):
    """Checkpoints at 20, in the hidden stage, and at 40, in the other."""
    config, whole, other = self.stored(), self.fresh(), self.fresh()
    experiment.run(config, whole)
    for records in (3, 4):  # At 30; from 20 on, at 60.
      with faults.killed_after(records):
        experiment.run(config, other)
    experiment.run(config, other)
    folders = whole / METHOD, other / METHOD
    self.assertEqual(*map(metric_log.read, folders))
    chex.assert_trees_all_equal(
      *(self.students(config, workdir) for workdir in (whole, other))
    )

  def test_a_killed_writer_starts_over(self):
    folder = self.fresh() / 'cache'
    with (
      mock.patch.object(
        target_cache.writer.files,
        'write_with_digest',
        side_effect=KeyboardInterrupt,
      ),
      self.assertRaises(KeyboardInterrupt),
    ):
      self.store('hidden', folder)
    with self.assertRaisesRegex(errors.UserError, 'holds no finished cache'):
      target_cache.load(folder)
    self.store('hidden', folder)
    fingerprints = {
      target_cache.load(path).fingerprint
      for path in (folder, self.root / 'hidden')
    }
    self.assertLen(fingerprints, 1)

  def test_other_losses_are_served(self):
    """The head allows what a live teacher does: even another top_k."""
    workdir = self.fresh()
    config = self.stored(
      **{'top_k': 1, 'temperature': 1.0, 'loss': 'kl', 'alpha': 0.0}
    )
    experiment.run(config, workdir)

  def test_the_other_kind_is_refused(self):
    self.store('logits')
    for kind, other in (('hidden', 'logits'), ('logits', 'hidden')):
      fields = {'cache.folder': str(self.root / kind), 'cache.output': other}
      workdir = self.fresh()
      with self.assertRaisesRegex(
        errors.UserError, f'asks for .*: give cache.output={kind}, or another'
      ):
        experiment.run(config_of(**fields), workdir)
      self.assertEmpty(list(workdir.iterdir()))

  def test_a_workdir_tells_them_apart(self):
    self.store('logits')
    workdir = self.fresh()
    experiment.run(self.stored(), workdir)
    fields = files.read_json(workdir / METHOD / 'config.json')
    self.assertEqual(fields['cache']['output'], 'hidden')
    folder = str(self.root / 'logits')
    other = self.stored(**{'cache.folder': folder, 'cache.output': 'logits'})
    with self.assertRaisesRegex(
      errors.UserError, r'cache.output \(hidden there'
    ):
      experiment.run(other, workdir)

  @parameterized.parameters(
    ({'cache.output': 'all', 'cache.folder': '/none'}, 'logits, hidden'),
    ({'cache.output': 'hidden'}, 'cache.output=hidden is for stored targets'),
  )
  def test_a_setting_that_does_nothing_is_refused(self, fields, message):
    workdir = self.fresh()
    with self.assertRaisesRegex(errors.UserError, message):
      experiment.run(config_of(**fields), workdir)

  def test_a_teacher_without_a_head_is_refused_before_it_is_trained(self):
    plain = mlp.MLP.__call__

    def squared(self, x):
      logits, activations = plain(self, x)
      return logits - logits.mean(axis=-1, keepdims=True), activations

    config, workdir = config_of(**{'cache.output': 'hidden'}), self.fresh()
    with (
      mock.patch.object(mlp.MLP, '__call__', squared),
      self.assertRaisesRegex(errors.UserError, 'has none: .*output=logits'),
    ):
      stored_targets.cache_targets(config, workdir, self.fresh() / 'cache')
    self.assertEmpty(list(workdir.iterdir()))
