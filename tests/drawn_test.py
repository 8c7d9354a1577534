"""Tests of parameters that NumPy draws."""

from absl.testing import absltest
import chex
from flax import linen as nn
import jax
import numpy as np

import drawn

X = np.ones((4, 64), np.float32)


class DrawnTest(absltest.TestCase):
  def test_parameters_are_like_those_of_the_network(self):
    net = nn.Sequential([nn.Dense(64), nn.BatchNorm(True)])
    found = drawn.parameters(net.init, X)
    wanted = jax.eval_shape(net.init, jax.random.key(0), X)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, wanted)
    params = found['params']
    self.assertFalse(np.any(params['layers_0']['bias']))
    np.testing.assert_array_equal(params['layers_1']['scale'], 1)
    kernel = np.asarray(params['layers_0']['kernel'])
    self.assertAlmostEqual(kernel.std() * 64**0.5, 1, delta=0.1)

  def test_seeds_differ(self):
    first, again, other = (
      drawn.parameters(nn.Dense(3).init, X, seed=seed) for seed in (0, 0, 1)
    )
    chex.assert_trees_all_equal(first, again)
    with self.assertRaises(AssertionError):
      chex.assert_trees_all_equal(first, other)

  def test_leaves_that_are_no_shapes_stay(self):
    tree = {'f': abs, 'w': jax.ShapeDtypeStruct((2,), np.float32)}
    found = drawn.arrays(tree)
    self.assertIs(found['f'], abs)
    self.assertEqual(found['w'].shape, (2,))
