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
    shape=((7, 5), (2, 3, 130), (4, 1), (6,)),
  )
  def test_is_that_of_argmax(self, dtype, shape):
    # Few values, so that many are equal.
    values = np.random.default_rng(0).integers(0, 4, shape)
    values = jnp.asarray(values).astype(dtype)
    found = jax.jit(top_class.top_class)(values)
    self.assertEqual(found.dtype, jnp.int32)
    np.testing.assert_array_equal(found, jnp.argmax(values, axis=-1))

  def test_of_impossible_classes(self):
    inf = jnp.inf
    values = jnp.float32([[-inf, 2, -inf], [-inf, -inf, -inf], [0, inf, inf]])
    np.testing.assert_array_equal(top_class.top_class(values), [1, 0, 1])

  def test_of_nan_it_is_a_class(self):
    values = jnp.full((2, 3), jnp.nan)
    found = top_class.top_class(values)
    self.assertTrue(bool(jnp.all((found >= 0) & (found < 3))))

  def test_of_every_seed(self):
    values = np.random.default_rng(0).normal(size=(3, 4, 5))
    found = jax.vmap(top_class.top_class)(values)
    np.testing.assert_array_equal(found, values.argmax(-1))


if __name__ == '__main__':
  absltest.main()
