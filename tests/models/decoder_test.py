"""The decoder: its parts, windows, groups of heads, and bad sizes.

tests/interop/huggingface/families_test.py compares it with transformers.
"""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax import errors
from cxjax.models import base
from cxjax.models import decoder
from cxjax.parallel import partition

SIZES = dict(vocab_size=20, max_length=8, num_classes=20, width=16, heads=4)
SIZES |= dict(depth=2, mlp_width=24, kv_heads=2)
PLACES = np.broadcast_to(np.arange(7), (2, 7))
TOKENS = np.random.default_rng(0).integers(0, 20, (2, 7))


def make(**kwargs):
  """A decoder and random variables for it, no norm at 1."""
  module = decoder.Decoder(**{**SIZES, **kwargs})
  shapes = jax.eval_shape(module.init, jax.random.key(0), TOKENS)
  random = np.random.default_rng(0)
  draw = lambda leaf: 0.3 * random.normal(size=leaf.shape).astype(np.float32)
  return module, jax.tree.map(draw, shapes)


class DecoderTest(parameterized.TestCase):
  @parameterized.parameters(
    dict(),
    dict(causal=False, norm='layer', embeddings_norm=True, activation='gelu'),
    dict(tied=True, logit_cap=2.0, windows=(2, 0), num_classes=20),
  )
  @pytest.mark.slow
  def test_the_head_is_apart_and_reads_the_target_positions(self, **kwargs):
    module, variables = make(**kwargs)
    logits, activations = jax.jit(module.apply)(variables, TOKENS)
    h, _ = module.trunk(variables, TOKENS)
    np.testing.assert_allclose(module.head(variables, h), logits, atol=1e-5)
    at = np.array([[1, 3], [6, 0]])
    x = dict(tokens=TOKENS, target_positions=at)
    some, _ = jax.jit(module.apply)(variables, x)
    want = np.take_along_axis(np.asarray(logits), at[..., None], axis=1)
    np.testing.assert_allclose(some, want, atol=1e-5)
    parts = [f'block1{part}' for part in ('', '/attention', '/mlp')]
    self.assertContainsSubset([*parts, 'embeddings', 'head_input'], activations)
    self.assertIsInstance(module, base.ModelWithHead)

  @parameterized.parameters(True, False)
  def test_a_window_hides_what_is_further_away(self, causal):
    module, variables = make(windows=(3,), causal=causal, depth=1)
    # Each row but the last has another token at one place.
    rows = np.ones((8, 7), int)
    rows[np.arange(7), np.arange(7)] = 19
    last = np.asarray(jax.jit(module.apply)(variables, rows)[0])[:, 3]
    changed = np.abs(last[:7] - last[7]).max(axis=-1) > 1e-6
    near = np.abs(np.arange(7) - 3) < 3
    seen = near & (np.arange(7) <= 3) if causal else near
    np.testing.assert_array_equal(changed, seen)

  def test_only_distances_between_positions_matter(self):
    module, variables = make()
    apply = jax.jit(module.apply)
    logits = [
      apply(variables, dict(tokens=TOKENS, position_ids=first + PLACES))[0]
      for first in (0, 1000)
    ]
    np.testing.assert_allclose(*logits, atol=2e-3)

  @pytest.mark.slow
  def test_a_group_of_heads_shares_its_key_and_value(self):
    module, variables = make()
    whole = module.clone(kv_heads=4)
    for name in module.layers:
      for part in ('key', 'value'):
        layer = variables['params'][name][part]
        heads = layer['kernel'].reshape(16, 2, 4)
        layer['repeated'] = heads.repeat(2, axis=1).reshape(16, 16)
    want, _ = jax.jit(module.apply)(variables, TOKENS)
    for name in module.layers:
      for part in ('key', 'value'):
        layer = variables['params'][name][part]
        layer['kernel'] = layer.pop('repeated')
    got, _ = jax.jit(whole.apply)(variables, TOKENS)
    np.testing.assert_allclose(got, want, atol=1e-5)

  @pytest.mark.slow
  def test_dropout_acts_with_keys_alone(self):
    module, variables = make(dropout=0.5)
    apply = jax.jit(module.apply)
    without, _ = apply(variables, TOKENS)
    keys = jax.random.split(jax.random.key(0), 2)
    dropped, _ = apply(variables, dict(tokens=TOKENS, dropout=keys))
    module = module.clone(dropout=0.0)
    still, _ = jax.jit(module.apply)(variables, TOKENS)
    np.testing.assert_array_equal(without, still)
    self.assertGreater(np.abs(dropped - without).max(), 1e-3)

  @pytest.mark.slow
  def test_remat_changes_nothing(self):
    module, variables = make()
    again = module.clone(remat=True)
    loss = lambda m: lambda v: jnp.mean(m.apply(v, TOKENS)[0] ** 2)
    grads = [jax.jit(jax.grad(loss(m)))(variables) for m in (module, again)]
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *grads
    )

  def test_every_matrix_has_a_partition_rule(self):
    for causal in (True, False):
      module, variables = make(causal=causal, qkv_bias=True)
      rules = module.abilities.partition_rules
      sharding = partition.ParameterSharding('tensor', rules)
      self.assertEmpty(partition.unmatched(variables, sharding))

  @parameterized.parameters(
    (dict(heads=3), 'heads=3 do not divide width=16'),
    (dict(kv_heads=3), 'kv_heads=3 do not divide heads=4'),
    (dict(head_width=3), 'must be even'),
    (dict(windows=(1,)), '1 windows for depth=2'),
    (dict(windows=(1, -1)), 'windows=-1 must be'),
    (dict(tied=True, num_classes=3), 'tied=True needs as many classes'),
    (dict(activation='relu'), "Unknown activation 'relu'"),
    (dict(norm='batch'), "Unknown norm 'batch'"),
    (dict(rotary=3), 'rotary=3 must be'),
    (dict(mlp_width=0), 'mlp_width=0 must be'),
    (dict(qk_norm=1), 'qk_norm=1 must be True or False'),
    (dict(norm_eps=0), 'norm_eps=0 must be'),
  )
  def test_sizes_that_do_not_fit(self, kwargs, message):
    with self.assertRaisesRegex(errors.UserError, message):
      decoder.Decoder(**{**SIZES, **kwargs})

  def test_a_sequence_that_is_too_long(self):
    module, variables = make()
    module = module.clone(max_length=6)
    with self.assertRaisesRegex(errors.UserError, '7 tokens is longer than'):
      module.apply(variables, TOKENS)


if __name__ == '__main__':
  absltest.main()
