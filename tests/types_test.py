"""Tests of the shapes that the package makes."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from cxjax import types


class ShapeStructTest(parameterized.TestCase):
  @parameterized.parameters(
    (np.int64, jnp.int32), (float, jnp.float32), (jnp.bfloat16, jnp.bfloat16)
  )
  def test_has_a_dtype_of_jax(self, dtype, held):
    """JAX warns of another one, and a warning is an error here."""
    found = types.shape_struct([2, 3], dtype)
    self.assertEqual(found, jax.ShapeDtypeStruct((2, 3), held))
    self.assertEqual(jax.eval_shape(lambda x: x, found), found)

  def test_has_64_bits_where_jax_does(self):
    with jax.enable_x64(True):
      found = types.shape_struct((), np.int64)
    self.assertEqual(found.dtype, np.int64)

  def test_of_keys(self):
    key = jax.eval_shape(jax.random.key, 0)
    self.assertEqual(types.shape_struct((), key.dtype), key)


if __name__ == '__main__':
  absltest.main()
