"""Checkpoints are written in the background, and none is lost on the way."""

import os
import pathlib
import threading
import time
from unittest import mock

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax import files
from cxjax.training import checkpoint_writer
from cxjax.training import checkpoints
from tests.training.written import WriterTest
from tests.training.written import items
from tests.training.written import template


class SaveTest(WriterTest):
  @pytest.mark.slow
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
        'empty': jnp.zeros((0, 3), jnp.bfloat16),
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
  @pytest.mark.slow
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
    write = files.write_with_digest

    def late(*args):
      started.set()
      held.wait()
      write(*args)

    with (
      mock.patch.object(files, 'write_with_digest', late),
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
    complete, write = [], files.write_with_digest

    def late(path, record):
      time.sleep(0.2)
      write(path, record)
      complete.append(record['step'])

    with (
      mock.patch.object(files, 'write_with_digest', late),
      self.writer() as writer,
    ):
      writer.save(1, items(1), {})
      writer.save(2, items(2), {})
      self.assertEqual(complete, [1])
    self.assertEqual(complete, [1, 2])
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

  def test_everything_is_on_the_disk_before_the_record(self):
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

  def test_a_temporary_one_goes_when_a_later_one_is_complete(self):
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

  def test_the_best_is_kept_until_a_later_best_is_complete(self):
    with self.writer(keep=2) as writer:
      for step in range(10, 60, 10):
        writer.save(step, items(step), {}, best=step in (10, 20))
    self.assert_good(20, 40, 50)
    with self.writer(keep=2) as writer:  # Another process knows of it.
      writer.save(60, items(60), {})
      writer.wait()
      self.assert_good(20, 50, 60)
      writer.save(70, items(70), {}, best=True)
    self.assert_good(60, 70)

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

  def test_later_ones_go_when_an_earlier_one_is_complete(self):
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

  def test_what_has_no_record_goes_when_a_later_one_is_complete(self):
    self.save(10, 20, keep=0)
    (self.folder / 'checkpoints/000000020/record.json').unlink()
    self.save(40, keep=0)
    self.assert_good(10, 40)
    self.assertEqual(checkpoints.scheduled(self.folder), [10, 40])

  def test_what_lost_its_record_stays_where_a_later_record_names_it(self):
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

  def test_what_has_no_record_takes_no_place_of_a_good_one(self):
    """Killed before the record of 25: 10 has to last until 40 is good."""
    self.save(10, 25, keep=0)
    (self.folder / 'checkpoints/000000025/record.json').unlink()
    seen, write = [], files.write_with_digest

    def note(path, record):
      seen.append(self.steps())
      write(path, record)

    with mock.patch.object(files, 'write_with_digest', note):
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
