"""Tests of losses of logits up to 1e38."""

import functools

from absl.testing import parameterized
import jax
import numpy as np
import pytest

from cxjax.methods import losses
from tests.methods import loss_properties_test as properties
from tests.methods.compared import random

pytestmark = pytest.mark.slow

SHAPE = properties.B, properties.C
TEMPERATURES = (1e-6, 1.0, 64.0, 1e9)
LARGE = (1e8, 1e10, 1e20, 1e38)
LARGEST = float(np.finfo(np.float32).max)


def pairs(scale):
  """Student and teacher: one of the two large, both, equal, and offset."""
  rng = np.random.default_rng(0)
  draw = lambda: (rng.uniform(-1, 1, SHAPE) * scale).astype(np.float32)
  small = rng.normal(size=SHAPE).astype(np.float32)
  one = draw()
  limits = np.where(rng.uniform(size=SHAPE) < 0.5, -1, 1).astype(np.float32)
  limits[:, :2] = 1, -1
  limits *= np.float32(scale)
  return [
    *((one, draw()), (one, one), (small, one), (one, small)),
    *((limits, limits[:, ::-1]), (small, limits), (limits, small)),
    (np.float32(scale) + small, np.full(SHAPE, scale, np.float32)),
  ]


@functools.cache
def program(name, temperature):
  loss = losses.LOSSES[name]
  if name in properties.TEMPERED:
    loss = functools.partial(loss, temperature=temperature)
  total = lambda s, t: (loss(s, t).sum(), loss(s, t))
  return jax.jit(jax.value_and_grad(total, has_aux=True))


class LargeTest(parameterized.TestCase):
  @parameterized.parameters(
    *((name, t) for name in properties.TEMPERED for t in TEMPERATURES),
    ('hard_kl', 1.0),
  )
  def test_value_and_gradient(self, name, temperature):
    for scale in (*LARGE, *[3e38] * (name == 'reverse_kl')):
      for s, t in pairs(scale):
        wide = [x.astype(np.longdouble) for x in (s, t)]
        with np.errstate(over='ignore', under='ignore', invalid='ignore'):
          value, grad = properties.reference(name, *wide, temperature)
        target = losses.top_k(t, properties.K) if 'top' in name else t
        (_, found), slope = program(name, temperature)(s, target)
        found = np.asarray(found)  # Chosen from without a program.
        fits = value < LARGEST * (1 - 1e-6)
        atol = 1e-4 * min(temperature, temperature**2)
        # The probability of the classes that are kept is rounded.
        atol += 2e-7 * temperature**2 * ('top' in name)
        np.testing.assert_allclose(
          found[fits], value[fits], rtol=2e-4, atol=atol
        )
        np.testing.assert_array_equal(found[~fits], np.inf)
        slope = np.asarray(slope, float)
        # The slope of the probabilities of the student is as the value.
        fits = np.isfinite(value)[:, None] & (np.abs(grad) < LARGEST)
        each = 1e-4 * temperature + 1e-6 * value[:, None] / temperature
        error = np.where(fits, slope - grad, 0.0)
        self.assertTrue((np.abs(error) <= each + 2e-3 * np.abs(grad)).all())
        large = np.abs(grad) > LARGEST * (1 + 1e-3)
        np.testing.assert_array_equal(
          slope[large], np.sign(grad[large]) * np.inf
        )

  @parameterized.parameters('cosine', 'gram', 'cka', 'attention')
  def test_a_length_that_does_not_count_may_be_any(self, name):
    shape = (3, 4, 5)
    loss, one, other = program(name, 1.0), random(0, shape), random(1, shape)
    (_, value), slope = loss(one, other)
    value = np.asarray(value)
    for scale in (2.0**30, 2.0**80, 2.0**125):
      (_, found), grad = loss(one * scale, other)
      np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-6)
      if scale < 2.0**120:  # Else float32 holds no gradient as small.
        np.testing.assert_allclose(grad * scale, slope, rtol=1e-3, atol=1e-5)
      (_, moved), _ = loss(one, other * scale)
      np.testing.assert_allclose(moved, value, rtol=1e-5, atol=1e-6)
    for scale in (2.0**-30, 2.0**-80, 2.0**-110):
      (_, found), grad = loss(one * scale, other)
      np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-6)
      np.testing.assert_allclose(grad * scale, slope, rtol=1e-3, atol=1e-5)
      (_, moved), _ = loss(one, other * scale)
      np.testing.assert_allclose(moved, value, rtol=1e-5, atol=1e-6)
