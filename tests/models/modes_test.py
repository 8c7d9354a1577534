"""Modes of a model, found by tracing it."""

from absl.testing import parameterized
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cxjax import errors
from cxjax.models import modes

PARAMS = {'w': jax.ShapeDtypeStruct((3, 2), jnp.float32)}
X = jax.ShapeDtypeStruct((4, 3), jnp.float32)
OUT = jax.ShapeDtypeStruct((4, 2), jnp.float32)
KEY = jax.random.key(7)


def noise(key, x):
  return x * jax.random.bernoulli(key, 0.5, x.shape)


class RandomTest(parameterized.TestCase):
  @parameterized.parameters(
    (lambda p, x: (x @ p['w'], {}), False),
    (lambda p, x: (noise(KEY, x) @ p['w'], {}), True),
    (lambda p, x: (jax.jit(noise)(KEY, x) @ p['w'], {}), True),
    (
      lambda p, x: (
        jax.lax.scan(lambda c, _: (noise(KEY, c), None), x, None, 2)[0],
        {},
      ),
      True,
    ),
    # A key that comes with the input.
    (lambda p, x: (noise(jax.random.key(x[0, 0].astype(int)), x), {}), False),
  )
  def test_masks_that_never_change(self, apply, want):
    self.assertEqual(modes.draws_constants(apply, PARAMS, X), want)

  @parameterized.parameters(
    (lambda p, x, key: (noise(key, x) @ p['w'], {}, {}), True),
    (lambda p, x, key: (noise(KEY, x) @ p['w'], {}, {}), False),
    (lambda p, x, key: (x @ p['w'], {}, {}), False),
  )
  def test_reads_its_key(self, training, want):
    self.assertEqual(modes.reads_key(training, PARAMS, X), want)


class IdleTest(parameterized.TestCase):
  def test_a_model_is_traced_once_for_equal_shapes(self):
    calls = []

    def apply(params, x):
      calls.append(x.shape)
      return nn.Dropout(0.1, deterministic=True).apply({}, x) @ params['w'], {}

    longer = jax.ShapeDtypeStruct((5, 3), jnp.float32)
    for x in (X, X, longer, X):
      self.assertLen(modes.idle_layers(apply, PARAMS, x)[0], 1)
    self.assertEqual(calls, [X.shape, longer.shape])

  def test_a_function_without_a_hash(self):
    class Model:
      __hash__ = None

      def __call__(self, params, x):
        return x @ params['w'], {}

    self.assertEqual(modes.idle_layers(Model(), PARAMS, X), ({}, {}))


class CheckTest(parameterized.TestCase):
  def check(self, training):
    modes.check_training(training, PARAMS, X, OUT, 'student')

  def test_fits(self):
    self.check(lambda p, x, key: (x @ p['w'], {}, {}))
    half = lambda p: {'w': p['w'].astype(jnp.bfloat16)}  # Cast by the step.
    self.check(lambda p, x, key: (x @ p['w'], {}, half(p)))

  @parameterized.parameters(
    (lambda p, x: 1, 'does not run in training mode: .*from_fn'),
    (lambda p, x, key: (x @ p['w'], {}), 'must return .output, activations, c'),
    (lambda p, x, key: (x, {}, {}), r'\[4, 3\] in training .*\[4, 2\] at inf'),
    (lambda p, x, key: (x @ p['w'], {}, {'v': x}), "'v' in .* is no leaf"),
    (lambda p, x, key: (x @ p['w'], {}, {'w': x}), r"'w' from float32\[3, 2\]"),
    (
      lambda p, x, key: (x @ p['w'], {}, {'w': np.zeros((3, 2), int)}),
      "'w' from float32.* to int",
    ),
  )
  def test_errors(self, training, message):
    with self.assertRaisesRegex(errors.UserError, message):
      self.check(training)
