"""Optimizers on a stage: what they see, what is evaluated, what is refused."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from cxjax import errors
from cxjax.methods import averages
from cxjax.methods import masks
from cxjax.methods import optax_adapter
from cxjax.methods import optimizer

PARAMS = {'a': jnp.ones((2, 3)), 'b': jnp.ones(3)}
# The stage trains `a` alone.
FREE, FIXED = {**PARAMS, 'b': None}, {**PARAMS, 'a': None}
REGRESSORS = {'h': {'kernel': 2 * jnp.ones((3, 2))}}


def half_square(learned):
  """Its gradient is what is learned."""
  return sum(jnp.sum(jnp.square(x)) / 2 for x in jax.tree.leaves(learned))


def step(tx, learned=(FREE, REGRESSORS), state=None, frozen=FIXED):
  state = optimizer.init(tx, learned, frozen) if state is None else state
  at = optimizer.iterate(state, learned)
  value, grads = jax.value_and_grad(half_square)(at)
  return optimizer.update(tx, grads, state, learned, frozen, value, half_square)


class OptimizerTest(parameterized.TestCase):
  def test_sees_the_tree_of_the_student_and_that_of_the_regressors(self):
    seen = []
    init = lambda params: seen.append(jax.tree.structure(params)) or ()
    tx = optax.GradientTransformation(init, lambda u, s, p=None: (u, s))
    step(tx)
    self.assertEqual(
      set(seen), {jax.tree.structure(FREE), jax.tree.structure(REGRESSORS)}
    )

  @pytest.mark.slow
  def test_regressors_have_a_norm_and_a_state_of_their_own(self):
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0))
    (params, regressors), state = step(tx)
    np.testing.assert_allclose(params['a'], 1 - 1 / np.sqrt(6), rtol=1e-6)
    self.assertIsNone(params['b'])
    np.testing.assert_allclose(
      regressors['h']['kernel'], 2 - 1 / np.sqrt(6), rtol=1e-6
    )
    self.assertIsInstance(state, optimizer.OptimizerState)

  def test_the_learning_rate_is_told_where_one_is_kept(self):
    adam = optax.inject_hyperparams(optax.adam)(0.1)
    sgd = optax.inject_hyperparams(optax.sgd)(0.2)
    part = lambda params: dict.fromkeys(params, 'x')
    both = optax.multi_transform({'x': adam, 'y': sgd}, part)
    for tx, want in (
      (adam, np.float32(0.1)),
      (optax.chain(optax.clip(1.0), sgd), np.float32(0.2)),
      (optax.adam(0.1), None),
      (both, None),
    ):
      state = optimizer.init(tx, (FREE, REGRESSORS), FIXED)
      self.assertEqual(optimizer.learning_rate(state), want)
    for other in ((), {'learning_rate': jnp.ones(())}):
      self.assertIsNone(optimizer.learning_rate(other))

  @pytest.mark.slow
  def test_elementwise_ones_have_the_state_of_optax(self):
    tx = optimizer.Elementwise(*optax.adam(0.1))
    _, (adam, _) = step(tx)
    self.assertEqual(adam.count, 1)
    self.assertEqual(
      jax.tree.structure(adam.mu), jax.tree.structure((FREE, REGRESSORS))
    )

  @pytest.mark.slow
  def test_a_line_search_of_regressors_begins_where_that_of_params_ended(self):
    values = []

    def update(updates, state, params=None, *, value, **_):
      values.append(value)
      return jax.tree.map(jnp.negative, updates), state

    tx = optax.GradientTransformationExtraArgs(lambda _: (), update)
    step(tx)
    concrete = [float(v) for v in values if not isinstance(v, jax.core.Tracer)]
    self.assertEqual(concrete, [15.0, 12.0])

  def test_one_that_cannot_do_with_gaps_gets_the_whole_tree(self):
    rates = {'a': 0.5, 'b': 0.25}

    def update(updates, state, params=None):
      return jax.tree.map(lambda u, r: -r * u, updates, rates), state

    tx = optax.GradientTransformation(lambda _: (), update)
    (params, _), _ = step(tx, (FREE, {}))
    np.testing.assert_allclose(params['a'], 0.5)
    self.assertIsNone(params['b'])

  @parameterized.parameters(
    {'a': True, 'b': False}, {'a': True, 'b': False, 'stats': False}
  )
  @pytest.mark.slow
  def test_a_tree_of_the_user_may_be_without_statistics(self, **tree):
    """Both where all is trained, and with the gaps of a stage."""
    tx = optax.masked(optax.sgd(0.5), tree)
    mask = {'a': True, 'b': True, 'stats': masks.NO_PARAMETER}
    for trained in (PARAMS, FREE):
      free = {**trained, 'stats': None}
      frozen = {'a': None, 'b': None, 'stats': jnp.ones(2)}
      frozen['b'] = PARAMS['b'] if free['b'] is None else None
      state = optimizer.init(tx, (free, {}), frozen, mask)
      (params, _), _ = optimizer.update(
        tx, (free, {}), state, (free, {}), frozen, 1.0, half_square, mask
      )
      np.testing.assert_allclose(params['a'], 0.5)
      self.assertIsNone(params['stats'])

  @pytest.mark.slow
  def test_bfloat16_stays(self):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), FREE)
    for tx in (optax.adam(0.1), optax.contrib.schedule_free_sgd(0.1)):
      (params, _), _ = step(tx, (half, {}))
      self.assertEqual(params['a'].dtype, jnp.bfloat16)

  @pytest.mark.slow
  def test_a_state_can_be_donated_with_the_parameters(self):
    params = {'w': jnp.ones(2)}
    tx = optax.lookahead(optax.sgd(0.1), 2, 0.5)
    state = params, optimizer.init(tx, (params, {}), None)
    more = lambda state: jax.tree.map(lambda leaf: leaf + 1, state)
    want = more(state)
    found = jax.jit(more, donate_argnums=0)(state)
    chex.assert_trees_all_equal(found, want)

  def test_lookahead_evaluates_the_slow_weights(self):
    tx = optax.lookahead(optax.sgd(0.5), 2, 0.5)
    learned, state = step(tx, (FREE, {}))
    np.testing.assert_allclose(learned[0]['a'], 1.0)
    np.testing.assert_allclose(state.iterates['params']['a'], 0.5)
    learned, state = step(tx, learned, state)
    for found in (learned[0], state.iterates['params']):
      np.testing.assert_allclose(found['a'], 1 + 0.5 * (0.25 - 1))


class AveragesTest(parameterized.TestCase):
  @parameterized.parameters(
    lambda tx: tx,
    lambda tx: optax.chain(optax.clip(9.0), optax.apply_if_finite(tx, 2)),
    lambda tx: optax.masked(tx, {'a': True, 'b': False}),
    lambda tx: optax.partition({'x': tx}, {'a': 'x', 'b': 'x'}),
  )
  @pytest.mark.slow
  def test_are_found_however_they_are_nested(self, wrap):
    tx = wrap(optax.contrib.schedule_free_sgd(0.5))
    state = tx.init(PARAMS)
    iterate = PARAMS
    for _ in range(3):
      updates, state = tx.update(iterate, state, iterate)
      iterate = optax.apply_updates(iterate, updates)
    (inner,) = averages.averages(state)
    got = averages.evaluation_params(state, iterate)
    want = (iterate['a'] - 0.1 * inner.z['a']) / 0.9
    np.testing.assert_allclose(got['a'], want, rtol=1e-6)

  @parameterized.parameters(
    (lambda tx: optax.flatten(tx), 'form in which'),
    (lambda tx: optax.contrib.schedule_free(tx, 0.1), 'form in which'),
    (lambda tx: optax.lookahead(tx, 2, 0.5), 'lookahead together'),
  )
  @pytest.mark.slow
  def test_are_refused_where_they_are_not_known(self, wrap, message):
    tx = wrap(optax.contrib.schedule_free_sgd(0.5))
    with self.assertRaisesRegex(errors.UserError, message):
      optax_adapter.adapt(tx, PARAMS)


class RefusedTest(parameterized.TestCase):
  @parameterized.parameters(
    (lambda u, s, p=None, *, hessian: (u, s), "'hessian'"),
    (lambda u, s, p=None: (None, s), "'a' is missing"),
    (lambda u, s, p=None: (u, (s, 1)), 'form of its state'),
    (lambda u, s, p=None: (jax.tree.map(jnp.sum, u), s), r"'a' is \(\)"),
    (lambda u, s, p=None: 1 / 0, 'ZeroDivisionError'),
  )
  def test_in_one_line(self, update, message):
    tx = optax.GradientTransformationExtraArgs(lambda _: jnp.zeros(2), update)
    with self.assertRaisesRegex(errors.UserError, message) as found:
      optax_adapter.adapt(tx, PARAMS)
    self.assertNotIn('\n', str(found.exception))

  @parameterized.parameters(
    (optax.adamw(0.1, mask=lambda tree: {'params': tree['params']}),),
    (optax.multi_transform({'a': optax.sgd(0.1)}, {'params': {'a': 'a'}}),),
  )
  def test_a_level_that_the_tree_does_not_have(self, tx):
    with self.assertRaisesRegex(
      errors.UserError, "which has 'a', 'b' at its top, and no level 'params'"
    ):
      optax_adapter.adapt(tx, {'a': None, 'b': PARAMS['a']})

  def test_a_state_of_other_dtypes_after_the_first_update_is_cast(self):
    init = lambda _: jnp.zeros((), jnp.bfloat16)
    update = lambda u, s, p=None: (u, s + jnp.ones((), jnp.float32))
    tx = optax.GradientTransformation(init, update)
    state = optax_adapter.adapt(tx, PARAMS).init(PARAMS)
    self.assertEqual(state.dtype, jnp.float32)

  def test_numbers_of_python_in_a_state_become_arrays(self):
    update = lambda u, s, p=None: (u, {'first': False, 'rate': 0.5})
    init = lambda _: {'first': True, 'rate': 1.0}
    _, state = step(optax.GradientTransformation(init, update))
    for leaf in jax.tree.leaves(state.params):
      self.assertIsInstance(leaf, jax.Array)
