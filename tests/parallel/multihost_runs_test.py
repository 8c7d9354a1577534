"""Whole runs in two processes: one result, and neither outlives the other."""

import pathlib
import signal
import time

from absl.testing import absltest
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
import own_text_config
import processes

pytestmark = pytest.mark.slow
NAMES = ('teacher', 'extracted')
# launch.py, whose first process dies in the students' second stage.
DIE = """
import os, signal, sys, time
import launch
from cxjax.configs import cli
from cxjax.parallel import multihost
from cxjax.training import metric_log

write = metric_log.MetricLog.write
def die(self, record):
  write(self, record)
  if record['stage'] == 'output' and multihost.is_first():
    print('dies at', time.time(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
metric_log.MetricLog.write = die
sys.argv[0] = 'launch.py'
cli.guarded(launch.main)(launch.parse(sys.argv))
"""


def flags(source, workdir):
  """A run on a text of which each process reads its own half."""
  return (
    '--config=tests/own_text_config.py',
    f'--workdir={workdir}',
    f'--config.data.source=files:{source}',
    '--config.data.shards=2',
    '--config.mesh.data=4',
  )


class RunTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(cls('create_tempdir').create_tempdir().full_path)
    cls.source = cls.root / 'text.txt'
    cls.source.write_text('\n\n'.join(documents.DOCUMENTS))
    cls.both = cls.root / 'both'
    start = lambda *command: processes.finished(
      processes.start_run(
        *flags(cls.source, cls.both), command=command, devices=2
      )
    )
    cls.killed = start('-c', DIE)
    cls.ended = time.time()
    cls.saved = [checkpoints_lib.steps(cls.both / name) for name in NAMES]
    cls.metrics = (cls.both / 'extracted' / 'metrics.jsonl').read_text()
    cls.codes, cls.said = start('launch.py')

  def test_one_is_killed_and_the_other_stops(self):
    """The first, which holds the others together."""
    codes, said = self.killed
    self.assertEqual(codes, [-signal.SIGKILL, 1], said)
    self.assertIn('Error: Process 0 of this run ended abruptly', said[1][1])
    died = float(said[0][0].split('dies at ')[1].split()[0])
    self.assertLess(self.ended - died, 20)  # JAX takes 100 s.

  def test_both_start_again_and_go_on(self):
    self.assertEqual(self.codes, [0, 0], self.said)
    self.assertEqual([steps[-1] for steps in self.saved], [8, 4])
    self.assertLen(self.metrics.splitlines(), 3)
    self.assertStartsWith(
      (self.both / 'extracted' / 'metrics.jsonl').read_text(), self.metrics
    )

  def test_is_that_of_one_process_with_all_devices(self):
    """Though it was killed on the way."""
    config = own_text_config.get_config()
    config.data.source, config.data.shards = f'files:{self.source}', 2
    config.mesh.data = 4
    alone = self.root / 'alone'
    experiment.run(config, alone)
    for name in NAMES:
      one, two = (metric_log.read(path / name) for path in (alone, self.both))
      stages = [
        [record.pop('stage') for record in records] for records in (one, two)
      ]
      self.assertEqual(*stages)
      chex.assert_trees_all_close(one, two, rtol=1e-4)
      self.assertEqual(
        checkpoints_lib.steps(alone / name),
        checkpoints_lib.steps(self.both / name),
      )

  def test_the_first_process_alone_prints(self):
    # Gloo, which connects CPUs, prints as well, in several threads at once.
    (first, _), (other, _) = self.said
    self.assertIn('| method', first)
    self.assertNotIn('|', other)

  def test_a_mistake_ends_both(self):
    """Each process says it once."""
    other = self.source.with_name('other.txt')
    codes, said = processes.finished(
      processes.start_run(*flags(other, self.root / 'mistake'))
    )
    for code, (_, text) in zip(codes, said, strict=True):
      self.assertIn(code, (1, 2))
      self.assertRegex(text, 'Error: .*other.txt')


class SharedShardTest(absltest.TestCase):
  def test_is_read_by_both_and_resumed(self):
    """One process saves the state of the shard, and both continue from it."""
    root = pathlib.Path(self.create_tempdir().full_path)
    (root / 'text.txt').write_text('\n\n'.join(documents.DOCUMENTS))
    start = lambda *command: processes.finished(
      processes.start_run(
        *flags(root / 'text.txt', root / 'both'),
        '--config.data.shards=1',
        '--config.mesh.seed=2',
        '--config.mesh.data=1',
        command=command,
      )
    )
    codes, said = start('-c', DIE)
    self.assertEqual(codes, [-signal.SIGKILL, 1], said)
    codes, said = start('launch.py')
    self.assertEqual(codes, [0, 0], said)
    config = own_text_config.get_config()
    config.data.source = f'files:{root}/text.txt'
    config.mesh.seed, config.mesh.data = 2, 1
    experiment.run(config, root / 'alone')
    for name in NAMES:
      one, two = (
        [record['loss'] for record in metric_log.read(root / run / name)]
        for run in ('alone', 'both')
      )
      np.testing.assert_allclose(one, two, rtol=1e-4)


class StoredTargetsTest(parameterized.TestCase):
  """A run in one process, and those in two that read its targets."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(cls('create_tempdir').create_tempdir().full_path)
    config = parity_mlp.tiny('extracted')
    config.num_steps = config.teacher.num_steps = 20
    for output in ('hidden', 'logits'):
      config.cache.output = output
      stored_targets.cache_targets(config, cls.root / 'live', cls.root / output)
    experiment.run(config, cls.root / 'live')

  @parameterized.parameters(
    ('logits', '--config.mesh.data=-1'),
    ('hidden', '--config.mesh.data=-1'),
    # Each process has half of the columns of the teacher's head.
    ('hidden', '--config.mesh.data=1', '--config.mesh.model=2'),
  )
  def test_are_read_by_both(self, output, *mesh):
    name = '_'.join((output, *mesh)).replace('--config.', '')
    both = processes.start_run(
      '--config=experiments/parity_mlp.py:extracted,tiny',
      '--config.num_steps=20',
      '--config.teacher.num_steps=20',
      f'--config.cache.folder={self.root / output}',
      f'--config.cache.output={output}',
      f'--config.teacher.folder={self.root}/live/teacher',
      '--config.mesh.teacher=tensor',
      *mesh,
      f'--workdir={self.root / name}',
    )
    codes, said = processes.finished(both)
    self.assertEqual(codes, [0, 0], said)
    live, stored = (
      [
        record['loss']
        for record in metric_log.read(self.root / run / 'extracted')
      ]
      for run in ('live', name)
    )
    np.testing.assert_allclose(live, stored, rtol=1e-3)
