"""Calls of modules: which arguments, which output, which activations."""

import dataclasses
from typing import Any
from typing import NamedTuple

from absl.testing import parameterized
from flax import struct
import jax
import jax.numpy as jnp

from cxjax import errors
from cxjax.models import calls


class Pair(NamedTuple):
  a: Any
  b: Any


@struct.dataclass
class Output:
  logits: Any = None
  states: Any = None


@dataclasses.dataclass
class Plain:
  """A class that JAX does not know."""

  logits: Any = None
  states: Any = None


class One:
  def __call__(self, x, flag=False):
    return x


class Two:
  def __call__(self, a, b, flag=False):
    return (a, b)


class Named:
  def __call__(self, ids, mask=None, flag=False):
    return (ids, mask)


class CallTest(parameterized.TestCase):
  @parameterized.parameters(
    (One(), (1, 2), (1, 2)),  # A module of one argument gets it whole.
    (One(), {'x': 1}, {'x': 1}),
    (One(), {'x': 1, 'y': 2}, {'x': 1, 'y': 2}),
    (One(), Pair(1, 2), Pair(1, 2)),
    (Two(), (1, 2), (1, 2)),
    (Two(), [1, 2], (1, 2)),
    (Two(), {'b': 2, 'a': 1}, (1, 2)),
    (Named(), {'ids': 1, 'mask': 2}, (1, 2)),
    (Named(), 1, (1, None)),
    (Named(), (1, 2), ((1, 2), None)),
    (Named(), {'ids': 1}, ({'ids': 1}, None)),
    (Named(), {'ids': 1, 'other': 2}, ({'ids': 1, 'other': 2}, None)),
  )
  def test_spreads_what_the_signature_asks_for(self, module, x, want):
    self.assertEqual(calls.call(module, x), want)
    self.assertEqual(calls.call(module, x, flag=True), want)


class ArgumentsTest(parameterized.TestCase):
  def test_those_of_training_are_added(self):
    training = {'train': True, 'rngs': ['noise']}
    self.assertEqual(
      calls.arguments('f', training, {'train': False, 'n': 3}),
      ({'train': False, 'n': 3}, {'train': True, 'n': 3}, ('noise',)),
    )
    self.assertEqual(calls.arguments('f', None, {'n': 3}), ({'n': 3}, None, ()))

  def test_a_bool_is_an_argument_of_the_module(self):
    want = ({'training': False}, None, ())
    self.assertEqual(calls.arguments('f', False, {}), want)

  @parameterized.parameters(
    (None, {'rngs': {}}, 'the same random numbers at every step.*training='),
    ('yes', {}, "training='yes' must be a dict"),
    ({3: True}, {}, 'must be a dict of the arguments'),
    ({'rngs': {'dropout': 3}}, {}, 'must be names of random streams'),
    ({'rngs': (3,)}, {}, 'must be names of random streams'),
  )
  def test_errors(self, training, kwargs, message):
    with self.assertRaisesRegex(
      errors.UserError, f'f: .*{message}|f: {message}'
    ):
      calls.arguments('f', training, kwargs)


class OutputTest(parameterized.TestCase):
  @parameterized.parameters(
    lambda x: x,
    lambda x: {'logits': x, 'loss': x},
    lambda x: Output(x, (x, x)),
    lambda x: Plain(x, {'a': x}),
    lambda x: (x,),
    lambda x: [None, x],
  )
  def test_the_array_or_its_logits(self, make):
    x = jnp.ones((2, 3))
    self.assertIs(calls.to_array(make(x), 'Net'), x)

  @parameterized.parameters(
    (lambda x: (x, x), 'Net returns a tuple, not an array, with .* 0, 1. Sel'),
    (lambda x: {'scores': x}, 'a dict, .* with the arrays scores. .*output='),
    (lambda x: Output(None, x), 'an? Output, .* with the arrays states'),
    (lambda x: Plain({'a': x}), 'with the arrays logits/a'),
    (lambda x: ({'scores': x}, None), r"out\[0\]\['scores'\]"),
    (lambda x: (x, 1.5), 'with the arrays 0'),
    (lambda x: None, 'a NoneType, not an array. Return one'),
    (
      lambda x: {'heads': {'box': x, 'cls': x}},
      r"heads/box, .*out: out\['heads'\]\['box'\], .*"
      "loss={'heads/box': 'kl', 'heads/cls': 'mse'}",
    ),
    (lambda x: [(x, x), x], r"out: out\[0\]\[0\], .*{'0/0': 'kl', '0/1': 'm"),
    (
      lambda x: Output(None, (x,)),
      r"out.states\[0\], .* loss={'states/0': 'kl'}",
    ),
    (lambda x: Plain({'a': x}), r"out: out.logits\['a'\], "),
  )
  def test_another_output_is_an_error(self, make, message):
    with self.assertRaisesRegex(errors.UserError, message):
      calls.to_array(make(jnp.ones((2, 3))), 'Net')


class ActivationsTest(parameterized.TestCase):
  def test_arrays_of_trees_and_objects(self):
    x, flat = jnp.ones((2, 3)), jnp.ones(2)
    found = calls.activations(
      {
        '__call__': (x,),
        'a': {'__call__': (x, x)},
        'b': {'__call__': ((x, None, 3),)},
        'c': {'__call__': (Plain(x, (x, flat)),)},
        'd': {'__call__': (Output(x, jnp.zeros((2, 3), int)),)},
        'e': {'__call__': (jax.random.key(0),), 'seen': (flat,)},
      }
    )
    self.assertCountEqual(
      found, ('a', 'a#2', 'b', 'c/logits', 'c/states/0', 'd/logits')
    )
