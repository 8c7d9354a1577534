"""Sentence encoders: the mean over real tokens, and inputs that are refused."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax import errors
from cxjax.models import base
from cxjax.models import sentence
from cxjax.models import transformer
from cxjax.parallel import partition

pytestmark = pytest.mark.slow

TOKENS = np.random.default_rng(0).integers(0, 30, (3, 12))
MASK = np.arange(12)[None] < np.array([12, 7, 2])[:, None]


def make(features=0, **kwargs):
  """A sentence encoder and its variables."""
  sizes = dict(vocab_size=30, max_length=12, num_classes=0, width=32, heads=4)
  sizes |= dict(depth=1, mlp_width=48, causal=False, init_std=0.3)
  encoder = transformer.Transformer(**{**sizes, **kwargs})
  model = sentence.SentenceEncoder(encoder, features)
  return model, jax.jit(model.init)(jax.random.key(0), TOKENS)


class SentenceEncoderTest(parameterized.TestCase):
  def test_the_embedding_is_the_mean_over_real_tokens(self):
    model, variables = make(depth=2)
    self.assertEqual(model.layers, ('block0', 'block1'))
    x = {'tokens': TOKENS, 'mask': MASK}
    embedding, found = jax.jit(model.apply)(variables, x)
    inner = {'params': variables['params']['encoder']}
    hidden, activations = jax.jit(model.encoder.apply)(inner, x)
    self.assertEqual(
      found.keys() - activations.keys(), {'pooled', 'token_embeddings'}
    )
    mask = MASK[..., None]
    want = (hidden * mask).sum(1) / mask.sum(1)
    np.testing.assert_allclose(embedding, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(embedding, found['pooled'])

  def test_a_linear_layer_follows_the_mean(self):
    model, variables = make(features=5)
    embedding, found = jax.jit(model.apply)(variables, TOKENS)
    self.assertEqual(embedding.shape, (3, 5))
    linear = variables['params']['linear']
    want = found['pooled'] @ linear['kernel'] + linear['bias'][None]
    np.testing.assert_allclose(embedding, want, rtol=1e-4, atol=1e-5)

  @parameterized.parameters(0, 5)
  def test_the_mean_of_the_tokens_is_the_embedding(self, features):
    model, variables = make(features=features)
    variables = jax.tree.map(lambda leaf: leaf + 0.1, variables)
    x = {'tokens': TOKENS, 'mask': MASK}
    embedding, found = jax.jit(model.apply)(variables, x)
    tokens = found['token_embeddings']
    self.assertEqual(tokens.shape, (*TOKENS.shape, features or 32))
    mask = MASK[..., None]
    want = (tokens * mask).sum(1) / mask.sum(1)
    np.testing.assert_allclose(embedding, want, rtol=1e-4, atol=1e-5)

  def test_all_tokens_are_real_without_a_mask(self):
    model, variables = make(dtype=jnp.bfloat16)
    apply = jax.jit(model.apply)
    embedding, _ = apply(variables, TOKENS)
    ones = np.ones(TOKENS.shape, bool)
    same, _ = apply(variables, {'tokens': TOKENS, 'mask': ones})
    self.assertEqual(embedding.dtype, jnp.float32)
    np.testing.assert_allclose(embedding, same, rtol=0.02, atol=0.02)
    none, _ = apply(variables, {'tokens': TOKENS, 'mask': ~ones})
    np.testing.assert_array_equal(none, np.zeros_like(none))

  def test_abilities_are_those_of_the_encoder_for_whole_sentences(self):
    model, variables = make(features=5, dropout=0.1)
    self.assertIsInstance(model, base.Model)
    abilities = model.abilities
    self.assertEqual(
      abilities.inputs, ('tokens', 'mask', 'position_ids', 'dropout')
    )
    self.assertEqual((abilities.dropout, abilities.head), (0.1, False))
    sharding = partition.ParameterSharding('tensor', abilities.partition_rules)
    self.assertEmpty(partition.unmatched(variables, sharding))

  def test_errors(self):
    model, variables = make()
    encoder = model.encoder
    with self.assertRaisesRegex(errors.UserError, 'num_classes=30; .*=0'):
      sentence.SentenceEncoder(encoder.clone(num_classes=30))
    with self.assertRaisesRegex(errors.UserError, 'features=-1'):
      sentence.SentenceEncoder(encoder, -1)
    for name in ('target_positions', 'segments'):
      with self.assertRaisesRegex(errors.UserError, name):
        model.apply(variables, {'tokens': TOKENS, name: TOKENS})


if __name__ == '__main__':
  absltest.main()
