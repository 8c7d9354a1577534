"""Checkpoints are written in the background, and none is lost on the way."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from unittest import mock

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from cxjax import errors
from cxjax import files
from cxjax.training import checkpoint_writer
from cxjax.training import checkpoints

ROOT = pathlib.Path(__file__).parents[2]


def items(number=0):
  return {'params': {'kernel': jnp.arange(6.0).reshape(2, 3) + number}}


def template(tree):
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree
  )


class WriterTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path) / 'run'

  def writer(self, keep=2):
    return checkpoint_writer.CheckpointWriter(self.folder, keep)

  def save(self, *steps, keep=2, **flags):
    """Saves in a process of its own, as it were."""
    with self.writer(keep) as writer:
      for step in steps:
        writer.save(step, items(step), {}, **flags)

  def steps(self):
    return checkpoints.steps(self.folder)

  def assert_good(self, *steps):
    self.assertEqual(self.steps(), list(steps))
    for step in steps:
      self.assertIsNone(checkpoints.fault(self.folder, step))
      found = checkpoints.restore(self.folder, step, template(items()))
      chex.assert_trees_all_equal(found, items(step))


class SaveTest(WriterTest):
  def test_arrays_are_the_same_bit_for_bit(self):
    random = np.random.default_rng(0)
    bits = jnp.asarray(random.integers(0, 2**32, (2, 50), np.uint32))
    mesh = jax.make_mesh((2, 4), ('data', 'model'))
    sharded = jax.NamedSharding(mesh, jax.P('data', 'model'))
    tree = {
      'params': {
        'float32': bits.view(jnp.float32),  # With NaNs of any payload.
        'bfloat16': bits.view(jnp.bfloat16),
        'sharded': jax.device_put(jnp.arange(32.0).reshape(4, 8), sharded),
        'replicated': jax.device_put(
          jnp.arange(3), jax.NamedSharding(mesh, jax.P())
        ),
        'a/b': jnp.ones(1),
        'a': {'b': jnp.zeros(1)},
      },
      'opt_state': (
        jnp.int32(3),
        jnp.arange(4) % 2 == 0,
        np.full(3, 0.1, np.float32),
        jax.random.split(jax.random.key(0), 2),
      ),
      'regressor': {},
    }
    with self.writer() as writer:
      writer.save(1, tree, {})
    found = checkpoints.restore(self.folder, 1, template(tree))
    raw = lambda leaf: (
      np.asarray(jax.random.key_data(leaf))
      if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
      else np.asarray(leaf)
    )
    for one, two in zip(*map(jax.tree.leaves, (tree, found)), strict=True):
      self.assertEqual(one.dtype, two.dtype)
      self.assertEqual(raw(one).tobytes(), raw(two).tobytes())

  @parameterized.parameters(False, True)
  def test_buffers_may_be_donated_at_once(self, sharded):
    size = 2**20
    update = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.zeros((8, size // 8))
    if sharded:
      mesh = jax.make_mesh((8,), ('data',))
      x = jax.device_put(x, jax.NamedSharding(mesh, jax.P('data')))
    held, write = threading.Event(), checkpoint_writer.CheckpointWriter._write

    def late(*args):
      held.wait()
      write(*args)

    with (
      mock.patch.object(checkpoint_writer.CheckpointWriter, '_write', late),
      self.writer() as writer,
    ):
      x = jax.block_until_ready(update(x))
      writer.save(1, {'params': [x]}, {})
      for _ in range(20):
        x = update(x)
      jax.block_until_ready(x)
      held.set()
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    found = checkpoints.restore(self.folder, 1, {'params': [shape]})
    np.testing.assert_array_equal(found['params'][0], 1)

  def test_copies_share_no_memory_with_the_device(self):
    """Jax happens to donate no buffer that has views; nothing promises it."""
    x = jnp.arange(1024.0)
    (copied,) = checkpoint_writer._host_copy([x])
    self.assertFalse(np.shares_memory(copied, np.asarray(x)))

  def test_returns_before_the_checkpoint_is_written(self):
    started, held = threading.Event(), threading.Event()
    seal = files.write_sealed

    def late(*args):
      started.set()
      held.wait()
      seal(*args)

    with (
      mock.patch.object(files, 'write_sealed', late),
      self.writer() as writer,
    ):
      writer.save(1, items(1), {})
      started.wait()
      with self.assertLogs(level='WARNING'):
        self.assertIsNone(checkpoints.latest(self.folder))
      held.set()
      writer.wait()
      self.assertEqual(checkpoints.latest(self.folder), 1)
    self.assert_good(1)

  def test_a_second_save_waits_for_the_first(self):
    sealed, seal = [], files.write_sealed

    def late(path, record):
      time.sleep(0.2)
      seal(path, record)
      sealed.append(record['step'])

    with (
      mock.patch.object(files, 'write_sealed', late),
      self.writer() as writer,
    ):
      writer.save(1, items(1), {})
      writer.save(2, items(2), {})
      self.assertEqual(sealed, [1])
    self.assertEqual(sealed, [1, 2])
    self.assert_good(1, 2)

  def test_values_may_be_changed_once_it_returns(self):
    held, write = threading.Event(), checkpoint_writer.CheckpointWriter._write

    def late(*args):
      held.wait()
      write(*args)

    record, local = {'score': [1.0]}, {'loader': {'taken': [1]}}
    with (
      mock.patch.object(checkpoint_writer.CheckpointWriter, '_write', late),
      self.writer() as writer,
    ):
      writer.save(1, items(1), record, local)
      record['score'][0] = 2.0
      local['loader']['taken'].append(2)
      held.set()
    found = checkpoints.read_record(self.folder, 1)
    self.assertEqual(found['score'], [1.0])
    found = checkpoints.read_local(self.folder, 1, 'loader')
    self.assertEqual(found, {'taken': [1]})

  def test_keys_of_the_writer_are_refused(self):
    with self.writer() as writer:
      for key in ('best', 'temporary', 'step', 'files', 'shapes', 'scheduled'):
        with self.assertRaises(AssertionError):
          writer.save(1, items(), {key: 1})
    self.assertEqual(self.steps(), [])

  def test_everything_is_on_the_disk_before_the_seal(self):
    synced, sync = [], os.fsync

    def note(descriptor):
      synced.append(pathlib.Path(os.readlink(f'/proc/self/fd/{descriptor}')))
      sync(descriptor)

    self.folder.mkdir()
    (self.folder / 'metrics.jsonl').write_text('')
    with mock.patch.object(os, 'fsync', note), self.writer() as writer:
      writer.save(1, items(), {}, {'loader': 1})
    path = self.folder / 'checkpoints' / '000000001'
    before = synced[: synced.index(path / 'record.json.tmp')]
    needed = {path, path.parent, self.folder / 'metrics.jsonl'}
    needed |= {p for p in path.rglob('*') if p.name != 'record.json'}
    self.assertEmpty(needed - set(before))
    self.assertEqual(synced[-1], path)  # The name of the record.


@pytest.mark.slow
class RemovalTest(WriterTest):
  def test_the_last_ones_are_kept(self):
    self.save(10, 20, 30, 40, keep=2)
    self.assert_good(30, 40)

  def test_all_are_kept(self):
    self.save(0, 10, 20, 30, keep=0)
    self.assert_good(0, 10, 20, 30)

  def test_a_temporary_one_goes_when_a_later_one_is_sealed(self):
    with self.writer(keep=3) as writer:
      for step in (10, 15, 20, 30):
        writer.save(step, items(step), {}, temporary=step == 15)
        writer.wait()
        if step == 15:
          self.assert_good(10, 15)
    self.assert_good(10, 20, 30)

  def test_a_temporary_one_of_an_earlier_process_goes_as_well(self):
    self.save(10, keep=0)
    self.save(15, keep=0, temporary=True)
    self.assert_good(10, 15)
    self.save(20, keep=0)
    self.assert_good(10, 20)

  def test_a_temporary_one_may_become_permanent(self):
    self.save(10, 20, temporary=True)
    self.save(20, 30)
    self.assert_good(20, 30)

  def test_the_best_is_kept_until_a_later_best_is_sealed(self):
    with self.writer(keep=2) as writer:
      for step in range(10, 60, 10):
        writer.save(step, items(step), {}, best=step in (10, 20))
    self.assert_good(20, 40, 50)
    self.assertEqual(checkpoints.best_step(self.folder), 20)
    with self.writer(keep=2) as writer:  # Another process knows of it.
      writer.save(60, items(60), {})
      writer.wait()
      self.assert_good(20, 50, 60)
      writer.save(70, items(70), {}, best=True)
    self.assert_good(60, 70)
    self.assertEqual(checkpoints.best_step(self.folder), 70)

  def test_a_temporary_best_is_kept_as_well(self):
    self.save(10, keep=0, temporary=True, best=True)
    self.save(20, 30, keep=0)
    self.assert_good(10, 20, 30)
    self.save(40, keep=0, best=True)
    self.assert_good(20, 30, 40)

  def test_one_of_the_same_step_is_replaced(self):
    with self.writer() as writer:
      for step, number in ((10, 10), (20, 0), (20, 20)):
        writer.save(step, items(number), {})
    self.assert_good(10, 20)
    self.save(20)
    self.assert_good(10, 20)

  def test_later_ones_go_when_an_earlier_one_is_sealed(self):
    self.save(10, 20, 30, keep=0)
    self.save(15, keep=0)
    self.assert_good(10, 15)

  def test_later_ones_go_on_request(self):
    self.save(10, 20, 30, keep=0)
    with self.writer(keep=0) as writer:
      writer.clear_later(20)
      self.assert_good(10, 20)
      writer.save(30, items(30), {})
      writer.clear_later(30)
    self.assert_good(10, 20, 30)

  def test_temporary_ones_go_on_request(self):
    with mock.patch.object(checkpoint_writer.CheckpointWriter, '_prune'):
      self.save(10, temporary=True)
      self.save(20, 30)
    with self.writer(keep=0) as writer:
      writer.clear_later(25)  # No checkpoint: those before it are needed.
      self.assert_good(10, 20)
      writer.clear_later(20)
      self.assert_good(20)

  def test_what_has_no_seal_goes_when_a_later_one_is_sealed(self):
    self.save(10, 20, keep=0)
    (self.folder / 'checkpoints/000000020/record.json').unlink()
    self.save(40, keep=0)
    self.assert_good(10, 40)
    self.assertEqual(checkpoints.scheduled(self.folder), [10, 40])

  def test_what_lost_its_seal_stays_where_a_later_record_names_it(self):
    self.save(10, 20, keep=0)
    (self.folder / 'checkpoints/000000010/record.json').unlink()
    self.save(30, keep=0)
    self.assertEqual(self.steps(), [10, 20, 30])
    self.assertEqual(checkpoints.scheduled(self.folder), [10, 20, 30])

  def test_a_damaged_record_does_not_remove_one_where_all_are_kept(self):
    self.save(10, 20, keep=0)
    record = self.folder / 'checkpoints/000000010/record.json'
    record.write_text(record.read_text()[:20])
    self.save(30, keep=0)
    self.assertEqual(self.steps(), [10, 20, 30])

  def test_what_has_no_seal_takes_no_place_of_a_good_one(self):
    """Killed between commit and seal at 25: 10 has to last until 40 is good."""
    self.save(10, 25, keep=0)
    (self.folder / 'checkpoints/000000025/record.json').unlink()
    seen, seal = [], files.write_sealed

    def note(path, record):
      seen.append(self.steps())
      seal(path, record)

    with mock.patch.object(files, 'write_sealed', note):
      self.save(40, keep=2)
    self.assertEqual(seen, [[10, 25, 40]])
    self.assert_good(10, 40)

  def test_what_orbax_did_not_finish_goes(self):
    self.save(10)
    path = self.folder / 'checkpoints/000000020.orbax-checkpoint-tmp/params'
    path.mkdir(parents=True)
    (path / 'data').write_text('half')
    self.save(30)
    self.assertFalse(path.parent.exists())
    self.assert_good(10, 30)

  def test_one_that_somebody_removed_does_no_harm(self):
    with self.writer() as writer:
      for step in (10, 20):
        writer.save(step, items(step), {})
      writer.wait()
      checkpoints.remove(self.folder, 10)
      writer.save(30, items(30), {})
    self.assert_good(20, 30)


class FailureTest(WriterTest):
  def broken(self, error=None):
    """Every seal fails, as on a full disk."""
    error = error or OSError(28, os.strerror(28))
    return mock.patch.object(
      checkpoint_writer.checkpoints, 'file_digests', side_effect=error
    )

  def test_is_raised_when_waited_for(self):
    message = 'Cannot write .*000000020: No space left on device. Make room'
    with self.writer() as writer:
      writer.save(10, items(10), {})
      writer.wait()
      with self.broken():
        writer.save(20, items(20), {})
        with self.assertRaisesRegex(errors.UserError, message) as caught:
          writer.wait()
      self.assertIsInstance(caught.exception.__cause__, OSError)
      writer.wait()  # Once is enough.
      with self.assertLogs(level='WARNING'):
        self.assertEqual(checkpoints.latest(self.folder), 10)
      writer.save(20, items(20), {})
    self.assert_good(10, 20)

  def test_is_raised_by_the_next_save(self):
    with self.writer() as writer, self.broken():
      writer.save(10, items(10), {})
      with self.assertRaisesRegex(errors.UserError, 'Cannot write'):
        writer.save(20, items(20), {})

  def test_is_raised_at_the_end(self):
    with (
      self.assertRaisesRegex(errors.UserError, 'Cannot write'),
      self.broken(),
      self.writer() as writer,
    ):
      writer.save(10, items(10), {})

  def test_an_error_of_the_disk_that_has_no_number(self):
    error = ValueError('UNKNOWN: Error writing "x": Too many open files')
    arrays = mock.patch.object(ocp.CheckpointManager, 'save', side_effect=error)
    with self.writer() as writer, arrays:
      writer.save(10, items(10), {})
      with self.assertRaisesRegex(errors.UserError, 'Allow more open files'):
        writer.wait()

  def test_a_fault_of_the_program_is_not_taken_for_one_of_the_disk(self):
    with self.writer() as writer, self.broken(ZeroDivisionError()):
      writer.save(10, items(10), {})
      with self.assertRaises(ZeroDivisionError):
        writer.wait()

  def test_nothing_is_removed_for_one_that_failed(self):
    with self.writer() as writer:
      for step in (10, 20):
        writer.save(step, items(step), {})
      writer.wait()
      with self.broken():
        writer.save(30, items(30), {})
        with self.assertRaises(errors.UserError):
          writer.wait()
      self.assertEqual(self.steps(), [10, 20, 30])
      writer.save(40, items(40), {})
    self.assert_good(20, 40)

  def test_an_exception_is_not_hidden(self):
    """The last checkpoint is finished; one that fails is logged."""
    with self.assertRaises(ZeroDivisionError), self.writer() as writer:
      writer.save(10, items(10), {})
      raise ZeroDivisionError
    self.assert_good(10)
    with (
      self.broken(),
      self.assertLogs(level='WARNING') as log,
      self.assertRaises(ZeroDivisionError),
      self.writer() as writer,
    ):
      writer.save(20, items(20), {})
      raise ZeroDivisionError
    self.assertRegex(log.output[0], 'is not saved: Cannot write .*000000020')

  def test_an_exception_does_not_wait_for_ever(self):
    held, done = threading.Event(), threading.Event()

    def hang(path):
      held.wait()
      done.set()
      return {}

    with (
      mock.patch.object(checkpoint_writer, 'PATIENCE', 0.1),
      mock.patch.object(checkpoint_writer, '_sync_all', hang),
      self.assertLogs(level='WARNING') as log,
      self.assertRaises(ZeroDivisionError),
      self.writer() as writer,
    ):
      writer.save(10, items(10), {})
      raise ZeroDivisionError
    self.assertRegex(log.output[0], 'last checkpoint of .* is given up')
    thread = writer._thread
    self.assertTrue(thread.daemon)
    held.set()
    thread.join()
    self.assertTrue(done.is_set())
    with self.assertLogs(level='WARNING'):  # It is not sealed behind the back.
      self.assertIsNone(checkpoints.latest(self.folder))

  def test_a_disk_without_room(self):
    """Noticed before orbax begins."""
    usage = mock.Mock(total=2**30, free=2**17)
    path = self.folder / 'checkpoints'
    with self.writer() as writer:
      writer.save(10, items(10), {})
      writer.wait()
      with mock.patch.object(
        checkpoint_writer.shutil, 'disk_usage', lambda _: usage
      ):
        writer.save(20, items(20), {})
        with self.assertRaisesRegex(errors.UserError, 'No space left'):
          writer.wait()
        self.assertEqual([p.name for p in path.iterdir()], ['000000010'])
        usage.total = usage.free = 0  # A disk that does not say.
        writer.save(20, items(20), {})
    self.assert_good(10, 20)


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
  'seal': (files, 'write_sealed'),
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
assert checkpoints.best_step(folder) == 1
shape = jax.ShapeDtypeStruct((8,), 'float32', sharding=sharding)
found = checkpoints.restore(folder, 3, {'params': [shape]})['params'][0]
for shard in found.addressable_shards:
  np.testing.assert_array_equal(shard.data, values[shard.index] + 3)
found = checkpoints.read_local(folder, 3, f'loader-{number}')
assert found == {'step': 3, 'process': number}, found
multihost.leave()
os._exit(0)
"""


@pytest.mark.slow
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
    moments = ('arrays', 'commit', 'seal', 'prune')
    found = self.statuses(KILLED, *moments)
    self.assertEqual(found, [-signal.SIGKILL] * 4)
    root = self.folder
    for moment in moments:
      with self.subTest(moment):
        self.folder = root / moment
        self.assert_goes_on(moment)

  def assert_goes_on(self, moment):
    """A run that was killed at this moment has a checkpoint, and saves more."""
    expected = {'seal': [10, 20, 30], 'prune': [10, 20, 30]}
    self.assertEqual(self.steps(), expected.get(moment, [10, 20]))
    if moment == 'seal':
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
    for case in reasons:
      (self.folder / case).mkdir(parents=True)
    mounts = (
      f'mount -t tmpfs -o size=2m tmpfs {self.folder}/{case}'
      for case in reasons
    )
    drop = 'exec setpriv --bounding-set=-dac_override "$@"'
    script = ' && '.join([*mounts, drop])
    before = ('unshare', '--mount', '--map-root-user', 'sh', '-c', script, '-')
    if subprocess.run([*before, 'true'], check=False).returncode:
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
