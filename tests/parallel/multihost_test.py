"""Two processes are one run, and neither outlives the other for long."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from unittest import mock

from absl.testing import parameterized
import chex
import jax
import numpy as np

from cxjax.training import checkpoints as checkpoints_lib
from cxjax import errors
from cxjax.configs import experiment
from cxjax.training import metric_log
from cxjax.parallel import multihost
from experiments import parity_mlp
from experiments import text_bert
import text_test

ROOT = pathlib.Path(__file__).parent.parent
NAMES = ('teacher', 'extracted')


def free_port():
  with socket.socket() as one:
    one.bind(('127.0.0.1', 0))
    return one.getsockname()[1]


# A program of two processes, one of which dies.
MEET = """
import os, signal, sys
from cxjax.parallel import multihost
coordinator, who, process_id = sys.argv[1:]
multihost.join(coordinator, 2, int(process_id))
for i in range(10**6):
  multihost.any_of(False)
  if i == 10 and who == process_id:
    os.kill(os.getpid(), signal.SIGKILL)
"""


def pair(*command, devices=1):
  """Two processes, each told its number by its last argument."""
  return [
    subprocess.Popen(
      [sys.executable, *(part.replace('{}', str(i)) for part in command)],
      cwd=ROOT,
      env={**os.environ, 'JAX_NUM_CPU_DEVICES': str(devices)},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]


def start(source, workdir):
  """The same run in two processes of four devices each."""
  return pair(
    'launch.py',
    '--config=experiments/text_bert.py:extracted,tiny',
    f'--workdir={workdir}',
    *(f'--config.{n}={v}' for n, v in fields(source).items()),
    f'--coordinator=127.0.0.1:{free_port()}',
    '--num_processes=2',
    '--process_id={}',
    devices=4,
  )


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


def finished(both):
  """Exit codes, and what was said."""
  said = [one.communicate(timeout=300) for one in both]
  return [one.returncode for one in both], said


def wait_for(path, rows, both):
  """Until there are so many rows of metrics."""
  while not path.exists() or len(path.read_text().splitlines()) < rows:
    assert all(one.poll() is None for one in both), finished(both)
    time.sleep(0.01)


def texts(workdir):
  """The rows of a run."""
  return [(workdir / name / 'metrics.jsonl').read_text() for name in NAMES]


class ProcessesTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(cls('create_tempdir').create_tempdir().full_path)
    cls.source = cls.root / 'text.txt'
    cls.source.write_text('\n\n'.join(text_test.DOCUMENTS))
    cls.whole = cls.root / 'whole'
    cls.codes, cls.said = finished(start(cls.source, cls.whole))

  def test_are_one_process_with_all_devices(self):
    self.assertEqual(self.codes, [0, 0], self.said)
    config = text_bert.tiny('extracted')
    config.update_from_flattened_dict(fields(self.source))
    alone = self.root / 'alone'
    experiment.run(config, alone)
    for name in NAMES:
      one, two = (metric_log.read(path / name) for path in (alone, self.whole))
      stages = [[row.pop('stage') for row in rows] for rows in (one, two)]
      self.assertEqual(*stages)
      chex.assert_trees_all_close(one, two, rtol=1e-4)
      self.assertEqual(
        checkpoints_lib.steps(alone / name), checkpoints_lib.steps(self.whole / name)
      )

  def test_the_first_alone_speaks(self):
    # Gloo, which connects CPUs, speaks as well, in several threads at once.
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
    codes, said = finished(both)
    self.assertLess(time.monotonic() - begin, 20)  # JAX takes 100 s.
    self.assertEqual(codes, [-signal.SIGKILL, 1], said)
    self.assertIn('Error: Process 0 of this run ended abruptly', said[1][1])
    codes, said = finished(start(self.source, workdir))
    self.assertEqual(codes, [0, 0], said)
    self.assertEqual(texts(self.whole), texts(workdir))

  @parameterized.parameters(0, 1)
  def test_whoever_is_killed(self, who):
    """While both wait for each other again and again."""
    both = pair('-c', MEET, f'127.0.0.1:{free_port()}', str(who), '{}')
    codes, said = finished(both)
    self.assertEqual(codes[who], -signal.SIGKILL, said)
    self.assertEqual(codes[1 - who], 1, said)
    self.assertIn(
      f'Error: Process {who} of this run ended abruptly. Start all',
      said[1 - who][1],
    )

  def test_a_mistake_in_one_ends_both(self):
    """Here of both; each says it once."""
    both = start(self.source.with_name('other.txt'), self.root / 'mistake')
    codes, said = finished(both)
    for code, (_, text) in zip(codes, said, strict=True):
      self.assertIn(code, (1, 2))
      self.assertRegex(text, 'Error: .*other.txt')


class StoredTest(parameterized.TestCase):
  def test_stored_targets_are_read_by_both(self):
    root = pathlib.Path(self.create_tempdir().full_path)
    config = parity_mlp.tiny('extracted')
    experiment.cache_targets(config, root / 'live', root / 'targets')
    experiment.run(config, root / 'live')
    both = pair(
      'launch.py',
      '--config=experiments/parity_mlp.py:extracted,tiny',
      f'--config.cache.folder={root}/targets',
      f'--config.teacher.folder={root}/live/teacher',
      '--config.mesh.data=-1',
      f'--workdir={root}/stored',
      f'--coordinator=127.0.0.1:{free_port()}',
      '--num_processes=2',
      '--process_id={}',
    )
    codes, said = finished(both)
    self.assertEqual(codes, [0, 0], said)
    live, stored = (
      [row['loss'] for row in metric_log.read(root / name / 'extracted')]
      for name in ('live', 'stored')
    )
    np.testing.assert_allclose(live, stored, rtol=1e-3)


class JoinTest(parameterized.TestCase):
  @parameterized.parameters(
    (('localhost:1', None, 0), 'num_processes is missing'),
    (('localhost:1', 2, None), 'process_id is missing'),
    ((None, 2, 0), 'coordinator is missing'),
    (('localhost', 2, 0), 'coordinator=localhost must be HOST:PORT'),
    (('localhost:1', 2, 2), 'process_id=2 must be from 0'),
  )
  def test_half_of_it_is_one_line(self, given, message):
    with self.assertRaisesRegex(errors.UserError, message):
      multihost.join(*given)

  @parameterized.parameters(
    ({}, None),
    ({'SLURM_NTASKS': '1', 'SLURM_PROCID': '0'}, None),
    ({'SLURM_NTASKS': '4', 'SLURM_PROCID': '2'}, (None, None, None)),
    ({'SLURM_NTASKS': '4'}, None),  # In the script of a job, outside srun.
    ({'TPU_WORKER_HOSTNAMES': 'localhost'}, None),
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, (None, None, None)),
    (
      {
        'JAX_COORDINATOR_ADDRESS': 'a:1',
        'JAX_NUM_PROCESSES': '3',
        'JAX_PROCESS_ID': '2',
      },
      ('a:1', 3, 2),
    ),
  )
  def test_looks_at_the_environment(self, env, expected):
    with (
      mock.patch.dict(os.environ, env),
      mock.patch.object(jax.distributed, 'initialize') as initialize,
      mock.patch.object(multihost, '_watch'),
      mock.patch.object(jax.config, 'update'),
    ):
      multihost.join()
    if expected is None:
      initialize.assert_not_called()
    else:
      initialize.assert_called_once_with(*expected)
