"""Tests of the parts of a batch."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

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

  @pytest.mark.slow
  def test_the_loss_alone_is_that_with_the_gradient(self):
    """Also where a part reads what the part before it changed."""

    def fun(learned, changed, key, batch, targets):
      new = 0.5 * changed['mean'] + batch.sum()
      loss = jnp.sum((learned * batch + new - targets) ** 2)
      loss = loss * jax.random.uniform(key)
      return loss, ({'term': loss}, {'mean': new})

    key, batch = jax.random.key(0), jnp.arange(6.0)
    args = 2.0, {'mean': jnp.float32(3)}, key, batch, batch**2
    (loss, (terms, changed)), grad = microbatches.value_and_grad(fun, 3)(*args)
    want, mean = 0.0, {'mean': 3.0}
    for i, own in enumerate(jax.random.split(key, 3)):
      part = batch[i::3]
      each, (_, mean) = fun(2.0, mean, own, part, part**2)
      want += each
    for found in (loss, terms['term'], microbatches.value(fun, 3)(*args)):
      np.testing.assert_allclose(found, want, rtol=1e-6)
    np.testing.assert_allclose(changed['mean'], mean['mean'], rtol=1e-6)
    again = jax.grad(microbatches.value(fun, 3))(*args)
    np.testing.assert_allclose(again, grad, rtol=1e-6)
