"""Adapter of equinox modules, as their users wrote them."""

from unittest import mock

from absl.testing import parameterized
import chex
import equinox as eqx
import jax
import numpy as np
import pytest

import bad_values
from cxjax import errors
from cxjax.models import adapters
from cxjax.models import equinox_adapter

pytestmark = pytest.mark.slow

B = 4
X = np.random.default_rng(0).normal(size=(B, 5)).astype(np.float32)


class Block(eqx.Module):
  linear: eqx.nn.Linear
  dropout: eqx.nn.Dropout
  act: object = jax.nn.relu  # A field that is no array.

  def __init__(self, key, rate=0.0):
    self.linear = eqx.nn.Linear(5, 5, key=key)
    self.dropout = eqx.nn.Dropout(rate)

  @eqx.filter_jit  # Equinox takes the module apart here.
  def __call__(self, x, *, key=None):
    return x + self.act(self.dropout(self.linear(x), key=key))


class Net(eqx.Module):
  blocks: list
  norm: eqx.nn.BatchNorm | None
  head: eqx.nn.Linear

  def __init__(self, key, norm=False, rate=0.0):
    keys = jax.random.split(key, 3)
    self.blocks = [Block(key, rate) for key in keys[:2]]
    self.norm = eqx.nn.BatchNorm(5, 'rows', mode='batch') if norm else None
    self.head = eqx.nn.Linear(5, 3, key=keys[2])

  def __call__(self, x, state=None, *, key=None):
    keys = [None] * 2 if key is None else jax.random.split(key)
    for block, each in zip(self.blocks, keys, strict=True):
      x = block(x, key=each)
    if self.norm is None:
      return self.head(x)
    x, state = self.norm(x, state)
    return self.head(x), state


KEY = jax.random.key(0)


def setUpModule():
  global NET, WITH_STATE, STATE
  NET = Net(KEY)
  WITH_STATE, STATE = eqx.nn.make_with_state(Net)(KEY, norm=True, rate=0.5)


class EquinoxTest(parameterized.TestCase):
  def test_computes_what_the_module_computes(self):
    model = equinox_adapter.from_equinox(NET)
    output, found = model.apply(model.params, X)
    np.testing.assert_allclose(output, jax.vmap(NET)(X), rtol=1e-5)
    names = [f'blocks/{i}{x}' for i in (0, 1) for x in ('', '/linear')]
    names += [f'blocks/{i}/dropout' for i in (0, 1)]
    self.assertCountEqual(found, [*names, 'head'])
    want = jax.vmap(NET.blocks[0])(X)
    np.testing.assert_allclose(found['blocks/0'], want, rtol=1e-5)
    self.assertIsNone(model.training)
    self.assertEqual(repr(model), 'ModelAdapter(Net, 78 parameters)')

  def test_wrap_returns_the_module_with_its_other_fields(self):
    model = equinox_adapter.from_equinox(NET)
    double = jax.tree.map(lambda leaf: 2 * leaf, model.params)
    new = model.wrap(double)
    self.assertIs(new.blocks[0].act, jax.nn.relu)
    self.assertIs(type(new.head), eqx.nn.Linear)
    np.testing.assert_array_equal(new.head.weight, 2 * NET.head.weight)
    np.testing.assert_allclose(
      jax.vmap(new)(X), model.apply(double, X)[0], rtol=1e-5
    )

  def test_state_and_dropout_in_training(self):
    model = equinox_adapter.from_equinox(WITH_STATE, state=STATE)
    self.assertIn('norm/batch_state_index/0', model.params['state'])
    self.assertNotIn('norm/1', model.apply(model.params, X)[1])  # Its state.
    run = jax.jit(model.training)
    (one, _, changed), (other, *_) = (
      run(model.params, X, jax.random.key(i)) for i in range(2)
    )
    self.assertGreater(np.abs(one - other).max(), 1e-3)
    keys = jax.random.split(jax.random.key(0), B)
    want, state = jax.vmap(
      lambda x, state, key: WITH_STATE(x, state, key=key),
      in_axes=(0, None, 0),
      out_axes=(0, None),
      axis_name='rows',
    )(X, STATE, keys)
    np.testing.assert_allclose(one, want, rtol=1e-4, atol=1e-6)
    module, new = model.wrap({**model.params, **changed})
    chex.assert_trees_all_close(new, state, rtol=1e-5)
    self.assertIs(module.blocks[0].dropout.inference, False)  # Its own mode.
    out, _ = jax.jit(model.apply)(model.params | changed, X)
    want, _ = jax.vmap(
      eqx.nn.inference_mode(module), axis_name='rows', in_axes=(0, None)
    )(X, new)
    np.testing.assert_allclose(out, want, rtol=1e-4, atol=1e-6)
    adapters.check_training(model, X)

  def test_at_inference_the_state_is_constant(self):
    module = eqx.nn.inference_mode(WITH_STATE)
    model = equinox_adapter.from_equinox([module] * 2, state=[STATE] * 2)
    self.assertTrue(model.several)
    self.assertNotIn('state', model.one)
    self.assertIsNone(model.training)
    self.assertLen(model.unused_dropout(X), 2)
    self.assertIn('norm/batch_counter', model.constant_statistics(X))
    self.assertIsInstance(model.wrap(model.one)[1], eqx.nn.State)

  def test_calls(self):
    module = lambda module, x, key=None: jax.vmap(module)(x['rows'])
    model = equinox_adapter.from_equinox(NET, call=module, batched=True)
    output, found = model.apply(model.params, {'rows': X})
    np.testing.assert_allclose(output, jax.vmap(NET)(X), rtol=1e-5)
    self.assertEqual(found['blocks/1'].shape, (B, 5))

  @parameterized.parameters(
    (lambda: ({},), 'a dict is no equinox.Module that can be called'),
    (lambda: (WITH_STATE,), r'Net has a state, of norm/batch_.*state=state'),
    (lambda: ([NET, NET], [None]), '2 modules have 1 states'),
    (lambda: ([],), 'the list is empty'),
  )
  def test_errors(self, make, message):
    module, *state = make()
    with self.assertRaisesRegex(errors.UserError, message):
      equinox_adapter.from_equinox(module, state=state[0] if state else None)

  def test_output_that_is_no_array_is_an_error(self):
    call = lambda module, x: (module(x), module(x))
    model = equinox_adapter.from_equinox(NET, call=call)
    with self.assertRaisesRegex(errors.UserError, 'Net returns a tuple, not'):
      adapters.outputs(model, X)

  def test_without_equinox_it_says_what_to_install(self):
    with (
      mock.patch.dict('sys.modules', {'equinox': None}),
      self.assertRaisesRegex(errors.UserError, 'pip install equinox'),
    ):
      equinox_adapter.from_equinox(NET)


class BadArgumentsTest(parameterized.TestCase):
  def test_every_argument(self):
    net = eqx.nn.Linear(5, 3, key=jax.random.key(0))
    case = bad_values.Case(
      equinox_adapter.from_equinox,
      dict(module=net),
      lambda model: adapters.outputs(model, X),
    )
    bad_values.try_case(self, case)
