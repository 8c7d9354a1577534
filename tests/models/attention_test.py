"""Attention, GELU, dropout and lookups, against their definitions."""

import math
from unittest import mock

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax.models import attention
import drawn


def assert_close(a, b, atol=1e-5):
  np.testing.assert_allclose(a, b, rtol=1e-4, atol=atol)


class AttentionTest(parameterized.TestCase):
  @pytest.mark.slow
  def test_is_softmax_of_scaled_products(self):
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (np.array(jax.random.normal(k, (2, 5, 3, 4))) for k in keys)
    visible = np.tril(np.ones((1, 5, 5), bool))
    got = attention.dot_product_attention(q, k, v, visible)
    for b in range(2):
      for h in range(3):
        scores = q[b, :, h] @ k[b, :, h].T / 2
        weights = np.where(visible[0], np.exp(scores), 0)
        weights /= weights.sum(1, keepdims=True)
        assert_close(got[b, :, h], weights @ v[b, :, h])

  @pytest.mark.slow
  def test_large_scores_do_not_overflow(self):
    q = jnp.full((1, 2, 1, 1), 300.0)
    v = jnp.array([1.0, 3.0]).reshape(1, 2, 1, 1)
    got = attention.dot_product_attention(q, q, v, None)
    assert_close(got, jnp.full((1, 2, 1, 1), 2.0))

  def test_query_that_sees_no_key_is_finite(self):
    q = jnp.ones((1, 2, 1, 1))
    got = attention.dot_product_attention(q, q, q, np.zeros((1, 2, 2), bool))
    self.assertTrue(np.isfinite(got).all())


class VisibilityTest(parameterized.TestCase):
  MASK = np.array([[True, True, True], [True, True, False]])
  SEGMENTS = np.array([[1, 1, 2], [1, 2, 2]])

  def test_everything_is_visible_without_masks(self):
    self.assertIsNone(attention.visibility(3, causal=False))

  def test_is_the_conjunction_of_its_parts(self):
    found = attention.visibility(3, True, self.MASK, self.SEGMENTS)
    for b in range(2):
      for q in range(3):
        for k in range(3):
          own = self.SEGMENTS[b, q] == self.SEGMENTS[b, k]
          want = k <= q and self.MASK[b, k] and own
          self.assertEqual(bool(found[b, q, k]), bool(want))

  def test_what_is_not_0_is_real(self):
    want = attention.visibility(3, True, self.MASK)
    for mask in (2 * self.MASK.astype(int), 0.5 * self.MASK):
      np.testing.assert_array_equal(attention.visibility(3, True, mask), want)

  def test_shapes_broadcast(self):
    mask, segments = self.MASK, self.SEGMENTS
    for causal, kwargs, shape in (
      (True, {}, (1, 3, 3)),
      (False, {'mask': mask}, (2, 1, 3)),
      (True, {'mask': mask}, (2, 3, 3)),
      (False, {'segments': segments}, (2, 3, 3)),
    ):
      self.assertEqual(attention.visibility(3, causal, **kwargs).shape, shape)


class GeluTest(parameterized.TestCase):
  @pytest.mark.slow
  def test_is_x_times_the_normal_distribution(self):
    x = np.linspace(-12, 12, 97, dtype=np.float32)
    value, slope = jax.vmap(jax.value_and_grad(attention.gelu))(x)
    wide = x.astype(np.float64)
    share = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in wide])
    density = np.exp(-(wide**2) / 2) / math.sqrt(2 * math.pi)
    np.testing.assert_allclose(value, wide * share, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(slope, share + wide * density, atol=1e-6)


class DropoutTest(parameterized.TestCase):
  def test_needs_keys_and_keeps_the_mean(self):
    h = jnp.ones((4, 3, 5_000))
    keys = jax.random.split(jax.random.key(0), 4)
    self.assertIs(attention.dropout(h, None, 0, 0.2), h)
    out = attention.dropout(h, keys, 0, 0.2)
    assert_close(out.mean(), 1.0, atol=0.02)
    self.assertSameElements(np.unique(out), (0.0, np.float32(1.25)))

  def test_layers_draw_different_values(self):
    h = jnp.ones((4, 3, 50))
    keys = jax.random.split(jax.random.key(0), 4)
    one, other = (attention.dropout(h, keys, layer, 0.2) for layer in (0, 1))
    self.assertFalse(np.array_equal(one, other))

  @pytest.mark.slow
  def test_example_has_its_own_draw_wherever_it_is_in_the_batch(self):
    h = jnp.ones((4, 3, 50))
    keys = jax.random.split(jax.random.key(0), 4)
    out = attention.dropout(h, keys, 0, 0.2)
    last = attention.dropout(h[3:], keys[3:], 0, 0.2)
    np.testing.assert_array_equal(out[3:], last)


class LookupTest(parameterized.TestCase):
  @parameterized.parameters(0, 256)
  def test_selects_embeddings_with_their_gradient(self, limit):
    table = drawn.normal(7, 3, seed=0)
    ids = np.array([[1, 6, 1], [0, 2, 2]])

    def total(table):
      found = attention.embedding_lookup(table, ids, jnp.float32)
      return jnp.square(found).sum(), found

    with mock.patch.object(attention, 'ONE_HOT_VOCABULARY', limit):
      grad, found = jax.jit(jax.grad(total, has_aux=True))(table)
    assert_close(found, table[ids])
    counts = np.bincount(ids.ravel(), minlength=7)[:, None]
    assert_close(grad, 2 * counts * table)

  def test_large_vocabulary_is_not_one_hot(self):
    ids = jnp.zeros((1, 2), int)
    for size, product in ((256, True), (257, False)):
      lookup = lambda table: attention.embedding_lookup(table, ids, jnp.float32)
      text = str(jax.make_jaxpr(lookup)(jnp.ones((size, 3))))
      self.assertEqual('dot_general' in text, product)

  @parameterized.product(
    limit=(0, 256), dtype=(jnp.float32, jnp.bfloat16), seeds=(False, True)
  )
  def test_gradient_of_a_frequent_token_in_bfloat16(self, limit, dtype, seeds):
    ids = jnp.zeros((4, 512), int)

    def total(table):
      h = attention.embedding_lookup(table, ids, jnp.bfloat16)
      return (h.astype(jnp.float32) * 1e-3).sum()

    grad, table = jax.grad(total), jnp.ones((7, 3), dtype)
    if seeds:
      grad, table = jax.vmap(grad), table[None]
    with mock.patch.object(attention, 'ONE_HOT_VOCABULARY', limit):
      got = jax.jit(grad)(table).reshape(7, 3)
    self.assertEqual(got.dtype, dtype)
    # Summed in bfloat16 it is 0.5.
    np.testing.assert_allclose(np.float32(got[0]), 2.048, rtol=0.01)
    np.testing.assert_array_equal(np.float32(got[1:]), 0)


class TakePositionsTest(parameterized.TestCase):
  def test_selects_positions_of_any_rank(self):
    positions = np.array([[2, 0], [1, 1]])
    rows = np.arange(2)[:, None]
    for shape in ((2, 3), (2, 3, 4), (2, 3, 4, 5)):
      h = np.random.default_rng(0).normal(size=shape)
      got = attention.take_positions(jnp.asarray(h), positions)
      np.testing.assert_array_equal(got, h[rows, positions].astype(np.float32))

  def test_none_is_all_positions(self):
    h = jnp.ones((2, 3, 4))
    self.assertIs(attention.take_positions(h, None), h)
