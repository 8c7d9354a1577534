"""Checkpoints of processes that are killed, and of several."""

import os
import pathlib
import signal
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax.training import checkpoints
from tests import processes
from tests.training.written import WriterTest

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]


# Each case is a process of its own, with its output in a file. They are forked
# when all is imported and nothing computed yet: no thread has begun.
FORK = """
import os, pathlib, signal, sys
from unittest import mock
from cxjax import errors
from cxjax import files
from cxjax.training import checkpoint_writer
from cxjax.training import checkpoints
import numpy as np

folder, *cases = sys.argv[1:]
for case in cases:
  folder_of = pathlib.Path(folder) / case
  process = os.fork()
  if not process:
    for number, name in ((1, 'said'), (2, 'log')):
      file = os.open(f'{folder}/{case}.{name}', os.O_WRONLY | os.O_CREAT)
      os.dup2(file, number)
    break
  print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
else:
  sys.exit()
"""


# Saves 10 and 20, is killed in the middle of 30.
KILLED = (
  FORK
  + """
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
target = {
  'arrays': (checkpoint_writer.CheckpointWriter, '_save_arrays'),
  'commit': (os, 'rename'),
  'record': (files, 'write_with_digest'),
  'prune': (checkpoint_writer.CheckpointWriter, '_prune'),
}[case]
values = np.arange(6, dtype='f4').reshape(2, 3)
items = lambda n: {'params': {'kernel': values + n}}
with checkpoint_writer.CheckpointWriter(folder_of, keep=2) as writer:
  for step in (10, 20):
    writer.save(step, items(step), {})
  writer.wait()
  with mock.patch.object(*target, die):
    writer.save(30, items(30), {})
    writer.wait()
"""
)


# Saves once, then the disk breaks.
BROKEN = (
  FORK
  + """
import subprocess

random = np.random.default_rng(0)
items = {'params': {f'w{i}': random.normal(size=9999) for i in range(5)}}
writer = checkpoint_writer.CheckpointWriter(folder_of / 'run', keep=2)
with writer:
  writer.save(10, items, {})
  writer.wait()
  if case == 'permission':
    subprocess.run(['chmod', '-R', 'a-w', folder_of], check=True)
  elif case == 'read_only':
    subprocess.run(['mount', '-o', 'remount,ro', folder_of], check=True)
  else:
    room, ballast = int(case.removeprefix('full')), folder_of / 'ballast'
    with ballast.open('wb', buffering=0) as f:
      try:
        while f.write(bytes(4096)):
          pass
      except OSError:
        pass
      f.truncate(f.tell() - 1024 * room)
    if room:
      checkpoint_writer.OVERHEAD = -(2**30)  # As if it were not looked at.
  writer.save(20, items, {})
  try:
    writer.wait()
  except errors.UserError as error:
    print(error)
print(checkpoints.latest(folder_of / 'run'))
"""
)


# Two processes save arrays that are sharded over both, and values of their own.
PAIR = """
import os, pathlib, sys
folder, coordinator, number = sys.argv[1:]
from cxjax.parallel import multihost
multihost.join(coordinator, 2, int(number))
import jax, jax.numpy as jnp
import numpy as np
from cxjax.training import checkpoint_writer
from cxjax.training import checkpoints

mesh = jax.make_mesh((4,), ('data',))
sharding = jax.NamedSharding(mesh, jax.P('data'))
values = np.arange(8.0, dtype='f4')
make = lambda n: jax.make_array_from_callback(
  (8,), sharding, lambda index: values[index] + n
)
folder = pathlib.Path(folder)
update = jax.jit(lambda x: x + 1, donate_argnums=0)
with checkpoint_writer.CheckpointWriter(folder, keep=2) as writer:
  x = make(0)
  for step in (1, 2, 3):
    x = update(x)
    own = {f'loader-{number}': {'step': step, 'process': number}}
    writer.save(step, {'params': [x]}, {'score': 0.5}, own, best=step == 1)
assert checkpoints.latest(folder) == 3, checkpoints.latest(folder)
checkpoints.require_best(folder, 3, 1)
shape = jax.ShapeDtypeStruct((8,), 'float32', sharding=sharding)
found = checkpoints.restore(folder, 3, {'params': [shape]})['params'][0]
for shard in found.addressable_shards:
  np.testing.assert_array_equal(shard.data, values[shard.index] + 3)
found = checkpoints.read_local(folder, 3, f'loader-{number}')
assert found == {'step': 3, 'process': number}, found
multihost.leave()
os._exit(0)
"""


