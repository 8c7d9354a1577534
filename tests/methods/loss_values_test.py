"""Tests of values that losses compare, at any magnitude."""

import itertools

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax.methods import loss_values

EPSILON = 1e-5


def reference(x, slope):
  """Standardized values and their gradient, of float64."""
  x = x.astype(np.float64)
  x = x - x.mean(-1, keepdims=True)
  size = np.sqrt(np.square(x).mean(-1, keepdims=True) + EPSILON)
  found = x / size
  grad = slope - slope.mean(-1, keepdims=True)
  grad = grad - found * (slope * found).mean(-1, keepdims=True)
  return found, grad / size


def values(scale, offset, dtype):
  """Random numbers of a type, in float32."""
  x = (np.random.default_rng(0).normal(size=(3, 32)) + offset) * scale
  with np.errstate(over='ignore'):
    return x.astype(jnp.dtype(dtype)).astype(np.float32)


SCALES = (1e-30, 1e-3, 1.0, 1e3, 1e10, 1e20, 1e30)
CASES = [
  case
  for case in itertools.product(
    SCALES, (0.0, 1e3), ('float32', 'bfloat16', 'float16')
  )
  if np.isfinite(values(*case)).all()
]


class StandardizedTest(parameterized.TestCase):
  @parameterized.parameters(*CASES)
  @pytest.mark.slow
  def test_value_and_gradient_are_those_of_float64(self, scale, offset, dtype):
    x = values(scale, offset, dtype)
    draw = np.random.default_rng(1).normal
    slope = draw(size=x.shape).astype(np.float32)
    found, back = jax.vjp(jax.jit(loss_values.standardized), x)
    want, grad = reference(x, slope)
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(
      back(slope)[0], grad, rtol=1e-3, atol=1e-4 * np.abs(grad).max()
    )

  @parameterized.parameters(0.0, 3.3, 1e4, 1e20, 3e38)
  def test_equal_values_are_zeros(self, value):
    x = np.full((2, 7), value, np.float32)
    slope = np.arange(14, dtype=np.float32).reshape(2, 7)
    found, back = jax.vjp(loss_values.standardized, x)
    np.testing.assert_array_equal(found, 0)
    _, grad = reference(0 * x, slope)
    np.testing.assert_allclose(back(slope)[0], grad, rtol=1e-4, atol=1e-3)

  @parameterized.parameters(np.nan, np.inf, -np.inf)
  def test_a_row_that_is_not_finite_is_nan(self, value):
    x = jnp.ones((2, 7)).at[0, 3].set(value)
    found = loss_values.standardized(x)
    self.assertTrue(np.isnan(found[0]).all())
    np.testing.assert_array_equal(found[1], 0)

  def test_the_largest_numbers(self):
    most = np.finfo(np.float32).max
    x = np.array([[most, -most, 0.0, most]], np.float32)
    want, _ = reference(x / most, 0 * x)
    np.testing.assert_allclose(loss_values.standardized(x), want, rtol=1e-4)

  @pytest.mark.slow
  def test_large_numbers_that_differ_in_the_last_digit(self):
    x = 2**33 * np.array([[1, np.nextafter(np.float32(1), 2)]], np.float32)
    found = loss_values.standardized(x)
    np.testing.assert_allclose(found, [[-1, 1]], rtol=1e-4)

  @pytest.mark.slow
  def test_costs_a_handful_of_flops_for_each_value(self):
    x = jnp.zeros((64, 256))
    costs = jax.jit(loss_values.standardized).lower(x).compile().cost_analysis()
    self.assertLess(costs['flops'], 16 * x.size)
