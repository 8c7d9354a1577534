"""What is packed is unpacked, and nothing else."""

import json

from absl.testing import parameterized
import chex
import jax.numpy as jnp
import numpy as np

from cxjax.training.target_cache import records

DIGEST = '0123456789abcdef'


def stored():
  random = np.random.default_rng(0)
  normal = lambda *shape: random.normal(size=shape).astype(np.float32)
  return {
    'rows': {'tokens': random.integers(0, 9, (1, 4, 6), np.int32)},
    'targets': {
      'block0/mlp': normal(2, 4, 3),
      'block0': {'mlp': normal(1)},  # One of another path of the same text.
      'a.b#2': normal(2, 4).astype(jnp.bfloat16),
      'output': {'classes': np.arange(8).reshape(2, 4), 'logits': normal(2, 4)},
    },
  }


def packed(tree, place='cache 0 3'):
  arrays = json.loads(json.dumps(records.describe_arrays(tree)))
  return records.pack(tree, DIGEST, place), arrays


class RecordsTest(parameterized.TestCase):
  def test_what_is_packed_is_unpacked(self):
    record, arrays = packed(stored())
    found, digest = records.unpack(record, arrays, 'cache 0 3')
    chex.assert_trees_all_equal(found, stored())
    self.assertEqual(found['targets']['a.b#2'].dtype, jnp.bfloat16)
    self.assertEqual(digest, DIGEST)
    self.assertEqual(len(record), records.raw_bytes(arrays) + 20)

  def test_a_batch_may_be_a_key_alone(self):
    """A stage that learns labels, of a task that needs no rows."""
    record, arrays = packed({'rows': {}, 'targets': {}})
    self.assertEqual(arrays, [])
    found = records.unpack(record, arrays, 'cache 0 3')
    self.assertEqual(found, ({}, DIGEST))

  def test_a_flip_of_any_byte_is_noticed(self):
    record, arrays = packed(stored())
    for at in range(len(record)):
      flipped = bytearray(record)
      flipped[at] ^= 1
      self.assertIsNone(records.unpack(bytes(flipped), arrays, 'cache 0 3'))

  @parameterized.parameters('cache 0 4', 'cache 1 3', 'other 0 3')
  def test_another_place_is_noticed(self, place):
    record, arrays = packed(stored())
    self.assertIsNone(records.unpack(record, arrays, place))

  def test_another_length_is_noticed(self):
    record, arrays = packed(stored())
    for other in (record[:-1], record + b'0', b''):
      self.assertIsNone(records.unpack(other, arrays, 'cache 0 3'))
    self.assertIsNone(records.unpack(record, arrays[:-1], 'cache 0 3'))

  @parameterized.parameters(
    (0, 5, 10, [0, 1, 2, 3, 4]),
    (8, 5, 10, [0, 1, 2, 8, 9]),
    (8, 25, 10, list(range(10))),
  )
  def test_batch_numbers(self, begin, steps, period, expected):
    found = records.batch_numbers(begin, steps, period)
    self.assertEqual(found.tolist(), expected)
