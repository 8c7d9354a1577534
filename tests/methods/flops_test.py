"""Tests of the counts of FLOPs."""

from absl.testing import absltest
import jax
import jax.numpy as jnp

from cxjax.methods import flops

A = jax.ShapeDtypeStruct((8, 16), jnp.float32)
B = jax.ShapeDtypeStruct((16, 4), jnp.float32)
PRODUCT = 2 * 8 * 16 * 4


class FlopsTest(absltest.TestCase):
  def test_a_product(self):
    for count in (flops.compiled, flops.written):
      self.assertEqual(count(jnp.matmul, A, B), PRODUCT)

  def test_what_is_not_used_costs_nothing_once_compiled(self):
    first = lambda a, b: (a @ b, a @ b @ b.T)[0]
    self.assertEqual(flops.compiled(first, A, B), PRODUCT)

  def test_what_is_computed_twice_is_counted_once_compiled(self):
    """What is written is counted as it is written."""
    twice = lambda a, b: a @ b + (a + 0) @ b
    self.assertGreater(flops.written(twice, A, B), 2 * PRODUCT)
    self.assertLess(flops.compiled(twice, A, B), 1.2 * PRODUCT)

  def test_of_nothing_it_is_0(self):
    self.assertEqual(flops.compiled(lambda a: a, A), 0)
