"""Digests of functions, optimizers and arrays."""

import functools
import os
import subprocess
import sys
from unittest import mock

from absl import logging
from absl.testing import parameterized
import jax
from jax.experimental import io_callback
from jax.extend import core
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cxjax import errors
from cxjax.api import identity

X = jax.ShapeDtypeStruct((4, 3), jnp.float32)
SCALE = 2.0


class Scaled:
  """A loss with an attribute; the class has the usual repr, an address."""

  def __init__(self, scale):
    self.scale = scale

  def __call__(self, a, b):
    return jnp.sum(self.scale * (a - b) ** 2, -1)


def closed(scale):
  return lambda a, b: jnp.sum(scale * (a - b) ** 2, -1)


def default(scale):
  def loss(a, b, scale=scale):
    return jnp.sum(scale * (a - b) ** 2, -1)

  return loss


def partial(scale, positional=False):
  if positional:
    return functools.partial(lambda s, a, b: closed(s)(a, b), scale)
  return functools.partial(lambda a, b, s: closed(s)(a, b), s=scale)


def of_array(scale):
  """A loss that closes over arrays, which become constants of its jaxpr."""
  scales = np.full((1, 3), scale, np.float32)
  return lambda a, b: jnp.sum(scales * (a - b) ** 2, -1)


def named(body):
  """Functions of one name with other bodies."""
  scope = {'jnp': jnp}
  exec(f'def loss(a, b):\n  return {body}', scope)
  return scope['loss']


def nested(scale):
  """A loss whose constant is in a loop in a branch."""

  def loop(a):
    return jax.lax.fori_loop(0, 2, lambda i, x: scale * x, a)

  return lambda a, b: jax.lax.cond(b.sum() > 0, loop, jnp.sin, a - b).sum(-1)


def custom(scale, kind):
  """A loss with the same values and another derivative."""
  if kind == 'jvp':
    square = jax.custom_jvp(lambda x: x**2)
    square.defjvp(lambda x, t: (x[0] ** 2, scale * x[0] * t[0]))
  else:
    square = jax.custom_vjp(lambda x: x**2)
    square.defvjp(lambda x: (x**2, x), lambda x, ct: (scale * x * ct,))
  # Inside of a jitted function it must be found, too.
  return jax.jit(lambda a, b: jnp.sum(square(a - b), -1))


MAKERS = {
  'closure': closed,
  'default argument': default,
  'partial by keyword': partial,
  'partial by position': lambda scale: partial(scale, positional=True),
  'attribute': Scaled,
  'array': of_array,
  'nested': nested,
  'custom_jvp': lambda scale: custom(scale, 'jvp'),
  'custom_vjp': lambda scale: custom(scale, 'vjp'),
}


def digest(fun):
  return identity.function_digest(fun, X, X)


class FunctionTest(parameterized.TestCase):
  @parameterized.parameters(*MAKERS)
  def test_another_constant_is_another_function(self, kind):
    make = MAKERS[kind]
    self.assertEqual(digest(make(1.0)), digest(make(1.0)))
    self.assertNotEqual(digest(make(1.0)), digest(make(4.0)))
    self.assertRegex(digest(make(1.0)), '^[0-9a-f]{16}$')

  def test_another_global_is_another_function(self):
    def loss(a, b):
      return jnp.sum(SCALE * (a - b) ** 2, -1)

    before = digest(loss)
    with mock.patch.dict(globals(), SCALE=3.0):
      self.assertNotEqual(digest(loss), before)
    self.assertEqual(digest(loss), before)

  @parameterized.parameters(
    'jnp.sum((a - b) ** 3, -1)',
    'jnp.sum((a - b) ** 2, 0)',
    'jnp.sum((a - b) ** 2, -1, keepdims=True)',
    'jnp.mean((a - b) ** 2, -1)',
    'jnp.sum((b - a + 1) ** 2, -1)',
    '{"a": jnp.sum((a - b) ** 2, -1)}',
  )
  def test_another_body_of_the_same_name(self, body):
    square = 'jnp.sum((a - b) ** 2, -1)'
    self.assertNotEqual(digest(named(body)), digest(named(square)))
    self.assertEqual(digest(named(square)), digest(named(square)))

  def test_names_and_order_do_not_count(self):
    """Only what the function computes does."""
    one = lambda a, b: jnp.sum(jnp.sin(a) + jnp.cos(b), -1)

    @jax.jit
    def two(y, z):
      jnp.exp(y)  # Is not used.
      cosine = jnp.cos(z)
      return jax.checkpoint(lambda u: (cosine + jnp.sin(u)).sum(-1))(y)

    self.assertEqual(digest(one), digest(two))

  def test_the_inputs_count(self):
    first, second = (lambda a, b: a), (lambda a, b: b)
    self.assertNotEqual(digest(first), digest(second))
    other = jax.ShapeDtypeStruct((4, 5), jnp.float32)
    self.assertNotEqual(
      identity.function_digest(first, X, X),
      identity.function_digest(first, other, X),
    )

  def test_arguments_may_be_trees_and_keys(self):
    fun = lambda p, key: p['w'] + jax.random.normal(key, (3,))
    params = {'w': jnp.ones(3), 'step': jnp.zeros((), int)}
    key = jax.random.key(0)
    self.assertEqual(
      identity.function_digest(fun, params, key),
      identity.function_digest(fun, *jax.eval_shape(lambda *a: a, params, key)),
    )

  def test_a_seed_in_the_function_counts(self):
    noisy = lambda seed: (
      lambda a, b: a + jax.random.normal(jax.random.key(seed), a.shape)
    )
    self.assertNotEqual(digest(noisy(0)), digest(noisy(1)))
    self.assertEqual(digest(noisy(1)), digest(noisy(1)))


