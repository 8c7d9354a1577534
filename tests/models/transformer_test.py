"""The transformer: inputs, activations, initialization, FLOPs and errors.

The tests of interop compare it with BERT and GPT-2.
"""

import functools
from unittest import mock

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax import errors
from cxjax.methods import flops
from cxjax.methods import targets
from cxjax.models import attention
import drawn
from tests.models.transformed import DEPTH
from tests.models.transformed import KINDS
from tests.models.transformed import LENGTH
from tests.models.transformed import POSITIONS
from tests.models.transformed import REAL
from tests.models.transformed import TOKENS
from tests.models.transformed import WIDTH
from tests.models.transformed import B
from tests.models.transformed import make
from tests.models.transformed import params

pytestmark = pytest.mark.slow


@functools.cache
def apply(causal, **kwargs):
  return jax.jit(make(causal, **kwargs).apply)


def assert_close(a, b, atol=1e-5):
  np.testing.assert_allclose(a, b, rtol=1e-4, atol=atol)


class ForwardTest(parameterized.TestCase):
  @parameterized.named_parameters(*KINDS)
  def test_names_its_activations(self, causal):
    _, found = apply(causal)(params(causal), TOKENS)
    inside = (
      f'block{i}{part}' for i in (0, 1) for part in ('/attention', '/mlp', '')
    )
    self.assertSameElements(found, ('embeddings', 'head_input', *inside))
    self.assertEqual(make(causal).layers, ('block0', 'block1'))
    for value in found.values():
      self.assertEqual(value.shape, (B, LENGTH, WIDTH))

  @parameterized.named_parameters(*KINDS)
  def test_target_positions_select_logits(self, causal):
    x = {'tokens': TOKENS, 'mask': REAL}
    everywhere, found = apply(causal)(params(causal), x)
    some, there = apply(causal)(
      params(causal), {**x, 'target_positions': POSITIONS}
    )
    rows = np.arange(B)[:, None]
    assert_close(some, everywhere[rows, POSITIONS])
    assert_close(there['head_input'], found['head_input'][rows, POSITIONS])
    assert_close(there['block1'], found['block1'])  # Everywhere, if asked for.

  def test_decoder_does_not_see_later_tokens(self):
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
    if not causal:  # A decoder never sees padding, which comes last.
      self.assertFalse(np.allclose(unmasked[1], after[1], atol=1e-2))

  @parameterized.named_parameters(*KINDS)
  def test_segments_are_separate_sequences(self, causal):
    """Two packed sequences give the same logits as each alone."""
    parts = ((0, 4), (4, 8))  # Of one length: they share a program.
    segments = np.repeat([[1, 2, 0]], B, 0).repeat([4, 4, LENGTH - 8], 1)
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

  def test_dropout_acts_if_the_input_has_keys(self):
    keys = jax.random.split(jax.random.key(0), B)
    model = apply(False, dropout=0.5)
    plain, _ = apply(False)(params(False), TOKENS)
    without, _ = model(params(False), TOKENS)
    assert_close(plain, without)
    one, _ = model(params(False), {'tokens': TOKENS, 'dropout': keys})
    two, _ = model(params(False), {'tokens': TOKENS, 'dropout': keys[::-1]})
    self.assertFalse(np.allclose(one, plain, atol=1e-2))
    self.assertFalse(np.allclose(one, two, atol=1e-2))

  def test_every_dropout_layer_has_its_own_number(self):
    keys = jax.random.split(jax.random.key(0), B)
    layers = []

    def record(h, keys, layer, rate):
      del keys
      layers.append((layer, rate))
      return h

    variables = params(True)  # Made without dropout, before it is recorded.
    with mock.patch.object(attention, 'dropout', record):
      x = {'tokens': TOKENS, 'dropout': keys}
      jax.eval_shape(make(True, dropout=0.5).apply, variables, x)
    self.assertEqual(layers, [(i, 0.5) for i in range(1 + 2 * DEPTH)])

  def test_remat_changes_neither_value_nor_gradient(self, causal=True):
    keys = jax.random.split(jax.random.key(0), B)
    x = {'tokens': TOKENS, 'target_positions': POSITIONS, 'dropout': keys}

    def loss(p, model):
      logits, _ = model.apply(p, x)
      return jnp.square(logits).sum()

    results = [
      jax.jit(jax.value_and_grad(functools.partial(loss, model=model)))(
        params(causal)
      )
      for model in (
        make(causal, dropout=0.5, depth=1),
        make(causal, dropout=0.5, depth=1, remat=True),
      )
    ]
    jax.tree.map(assert_close, *results)

  def test_bfloat16_is_near_and_keeps_parameters_and_logits(self, causal=False):
    exact, _ = apply(causal, depth=1)(params(causal), TOKENS)
    model = make(causal, depth=1, dtype=jnp.bfloat16)
    near, found = jax.jit(model.apply)(params(causal), TOKENS)
    self.assertEqual(near.dtype, jnp.float32)
    self.assertEqual(found['block0'].dtype, jnp.bfloat16)
    # bfloat16 has 8 bits, and rounding errors of some 20 sums add up.
    self.assertLess(np.abs(near - exact).max() / np.abs(exact).max(), 0.05)
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
    for leaf in jax.tree.leaves(shapes):
      self.assertEqual(leaf.dtype, jnp.float32)

  def test_tied_head_uses_the_token_embedding(self):
    model = make(False, tied=True, num_classes=7)
    variables = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
    self.assertNotIn('logits', variables['params'])
    logits, _ = jax.eval_shape(model.apply, variables, TOKENS)
    self.assertEqual(logits.shape, (B, LENGTH, 7))

  @parameterized.named_parameters(*KINDS)
  def test_no_head_without_classes(self, causal):
    model = make(causal, num_classes=0, dtype=jnp.bfloat16)
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)['params']
    blocks = ('block0', 'block1', 'position_embedding', 'tokens')
    norm = 'final_norm' if causal else 'embeddings_norm'
    self.assertSameElements(shapes, (*blocks, norm))
    x = {'tokens': TOKENS, 'target_positions': POSITIONS}
    out, found = jax.jit(model.apply)(params(causal), x)
    self.assertEqual(out.shape, (B, 2, WIDTH))
    self.assertEqual(out.dtype, jnp.float32)
    np.testing.assert_array_equal(out, found['head_input'].astype(jnp.float32))

  @parameterized.named_parameters(*KINDS)
  def test_norm_epsilon(self, causal):
    theirs = 1e-5 if causal else 1e-12
    plain, _ = apply(causal)(params(causal), TOKENS)
    same, _ = apply(causal, norm_eps=theirs)(params(causal), TOKENS)
    np.testing.assert_array_equal(plain, same)
    _, found = apply(causal, norm_eps=1.0)(params(causal), TOKENS)
    last = 'final_norm' if causal else 'embeddings_norm'
    at = 'head_input' if causal else 'embeddings'
    p = jax.tree.map(np.asarray, params(causal)['params'])
    if causal:
      h = np.asarray(found['block1'])
    else:
      h = (
        p['tokens']['embedding'][TOKENS]
        + p['position_embedding'][None, :LENGTH]
      )
    h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1)
    scale, bias = (p[last][n][None, None] for n in ('scale', 'bias'))
    assert_close(found[at], h * scale + bias)

  def test_initialization_of_gpt2_and_bert(self):
    for causal in (False, True):
      model = make(causal, width=64, init_std=0.02)
      # XLA leaves out the rest.
      init = jax.jit(
        lambda key, of=model: of.init(key, TOKENS)['params']['block0']
      )
      start = init(jax.random.key(0))
      for name, std in (
        ('query', 0.02),
        ('mlp_in', 0.02),
        ('mlp_out', 0.02 / 2 if causal else 0.02),
        ('attention_out', 0.02 / 2 if causal else 0.02),
      ):
        kernel = np.asarray(start[name]['kernel'])
        # 5 standard errors of a deviation.
        error = 5 / np.sqrt(2 * kernel.size)
        self.assertAlmostEqual(kernel.std() / std, 1, delta=error)


