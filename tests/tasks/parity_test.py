"""Tests of the parity tasks."""

import functools
import itertools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import pytest

from cxjax import errors
from cxjax.tasks import parity

NUM = 4096


def make(d=70, k=3, depth=1, support='random', seed=0):
  key = jax.random.key(seed)
  return parity.make(d=d, k=k, depth=depth, support=support, key=key)


@functools.cache
def sample(d, k, depth):
  """A task and a batch of `NUM` examples."""
  task = make(d, k, depth)
  batch_of = jax.jit(task.batch, static_argnums=2)
  batch = batch_of(jax.random.key(1), 0, NUM)
  return task, jax.tree.map(np.asarray, batch)


def walk(x, supports, depth):
  """The leaf of one input, by the tree of the docstring."""
  level, leaf = list(supports), 0
  for height in range(depth):
    # Breadth first: the nodes of this height come before those below it.
    nodes, level = level[: 2**height], level[2**height :]
    right = np.prod([x[i] for i in nodes[leaf]]) < 0
    leaf = 2 * leaf + int(right)
  return leaf


class BatchTest(parameterized.TestCase):
  @parameterized.parameters((70, 3), (33, 33))
  @pytest.mark.slow
  def test_plain_label_is_one_where_the_product_is_negative(self, d, k):
    task, batch = sample(d, k, 1)
    product = batch['x'][:, list(task.supports[0])].prod(-1)
    np.testing.assert_array_equal(batch['y'], product < 0)

  @parameterized.parameters(1, 2, 3)
  def test_label_is_the_leaf_of_the_tree(self, depth):
    task, batch = sample(70, 3, depth)
    self.assertEqual(task.num_classes, 2**depth)
    leaves = [walk(x, task.supports, depth) for x in batch['x'][:500]]
    np.testing.assert_array_equal(batch['y'][:500], leaves)

  def test_shapes_and_types(self):
    _, batch = sample(70, 3, 1)
    self.assertEqual(batch['x'].shape, (NUM, 70))
    self.assertEqual(batch['x'].dtype, np.float32)
    self.assertEqual(batch['y'].shape, (NUM,))
    self.assertEqual(batch['y'].dtype, np.int32)

  # Means of +-1 have the standard error 1/sqrt(NUM); the largest of 2485 is
  # within 5 of them.
  def test_coordinates_are_fair_and_uncorrelated(self):
    _, batch = sample(70, 3, 1)
    x = batch['x']
    np.testing.assert_array_equal(np.unique(x), [-1, 1])
    second = x.T @ x / NUM
    np.testing.assert_allclose(second, np.eye(70), atol=5 / np.sqrt(NUM))
    np.testing.assert_allclose(x.mean(0), 0, atol=5 / np.sqrt(NUM))

  def test_examples_differ(self):
    _, batch = sample(70, 3, 1)
    self.assertLen(np.unique(batch['x'], axis=0), NUM)

  @parameterized.parameters(1, 2, 3)
  @pytest.mark.slow
  def test_classes_are_balanced(self, depth):
    task, batch = sample(70, 3, depth)
    share = 1 / task.num_classes
    found = np.bincount(batch['y'], minlength=task.num_classes) / NUM
    error = np.sqrt(share * (1 - share) / NUM)
    np.testing.assert_allclose(found, share, atol=5 * error)

  @pytest.mark.slow
  def test_key_and_step_name_the_batch(self):
    task, key = make(), jax.random.key(3)
    batch_of = jax.jit(task.batch, static_argnums=2)
    first = batch_of(key, 5, 8)
    same = task.batch(key, 5, 8)  # Compiled or not.
    jax.tree.map(np.testing.assert_array_equal, first, same)
    for other in (batch_of(key, 6, 8), batch_of(jax.random.key(4), 5, 8)):
      self.assertFalse(np.array_equal(first['x'], other['x']))

  @parameterized.parameters(1, 3)
  def test_label_of_inputs(self, depth):
    task, batch = sample(70, 3, depth)
    x = batch['x'][:24].reshape(2, 3, 4, 70)
    y = batch['y'][:24].reshape(2, 3, 4)
    np.testing.assert_array_equal(jax.jit(task.label)(x), y)


class TokensTest(parameterized.TestCase):
  @pytest.mark.slow
  def test_the_same_examples_as_tokens(self):
    bits = make(d=12, k=3, depth=2)
    tokens = parity.TokenParity(bits)
    key = jax.random.key(5)
    ours, theirs = tokens.batch(key, 3, 16), bits.batch(key, 3, 16)
    np.testing.assert_array_equal(tokens.coordinates(ours['x']), theirs['x'])
    np.testing.assert_array_equal(ours['y'], theirs['y'][:, None])
    np.testing.assert_array_equal(ours['x']['target_positions'], 11)
    self.assertEqual((tokens.length, tokens.vocab_size), (12, 2))
    self.assertEqual(tokens.num_classes, 4)
    self.assertEqual(tokens.supports, bits.supports)


class SupportTest(parameterized.TestCase):
  def test_first_is_in_order(self):
    task = make(d=7, k=2, depth=2, support='first')
    self.assertEqual(task.supports, ((0, 1), (2, 3), (4, 5)))
    self.assertEqual(task.d, 7)

  def test_random_is_distinct_and_sorted(self):
    supports = make(d=70, k=9, depth=3).supports
    self.assertLen(supports, 7)
    used = list(itertools.chain(*supports))
    self.assertLen(set(used), 63)
    self.assertContainsSubset(used, range(70))
    for node in supports:
      self.assertLen(node, 9)
      self.assertSequenceEqual(node, sorted(node))

  def test_random_comes_from_the_key(self):
    self.assertEqual(make(seed=0), make(seed=0))
    self.assertNotEqual(make(seed=0), make(seed=1))
    self.assertNotEqual(make(seed=0), make(support='first'))


class ErrorTest(parameterized.TestCase):
  def test_all_coordinates_may_be_used(self):
    task = make(d=9, k=3, depth=2, support='first')
    self.assertLen(task.supports, 3)

  @parameterized.named_parameters(
    ('k_above_d', dict(d=4, k=5), 'data.k=5 .* data.d=4'),
    ('tree_above_d', dict(d=8, k=3, depth=2), '3 nodes .* data.d=8'),
    ('k_zero', dict(k=0), 'data.k=0'),
    ('d_zero', dict(d=0), 'data.d=0'),
    ('depth_zero', dict(depth=0), 'data.depth=0'),
    ('support', dict(support='last'), "'last'.*first, random"),
  )
  def test_refuses(self, kwargs, message):
    with self.assertRaisesRegex(errors.UserError, message):
      make(**kwargs)


if __name__ == '__main__':
  absltest.main()