def _pure(a, b):
  shape = jax.ShapeDtypeStruct(a.shape, a.dtype)
  return jax.pure_callback(lambda x: x, shape, a) + b


def _io(a, b):
  shape = jax.ShapeDtypeStruct(a.shape, a.dtype)
  return io_callback(lambda x: x, shape, a, ordered=True) + b


def _in_a_loop(a, b):
  return jax.lax.fori_loop(0, 2, lambda i, x: _pure(x, b), a)


def _mutable(a, b):
  ref = jax.new_ref(a)
  ref[0] = b[0]
  return ref[...]


class UnhashableTest(parameterized.TestCase):
  def warned(self, call):
    with mock.patch.object(logging, 'warning') as warning:
      found = call()
    return found, [args[0] % args[1:] for args, _ in warning.call_args_list]

  @parameterized.parameters(
    (_pure, 'callback'),
    (_io, 'callback'),
    (_in_a_loop, 'callback'),
    (_mutable, 'in place'),
    (lambda a, b: float(a.sum()), 'raises a ConcretizationTypeError'),
  )
  def test_is_said_once(self, fun, reason):
    found, said = self.warned(lambda: digest(fun))
    self.assertRegex(found, f'^unhashable: .*{reason}')
    self.assertNotIn('0x', found)
    self.assertLen(said, 1)
    self.assertIn('choose another workdir', said[0])
    self.assertEqual(found, self.warned(lambda: digest(fun))[0])

  def test_printing_does_not_count(self):
    """A print decides no value, in a loop or not."""

    def printing(a, b):
      jax.debug.print('{}', a)
      jax.debug.callback(lambda x: None, b)
      return jax.lax.fori_loop(0, 2, body, a)

    def body(i, x):
      jax.debug.print('{}', i)
      return 2.0 * x

    found, said = self.warned(lambda: digest(printing))
    self.assertRegex(found, '^[0-9a-f]{16}$')
    self.assertEmpty(said)

  def test_an_optimizer_says_so_once(self):
    tx = optax.stateless(lambda g, p: jax.tree.map(_pure, g, p))
    found, said = self.warned(lambda: identity.optimizer_digest(tx, X))
    self.assertStartsWith(found, 'unhashable')
    self.assertLen(said, 1)


def _injected(rate):
  return optax.inject_hyperparams(optax.sgd)(learning_rate=rate)


OPTIMIZERS = {
  'sgd': lambda: optax.sgd(1e-3),
  'another rate': lambda: optax.sgd(1e-2),
  'momentum': lambda: optax.sgd(1e-3, momentum=0.9),
  'another momentum': lambda: optax.sgd(1e-3, momentum=0.8),
  'adam': lambda: optax.adam(1e-3),
  'b2': lambda: optax.adam(1e-3, b2=0.99),
  'adamw': lambda: optax.adamw(1e-3),
  'schedule': lambda: optax.sgd(optax.cosine_decay_schedule(1e-3, 100)),
  'its length': lambda: optax.sgd(optax.cosine_decay_schedule(1e-3, 200)),
  'clipped': lambda: optax.chain(optax.clip(1.0), optax.sgd(1e-3)),
  'injected': lambda: _injected(1e-3),
  'another injected': lambda: _injected(1e-2),
  'masked': lambda: optax.masked(optax.sgd(1e-3), {'w': True, 'b': False}),
  'other mask': lambda: optax.masked(optax.sgd(1e-3), {'w': False, 'b': True}),
  'noise': lambda: optax.add_noise(0.1, 0.5, key=jax.random.key(0)),
  'another seed': lambda: optax.add_noise(0.1, 0.5, key=jax.random.key(1)),
}
PARAMS = {'w': X, 'b': jax.ShapeDtypeStruct((3,), jnp.float32)}