class HeadTest(parameterized.TestCase):
  @parameterized.parameters(
    (False, True, jnp.float32),
    (False, False, jnp.bfloat16),
    (True, False, jnp.float32),
    (True, True, jnp.bfloat16),
  )
  def test_head_of_trunk_is_apply(self, causal, tied, dtype):
    model = make(causal, tied=tied, num_classes=7, dtype=dtype, depth=1)
    variables = drawn.parameters(model.init, TOKENS)
    x = {'tokens': TOKENS, 'mask': REAL, 'target_positions': POSITIONS}
    want, activations = jax.jit(model.apply)(variables, x)
    h, found = jax.jit(model.trunk)(variables, x)
    logits = jax.jit(model.head)(variables, h)
    np.testing.assert_array_equal(h, activations['head_input'])
    self.assertSameElements(found, activations)
    self.assertEqual(logits.dtype, jnp.float32)
    # The parts are compiled apart, so that XLA rounds elsewhere.
    exact = dtype == jnp.float32
    np.testing.assert_allclose(
      logits, want, rtol=0, atol=1e-5 if exact else 0.05
    )
    # Any part of the positions, and any leading axes.
    pieces = jax.jit(model.head)(variables, h.reshape(-1, WIDTH)[1:4])
    np.testing.assert_allclose(
      pieces, logits.reshape(-1, 7)[1:4], rtol=0, atol=1e-5 if exact else 0.05
    )

  @parameterized.named_parameters(*KINDS)
  def test_parts_add_up_in_flops(self, causal):
    model = make(causal)
    h = jnp.zeros((B, LENGTH, WIDTH))
    trunk = flops.lowered(model.trunk, params(causal), TOKENS)
    head = flops.lowered(model.head, params(causal), h)
    whole = flops.lowered(model.apply, params(causal), TOKENS)
    self.assertEqual(trunk + head, whole)

  def test_no_head_without_classes(self):
    model = make(False, num_classes=0)
    self.assertFalse(model.abilities.head)
    with self.assertRaisesRegex(errors.UserError, 'has no head'):
      model.head(params(False), jnp.zeros((1, 1, WIDTH)))