class ProcessTest(WriterTest):
  def start(self, *args, before=(), **env):
    return subprocess.Popen(
      [*before, sys.executable, '-c', *map(str, args)],
      cwd=ROOT,
      env={**os.environ, 'PYTHONPATH': ':'.join(sys.path), **env},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def statuses(self, script, *cases, before=()):
    """How the process of each case ends."""
    process = self.start(script, self.folder, *cases, before=before)
    said, log = process.communicate(timeout=100)
    self.assertEqual(process.returncode, 0, log)
    return [*map(int, said.split())]

  def test_a_killed_process_leaves_a_good_checkpoint(self):
    self.folder.mkdir()
    moments = ('arrays', 'commit', 'record', 'prune')
    found = self.statuses(KILLED, *moments)
    self.assertEqual(found, [-signal.SIGKILL] * 4)
    root = self.folder
    for moment in moments:
      with self.subTest(moment):
        self.folder = root / moment
        self.assert_goes_on(moment)

  def assert_goes_on(self, moment):
    """A run that was killed at this moment has a checkpoint, and saves more."""
    expected = {'record': [10, 20, 30], 'prune': [10, 20, 30]}
    self.assertEqual(self.steps(), expected.get(moment, [10, 20]))
    if moment == 'record':
      with self.assertLogs(level='WARNING') as log:
        self.assertEqual(checkpoints.latest(self.folder), 20)
      self.assertRegex(log.output[0], '000000030 has no record.json')
    else:
      newest = 30 if moment == 'prune' else 20
      self.assertEqual(checkpoints.latest(self.folder), newest)
    self.save(30, 40)
    self.assert_good(30, 40)
    found = (self.folder / 'checkpoints').iterdir()
    self.assertLen(list(found), 2)

  def test_a_disk_that_breaks(self):
    """A tmpfs for each case; without the right to ignore permissions."""
    reasons = {
      'full0': 'No space left on device',
      'full60': 'No space left on device',
      'full200': 'No space left on device',
      'permission': 'Permission denied',
      'read_only': 'Read-only file system',
    }
    folders = [self.folder / case for case in reasons]
    for folder in folders:
      folder.mkdir(parents=True)
    before = processes.on_tmpfs(*folders, size='2m', overrides=False)
    if before is None:
      self.skipTest('Needs the right to mount a tmpfs.')
    # No thread keeps one alive.
    found = self.statuses(BROKEN, *reasons, before=before)
    self.assertEqual(found, [0] * len(reasons))
    for case, reason in reasons.items():
      with self.subTest(case):
        said, log = (
          (self.folder / f'{case}.{name}').read_text()
          for name in ('said', 'log')
        )
        path = self.folder / case / 'run'
        self.assertRegex(
          said,
          f'^Cannot write {path}/.*: {reason}. (Make room|Allow it).*\n10\n$',
        )
        if case not in ('full60', 'full200'):
          self.assertEqual(log, '')

  def test_two_processes(self):
    with socket.socket() as one:
      one.bind(('127.0.0.1', 0))
      address = f'127.0.0.1:{one.getsockname()[1]}'
    both = [
      self.start(PAIR, self.folder, address, i, JAX_NUM_CPU_DEVICES='2')
      for i in range(2)
    ]
    said = [one.communicate(timeout=200)[1] for one in both]
    self.assertEqual([one.returncode for one in both], [0, 0], said)
    self.assertEqual(self.steps(), [1, 2, 3])
    shape = {'params': [jax.ShapeDtypeStruct((8,), jnp.float32)]}
    for step in self.steps():
      self.assertIsNone(checkpoints.fault(self.folder, step))
      found = checkpoints.restore(self.folder, step, shape)['params'][0]
      np.testing.assert_array_equal(found, np.arange(8) + step)
