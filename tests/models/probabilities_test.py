"""Refusal of probabilities where a loss reads logits."""

import os
from unittest import mock

from absl import logging
from absl.testing import parameterized
import equinox as eqx
from flax import linen as nn
from flax import nnx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

os.environ.setdefault('KERAS_BACKEND', 'jax')
import keras  # noqa: E402

import cxjax  # noqa: E402
from cxjax import errors  # noqa: E402
from cxjax.methods import losses  # noqa: E402
import drawn

pytestmark = pytest.mark.slow

C = 4
X = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
Y = np.arange(8) % C
KEY = jax.random.key(0)
LINEAR = nn.Dense(C)
WEIGHTS = drawn.parameters(LINEAR.init, X)
softmax = jax.nn.softmax


def linen(end, **kwargs):
  net = nn.Sequential([nn.Dense(5), jnp.tanh, nn.Dense(C), end])
  return cxjax.from_linen(net, drawn.parameters(net.init, X), **kwargs)


class Nnx(nnx.Module):
  def __init__(self, end):
    self.head, self.end = nnx.Linear(6, C, rngs=nnx.Rngs(0)), end

  def __call__(self, x):
    return self.end(self.head(x))


class Equinox(eqx.Module):
  head: eqx.nn.Linear
  end: object = eqx.field(static=True)

  def __call__(self, x):
    return self.end(self.head(x))


def of_haiku(end, **kwargs):
  net = hk.transform(lambda x: end(hk.Linear(C)(x)))
  return cxjax.from_haiku(net, drawn.parameters(net.init, X), **kwargs)


def of_keras(end, **kwargs):
  layers = [keras.Input((6,)), keras.layers.Dense(C, activation=end)]
  return cxjax.from_keras(keras.Sequential(layers), **kwargs)


MADE = {
  'linen': linen,
  'nnx': lambda end, **kwargs: cxjax.from_nnx(Nnx(end), **kwargs),
  'equinox': lambda end, **kwargs: cxjax.from_equinox(
    Equinox(eqx.nn.Linear(6, C, key=KEY), end), **kwargs
  ),
  'haiku': of_haiku,
  'keras': of_keras,
  'fn': lambda end: cxjax.from_fn(
    lambda params, x: (end(LINEAR.apply(params, x)), {}), WEIGHTS
  ),
}
LOGITS, SURE = linen(lambda x: x), linen(softmax)


def plan(teacher=LOGITS, student=LOGITS, x=X, **kwargs):
  return cxjax.plan(
    teacher, student, x, **{'num_steps': 2, 'layers': (), **kwargs}
  )


def plan_of(*terms, teacher=LOGITS, student=LOGITS):
  stages = cxjax.Stage('last', 2, terms)
  return cxjax.plan(teacher, student, (X, Y), stages=stages)


def expert(x):
  """Experts mixed by a gate, and attention, with softmax inside."""
  gates = softmax(x[:, :2])
  x = jnp.einsum('be,bec->bc', gates, jnp.stack([x, -x], axis=1))
  return softmax(x @ x.T) @ x


class CheckTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()  # Keras promotes ranks.
    self.enterContext(jax.numpy_rank_promotion('allow'))

  def assert_refused(self, role, fun, loss='kl'):
    message = f'^The output of the {role} is probabilities.* loss {loss} .*'
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      fun()
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(*MADE)
  def test_a_model_that_ends_in_softmax(self, library):
    model = MADE[library](softmax)
    self.assert_refused('student', lambda: plan(student=model))
    self.assert_refused('teacher', lambda: plan(model))

  def test_a_softmax_in_a_branch(self):
    end = lambda y: jax.lax.cond(y.sum() > 0, softmax, softmax, y)
    self.assert_refused('student', lambda: plan(student=linen(end)))

  @parameterized.parameters(*MADE)
  def test_a_log_softmax_is_logits(self, library):
    model = MADE[library](jax.nn.log_softmax)
    with mock.patch.object(logging, 'warning') as warning:
      plan(model, model)
    warning.assert_not_called()

  @parameterized.parameters('linen', 'nnx', 'equinox', 'haiku', 'keras')
  def test_what_the_message_says_is_accepted(self, library):
    model = MADE[library](softmax, output=lambda p: jnp.log(p + 1e-20))
    plan(model, model)

  @parameterized.parameters(
    ({'loss': 'kl', 'temperature': 2.0}, 'kl'),
    ({'loss': 'kl', 'top_k': 2}, 'top_k_kl'),
    ({'loss': 'kl', 'alpha': 0.5}, 'kl'),
    ({'loss': 'reverse_kl'}, 'reverse_kl'),
    ({'loss': 'jensen_shannon', 'dtype': jnp.bfloat16}, 'jensen_shannon'),
    ({'vocab': 3}, 'kl'),
    ({'loss': losses.hard_kl}, 'hard_kl'),
  )
  def test_losses_of_logits(self, options, loss):
    make = lambda: plan(SURE, SURE, (X, Y), **options)
    self.assert_refused('student', make, loss)

  def test_labels(self):
    term = cxjax.Term(target='labels')
    self.assert_refused(
      'student', lambda: plan_of(term, student=SURE), 'cross_entropy'
    )
    plan_of(term, teacher=SURE)  # It is not read.

  def test_one_of_several_outputs(self):
    def apply(params, x):
      logits = LINEAR.apply(params, x)
      return {'logits': logits, 'second': softmax(logits)}, {}

    model = cxjax.from_fn(apply, WEIGHTS)
    with self.assertRaisesRegex(errors.UserError, "'output:second'.*probabil"):
      plan(model, model, loss={'logits': 'kl', 'second': 'kl'})
    plan(model, model, loss={'logits': 'kl', 'second': 'mse'})

  @parameterized.parameters(
    'mse',
    'cosine',
    lambda p, q: optax.losses.squared_error(p, q).sum(-1),
    lambda p, q: -(q * jnp.log(p + 1e-9)).sum(-1),
  )
  def test_losses_of_other_values(self, loss):
    plan(SURE, SURE, loss=loss)

  @parameterized.parameters(expert, jax.nn.silu, lambda x: 10 * softmax(x))
  def test_a_softmax_inside(self, end):
    with mock.patch.object(logging, 'warning') as warning:
      plan(linen(end), linen(end))
    warning.assert_not_called()

  def test_a_sigmoid_is_warned_of(self):
    model = linen(jax.nn.sigmoid)
    with self.assertLogs(level='WARNING') as logs:
      plan(model)
    self.assertRegex(logs.output[0], 'output of the teacher is the result of a')
    with mock.patch.object(logging, 'warning') as warning:
      plan(model, model, loss='mse')
    warning.assert_not_called()

  def test_compare(self):
    make = lambda: cxjax.compare(
      LOGITS, SURE, [X], held_out=X, num_steps=2, report=lambda line: None
    )
    self.assert_refused('student', make)


class MetricsTest(parameterized.TestCase):
  @parameterized.parameters('loss', 'perplexity')
  def test_of_logits(self, name):
    made = plan(LOGITS, SURE, (X, Y), loss='mse')
    with self.assertRaisesRegex(errors.UserError, f"{name}' reads logits"):
      cxjax.distill(made, [(X, Y)], metrics=(name,))

  def test_of_the_teacher(self):
    made = plan(SURE, LOGITS, loss='mse')
    with self.assertRaisesRegex(errors.UserError, 'of the teacher is prob'):
      cxjax.distill(made, [X], metrics='teacher_kl')

  def test_labels_with_a_loss_of_probabilities(self):
    loss = lambda p, y: -jnp.log(jnp.take_along_axis(p, y[:, None], 1))[:, 0]
    made = plan_of(cxjax.Term(target='labels', loss=loss), student=SURE)
    _, history = cxjax.distill(made, [(X, Y)])
    self.assertIn('eval/accuracy', history[-1])
    # The cross entropy would be of probabilities as if they were logits.
    self.assertNotIn('eval/loss', history[-1])
