"""Tests of sequence packing."""

import collections
import functools
import itertools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import pytest

from cxjax import errors
from cxjax.data import packing

LENGTH, PAD, CLS = 24, 0, 1
IDS = {'length': LENGTH, 'pad_id': PAD, 'cls_id': CLS}
RNG = np.random.default_rng(0)
# 200 documents of 3 to 80 tokens, none of them special.
DOCUMENTS = [
  RNG.integers(3, 90, size, np.int32) for size in RNG.integers(3, 80, 200)
]


def chunks(rows):
  """The chunks of `[N, L]` rows, as tuples of ids."""
  for tokens, segments in zip(rows['tokens'], rows['segments'], strict=True):
    for number in range(1, segments.max() + 1):
      yield tuple(tokens[segments == number].tolist())


def batches(seed, number):
  dataset = packing.pack(DOCUMENTS, **IDS, batch_size=4, seed=seed)
  return list(itertools.islice(dataset, number))


class PackTest(parameterized.TestCase):
  def test_every_token_once_and_no_chunk_of_two_documents(self):
    want = collections.Counter()
    for document in DOCUMENTS:
      ids = document.tolist()
      for i in range(0, len(ids), LENGTH - 1):
        want[(CLS, *ids[i : i + LENGTH - 1])] += 1
    found = packing.pack(DOCUMENTS, **IDS, batch_size=1, seed=None)
    rows = jax.tree.map(lambda *leaves: np.concatenate(leaves), *found)
    self.assertEqual(collections.Counter(chunks(rows)), want)
    padding = rows['segments'] == 0
    self.assertTrue((rows['tokens'][padding] == PAD).all())
    self.assertLess(padding.mean(), 0.2)

  def test_shapes_are_those_of_the_spec(self):
    (batch,) = batches(seed=0, number=1)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), batch)
    spec = packing.spec(4, LENGTH)
    self.assertEqual(
      shapes, jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), spec)
    )

  def test_a_shard_reads_documents_of_its_own(self):
    def read(documents, shard):
      rows = packing.pack(documents, **IDS, batch_size=2, seed=0, shard=shard)
      some = itertools.islice(rows, 40)
      return {chunk for batch in some for chunk in chunks(batch)}

    odd = [DOCUMENTS[i] for i in range(1, len(DOCUMENTS), 2)]
    every = read(odd, (0, 1))
    own, other = (read(DOCUMENTS, (i, 2)) for i in (1, 0))
    self.assertNotEmpty(own & every)
    self.assertEmpty(own & other)

  @pytest.mark.slow
  def test_shards_read_in_orders_of_their_own(self):
    """Neighbors in a text, which are often alike, do not share batches."""
    twice = [one for one in DOCUMENTS[:40] for _ in range(2)]
    one, two = (
      next(iter(packing.pack(twice, **IDS, batch_size=4, seed=0, shard=(i, 2))))
      for i in range(2)
    )
    self.assertFalse((one['tokens'] == two['tokens']).all())

  def test_more_shards_than_documents(self):
    with self.assertRaisesRegex(errors.UserError, r'read in data.shards=300'):
      packing.pack(DOCUMENTS, **IDS, batch_size=2, seed=0, shard=(0, 300))

  def test_a_shard_without_a_token(self):
    empty, some = np.zeros(0, np.int32), np.arange(3, 9, dtype=np.int32)
    few = [empty, some, empty, empty, empty]
    for found in (few, [{'tokens': one} for one in few]):
      pack = functools.partial(packing.pack, found, **IDS, batch_size=2, seed=0)
      with self.assertRaisesRegex(
        errors.UserError, 'part 1 of data.shards=2 has a token'
      ):
        pack(shard=(0, 2))

  @pytest.mark.slow
  def test_documents_without_a_token_are_skipped(self):
    few = [np.zeros(0, np.int32), np.arange(3, 9, dtype=np.int32)]
    found = packing.pack(few, **IDS, batch_size=2, seed=0)
    tokens = next(iter(found))['tokens']
    self.assertContainsSubset(range(3, 9), np.unique(tokens))

  def test_position_ids_count_from_the_start_of_a_chunk(self):
    rows = packing.held_out_rows(DOCUMENTS, 50, **IDS)
    begins = rows['tokens'] == CLS
    self.assertTrue((rows['position_ids'][begins] == 0).all())
    inside = (rows['segments'][:, 1:] == rows['segments'][:, :-1]) & (
      rows['segments'][:, 1:] > 0
    )
    step = np.diff(rows['position_ids'], axis=1)
    self.assertTrue((step[inside] == 1).all())

  @pytest.mark.slow
  def test_the_order_depends_on_the_seed_and_is_new_in_every_epoch(self):
    one, two, other = (batches(seed, 140) for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    self.assertFalse((one[0]['tokens'] == other[0]['tokens']).all())
    epoch = len(list(packing.pack(DOCUMENTS, **IDS, batch_size=4, seed=None)))
    self.assertBetween(epoch, 70, 110)
    self.assertLen({batch['tokens'].tobytes() for batch in one}, 140)

  def test_an_iterator_restores_its_state(self):
    dataset = packing.pack(DOCUMENTS, **IDS, batch_size=4, seed=3)
    whole, again = iter(dataset), iter(dataset)
    for _ in range(5):
      next(whole)
    again.set_state(whole.get_state())
    for _ in range(3):
      jax.tree.map(np.testing.assert_array_equal, next(again), next(whole))


class HeldOutTest(parameterized.TestCase):
  def test_the_first_rows(self):
    found = packing.held_out_rows(DOCUMENTS, 50, **IDS)
    rows = packing.pack(DOCUMENTS, **IDS, batch_size=50, seed=None)
    jax.tree.map(np.testing.assert_array_equal, found, next(iter(rows)))

  def test_fewer_are_a_multiple_of_32(self):
    number = len(list(packing.pack(DOCUMENTS, **IDS, batch_size=1, seed=None)))
    self.assertNotEqual(number % 32, 0)
    rows = packing.held_out_rows(DOCUMENTS, 10**6, **IDS)
    self.assertLen(rows['tokens'], number // 32 * 32)

  def test_a_tenth_that_is_left_out_is_warned_of(self):
    few = [np.full(LENGTH - 1, 9, np.int32)] * 40
    with self.assertLogs(level='WARNING') as logs:
      rows = packing.held_out_rows(few, 99, **IDS)
    self.assertLen(rows['tokens'], 32)
    self.assertIn('fill 40 rows, and the first 32 are read', logs.output[0])
    both = 'set data.eval_size=40, or in Python call held_out(key, 40).'
    self.assertIn(both, logs.output[0])
    self.assertLen(packing.held_out_rows(few, 40, **IDS)['tokens'], 40)

  def test_few_rows_are_all_kept(self):
    few = DOCUMENTS[:3]
    number = len(list(packing.pack(few, **IDS, batch_size=1, seed=None)))
    rows = packing.held_out_rows(few, 99, **IDS)
    self.assertLen(rows['tokens'], number)

  def test_no_token(self):
    empty = [np.zeros(0, np.int32)]
    with self.assertRaisesRegex(errors.UserError, 'Raise data.held_out'):
      packing.held_out_rows(empty, 4, **IDS)


if __name__ == '__main__':
  absltest.main()
