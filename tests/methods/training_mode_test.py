"""Training mode: what a step updates beside its parameters."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cxjax import errors
from cxjax.methods import masks
from cxjax.methods import stage as stage_lib
from cxjax.methods import train_step
from cxjax.methods import training_mode

Stage, Term = stage_lib.Stage, stage_lib.Term
X = np.arange(24, dtype=np.float32).reshape(8, 3) / 10
PARAMS = {
  'low': jnp.full((3, 4), 0.1),
  'mean': jnp.zeros(4),
  'high': jnp.full((4, 2), 0.1),
  'upper': jnp.zeros(2),
  'calls': jnp.int32(0),
}


def training(params, x, key):
  """Two layers with running means, a counter and noise on the output."""
  low = x @ params['low']
  high = (low - low.mean(0)[None]) @ params['high']
  changed = {
    'mean': 0.5 * params['mean'] + 0.5 * low.mean(0),
    'upper': 0.5 * params['upper'] + 0.5 * high.mean(0),
    'calls': params['calls'] + 1,
    'low': None,
  }
  return high + jax.random.normal(key, high.shape), {'low': low}, changed


def apply(params, x):
  low = x @ params['low']
  return (low - params['mean'][None]) @ params['high'], {'low': low}


def updated(*names):
  return training_mode.updated_names(training, PARAMS, X, names)


class LeavesTest(parameterized.TestCase):
  def test_overlay_keeps_structure_and_dtypes(self):
    tree = ({'a': jnp.zeros(2, jnp.bfloat16)}, [jnp.int32(1), jnp.zeros(3)])
    names = list(training_mode.by_name(tree))
    self.assertEqual(names, ['0/a', '1/0', '1/1'])
    new = training_mode.overlay(tree, {'0/a': jnp.ones(2)})
    chex.assert_trees_all_equal_structs(new, tree)
    chex.assert_trees_all_equal_dtypes(new, tree)
    chex.assert_trees_all_equal(new[0]['a'], jnp.ones(2, jnp.bfloat16))
    self.assertIs(training_mode.overlay(tree, {}), tree)

  def test_a_stage_updates_what_it_reaches(self):
    self.assertEqual(updated('low'), ('calls', 'mean'))
    self.assertEqual(updated('logits'), ('calls', 'mean', 'upper'))
    self.assertEqual(updated('low', 'logits'), ('calls', 'mean', 'upper'))

  def test_unknown_activation(self):
    with self.assertRaisesRegex(errors.UserError, "'lo'.*mean 'low'"):
      updated('lo')


class StepTest(parameterized.TestCase):
  """A step in training mode, against one that is written out."""

  def step(self, term, microbatches=1, seed=0):
    stage = Stage('s', 1, term)
    tx = optax.sgd(0.1)
    mask = masks.trainable_mask(apply, PARAMS, X, stage, training=training)
    state = train_step.init_stage(
      jax.random.key(0), PARAMS, stage=stage, shapes={}, tx=tx, mask=mask
    )
    return train_step.train_step(
      state,
      {'x': X},
      jnp.zeros((8, 2 if term.student == 'logits' else 4)),
      apply=apply,
      stage=stage,
      tx=tx,
      mask=mask,
      microbatches=microbatches,
      training=training,
      key=jax.random.key(seed),
    )

  @pytest.mark.slow
  def test_updates_parameters_and_statistics(self):
    term = Term(loss=lambda got, want: jnp.sum((got - want) ** 2, -1))
    state, loss = self.step(term)

    def objective(free):
      out, _, changed = training({**PARAMS, **free}, X, jax.random.key(0))
      return jnp.mean(jnp.sum(out**2, -1)), changed

    free = {name: PARAMS[name] for name in ('low', 'high')}
    (want, changed), grads = jax.value_and_grad(objective, has_aux=True)(free)
    new = jax.tree.map(lambda p, g: p - 0.1 * g, free, grads)
    statistics = {name: changed[name] for name in ('mean', 'upper', 'calls')}
    chex.assert_trees_all_close(state.params, {**new, **statistics}, rtol=1e-6)
    np.testing.assert_allclose(loss, want, rtol=1e-6)
    self.assertEqual(state.params['calls'].dtype, jnp.int32)
    chex.assert_trees_all_equal(self.step(term)[0], state)
    self.assertNotEqual(float(self.step(term, seed=1)[1]), float(loss))

  @pytest.mark.slow
  def test_a_hidden_stage_leaves_what_lies_above(self):
    term = Term('low', 'low', loss=lambda a, b: jnp.sum((a - b) ** 2, -1))
    state, _ = self.step(term)
    chex.assert_trees_all_equal(state.params['upper'], PARAMS['upper'])
    self.assertGreater(float(jnp.abs(state.params['mean']).min()), 0)

  @pytest.mark.slow
  def test_microbatches_update_one_after_the_other(self):
    term = Term(loss=lambda got, want: jnp.sum((got - want) ** 2, -1))
    state, loss = self.step(term, microbatches=2)
    params, losses = PARAMS, []
    for i, key in enumerate(jax.random.split(jax.random.key(0))):
      out, _, changed = training(params, X[i::2], key)
      losses.append(jnp.mean(jnp.sum(out**2, -1)))
      params = {**PARAMS, **{k: v for k, v in changed.items() if k != 'low'}}
    for name in ('mean', 'upper', 'calls'):
      np.testing.assert_allclose(state.params[name], params[name], rtol=1e-5)
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-6)
