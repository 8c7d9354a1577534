"""Pairs that may be `(x, labels)`, or two inputs of the models."""

from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn
from flax import nnx
import jax.numpy as jnp
import numpy as np
import pytest

import cxjax
from cxjax import errors
import drawn

X = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
T = np.linspace(0, 1, 8).astype(np.float32)
LABELS = np.arange(8) % 3


class Timed(nn.Module):
  """A network of an input and, if it is given, a time."""

  @nn.compact
  def __call__(self, x, t=None):
    x = nn.Dense(5)(x)
    if t is not None:
      x = x + nn.Dense(5, name='time')(jnp.asarray(t, jnp.float32)[:, None])
    return nn.Dense(3)(nn.relu(x))


class NnxTimed(nnx.Module):
  def __init__(self, rngs):
    self.low = nnx.Linear(6, 3, rngs=rngs)
    self.time = nnx.Linear(1, 3, rngs=rngs)

  def __call__(self, x, t=None):
    out = self.low(x)
    return out if t is None else out + self.time(t[:, None])


class Flagged(nn.Module):
  """A network with parameters that are not read, and a flag."""

  @nn.compact
  def __call__(self, x, train=False):
    unread = self.param('unread', nn.initializers.ones, (3,))
    del unread
    x = nn.Dropout(0.5, deterministic=not train)(x)
    return nn.Dense(3)(x)


class Masked(nn.Module):
  @nn.compact
  def __call__(self, x, mask=None):
    self.param('unread', nn.initializers.ones, (3,))
    x = x if mask is None else x * mask[:, None]
    return nn.Dense(3)(x)


class Plain(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(3)(x)


def linen(module, *args):
  return cxjax.from_linen(module, drawn.parameters(module.init, X, *args))


def plan(teacher, student, x, **options):
  return cxjax.plan(teacher, student, x, layers=(), num_steps=3, **options)


class TwoInputsTest(parameterized.TestCase):
  @parameterized.parameters((tuple, T), (list, T), (tuple, LABELS))
  @pytest.mark.slow
  def test_an_optional_input_is_no_label(self, kind, second):
    model = linen(Timed(), T)
    nnx_model = cxjax.from_nnx(NnxTimed(nnx.Rngs(0)))
    for pair in ((model, model), (nnx_model, nnx_model)):
      with self.assertRaisesRegex(
        errors.UserError, "teacher reads .*time.*'y': labels.*as one dict"
      ):
        plan(*pair, kind((X, second)), loss='mse')

  @pytest.mark.slow
  def test_each_meaning_can_be_said(self):
    model = linen(Timed(), T)
    found = plan(model, model, {'x': X, 'y': LABELS})
    self.assertEqual(set(found.batch), {'x', 'y'})
    found = plan(model, model, {'x': {'x': X, 't': T}})
    self.assertEqual(set(found.batch), {'x'})
    # A stage that reads the labels leaves no doubt.
    plan(model, model, (X, LABELS), alpha=0.5)

  @parameterized.parameters(Flagged, Masked, Plain)
  def test_ordinary_modules_take_labels(self, make):
    model = linen(make())
    found = plan(model, model, (X, LABELS))
    self.assertEqual(set(found.batch), {'x', 'y'})

  @pytest.mark.slow
  def test_both_models_must_read_two_inputs(self):
    found = plan(linen(Timed(), T), linen(Plain()), (X, LABELS))
    self.assertEqual(set(found.batch), {'x', 'y'})


if __name__ == '__main__':
  absltest.main()
