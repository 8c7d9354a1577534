"""Tests of losses of relations, against numpy written out."""

import functools

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax import errors
from cxjax.methods import relational

RANDOM = np.random.default_rng(0)
S, T = RANDOM.normal(size=(2, 5, 3)).astype(np.float32)
ROTATION = np.linalg.qr(RANDOM.normal(size=(3, 3)))[0].astype(np.float32)


def cosines(x):
  x = x / np.linalg.norm(x, axis=-1, keepdims=True)
  return x @ x.T


def cka(s, t):
  s, t = (x - x.mean(0) for x in (s, t))
  norm = np.linalg.norm
  return norm(s.T @ t) ** 2 / (norm(s.T @ s) * norm(t.T @ t))


class RelationTest(parameterized.TestCase):
  def test_examples_are_compared_by_gram_and_cka_of_vectors(self):
    found = relational.compares_examples
    self.assertTrue(found(relational.gram, S))
    self.assertTrue(found(functools.partial(relational.cka), S))
    self.assertFalse(found(relational.gram, S[None]))
    self.assertFalse(found('mse', S))

  def test_gram(self):
    expected = np.square(cosines(S) - cosines(T)).mean(1)
    np.testing.assert_allclose(relational.gram(S, T), expected, rtol=1e-5)

  def test_cka(self):
    found = relational.cka(S, T)
    np.testing.assert_allclose(found, [1 - cka(S, T)] * 5, rtol=1e-5)
    np.testing.assert_allclose(relational.cka(1e3 * S + 7, T), found, rtol=1e-3)

  @parameterized.parameters('gram', 'cka')
  @pytest.mark.slow
  def test_a_rotation_is_the_same(self, name):
    found = relational.LOSSES[name](T @ ROTATION, T)
    np.testing.assert_allclose(found, np.zeros(5), atol=1e-6)

  @parameterized.parameters('gram', 'cka')
  @pytest.mark.slow
  def test_rows_are_those_before_the_width(self, name):
    loss = jax.jit(relational.LOSSES[name])
    both = loss(np.stack([S, T]), np.stack([T, T]))
    np.testing.assert_allclose(both, [loss(S, T), loss(T, T)], atol=1e-6)

  @parameterized.parameters('gram', 'cka')
  @pytest.mark.slow
  def test_padding_is_as_if_it_was_not_there(self, name):
    loss = relational.LOSSES[name]
    pad = lambda x: np.concatenate([x, np.zeros((2, 3), np.float32)])
    total = lambda s, t: jnp.sum(loss(s, t)[:5])
    grad = jax.jit(jax.value_and_grad(total))
    value, slope = grad(pad(S), pad(T))
    expected, wanted = grad(S, T)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(slope, pad(wanted), rtol=1e-4, atol=1e-7)

  @parameterized.parameters(*relational.LOSSES)
  @pytest.mark.slow
  def test_gradients_are_finite_where_nothing_is(self, name):
    shape = (1, 4, 3)
    zeros, ones = np.zeros(shape, np.float32), np.ones(shape, np.float32)
    total = lambda s, t: jnp.sum(relational.LOSSES[name](s, t))
    grad = jax.jit(jax.value_and_grad(total))
    for s, t in ((zeros, ones), (ones, zeros), (zeros, zeros), (ones, ones)):
      value, slope = grad(s, t)
      self.assertTrue(np.isfinite(value) and np.isfinite(slope).all())

  def test_vectors_are_refused_where_rows_are_needed(self):
    for name in ('gram', 'cka'):
      with self.assertRaisesRegex(errors.UserError, r'are \[3\]'):
        relational.LOSSES[name](S[0], T[0])
    with self.assertRaisesRegex(errors.UserError, r'positions.*are \[5, 3\]'):
      relational.attention(S, T)


class AttentionTest(parameterized.TestCase):
  @pytest.mark.slow
  def test_by_position(self):
    s, t = RANDOM.normal(size=(2, 2, 2, 4, 3)).astype(np.float32)

    def attention_map(x):
      found = np.square(x).sum(-1).reshape(2, -1)
      return found / np.linalg.norm(found, axis=1, keepdims=True)

    found = relational.attention(s, t)
    self.assertEqual(found.shape, (2, 2, 4))
    expected = np.square(attention_map(s) - attention_map(t)).sum(1)
    np.testing.assert_allclose(found.mean((1, 2)), expected, rtol=1e-5)
    # Padding of zeros is no position.
    padded = [np.pad(x, [(0, 0), (0, 0), (0, 3), (0, 0)]) for x in (s, t)]
    np.testing.assert_allclose(
      relational.attention(*padded)[:, :, :4], found, rtol=1e-5
    )
    # Where it is large matters, not along which coordinates, nor how large.
    np.testing.assert_allclose(
      relational.attention(3 * t @ ROTATION, t), np.zeros((2, 2, 4)), atol=1e-6
    )
