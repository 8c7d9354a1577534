"""Whole runs in two processes: one result, and neither outlives the other."""

import pathlib
import signal
import time

from absl.testing import parameterized
import chex
import numpy as np
import pytest

from cxjax.configs import experiment
from cxjax.configs import stored_targets
from cxjax.training import checkpoints as checkpoints_lib
from cxjax.training import metric_log
import documents
from experiments import parity_mlp
from experiments import text_bert
import processes

pytestmark = pytest.mark.slow
NAMES = ('teacher', 'extracted')


def fields(source):
  """What is not as in the config; a step takes a third of a second."""
  lengths = {'num_steps': 8, 'log_every': 2, 'eval_every': 4, 'save_every': 4}
  return {
    'data.source': f'files:{source}',
    'data.shards': 2,
    'mesh.data': 8,
    'num_seeds': 1,
    **lengths,
    **{f'teacher.{name}': value for name, value in lengths.items()},
  }


def start(source, workdir):
  """The same run in two processes of four devices each."""
  return processes.start_run(
    '--config=experiments/text_bert.py:extracted,tiny',
    f'--workdir={workdir}',
    *(f'--config.{n}={v}' for n, v in fields(source).items()),
    devices=4,
  )


def wait_for(path, records, both):
  """Waits until there are so many records of metrics."""
  while not path.exists() or len(path.read_text().splitlines()) < records:
    assert all(one.poll() is None for one in both), processes.finished(both)
    time.sleep(0.01)


def texts(workdir):
  """The metrics of a run, as they were written."""
  return [(workdir / name / 'metrics.jsonl').read_text() for name in NAMES]


class RunTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(cls('create_tempdir').create_tempdir().full_path)
    cls.source = cls.root / 'text.txt'
    cls.source.write_text('\n\n'.join(documents.DOCUMENTS))
    cls.whole = cls.root / 'whole'
    cls.codes, cls.said = processes.finished(start(cls.source, cls.whole))

  def test_is_that_of_one_process_with_all_devices(self):
    self.assertEqual(self.codes, [0, 0], self.said)
    config = text_bert.tiny('extracted')
    config.update_from_flattened_dict(fields(self.source))
    alone = self.root / 'alone'
    experiment.run(config, alone)
    for name in NAMES:
      one, two = (metric_log.read(path / name) for path in (alone, self.whole))
      stages = [
        [record.pop('stage') for record in records] for records in (one, two)
      ]
      self.assertEqual(*stages)
      chex.assert_trees_all_close(one, two, rtol=1e-4)
      self.assertEqual(
        checkpoints_lib.steps(alone / name),
        checkpoints_lib.steps(self.whole / name),
      )

  def test_the_first_process_alone_prints(self):
    # Gloo, which connects CPUs, prints as well, in several threads at once.
    (first, _), (other, _) = self.said
    self.assertIn('| method', first)
    self.assertNotIn('|', other)

  def test_one_is_killed_and_the_other_stops(self):
    """The first, which holds the others together; then both start again."""
    workdir = self.root / 'killed'
    both = start(self.source, workdir)
    wait_for(workdir / 'extracted' / 'metrics.jsonl', 3, both)
    both[0].kill()
    begin = time.monotonic()
    codes, said = processes.finished(both)
    self.assertLess(time.monotonic() - begin, 20)  # JAX takes 100 s.
    self.assertEqual(codes, [-signal.SIGKILL, 1], said)
    self.assertIn('Error: Process 0 of this run ended abruptly', said[1][1])
    codes, said = processes.finished(start(self.source, workdir))
    self.assertEqual(codes, [0, 0], said)
    self.assertEqual(texts(self.whole), texts(workdir))

  def test_a_mistake_ends_both(self):
    """Each process says it once."""
    both = start(self.source.with_name('other.txt'), self.root / 'mistake')
    codes, said = processes.finished(both)
    for code, (_, text) in zip(codes, said, strict=True):
      self.assertIn(code, (1, 2))
      self.assertRegex(text, 'Error: .*other.txt')


class StoredTargetsTest(parameterized.TestCase):
  def test_are_read_by_both(self):
    root = pathlib.Path(self.create_tempdir().full_path)
    config = parity_mlp.tiny('extracted')
    stored_targets.cache_targets(config, root / 'live', root / 'targets')
    experiment.run(config, root / 'live')
    both = processes.start_run(
      '--config=experiments/parity_mlp.py:extracted,tiny',
      f'--config.cache.folder={root}/targets',
      f'--config.teacher.folder={root}/live/teacher',
      '--config.mesh.data=-1',
      f'--workdir={root}/stored',
    )
    codes, said = processes.finished(both)
    self.assertEqual(codes, [0, 0], said)
    live, stored = (
      [record['loss'] for record in metric_log.read(root / name / 'extracted')]
      for name in ('live', 'stored')
    )
    np.testing.assert_allclose(live, stored, rtol=1e-3)
