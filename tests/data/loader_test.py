"""Tests of the loaders: order, state, reading ahead, shards, the end."""

import itertools
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import grain
import jax
import numpy as np
import pytest

from cxjax import errors
from cxjax.data import loader
from cxjax.data import user_loader
from cxjax.parallel import mesh as mesh_lib
from cxjax.parallel import multihost

STEPS, BATCH = 5, 4
ROOT = pathlib.Path(__file__).parent.parent.parent
# Two processes of three devices on a mesh where both hold the rows in between.
OVERLAP = """
import sys
import jax, numpy as np
from cxjax.data import loader
from cxjax.parallel import mesh as mesh_lib
from cxjax.parallel import multihost
multihost.join(sys.argv[1], 2, int(sys.argv[2]))
class Shard:
  def __init__(self, number):
    self.number, self.taken = number, 0
  def __iter__(self):
    return self
  def __next__(self):
    self.taken += 1
    return 100 * self.taken + 2 * self.number + np.arange(2)
  def get_state(self):
    return self.taken
mesh = mesh_lib.make({'data': 3, 'model': 2}, 6)
like = jax.ShapeDtypeStruct((6,), np.int32)
shards = [[Shard(number)] for number in range(3)]
with loader.HostLoader(shards, 2, mesh, like) as opened:
  rows = opened.rows(0)
  assert rows.shape == (2, 1, 6), rows.shape
  want = np.array([[100, 200]]).T[:, None] + np.arange(6)
  for shard in rows.addressable_shards:
    np.testing.assert_array_equal(shard.data, want[shard.index])
  print(sorted(opened.state(0)))
"""


def mesh_of(**sizes):
  return mesh_lib.make(sizes or {'data': 1}, BATCH)


class Counter(loader.Prefetch):
  """Chunk `n` is the number `n`; a state is the number of the next chunk."""

  def __init__(self, steps=STEPS, last=99):
    super().__init__(steps, mesh_of())
    self.at, self.last, self.read = 0, last, threading.Semaphore(0)

  def _read(self):
    if self.at > self.last:
      raise errors.UserError('There is no more.')
    number, self.at = self.at, self.at + 1
    self.read.release()
    return {'at': number}, number

  def _set(self, read):
    self.at = read('at')