class OptimizerTest(parameterized.TestCase):
  @pytest.mark.slow
  def test_each_is_another(self):
    digests = {
      name: identity.optimizer_digest(make(), PARAMS)
      for name, make in OPTIMIZERS.items()
    }
    self.assertLen(set(digests.values()), len(OPTIMIZERS), digests)
    for name, make in OPTIMIZERS.items():
      self.assertEqual(
        identity.optimizer_digest(make(), PARAMS), digests[name], name
      )

  @parameterized.parameters(
    lambda rate: optax.polyak_sgd(rate),
    lambda rate: optax.chain(optax.lbfgs(), optax.scale(rate)),
    lambda rate: optax.lookahead(optax.sgd(0.1), 5, rate / 4),
  )
  @pytest.mark.slow
  def test_those_that_ask_for_more(self, make):
    """Polyak's step needs the loss, a line search a function."""
    one, two = (
      identity.optimizer_digest(make(rate), PARAMS) for rate in (1.0, 2.0)
    )
    self.assertNotEqual(one, two)
    self.assertRegex(one, '^[0-9a-f]{16}$')


class TreeTest(parameterized.TestCase):
  @parameterized.parameters(
    ({'a': np.zeros(4, np.int32)},),
    ({'a': np.zeros((2, 2), np.float32)},),
    ({'b': np.zeros(4, np.float32)},),
    ({'a': -np.zeros(4, np.float32)},),
    ({'a': np.float32(0)},),
    ({'a': jax.random.key(0)},),
    ({'a': jax.random.key(1)},),
    ({},),
  )
  def test_dtype_shape_path_and_values_count(self, other):
    tree = {'a': jnp.zeros(4)}
    self.assertEqual(
      identity.tree_digest(tree), identity.tree_digest(jax.device_get(tree))
    )
    self.assertNotEqual(identity.tree_digest(tree), identity.tree_digest(other))
    self.assertEqual(identity.tree_digest(other), identity.tree_digest(other))

  def test_an_object_is_refused(self):
    """Its bytes would be an address."""
    with self.assertRaisesRegex(errors.UserError, r"^\['a'\] is a Scaled;"):
      identity.tree_digest({'a': Scaled(1.0)})


# Every digest that a fresh process must find again; its sets of strings are in
# another order, its objects at other addresses.
AGAIN = """
import identity_test as t
for name, make in t.MAKERS.items():
  print(t.digest(make(1.0)))
for name, make in t.OPTIMIZERS.items():
  print(t.identity.optimizer_digest(make(), t.PARAMS))
print(t.digest(t.grouped))
"""


TAGGED = core.Primitive('tagged')
TAGGED.def_abstract_eval(lambda x, **_: x)


def grouped(a, b):
  """Has sets and functions among the parameters of its primitives."""
  tags = {'alpha', 'beta', 'gamma', 'delta'}
  a = TAGGED.bind(a, tags=frozenset(tags), kind=Scaled)
  mapped = jax.vmap(lambda x: jax.lax.psum(x, 'rows'), axis_name='rows')(b)
  return dict.fromkeys(tags, a), jax.nn.gelu(mapped), jax.lax.top_k(a, 2)


class ProcessTest(parameterized.TestCase):
  @pytest.mark.slow
  def test_another_process_finds_the_same(self):
    here = [digest(make(1.0)) for make in MAKERS.values()]
    here += [
      identity.optimizer_digest(make(), PARAMS) for make in OPTIMIZERS.values()
    ]
    here.append(digest(grouped))
    seed = '1' if os.environ.get('PYTHONHASHSEED') == '2' else '2'
    done = subprocess.run(
      [sys.executable, '-c', AGAIN],
      env={
        **os.environ,
        'PYTHONHASHSEED': seed,
        'PYTHONPATH': os.pathsep.join(
          [os.path.dirname(__file__), *filter(None, sys.path)]
        ),
      },
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(done.stdout.split(), here, done.stderr)
