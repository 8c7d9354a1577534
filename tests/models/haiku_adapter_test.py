"""Adapter of haiku's transformed functions."""

from unittest import mock

from absl.testing import parameterized
import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bad_values
from cxjax import errors
from cxjax.models import adapters
from cxjax.models import haiku_adapter

pytestmark = pytest.mark.slow

X = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)


class Block(hk.Module):
  def __call__(self, x):
    return x + jnp.tanh(hk.Linear(8)(x))


def network(x, is_training=False):
  x = hk.Linear(8)(x)
  x = hk.BatchNorm(True, True, 0.9)(x, is_training or hk.running_init())
  if is_training:
    x = hk.dropout(hk.next_rng_key(), 0.5, x)
  for _ in range(2):
    x = hk.remat(Block())(x)
  return hk.Linear(3)(x)


def plain(x, y=0.0):
  return hk.Linear(3)(hk.nets.MLP([8, 8])(x)) + y


NET = hk.transform_with_state(network)
PARAMS, STATE = NET.init(jax.random.key(0), X)
PLAIN = hk.transform(plain)
WEIGHTS = PLAIN.init(jax.random.key(0), X)


class HaikuTest(parameterized.TestCase):
  def test_computes_what_the_function_computes(self):
    model = haiku_adapter.from_haiku(NET, PARAMS, STATE)
    output, found = model.apply(model.params, X)
    np.testing.assert_allclose(
      output, NET.apply(PARAMS, STATE, None, X)[0], rtol=1e-5
    )
    blocks = [f'block_{i}{x}' for i in (0, 1) for x in ('', '/linear')]
    self.assertContainsSubset(
      ['linear_0', 'batch_norm', *blocks, 'linear_1'], found
    )
    params, state = model.wrap(model.params)
    chex.assert_trees_all_equal((params, state), (PARAMS, STATE))
    self.assertLen(model.constant_statistics(X), 2)

  def test_state_and_keys_in_training(self):
    model = haiku_adapter.from_haiku(
      NET, PARAMS, STATE, training={'is_training': True}
    )
    key = jax.random.key(1)
    run = jax.jit(model.training)
    out, found, changed = run(model.params, X, key)
    want, state = NET.apply(PARAMS, STATE, key, X, True)
    np.testing.assert_allclose(out, want, rtol=1e-5)
    self.assertEqual(found['block_1'].shape, (4, 8))
    chex.assert_trees_all_close(changed['state'], state, rtol=1e-5)
    other, *_ = run(model.params, X, jax.random.key(2))
    self.assertGreater(np.abs(out - other).max(), 1e-3)
    params, new = model.wrap({**model.params, **changed})
    np.testing.assert_allclose(
      model.apply({**model.params, **changed}, X)[0],
      NET.apply(params, new, None, X)[0],
      rtol=1e-5,
    )

  @parameterized.parameters((PLAIN,), (hk.without_apply_rng(PLAIN),))
  def test_functions_without_state(self, transformed):
    model = haiku_adapter.from_haiku(transformed, [WEIGHTS] * 2)
    want = PLAIN.apply(WEIGHTS, None, X, 2.0)
    x = {'x': X, 'y': jnp.full((4, 3), 2.0)}
    output, found = model.apply(model.one, x)
    np.testing.assert_allclose(output, want, rtol=1e-5)
    self.assertIn('mlp/linear_1', found)
    self.assertIs(model.wrap(WEIGHTS), WEIGHTS)

  def test_one_example(self):
    model = haiku_adapter.from_haiku(PLAIN, WEIGHTS, batched=False)
    output, found = model.apply(model.params, X)
    np.testing.assert_allclose(output, PLAIN.apply(WEIGHTS, None, X), rtol=1e-5)
    self.assertEqual(found['mlp'].shape, (4, 8))

  @parameterized.parameters(
    ((plain, WEIGHTS), 'a function is no transformed function'),
    ((NET, PARAMS), 'transform_with_state has a state: give it after'),
    ((PLAIN, WEIGHTS, STATE), 'a function of transform has no state'),
    ((PLAIN, X), 'parameters must be a dict of modules'),
    ((NET, [PARAMS] * 2, [STATE]), '2 sets of parameters have 1 states'),
  )
  def test_errors(self, args, message):
    with self.assertRaisesRegex(errors.UserError, message):
      haiku_adapter.from_haiku(*args)

  def test_random_numbers_at_inference_are_an_error(self):
    model = haiku_adapter.from_haiku(NET, PARAMS, STATE, is_training=True)
    with self.assertRaisesRegex(errors.UserError, 'model does not run.*RNG'):
      adapters.outputs(model, X)

  def test_without_haiku_it_says_what_to_install(self):
    with (
      mock.patch.dict('sys.modules', {'haiku': None}),
      self.assertRaisesRegex(errors.UserError, 'pip install dm-haiku'),
    ):
      haiku_adapter.from_haiku(PLAIN, WEIGHTS)


class BadArgumentsTest(parameterized.TestCase):
  def test_every_argument(self):
    transformed = hk.transform(plain)
    case = bad_values.Case(
      haiku_adapter.from_haiku,
      dict(
        transformed=transformed, params=transformed.init(jax.random.key(0), X)
      ),
      lambda model: adapters.outputs(model, X),
    )
    bad_values.try_case(self, case)
