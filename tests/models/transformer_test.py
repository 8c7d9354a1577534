"""The transformer: what it reads, what it hides, what it costs, what it says.

That it computes what BERT and GPT-2 do is in huggingface_test.py.
"""

import functools
import math

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from cxjax import errors
from cxjax.methods import train_step
from cxjax.models import transformer

SIZES = dict(vocab_size=7, max_length=12, num_classes=5)
B, LENGTH, WIDTH, DEPTH = 3, 10, 16, 2
POSITIONS = np.array([[1, 4], [9, 0], [3, 3]])
TOKENS = np.random.default_rng(0).integers(0, 7, (B, LENGTH))
REAL = np.arange(LENGTH)[None] < np.array([10, 6, 4])[:, None]
KINDS = (('encoder', False), ('decoder', True))


def make(causal, **kwargs):
  sizes = dict(width=WIDTH, heads=4, depth=DEPTH, init_std=0.3)
  return transformer.Transformer(**{**SIZES, **sizes, **kwargs}, causal=causal)


@functools.cache
def params(causal):
  init = jax.jit(make(causal).init)
  start = init(jax.random.key(0), jnp.zeros((1, LENGTH), int))
  # Away from where norms and biases start.
  keys = iter(jax.random.split(jax.random.key(1), 99))
  return jax.tree.map(
    lambda p: p + 0.1 * jax.random.normal(next(keys), p.shape), start
  )


@functools.cache
def apply(causal, **kwargs):
  return jax.jit(make(causal, **kwargs).apply)


def assert_close(a, b, atol=1e-5):
  np.testing.assert_allclose(a, b, rtol=1e-4, atol=atol)


