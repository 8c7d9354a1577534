"""Sentence embeddings: the mean of an encoder's last hidden state.

In shapes, `B` is the batch, `L` the length, `D` the width of the encoder and
`F` the width of the embedding.

References:
  Reimers, Gurevych. "Sentence-BERT", 2019. https://arxiv.org/abs/1908.10084,
  section 3.
"""

from collections.abc import Mapping
import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp

from cxjax import arguments
from cxjax import errors
from cxjax.models import base
from cxjax.models import transformer

INPUTS = ('tokens', 'mask', 'position_ids', 'dropout')
PARTITION_RULES: base.PartitionRules = (
  *transformer.PARTITION_RULES,
  (r'linear/kernel$', None),
)


class SentenceEncoder(nn.Module):
  """A transformer, the mean over the real tokens, and an optional linear layer.

  The linear layer brings the embeddings of a student to the width of its
  teacher's.

  Attributes:
    encoder: a transformer without a head.
    features: `F`, the width of the linear layer; 0 for no layer, `F = D`.
  """

  encoder: transformer.Transformer
  features: int = 0

  def __post_init__(self) -> None:
    """Raises UserError for an encoder with a head, or impossible features."""
    classes = getattr(self.encoder, 'num_classes', None)
    errors.require(
      isinstance(self.encoder, nn.Module) and classes is not None,
      f'encoder={self.encoder!r} must be a cxjax.Transformer or cxjax.Decoder.',
    )
    errors.require(
      classes == 0,
      f'The encoder has a head of num_classes={classes}; the embedding of a '
      'sentence is the mean of what comes before the head. Set num_classes=0.',
    )
    arguments.integer('features', self.features, 0)
    super().__post_init__()

  @property
  def layers(self) -> tuple[str, ...]:
    """Names of the encoder's blocks, lowest first."""
    return self.encoder.layers

  @property
  def abilities(self) -> base.Abilities:
    """Abilities of the encoder, for whole sentences."""
    return dataclasses.replace(
      self.encoder.abilities,
      inputs=INPUTS,
      partition_rules=PARTITION_RULES,
      head=False,
    )

  @nn.compact
  def __call__(
    self, x: jax.Array | Mapping[str, jax.Array]
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes sentence embeddings and the activations.

    Args:
      x: `[B, L]` token ids, or `{'tokens': [B, L]}` with these optional inputs:
        `'mask'`, `[B, L]` bool, the real tokens, which alone are attended to
        and averaged; `'position_ids'` and `'dropout'`, as for `Transformer`.

    Returns:
      Embeddings `[B, F]` in float32, not normalized: the cosine loss does not
      read their length, and another loss may. The activations are those of the
      encoder; 'pooled', `[B, D]`, the mean before the linear layer, 0 for a
      sentence without real tokens; and 'token_embeddings', `[B, L, F]`, those
      of the tokens, whose mean is the embedding. Both are float32.

    Raises:
      UserError: the input has 'target_positions' or 'segments'; the mean over
        all tokens would mix them.
    """
    if not isinstance(x, Mapping):
      x = {'tokens': x}
    for name in ('target_positions', 'segments'):
      errors.require(
        name not in x,
        f'The input has {name!r}; a SentenceEncoder reads one whole sentence a '
        "row. Give it 'tokens' and 'mask'.",
      )
    h, activations = self.encoder(x)
    pooled = masked_mean(h, x.get('mask'))
    embedding, tokens = pooled, h.astype(jnp.float32)
    if self.features:
      start = nn.initializers.normal(self.encoder.init_std)
      linear = nn.Dense(self.features, kernel_init=start, name='linear')
      embedding, tokens = linear(pooled), linear(tokens)
    activations = {**activations, 'pooled': pooled, 'token_embeddings': tokens}
    return embedding, activations


def masked_mean(h: jax.Array, mask: jax.Array | None) -> jax.Array:
  """Mean over the real tokens.

  Args:
    h: `[B, L, D]`.
    mask: `[B, L]` bool, the real tokens, or None if all are.

  Returns:
    `[B, D]`; 0 for a sentence without real tokens.
  """
  if mask is None:
    return jnp.mean(h, axis=1)
  real = (mask != 0)[..., None].astype(h.dtype)
  return jnp.sum(h * real, axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1)
