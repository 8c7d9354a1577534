"""Tests of NaN and zeros in all registered losses and norms."""

import functools

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax.methods import losses
from cxjax.methods import stage as stage_lib
from cxjax.methods import targets
from tests.methods.compared import random

SHAPE = (3, 4, 5)
TEMPERED = ('kl', 'reverse_kl', 'jensen_shannon', 'top_k_kl')
CASES = [
  *((name, 1.0) for name in losses.LOSSES),
  *((name, 100.0) for name in TEMPERED),  # Another formula.
]
ONE, ROW = (1, 2, 3), (1, 2)


def loss_of(name, temperature):
  loss = losses.LOSSES[name]
  if name in TEMPERED:
    loss = functools.partial(loss, temperature=temperature)
  return loss


def target_of(name, target):
  """A target that a loss takes: soft labels, or the two largest logits."""
  if name == 'cross_entropy':
    return jnp.where(jnp.isnan(target), target, 1 / SHAPE[-1])
  return losses.top_k(target, 2) if name == 'top_k_kl' else target


@functools.cache
def program(name, temperature):
  """`(student, target) -> (mean, gradient of the student)`."""
  loss = loss_of(name, temperature)
  return jax.jit(jax.value_and_grad(lambda s, t: loss(s, t).mean()))


class NanTest(parameterized.TestCase):
  @parameterized.parameters(*CASES)
  @pytest.mark.slow
  def test_a_nan_of_either_side_is_one_of_the_mean(self, name, temperature):
    both = random(0, SHAPE), random(1, SHAPE)
    for side in (0, 1):
      for at in (ONE, ROW):
        args = list(both)
        args[side] = args[side].at[at].set(jnp.nan)
        args[1] = target_of(name, args[1])
        mean, _ = program(name, temperature)(*args)
        self.assertTrue(np.isnan(mean), (side, at))

  @parameterized.parameters(*CASES)
  @pytest.mark.slow
  def test_a_nan_that_the_compiler_knows(self, name, temperature):
    """XLA's exp of it is undefined on a CPU: any number, or NaN."""
    loss, shape = loss_of(name, temperature), (16, 2, 8)
    for side in (0, 1):

      @jax.jit
      def mean(s, t, side=side):
        args = [s, t]
        args[side] = args[side] * jnp.nan
        args[1] = target_of(name, args[1])
        return loss(*args).mean()

      self.assertTrue(np.isnan(mean(random(0, shape), random(1, shape))), side)

  @parameterized.parameters(*CASES)
  @pytest.mark.slow
  def test_zeros_have_finite_gradients(self, name, temperature):
    zeros, some = jnp.zeros(SHAPE), random(0, SHAPE)
    for s, t in ((zeros, some), (some, zeros), (zeros, zeros)):
      # A row alone, as padding is, and everything.
      for student in (s, some.at[ROW].set(s[ROW])):
        for target in (t, some.at[ROW].set(t[ROW])):
          found = program(name, temperature)(student, target_of(name, target))
          for value in found:
            self.assertTrue(np.isfinite(value).all())

  @parameterized.product(norm=stage_lib.NORMS, centered=(False, True))
  @pytest.mark.slow
  def test_targets_of_terms(self, norm, centered):
    term = stage_lib.Term('h', 'h', norm=norm, centered=centered)
    change = jax.jit(lambda want: targets.transform(want, None, term))
    want = random(0, (3, 5))
    bad = change(want.at[1, 2].set(jnp.nan))
    self.assertTrue(np.isnan(bad[1]).any())
    # The mean of a centered target is that of all examples.
    self.assertEqual(np.isnan(bad[0]).any(), centered)
    self.assertTrue(np.isfinite(change(jnp.zeros_like(want))).all())
