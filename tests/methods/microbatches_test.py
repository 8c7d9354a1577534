"""Tests of the parts of a batch."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from cxjax.methods import microbatches


class MicrobatchesTest(parameterized.TestCase):
  def test_example_i_goes_to_part_i_modulo_parts(self):
    """So that a batch that is sharded over devices stays where it is."""
    found = microbatches.split({'x': jnp.arange(12).reshape(6, 2)}, 3)
    self.assertEqual(found['x'].shape, (3, 2, 2))
    np.testing.assert_array_equal(
      found['x'][:, :, 0], [[0, 6], [2, 8], [4, 10]]
    )

  @parameterized.parameters(1, 2, 3, 4, 6)
  def test_results_come_back_in_order(self, parts):
    tree = {'x': jnp.arange(12.0).reshape(6, 2), 'y': jnp.arange(6)}
    fun = lambda tree: (tree['x'] * 2, {'sum': tree['x'].sum(1) + tree['y']})
    found = jax.jit(lambda tree: microbatches.apply(fun, tree, parts))(tree)
    jax.tree.map(np.testing.assert_array_equal, found, fun(tree))

  @parameterized.parameters((1, 6), (3, 2))
  def test_sees_a_part_at_a_time(self, parts, size):
    sizes = []

    def fun(x):
      sizes.append(len(x))
      return x

    microbatches.apply(fun, jnp.arange(6), parts)
    self.assertEqual(set(sizes), {size})
