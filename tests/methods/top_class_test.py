"""The class of the largest logit."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from cxjax.methods import top_class


class TopClassTest(parameterized.TestCase):
  @parameterized.product(
    dtype=('float32', 'bfloat16', 'int32', 'bool'),
    shape=((7, 5), (2, 3, 130), (4, 1), (6,), (3, 32)),
  )
  def test_is_that_of_argmax(self, dtype, shape):
    # Few values, so that many are equal.
    values = np.random.default_rng(0).integers(0, 4, shape)
    values = jnp.asarray(values).astype(dtype)
    found = jax.jit(top_class.top_class)(values)
    self.assertEqual(found.dtype, jnp.int32)
    np.testing.assert_array_equal(found, jnp.argmax(values, axis=-1))

  @parameterized.parameters(
    ((9, 2), 'float32', True),
    ((9, 24), 'float32', True),
    ((9, 64), 'int32', True),
    ((9, 64), 'bool', True),
    ((9, 64), 'float32', False),
    ((9, 64), 'bfloat16', False),
  )
  def test_few_classes_and_integers_are_left_to_argmax(
    self, shape, dtype, left
  ):
    values = jnp.zeros(shape, dtype)
    jaxpr = str(jax.make_jaxpr(top_class.top_class)(values))
    self.assertEqual('argmax' in jaxpr, left)

  def test_of_impossible_classes(self):
    inf = jnp.inf
    values = jnp.float32([[-inf, 2, -inf], [-inf, -inf, -inf], [0, inf, inf]])
    np.testing.assert_array_equal(top_class.top_class(values), [1, 0, 1])
    many = jnp.pad(values, [(0, 0), (0, 61)], constant_values=-inf)
    np.testing.assert_array_equal(top_class.top_class(many), [1, 0, 1])

  @parameterized.parameters(3, 64)
  def test_of_nan_it_is_a_class(self, classes):
    values = jnp.full((2, classes), jnp.nan)
    found = top_class.top_class(values)
    self.assertTrue(bool(jnp.all((found >= 0) & (found < classes))))

  @parameterized.parameters(5, 64)
  def test_of_every_seed(self, classes):
    values = np.random.default_rng(0).normal(size=(3, 4, classes))
    found = jax.vmap(top_class.top_class)(values)
    np.testing.assert_array_equal(found, values.argmax(-1))


if __name__ == '__main__':
  absltest.main()
