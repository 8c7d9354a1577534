"""The loss and gradient of a train step, beside those written out by hand."""

import functools

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cxjax import errors
from cxjax.methods import losses
from cxjax.methods import targets as targets_lib
from cxjax.methods import train_step
from tests.methods import networks
from tests.methods.stepped import FADE
from tests.methods.stepped import TX
from tests.methods.stepped import Stage
from tests.methods.stepped import Term
from tests.methods.stepped import dense
from tests.methods.stepped import random

pytestmark = pytest.mark.slow

RISE = optax.linear_schedule(0.5, 2.0, 1.0)
SIZE = 8  # Examples, in 4 microbatches.


def log_softmax(x):
  return x - jnp.log(jnp.sum(jnp.exp(x), -1, keepdims=True))


def divergence(student, teacher):
  p = jnp.exp(log_softmax(teacher))
  return jnp.sum(p * (log_softmax(teacher) - log_softmax(student)), -1)


def nll(logits, labels):
  return -jnp.sum(
    jax.nn.one_hot(labels, logits.shape[-1]) * log_softmax(logits), -1
  )


def mean(values, weights):
  return jnp.sum(values * weights) / jnp.sum(weights)


def square(got, want):
  return jnp.sum((got - want) ** 2, -1)


def perceptron(params, x):
  """The activations of an MLP, written out."""
  low = jax.nn.relu(dense(params, 'hidden0', x))
  high = jax.nn.relu(dense(params, 'hidden1', low))
  return low, high, dense(params, 'logits', high)


class VectorCase:
  """Four terms on vectors: labels, logits, a projection and a regressor."""

  stage = Stage(
    'joint',
    10,
    (
      Term(target='labels', weight=0.3),
      Term(weight=RISE),
      Term('hidden0', 'hidden1', weight=0.5, projection='gaussian'),
      Term(
        'hidden1',
        'hidden0',
        weight=FADE,
        projection='gaussian',
        regressor=True,
        width=7,
        norm='layer',
        centered=True,
        scale=0.5,
      ),
    ),
  )
  apply = networks.STUDENT.apply
  teacher = networks.TEACHER.apply

  def __init__(self):
    self.params = networks.params(networks.STUDENT, 1)
    self.teacher_params = networks.params(networks.TEACHER)
    self.batch = {
      **networks.batch(size=SIZE),
      'weights': jnp.array([1.0, 0, 2, 1, 0.5, 1, 0, 1]),
    }
    self.matrices = {'hidden0': random(3, 12, 6), 'hidden1': random(4, 16, 7)}
    self.regressors = {'hidden1': {'kernel': random(5, 5, 7)}}

  def losses(self, params, regressors):
    """The loss of each term before its weight."""
    x, y, weights = (self.batch[k] for k in ('x', 'y', 'weights'))
    low, high, logits = perceptron(params, x)
    theirs = perceptron(self.teacher_params, x)
    want = theirs[0] - theirs[0].mean(-1, keepdims=True)
    want = want / jnp.sqrt(jnp.var(theirs[0], -1, keepdims=True) + 1e-5)
    each = weights[:, None]
    middle = (want * each).sum(0, keepdims=True) / weights.sum()
    want = 0.5 * (want - middle) @ self.matrices['hidden1']
    return {
      'labels': mean(nll(logits, y), weights),
      'output': mean(divergence(logits, theirs[2]), weights),
      'hidden0': mean(
        square(low, theirs[1] @ self.matrices['hidden0']), weights
      ),
      'hidden1': mean(
        square(high @ regressors['hidden1']['kernel'], want), weights
      ),
    }

  def weights(self, t):
    return {
      'labels': 0.3,
      'output': 0.5 + 1.5 * t,
      'hidden0': 0.5,
      'hidden1': 1 - t,
    }


class SequenceCase:
  """Five terms on sequences: masks, target positions, weights, pooling."""

  stage = Stage(
    'joint',
    10,
    (
      Term(target='labels', weight=0.3),
      Term(weight=RISE),
      Term('low', 'high', loss='cosine', weight=FADE, projection='sparse'),
      Term('high', 'low', tokens='predicted', projection='gaussian', weight=2),
      Term(
        'low', 'low', pool='mean', regressor=True, centered=True, name='mean'
      ),
    ),
  )
  apply = staticmethod(networks.sequence_apply)
  teacher = staticmethod(networks.sequence_apply)

  def __init__(self):
    self.params = networks.sequence_params(3, 1)
    self.teacher_params = networks.sequence_params(5, 0)
    self.batch = networks.sequence_batch()
    # Nothing counts in one of the microbatches.
    weights = self.batch['weights'].at[1].set(0.0)
    self.batch = {**self.batch, 'weights': weights}
    self.matrices = {'low': random(3, 5, 3), 'high': random(4, 5, 3)}
    self.regressors = {'mean': {'kernel': random(5, 3, 5)}}

  def losses(self, params, regressors):
    x, y, weights = (self.batch[k] for k in ('x', 'y', 'weights'))
    logits, ours = networks.sequence_apply(params, x)
    want, theirs = networks.sequence_apply(self.teacher_params, x)
    mask = x['mask'].astype(jnp.float32)
    rows = np.arange(networks.B)[:, None]
    at = lambda value: value[rows, x['target_positions']]
    pooled = lambda v: (v * mask[..., None]).sum(1) / mask.sum(1)[:, None]
    unit = lambda v: v / jnp.sqrt((v**2).sum(-1, keepdims=True))
    low = theirs['high'] @ self.matrices['low']
    middle = pooled(theirs['low'])
    middle = middle - middle.mean(0, keepdims=True)
    return {
      'labels': mean(nll(logits, y), weights),
      'output': mean(divergence(logits, want), weights),
      'low': mean(1 - (unit(ours['low']) * unit(low)).sum(-1), mask),
      'high': mean(
        square(at(ours['high']), at(theirs['low']) @ self.matrices['high']),
        weights,
      ),
      'mean': square(
        pooled(ours['low']) @ regressors['mean']['kernel'], middle
      ).mean(),
    }

  def weights(self, t):
    return {
      'labels': 0.3,
      'output': 0.5 + 1.5 * t,
      'low': 1 - t,
      'high': 2.0,
      'mean': 1.0,
    }


