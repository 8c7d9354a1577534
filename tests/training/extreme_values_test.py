"""Tests of values that make a loss not finite, alone and in a run."""

import dataclasses
import pathlib
import types

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax import errors
from cxjax.methods import losses
from cxjax.training import extreme_values
from cxjax.training import failures
from tests.training import runs

Stage, Term = runs.Stage, runs.Term


class ExcludedTest(parameterized.TestCase):
  def test_the_first_example_is_named(self):
    value = jnp.zeros((3, 2, 4)).at[:, :, 0].set(-jnp.inf)
    extreme_values.check_excluded('x', value)
    value = value.at[1:, 1].set(-jnp.inf)
    with self.assertRaisesRegex(errors.UserError, '2 of 6 rows.* example 1:'):
      extreme_values.check_excluded('x', value)


class SizeTest(parameterized.TestCase):
  @parameterized.parameters(
    ('kl', 1.0, 1e6), ('kl', 100.0, 1e6), ('kl', 1e9, 1e6), ('mse', 1.0, 1e15)
  )
  def test_limits(self, name, temperature, limit):
    loss = losses.logit_loss(name, temperature, False)
    value = jnp.zeros((3, 4)).at[1, 2].set(-0.9 * limit)
    extreme_values.check_size('x', value.at[0].set(-jnp.inf), loss)
    message = f'^x has values as large as {1.1 * limit:.3g}, .*example 1. '
    with self.assertRaisesRegex(errors.UserError, message.replace('+', '.')):
      extreme_values.check_size('x', value.at[1, 2].set(1.1 * limit), loss)

  def test_what_is_computed_within_the_limits_is_finite(self):
    ours = jnp.float32(np.random.default_rng(0).uniform(-1, 1, (3, 4)))
    for name, loss in losses.LOGIT_LOSSES.items():
      for temperature in (1.0, 64.0):
        loss = losses.logit_loss(name, temperature, False)
        size = extreme_values._limit(loss)
        found = loss(size * ours, -size * ours)
        self.assertTrue(np.isfinite(found).all(), (name, temperature))


class RunTest(parameterized.TestCase):
  def explain(self, message, loss, **fields):
    stage = Stage('output', 40, Term(loss=loss))
    spec = runs.spec((stage,), **fields)
    folder = pathlib.Path(self.create_tempdir().full_path)
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      failures.explain(spec, stage, folder, np.array([6, 9]), None)
    self.assertNotIn('smaller', str(caught.exception))
    self.assertNotIn('\n', str(caught.exception))

  def changed(self, model, at, value):
    def apply(params, x):
      logits, seen = model.apply(params, x)
      return logits.at[at].set(value), seen

    return apply

  @parameterized.parameters('kl', 'jensen_shannon', 'mse')
  @pytest.mark.slow
  def test_a_row_without_a_class(self, loss):
    apply = self.changed(runs.TEACHER, 2, -jnp.inf)
    teacher = dataclasses.replace(runs.teacher(), apply=apply)
    message = "teacher's 'logits' is -inf for every class in 1 of 4.*example 2"
    self.explain(message, loss, teacher=teacher)

  @parameterized.parameters('kl', 'mse')
  @pytest.mark.slow
  def test_values_that_are_too_large(self, loss):
    """Values of the teacher, or of the student that is given."""
    apply = self.changed(runs.TEACHER, (2, 0), 1e30)
    teacher = dataclasses.replace(runs.teacher(), apply=apply)
    message = 'has values as large as 1e.30.*example 2.*up to 1e'
    self.explain(f"teacher's 'logits' {message}", loss, teacher=teacher)
    params = runs.STUDENT.init(jax.random.key(0), jnp.zeros((1, runs.BITS)))
    self.explain(
      f"student's 'logits', before any training, {message}",
      loss,
      student=types.SimpleNamespace(
        apply=self.changed(runs.STUDENT, (2, 0), 1e30)
      ),
      start=(params, params),
    )