class TransformerTest(parameterized.TestCase):
  @parameterized.named_parameters(*KINDS)
  def test_names_its_activations(self, causal):
    _, found = apply(causal)(params(causal), TOKENS)
    inside = (
      f'block{i}{part}' for i in (0, 1) for part in ('/attention', '/mlp', '')
    )
    self.assertSameElements(found, ('embeddings', 'final', *inside))
    self.assertEqual(make(causal).layers, ('block0', 'block1'))
    for value in found.values():
      self.assertEqual(value.shape, (B, LENGTH, WIDTH))

  @parameterized.named_parameters(*KINDS)
  def test_reads_some_positions_as_it_reads_all(self, causal):
    x = {'tokens': TOKENS, 'mask': REAL}
    everywhere, found = apply(causal)(params(causal), x)
    some, there = apply(causal)(params(causal), {**x, 'target_positions': POSITIONS})
    rows = np.arange(B)[:, None]
    assert_close(some, everywhere[rows, POSITIONS])
    assert_close(there['final'], found['final'][rows, POSITIONS])
    assert_close(there['block1'], found['block1'])  # Everywhere, if asked for.

  def test_decoder_does_not_see_what_comes(self):
    changed = np.array(TOKENS)
    changed[:, 6] = (changed[:, 6] + 1) % 7
    before, _ = apply(True)(params(True), TOKENS)
    after, _ = apply(True)(params(True), changed)
    assert_close(before[:, :6], after[:, :6])
    self.assertFalse(np.allclose(before[:, 6:], after[:, 6:], atol=1e-2))

  @parameterized.named_parameters(*KINDS)
  def test_padding_is_not_seen(self, causal):
    changed = np.where(REAL, TOKENS, (TOKENS + 3) % 7)
    before, _ = apply(causal)(params(causal), {'tokens': TOKENS, 'mask': REAL})
    after, _ = apply(causal)(params(causal), {'tokens': changed, 'mask': REAL})
    assert_close(before[REAL], after[REAL])
    unmasked, _ = apply(causal)(params(causal), {'tokens': changed})
    if not causal:  # There padding comes last, and is hidden anyway.
      self.assertFalse(np.allclose(unmasked[1], after[1], atol=1e-2))

  @parameterized.named_parameters(*KINDS)
  def test_segments_are_sequences_of_their_own(self, causal):
    """Two pieces in a row are what each is alone."""
    parts = ((0, 4), (4, 9))
    segments = np.repeat([[1, 2, 0]], B, 0).repeat([4, 5, LENGTH - 9], 1)
    places = np.concatenate([np.arange(4), np.arange(LENGTH - 4)])
    x = {
      'tokens': TOKENS,
      'mask': segments > 0,
      'segments': segments,
      'position_ids': np.broadcast_to(places, TOKENS.shape),
    }
    logits, _ = apply(causal)(params(causal), x)
    for low, high in parts:
      alone, _ = apply(causal)(params(causal), TOKENS[:, low:high])
      assert_close(logits[:, low:high], alone)

  def test_dropout_needs_keys_and_keeps_the_mean(self):
    h = jnp.ones((4, 3, 5_000))
    keys = jax.random.split(jax.random.key(0), 4)
    self.assertIs(transformer.dropout(h, None, 0, 0.2), h)
    out = transformer.dropout(h, keys, 0, 0.2)
    assert_close(out.mean(), 1.0, atol=0.02)
    self.assertSameElements(np.unique(out), (0.0, np.float32(1.25)))
    other = transformer.dropout(h, keys, 1, 0.2)
    self.assertFalse(np.array_equal(out, other))
    # An example's draw is its own, wherever it is in the batch.
    last = transformer.dropout(h[3:], keys[3:], 0, 0.2)
    np.testing.assert_array_equal(out[3:], last)

  def test_dropout_acts_on_a_model_with_keys(self):
    keys = jax.random.split(jax.random.key(0), B)
    model = apply(False, dropout=0.5)
    plain, _ = apply(False)(params(False), TOKENS)
    without, _ = model(params(False), TOKENS)
    assert_close(plain, without)
    one, _ = model(params(False), {'tokens': TOKENS, 'dropout': keys})
    two, _ = model(params(False), {'tokens': TOKENS, 'dropout': keys[::-1]})
    self.assertFalse(np.allclose(one, plain, atol=1e-2))
    self.assertFalse(np.allclose(one, two, atol=1e-2))

  def test_remat_changes_neither_value_nor_gradient(self, causal=True):
    def loss(p, model):
      logits, _ = model.apply(p, {'tokens': TOKENS, 'target_positions': POSITIONS})
      return jnp.square(logits).sum()

    results = [
      jax.jit(jax.value_and_grad(functools.partial(loss, model=model)))(
        params(causal)
      )
      for model in (make(causal), make(causal, remat=True))
    ]
    jax.tree.map(assert_close, *results)

  def test_bfloat16_is_near_and_keeps_parameters_and_logits(self, causal=False):
    exact, _ = apply(causal)(params(causal), TOKENS)
    near, found = apply(causal, dtype=jnp.bfloat16)(params(causal), TOKENS)
    self.assertEqual(near.dtype, jnp.float32)
    self.assertEqual(found['block1'].dtype, jnp.bfloat16)
    # 8 bits of a number that some 30 sums have gone into.
    self.assertLess(np.abs(near - exact).max() / np.abs(exact).max(), 0.05)
    model = make(causal, dtype=jnp.bfloat16)
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
    for leaf in jax.tree.leaves(shapes):
      self.assertEqual(leaf.dtype, jnp.float32)

  def test_a_lookup_is_a_product_with_one_hot_rows(self):
    product, _ = apply(False)(params(False), TOKENS)
    limit = transformer.ONE_HOT_VOCABULARY
    transformer.ONE_HOT_VOCABULARY = 0
    try:
      lookup, _ = jax.jit(make(False).apply)(params(False), TOKENS)
    finally:
      transformer.ONE_HOT_VOCABULARY = limit
    assert_close(product, lookup)

  def test_a_tied_head_is_the_embedding(self):
    model = make(False, tied=True, num_classes=7)
    variables = jax.jit(model.init)(jax.random.key(0), TOKENS)
    self.assertNotIn('logits', variables['params'])
    logits, _ = jax.jit(model.apply)(variables, TOKENS)
    self.assertEqual(logits.shape, (B, LENGTH, 7))

  @parameterized.named_parameters(*KINDS)
  def test_without_classes_there_is_no_head(self, causal):
    model = make(causal, num_classes=0, dtype=jnp.bfloat16)
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)['params']
    blocks = ('block0', 'block1', 'positions', 'tokens')
    norm = 'final_norm' if causal else 'embeddings_norm'
    self.assertSameElements(shapes, (*blocks, norm))
    x = {'tokens': TOKENS, 'target_positions': POSITIONS}
    out, found = jax.jit(model.apply)(params(causal), x)
    self.assertEqual(out.shape, (B, 2, WIDTH))
    self.assertEqual(out.dtype, jnp.float32)
    np.testing.assert_array_equal(out, found['final'].astype(jnp.float32))

  @parameterized.named_parameters(*KINDS)
  def test_the_epsilon_of_the_norms_is_theirs_unless_it_is_given(self, causal):
    theirs = 1e-5 if causal else 1e-12
    plain, _ = apply(causal)(params(causal), TOKENS)
    same, _ = apply(causal, norm_eps=theirs)(params(causal), TOKENS)
    np.testing.assert_array_equal(plain, same)
    _, found = apply(causal, norm_eps=1.0)(params(causal), TOKENS)
    last = 'final_norm' if causal else 'embeddings_norm'
    at = 'final' if causal else 'embeddings'
    p = jax.tree.map(np.asarray, params(causal)['params'])
    if causal:
      h = np.asarray(found['block1'])
    else:
      h = p['tokens']['embedding'][TOKENS] + p['target_positions'][None, :LENGTH]
    h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1)
    scale, bias = (p[last][n][None, None] for n in ('scale', 'bias'))
    assert_close(found[at], h * scale + bias)

  def test_starts_as_gpt2_and_bert_do(self):
    for causal in (False, True):
      model = make(causal, width=64, init_std=0.02)
      start = jax.jit(model.init)(jax.random.key(0), TOKENS)['params']
      for name, std in (
        ('query', 0.02),
        ('mlp_in', 0.02),
        ('mlp_out', 0.02 / 2 if causal else 0.02),
        ('attention_out', 0.02 / 2 if causal else 0.02),
      ):
        kernel = start['block0'][name]['kernel']
        # 5 standard errors of a deviation.
        error = 5 / np.sqrt(2 * kernel.size)
        self.assertAlmostEqual(kernel.std() / std, 1, delta=error)


