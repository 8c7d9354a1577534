"""Tests of the refusal of functions that keep a state in Python."""

import itertools

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from cxjax import errors
from cxjax.methods import python_state

X = jax.ShapeDtypeStruct((3,), jnp.float32)
COUNT = itertools.count()


class RefuseTest(parameterized.TestCase):
  @parameterized.parameters(
    lambda x: x * next(COUNT),
    lambda x: x + np.random.default_rng().normal(size=3),
    lambda x: jnp.sin(x) if next(COUNT) % 2 else jnp.cos(x),
  )
  def test_another_at_each_call(self, fun):
    with self.assertRaisesRegex(errors.UserError, 'The loss computes'):
      python_state.refuse('The loss', fun, X)

  @parameterized.parameters(
    jnp.sin,
    lambda x: x + np.random.default_rng(0).normal(size=3),
    lambda x: jax.pure_callback(lambda x: x, X, x),
  )
  def test_the_same_or_unknown(self, fun):
    python_state.refuse('The loss', fun, X)