CASES = {'vectors': VectorCase, 'sequences': SequenceCase}


@functools.cache
def program(name, microbatches):
  """`(state, targets, progress) -> (state, loss, losses)` of a case."""
  case = CASES[name]()
  return jax.jit(
    lambda state, targets, progress: train_step.update(
      state,
      case.batch,
      targets,
      progress,
      apply=case.apply,
      stage=case.stage,
      tx=TX,
      mask=jax.tree.map(lambda _: True, case.params),
      microbatches=microbatches,
    )
  )


@functools.cache
def by_hand(name):
  """A case, its targets, and its loss and gradient at parameters."""
  case = CASES[name]()

  def total(params, regressors, progress):
    found = case.losses(params, regressors)
    weights = case.weights(progress)
    return sum(weights[k] * found[k] for k in weights), found

  make = functools.partial(
    targets_lib.make_targets, case.teacher, stage=case.stage
  )
  targets = jax.jit(make)(case.teacher_params, case.matrices, case.batch)
  grad = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
  return case, targets, jax.jit(grad)


class SeveralTermsTest(parameterized.TestCase):
  """The loss and its gradient are those of the sum written out in plain JAX."""

  @parameterized.product(
    name=tuple(CASES), microbatches=(1, 4), progress=(0.0, 0.5, 1.0)
  )
  def test_loss_and_gradient_by_hand(self, name, microbatches, progress):
    case, targets, grad = by_hand(name)
    (loss, each), (grads, of_regressors) = grad(
      case.params, case.regressors, progress
    )
    learned = case.params, case.regressors
    state = train_step.State(*learned, TX.init(learned))
    after, got, terms = program(name, microbatches)(
      state, targets, jnp.float32(progress)
    )
    close = functools.partial(chex.assert_trees_all_close, rtol=2e-5, atol=2e-6)
    close(got, loss)
    close(terms, each)
    moved = lambda before, after: jax.tree.map(jnp.subtract, before, after)
    close(moved(case.params, after.params), grads)
    close(moved(case.regressors, after.regressors), of_regressors)

  def test_train_step_is_update_without_the_losses_of_the_terms(self):
    case = VectorCase()
    learned = case.params, case.regressors
    state = train_step.State(*learned, TX.init(learned))
    targets = targets_lib.make_targets(
      case.teacher, case.teacher_params, case.matrices, case.batch, case.stage
    )
    mask = jax.tree.map(lambda _: True, case.params)
    options = dict(apply=case.apply, stage=case.stage, tx=TX, mask=mask)
    step = jax.jit(functools.partial(train_step.train_step, **options))
    got = step(state, case.batch, targets, jnp.float32(0.5))
    want = program('vectors', 1)(state, targets, jnp.float32(0.5))
    chex.assert_trees_all_close(got, want[:2], rtol=1e-6)

  def test_half_and_half_is_the_mean_of_two(self):
    """And a weight of 1 alone is the loss itself, bit for bit."""
    batch, params = networks.batch(), networks.params(networks.STUDENT, 1)
    mask = jax.tree.map(lambda _: True, params)
    target = random(0, networks.B, networks.C)

    def loss(*terms):
      stage = Stage('s', 1, terms)
      every = {
        name: target if term.needs_teacher else batch['y']
        for name, term in stage.named_terms.items()
      }
      state = train_step.State(params, {}, TX.init((params, {})))
      step = functools.partial(
        train_step.train_step,
        apply=networks.STUDENT.apply,
        stage=stage,
        tx=TX,
        mask=mask,
      )
      return jax.jit(step)(state, batch, every)[1]

    logits, _ = networks.STUDENT.apply(params, batch['x'])
    alone = loss(Term(loss='mse'))
    self.assertEqual(alone, jnp.mean(losses.mse(logits, target)))
    labels = loss(Term(target='labels'))
    both = loss(Term(loss='mse', weight=0.5), Term(target='labels', weight=0.5))
    np.testing.assert_allclose(both, (alone + labels) / 2, rtol=1e-6)

    infinite = lambda got, want: jnp.log(0 * square(got, want))
    off = Term(loss=infinite, weight=0.0, name='off')
    self.assertEqual(loss(Term(loss='mse'), off), alone)

  def test_a_target_that_is_missing_is_an_error(self):
    case = VectorCase()
    state = train_step.State(case.params, case.regressors, None)
    with self.assertRaisesRegex(errors.UserError, 'labels, output, hidden0'):
      train_step.train_step(
        state,
        case.batch,
        {'labels': case.batch['y']},
        apply=case.apply,
        stage=case.stage,
        tx=TX,
        mask=jax.tree.map(lambda _: True, case.params),
      )