class GeluTest(parameterized.TestCase):
  def test_is_x_times_the_normal_distribution(self):
    x = np.linspace(-12, 12, 97, dtype=np.float32)
    value, slope = jax.vmap(jax.value_and_grad(transformer.gelu))(x)
    wide = x.astype(np.float64)
    share = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in wide])
    density = np.exp(-(wide**2) / 2) / math.sqrt(2 * math.pi)
    np.testing.assert_allclose(value, wide * share, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(slope, share + wide * density, atol=1e-6)


class AttentionTest(parameterized.TestCase):
  def test_is_softmax_of_scaled_products(self):
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (np.array(jax.random.normal(k, (2, 5, 3, 4))) for k in keys)
    visible = np.tril(np.ones((1, 5, 5), bool))
    got = transformer.attention(q, k, v, visible)
    for b in range(2):
      for h in range(3):
        scores = q[b, :, h] @ k[b, :, h].T / 2
        weights = np.where(visible[0], np.exp(scores), 0)
        weights /= weights.sum(1, keepdims=True)
        assert_close(got[b, :, h], weights @ v[b, :, h])

  def test_large_scores_do_not_overflow(self):
    q = jnp.full((1, 2, 1, 1), 300.0)
    v = jnp.array([1.0, 3.0]).reshape(1, 2, 1, 1)
    got = transformer.attention(q, q, v, None)
    assert_close(got, jnp.full((1, 2, 1, 1), 2.0))


class CostTest(parameterized.TestCase):
  """FLOPs of the compiled program against the arithmetic of its products."""

  length, width, batch = 64, 64, 4

  def flops(self, causal, name, positions=None):
    model = make(causal, width=self.width, depth=3, max_length=self.length)
    x = {'tokens': jnp.zeros((self.batch, self.length), jnp.int32)}
    if positions:
      x['target_positions'] = jnp.zeros((self.batch, positions), jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    fun = functools.partial(train_step.activation, model.apply, name=name)
    return train_step.flops(fun, variables, x)

  def block(self, queries):
    """Multiply-adds of a block: with `queries` positions, in FLOPs."""
    length, width = self.length, self.width
    linear = 2 * width**2 * (2 * length + 2 * queries + 8 * queries)
    attention = 2 * 2 * queries * length * width
    return self.batch * (linear + attention)

  @parameterized.named_parameters(*KINDS)
  def test_runs_no_deeper_than_the_tap(self, causal):
    costs = [self.flops(causal, f'block{i}') for i in range(3)]
    for lower, upper in zip(costs[:-1], costs[1:], strict=True):
      # Norms, GELU and softmax are the rest.
      ratio = (upper - lower) / self.block(self.length)
      self.assertBetween(ratio, 1, 1.25)

  @parameterized.named_parameters(*KINDS)
  def test_last_block_is_computed_where_it_is_read(self, causal):
    one = self.flops(causal, 'final', positions=1)
    below = self.flops(causal, 'block1')
    self.assertBetween((one - below) / self.block(1), 1, 1.25)
    # Where the whole of it is tapped it is the whole.
    whole = self.flops(causal, 'block2', positions=1)
    self.assertBetween((whole - below) / self.block(self.length), 1, 1.25)


class ErrorTest(parameterized.TestCase):
  @parameterized.parameters(
    (dict(heads=5), 'heads=5 do not divide width=16'),
    (dict(depth=0), 'depth=0'),
    (dict(tied=True), r'classes \(5\).*ids \(7\)'),
    (dict(width=0), 'width=0'),
    (dict(num_classes=-1), 'num_classes=-1 must not be negative; 0'),
    (dict(norm_eps=-1.0), 'norm_eps=-1.0'),
  )
  def test_sizes_that_do_not_fit(self, kwargs, message):
    with self.assertRaisesRegex(errors.UserError, message):
      make(False, **kwargs)

  def test_a_sequence_longer_than_the_positions(self):
    with self.assertRaisesRegex(errors.UserError, '13 tokens.*12 positions'):
      make(True).init(jax.random.key(0), np.zeros((1, 13), int))

  def test_a_tap_that_is_not_there_lists_those_that_are(self):
    with self.assertRaisesRegex(errors.UserError, "'block7'.*block1/mlp"):
      train_step.activation(make(True).apply, params(True), TOKENS, 'block7')