class CostTest(parameterized.TestCase):
  """FLOPs of the compiled program against the arithmetic of its products."""

  length, width, batch = 64, 64, 4

  @classmethod
  @functools.cache
  def flops(cls, causal, name, positions=None):
    model = make(causal, width=cls.width, depth=3, max_length=cls.length)
    x = {'tokens': jnp.zeros((cls.batch, cls.length), jnp.int32)}
    if positions:
      x['target_positions'] = jnp.zeros((cls.batch, positions), jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    fun = functools.partial(targets.activation, model.apply, name=name)
    return flops.compiled(fun, variables, x)

  def block(self, queries):
    """Multiply-adds of a block: with `queries` positions, in FLOPs."""
    length, width = self.length, self.width
    linear = 2 * width**2 * (2 * length + 2 * queries + 8 * queries)
    attention = 2 * 2 * queries * length * width
    return self.batch * (linear + attention)

  @parameterized.named_parameters(*KINDS)
  def test_layers_above_a_tap_are_not_computed(self, causal):
    costs = [self.flops(causal, f'block{i}') for i in range(3)]
    for lower, upper in zip(costs[:-1], costs[1:], strict=True):
      # Norms, GELU and softmax are the rest.
      ratio = (upper - lower) / self.block(self.length)
      self.assertBetween(ratio, 1, 1.25)

  @parameterized.named_parameters(*KINDS)
  def test_last_block_is_computed_at_target_positions(self, causal):
    one = self.flops(causal, 'head_input', positions=1)
    below = self.flops(causal, 'block1')
    self.assertBetween((one - below) / self.block(1), 1, 1.25)
    # Where the whole of it is tapped it is the whole.
    whole = self.flops(causal, 'block2', positions=1)
    self.assertBetween((whole - below) / self.block(self.length), 1, 1.25)
