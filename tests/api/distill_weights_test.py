"""Weights of examples whose outputs are those of their tokens."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cxjax
from cxjax import errors

B, L, V, C = 6, 3, 7, 5
RNG = np.random.default_rng(0)
IDS = RNG.integers(0, V, (B, L)).astype(np.int32)
Y = RNG.integers(0, C, (B, L)).astype(np.int32)
EACH = np.array([1, 2, 0, 1, 0.5, 1], np.float32)
MASK = (np.arange(L) < np.array([3, 1, 2, 3, 2, 3])[:, None]).astype(np.float32)


def forward(params, x):
  hidden = jnp.tanh(params['in'][x['ids'] if isinstance(x, dict) else x])
  return hidden @ params['out'], {'h': hidden}


def parameters(seed, width):
  shapes = {'in': (V, width), 'out': (width, C)}
  key = jax.random.key(seed)
  return {k: jax.random.normal(key, shape) for k, shape in shapes.items()}


OURS, THEIRS = parameters(1, 4), parameters(0, 8)


def records(batch, held_out=None, **options):
  models = [cxjax.from_fn(forward, p) for p in (THEIRS, OURS)]
  plan = cxjax.plan(*models, batch, num_steps=2, layers=(), **options)
  held_out = batch if held_out is None else held_out
  return cxjax.distill(plan, [batch], held_out=held_out, log_every=1)[1]


def by_hand(weights):
  """The mean over all tokens of the divergence and of the cross entropy."""
  log_q, log_p = (
    np.asarray(jax.nn.log_softmax(forward(p, IDS)[0])) for p in (OURS, THEIRS)
  )
  kl = (np.exp(log_p) * (log_p - log_q)).sum(-1)
  labels = -np.take_along_axis(log_q, Y[..., None], -1)[..., 0]
  return [(weights * loss).sum() / weights.sum() for loss in (kl, labels)]


@pytest.mark.slow
class ExampleWeightsTest(parameterized.TestCase):
  def test_a_weight_of_an_example_is_that_of_its_tokens(self):
    kl, _ = by_hand(np.repeat(EACH[:, None], L, 1))
    first, *_ = found = records({'x': IDS, 'weights': EACH})
    np.testing.assert_allclose(first['loss'], kl, rtol=1e-5)
    whole = {'x': IDS, 'weights': np.repeat(EACH[:, None], L, 1)}
    self.assertEqual(found, records(whole))

  def test_with_labels_of_which_some_do_not_count(self):
    weights = np.repeat(EACH[:, None], L, 1)
    batch = {'x': IDS, 'y': np.where(weights > 0, Y, -100)}
    found = records({**batch, 'weights': EACH}, alpha=0.5)
    kl, labels = by_hand(weights)
    np.testing.assert_allclose(found[0]['loss/output'], kl, rtol=1e-5)
    np.testing.assert_allclose(found[0]['loss/labels'], labels, rtol=1e-5)
    self.assertEqual(found, records({**batch, 'weights': weights}, alpha=0.5))

  def test_padding_does_not_count(self):
    x = {'ids': IDS, 'mask': MASK}
    y = np.where(MASK * EACH[:, None] > 0, Y, -100)
    batch = {'x': x, 'y': y, 'weights': EACH}
    found = records(batch, alpha=0.5)
    kl, labels = by_hand(EACH[:, None] * MASK)
    np.testing.assert_allclose(found[0]['loss/output'], kl, rtol=1e-5)
    np.testing.assert_allclose(found[0]['loss/labels'], labels, rtol=1e-5)
    whole = {**batch, 'weights': EACH[:, None] * MASK}
    self.assertEqual(found, records(whole, alpha=0.5))

  def test_soft_labels(self):
    soft = np.array(jax.nn.one_hot(Y, C))
    soft[2] = 0  # Weight 0.
    batch = {'x': IDS, 'y': soft, 'weights': EACH}
    found = records(batch, alpha=0.5)
    _, labels = by_hand(np.repeat(EACH[:, None], L, 1))
    np.testing.assert_allclose(found[0]['loss/labels'], labels, rtol=1e-5)
    with self.assertRaisesRegex(errors.UserError, 'probabilities.* of sum 0'):
      records({**batch, 'weights': EACH + 1}, alpha=0.5)

  @parameterized.parameters((EACH[:, None],), (EACH[:4],), (EACH[None],))
  def test_other_shapes_are_refused(self, weights):
    message = '6 rows|one for each of the 6 examples'
    with self.assertRaisesRegex(errors.UserError, message):
      records({'x': IDS, 'weights': weights})

  def test_a_last_batch_that_is_padded(self):
    models = [cxjax.from_fn(forward, p) for p in (THEIRS, OURS)]
    batch = {'x': IDS, 'weights': EACH}
    plan = cxjax.plan(*models, batch, num_steps=1, layers=())
    short = {name: leaf[:4] for name, leaf in batch.items()}
    train = lambda one, **how: cxjax.distill(plan, [one], log_every=1, **how)[1]
    padded = train(short, held_out=batch, last_batch='pad')
    kl, _ = by_hand(np.repeat((EACH * (np.arange(B) < 4))[:, None], L, 1))
    np.testing.assert_allclose(padded[0]['loss'], kl, rtol=1e-5)
