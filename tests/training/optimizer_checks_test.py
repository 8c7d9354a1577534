"""Tests of the checks of a user's optimizer before it trains."""

import itertools
import types
from unittest import mock

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import optax
import pytest

from cxjax.methods import optax_adapter
from cxjax.methods import optimizer
from cxjax.training import optimizer_checks

SHAPES = {'a': jnp.ones(5), 'b': jnp.ones((5, 3))}
BOTH = ['a', 'b']
STEPS = 100


def cautious(rate):
  """Leaves out what does not go against the gradient, as C-AdamW does."""
  adam = optax.adam(rate)

  def update(grads, state, params=None):
    updates, state = adam.update(grads, state, params)
    keep = lambda u, g: jnp.where(u * g < 0, u, 0.0)
    return jax.tree.map(keep, updates, grads), state

  return optax.GradientTransformation(adam.init, update)


def falling(rate):
  return optax.linear_schedule(rate, -rate / 10, STEPS)


def warned(tx, steps=(STEPS,), trained=BOTH, restart_schedule=True):
  """Calls of the warning for the optimizer of a run."""
  mask = {name: name in trained for name in SHAPES}
  spec = types.SimpleNamespace(
    student_shapes=SHAPES,
    optimizer=lambda: tx,
    stages=[types.SimpleNamespace(steps=n) for n in steps],
    plan=lambda: [types.SimpleNamespace(mask=mask) for _ in steps],
    restart_schedule=restart_schedule,
  )
  with mock.patch.object(optimizer_checks.logging, 'warning') as warning:
    optimizer_checks.check(spec)
  calls = [call.args for call in warning.call_args_list]
  return [args[1:] for args in calls if 'raises the loss' in args[0]]


class AscentTest(parameterized.TestCase):
  @parameterized.parameters(
    (optax.sgd(-0.1), 0, 'a, b'),
    (optax.chain(optax.clip(1.0), optax.scale_by_adam()), 0, 'a, b'),
    (optax.sgd(falling(0.1)), 99, 'a, b'),
    (optax.masked(optax.adam(0.1), {'a': True, 'b': False}), 0, 'b'),
  )
  def test_updates_along_the_gradient_are_warned_of(self, tx, step, names):
    self.assertEqual(warned(tx), [(step, names)])

  @parameterized.parameters(
    (optax.sgd(0.1, 0.9, nesterov=True),),
    (optax.adamw(optax.cosine_decay_schedule(1e-4, 50), weight_decay=10.0),),
  )
  def test_others_are_not(self, tx):
    self.assertEmpty(warned(tx))

  def test_only_parameters_that_are_trained_count(self):
    tx = optax.masked(optax.sgd(0.1), {'a': True, 'b': False})
    self.assertEmpty(warned(tx, trained=['a']))

  def test_a_schedule_may_span_the_stages(self):
    tx = optax.sgd(falling(0.1))
    self.assertEmpty(warned(tx, steps=(50, 50)))
    found = warned(tx, steps=(50, 50), restart_schedule=False)
    self.assertEqual(found, [(99, 'a, b')])

  @parameterized.parameters(
    *itertools.product(
      [
        optax.MultiSteps(optax.sgd(-0.1), 6).gradient_transformation(),
        optax.inject_hyperparams(optax.adam)(learning_rate=falling(0.1)),
        optax.lookahead(optax.sgd(-0.1), 5, 0.5),
        optax.noisy_sgd(-0.1, key=0),
        optax.chain(optax.scale_by_lbfgs(), optax.scale(0.1)),
        optax.chain(
          optax.scale(-0.1),
          optax.conditionally_transform(
            optax.identity(), lambda step: step < 50
          ),
          optax.scale_by_schedule(lambda step: jnp.where(step < 50, 1, -1)),
        ),
      ]
    )
  )
  @pytest.mark.slow
  def test_more_that_rise(self, tx):
    self.assertLen(warned(tx), 1)

  @parameterized.parameters(
    *itertools.product(
      [
        cautious(0.1),
        optax.MultiSteps(optax.sgd(0.1), 3).gradient_transformation(),
        optax.chain(optax.scale_by_lbfgs(), optax.scale(-0.1)),
        optax.contrib.muon(0.1),
        optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.1)),
        optax.contrib.schedule_free_adamw(0.1),
        optax.lion(0.1),
        optax.lookahead(optax.adam(0.1), 5, 0.5),
        optax.noisy_sgd(0.1, 100.0, key=0),
        optax.polyak_sgd(),
        optax.sgd(1e6),
        optax.set_to_zero(),
      ]
    )
  )
  @pytest.mark.slow
  def test_more_that_do_not(self, tx):
    self.assertEmpty(warned(tx))

  def test_an_optimizer_may_need_the_true_shapes(self):
    tx = optax.stateless_with_tree_map(lambda update, param: update)
    anchor = {'a': jnp.zeros(5), 'b': jnp.zeros((5, 3))}
    add = lambda updates, params: jax.tree.map(jnp.add, updates, anchor)
    self.assertEmpty(warned(optax.chain(tx, optax.stateless(add))))

  def test_a_schedule_that_is_not_finite(self):
    nan_at_6 = lambda step: jnp.where(step > 5, jnp.nan, 0.1)
    for tx, step, breaks in (
      (optax.sgd(nan_at_6), 5, False),
      (optax.sgd(nan_at_6), 6, True),
      (optimizer.Elementwise(*optax.sgd(nan_at_6)), 6, False),
    ):
      spec = types.SimpleNamespace(
        optimizer=lambda tx=tx: tx, student_shapes=SHAPES
      )
      self.assertEqual(optimizer_checks.breaks_at(spec, step), breaks)

  def test_names_are_few(self):
    shapes = {str(i): jnp.ones(2) for i in range(5)}
    adapter = optax_adapter.adapt(optax.sgd(-1.0), shapes)
    found = optimizer_checks.ascents(adapter, shapes, 0)
    self.assertEqual(found, dict.fromkeys(shapes, 0))