class PrefetchTest(parameterized.TestCase):
  def test_every_step_of_a_chunk_gets_the_chunk(self):
    with Counter() as opened:
      found = [opened.rows(step) for step in range(20)]
    self.assertEqual(found, [step // STEPS for step in range(20)])

  def test_reads_one_chunk_ahead_and_no_more(self):
    with Counter() as opened:
      self.assertEqual(opened.at, 0)
      opened.rows(0)
      for _ in range(2):
        self.assertTrue(opened.read.acquire(timeout=30))
      self.assertFalse(opened.read.acquire(timeout=0.1))
      self.assertEqual(opened.at, 2)

  def test_a_chunk_cannot_be_skipped(self):
    with Counter() as opened:
      opened.rows(0)
      with self.assertRaises(AssertionError):
        opened.rows(2 * STEPS)

  def test_the_state_is_that_before_the_chunk_of_the_step(self):
    with Counter() as opened:
      for step in (0, 2, 4, 5, 9, 10):
        opened.rows(max(step - 1, 0))  # At its end a chunk is not asked for.
        self.assertEqual(opened.state(step), {'at': step // STEPS})

  def test_continues_anywhere_even_while_it_reads(self):
    with Counter() as opened:
      opened.rows(0)
      for step in (17, 3, 25):
        opened.restore(step, {'at': step // STEPS}.__getitem__)
        self.assertEqual(opened.rows(step), step // STEPS)
        self.assertEqual(opened.rows(step + STEPS), step // STEPS + 1)

  def test_an_error_while_reading_ahead_is_raised_when_it_is_reached(self):
    with Counter(last=0) as opened:
      self.assertEqual(opened.rows(4), 0)
      for _ in range(2):
        with self.assertRaisesRegex(errors.UserError, 'no more'):
          opened.rows(5)

  def test_has_no_targets(self):
    with Counter() as opened:
      self.assertIsNone(opened.targets(0))


def stream_of(number, size=BATCH):
  """Endless batches of three columns; example `i` of batch `b` is distinct."""

  def make(index):
    example = 100 * index + 10 * number + np.arange(size)
    return {'a': np.repeat(example[:, None], 3, 1).astype(np.int32)}

  return grain.MapDataset.range(10**6).map(make).to_iter_dataset()


def shapes_of(size=BATCH):
  return {'a': jax.ShapeDtypeStruct((size, 3), np.int32)}


class HostLoaderTest(parameterized.TestCase):
  def test_order_and_shape(self):
    shards = [[stream_of(0), stream_of(1)]]
    with loader.HostLoader(shards, STEPS, mesh_of(), shapes_of()) as opened:
      for step in (0, STEPS, 2 * STEPS):
        rows = opened.rows(step)['a']
        self.assertEqual(rows.shape, (STEPS, 2, BATCH, 3))
        steps, streams = np.arange(step, step + STEPS), np.arange(2)
        want = 100 * steps[:, None, None] + 10 * streams[:, None]
        want = want + np.arange(BATCH)
        np.testing.assert_array_equal(rows[..., 0], want)

  @parameterized.parameters(1, 2, 4)
  def test_examples_are_sharded_over_the_devices(self, number):
    mesh = mesh_of(data=number)
    shards = [[stream_of(i, 2)] for i in range(2)]
    with loader.HostLoader(shards, STEPS, mesh, shapes_of()) as opened:
      rows = opened.rows(0)['a']
    # Shards of a batch follow each other.
    np.testing.assert_array_equal(rows[2, 0, :, 0], [200, 201, 210, 211])
    size = BATCH // number
    for shard in rows.addressable_shards:
      self.assertEqual(shard.data.shape, (STEPS, 1, size, 3))
      np.testing.assert_array_equal(shard.data, rows[shard.index])

  def test_no_setting_of_the_caller_forbids_the_devices(self):
    before = jax.config.jax_transfer_guard
    jax.config.update('jax_transfer_guard', 'disallow_explicit')
    self.addCleanup(jax.config.update, 'jax_transfer_guard', before)
    shards = [[stream_of(0)]]
    with loader.HostLoader(shards, STEPS, mesh_of(), shapes_of()) as opened:
      rows = opened.rows(0)
    self.assertEqual(rows['a'].shape, (STEPS, 1, BATCH, 3))

  @pytest.mark.slow
  def test_a_state_continues_anywhere(self):
    def opened():
      shards = [[stream_of(2 * i + j, 2) for j in range(2)] for i in range(2)]
      return loader.HostLoader(shards, STEPS, mesh_of(), shapes_of())

    with opened() as whole:
      chunks, states = [], []
      for step in range(0, 20, STEPS):
        states.append(whole.state(step))
        chunks.append(whole.rows(step))
        states.append(whole.state(step + 2))
    self.assertEqual(list(states[0]), ['loader-00000', 'loader-00001'])
    for at, state in zip((0, 0, 1, 1, 2, 2, 3, 3), states, strict=True):
      state = json.loads(json.dumps(state))
      with opened() as again:
        again.restore(STEPS * at, state.__getitem__)
        for later in range(at, min(at + 2, 4)):
          np.testing.assert_array_equal(
            again.rows(STEPS * later)['a'], chunks[later]['a']
          )

  def test_a_process_opens_the_shards_that_it_needs(self):
    mesh, opened = mesh_of(data=2), []

    class Shard:
      def __init__(self, number):
        self.number = number

      def __iter__(self):
        opened.append(self.number)
        return iter(())

    shards = [[Shard(0)], [Shard(1)]]
    make = lambda: loader.HostLoader(shards, STEPS, mesh, shapes_of())
    make()
    self.assertEqual(opened, [0, 1])
    opened.clear()
    with mock.patch.object(mesh_lib, 'own_rows', lambda *_: [2, 3]):
      make()
    self.assertEqual(opened, [1])
    with (
      mock.patch.object(mesh_lib, 'own_rows', lambda *_: [2]),
      mock.patch.object(multihost, 'count', lambda: 4),
      self.assertRaisesRegex(errors.UserError, 'data.shards=2: 4 processes'),
    ):
      make()

  def test_a_process_may_need_less_than_the_shards_that_it_reads(self):
    # As the second of four processes with three devices each, on a mesh of
    # data=6, model=2.
    shards, like = [[stream_of(i, 2)] for i in range(3)], shapes_of(6)
    with (
      mock.patch.object(mesh_lib, 'own_rows', lambda *_: [1, 2]),
      mock.patch.object(jax, 'make_array_from_process_local_data') as place,
      loader.HostLoader(shards, STEPS, mesh_of(), like) as opened,
    ):
      opened.rows(0)
      state = opened.state(0)
    self.assertEqual(list(state), ['loader-00000', 'loader-00001'])
    _, local, shape = place.call_args_list[0].args
    self.assertEqual(shape, (STEPS, 1, 6, 3))
    np.testing.assert_array_equal(local[2, 0, :, 0], [201, 210])

  @pytest.mark.slow
  def test_processes_that_share_rows(self):
    with socket.socket() as one:
      one.bind(('127.0.0.1', 0))
      port = one.getsockname()[1]
    processes = [
      subprocess.Popen(
        [sys.executable, '-c', OVERLAP, f'127.0.0.1:{port}', str(i)],
        cwd=ROOT,
        env={**os.environ, 'JAX_NUM_CPU_DEVICES': '3'},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
      for i in range(2)
    ]
    names = [
      "['loader-00000', 'loader-00001']",
      "['loader-00002']",  # The state of what both read is saved by one.
    ]
    try:
      for process, want in zip(processes, names, strict=True):
        out, err = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 0, err)
        self.assertEqual(out.splitlines()[-1], want)
    finally:
      for process in processes:
        process.kill()
        process.communicate()


class Own:
  """An iterator with a state of its own."""

  def __init__(self, items):
    self.items, self.at = items, 0

  def __iter__(self):
    return self

  def __next__(self):
    if self.at == len(self.items):
      raise StopIteration
    self.at += 1
    return self.items[self.at - 1]

  def get_state(self):
    return self.at

  def set_state(self, state):
    self.at = state


ITEMS = [np.full(2, i) for i in range(4)]
LIKE = jax.ShapeDtypeStruct((2,), np.int32)


def first(stream, number):
  return [int(item[0]) for item in itertools.islice(stream, number)]


class BatchStreamTest(parameterized.TestCase):
  def test_a_list_is_restarted(self):
    stream = loader.BatchStream(ITEMS, LIKE)
    self.assertEqual(first(stream, 10), [0, 1, 2, 3, 0, 1, 2, 3, 0, 1])

  def test_an_iterator_ends(self):
    stream = loader.BatchStream(iter(ITEMS), LIKE)
    self.assertEqual(first(stream, 4), [0, 1, 2, 3])
    with self.assertRaisesRegex(errors.UserError, 'batches ended after 4'):
      next(stream)

  def test_no_batch_is_read_beyond_the_limit(self):
    stream = loader.BatchStream(iter(ITEMS[1:]), LIKE, limit=3)
    self.assertEqual(first(stream, 5), [1, 2, 3, 0, 0])
    self.assertEqual(next(stream).dtype, np.int32)

  def test_items_are_converted_and_checked(self):
    stream = loader.BatchStream(ITEMS, LIKE, lambda item: item * 2)
    self.assertEqual(first(stream, 3), [0, 2, 4])
    stream = loader.BatchStream(ITEMS, LIKE, lambda item: item[:1])
    with self.assertRaisesRegex(
      errors.UserError, r'of batch 1 has shape \[1\]'
    ):
      next(stream)

  @parameterized.named_parameters(
    ('list', lambda: ITEMS, None),
    ('iterator', lambda: iter(ITEMS), None),
    ('own_state', lambda: Own(ITEMS), 3),
  )
  def test_a_state_continues(self, make, own):
    stream = loader.BatchStream(make(), LIKE)
    first(stream, 3)
    state = json.loads(json.dumps(stream.get_state()))
    self.assertEqual(state, {'taken': 3, 'own': own, 'served': 3})
    again = loader.BatchStream(make(), LIKE)
    again.set_state(state)
    self.assertEqual(first(again, 1), [3])
    self.assertEqual(again.get_state()['taken'], 4)

  def test_an_iterator_whose_first_item_was_looked_at_continues(self):
    user = user_loader.UserLoader(iter(ITEMS))
    user.first()
    stream = loader.BatchStream(user, LIKE)
    stream.set_state({'taken': 2, 'own': None, 'served': 2})
    self.assertEqual(first(stream, 2), [2, 3])

  def test_a_list_may_be_set_back(self):
    stream = loader.BatchStream(ITEMS, LIKE)
    state = stream.get_state()
    first(stream, 3)
    stream.set_state(state)
    self.assertEqual(first(stream, 2), [0, 1])

  def test_a_state_beyond_the_end(self):
    stream = loader.BatchStream(iter(ITEMS), LIKE)
    with self.assertRaisesRegex(errors.UserError, 'The batches ended'):
      stream.set_state({'taken': 9, 'own': None, 'served': 9})


if __name__ == '__main__':
  absltest.main()
