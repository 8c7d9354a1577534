"""Sentence embeddings: the mean of an encoder's last hidden state.

In shapes, `B` is the batch, `L` the length, `D` the width of the encoder, `F`
the features.

References:
  Reimers, Gurevych. "Sentence-BERT", 2019. https://arxiv.org/abs/1908.10084,
  section 3.
"""

from collections.abc import Mapping

from flax import linen as nn
import jax
import jax.numpy as jnp

from cxjax import errors
from cxjax.models import transformer


class SentenceEncoder(nn.Module):
  """A transformer, the mean over the real tokens, and perhaps a linear layer.

  The linear layer brings a student to the size of its teacher's embeddings.

  Attributes:
    encoder: without a head.
    features: `F`, of the linear layer; 0 is none, `F = D`.
  """

  encoder: transformer.Transformer
  features: int = 0

  def __post_init__(self):
    """Raises UserError for an encoder with a head, or features below 0."""
    classes = self.encoder.num_classes
    errors.require(
      classes == 0,
      f'The encoder has a head of num_classes={classes}; a sentence is the '
      'mean of what comes before it. Set num_classes=0.',
    )
    errors.require(
      self.features >= 0,
      f'features={self.features} must not be negative; 0 is no linear layer.',
    )
    super().__post_init__()

  @property
  def layers(self) -> tuple[str, ...]:
    """Names of the encoder's blocks, lowest first."""
    return self.encoder.layers

  @nn.compact
  def __call__(
    self, x: jax.Array | Mapping[str, jax.Array]
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Embeddings of sentences, and the activations.

    Args:
      x: `[B, L]` token ids, or `{'tokens': [B, L]}` with, optionally, `'mask'`:
        `[B, L]` bool, the real tokens, which alone are attended to and count;
        `'dropout'`: as for `Transformer`.

    Returns:
      Embeddings `[B, F]` in float32, not scaled to length 1: the cosine, which
      compares them, does not read it, and a loss may want it. The activations
      are the encoder's and 'pooled', `[B, D]` in float32, the mean before the
      linear layer: 0 where no token is real.

    Raises:
      UserError: 'positions' or 'segments', which a mean of all would mix.
    """
    if not isinstance(x, Mapping):
      x = {'tokens': x}
    for name in ('positions', 'segments'):
      errors.require(
        name not in x,
        f'The input has {name!r}; a SentenceEncoder reads one whole sentence a '
        "row. Give it 'tokens' and 'mask'.",
      )
    h, activations = self.encoder(x)
    pooled = mean(h, x.get('mask'))
    embedding = pooled
    if self.features:
      start = nn.initializers.normal(self.encoder.init_std)
      linear = nn.Dense(self.features, kernel_init=start, name='linear')
      embedding = linear(pooled)
    return embedding, {**activations, 'pooled': pooled}


def mean(h: jax.Array, mask: jax.Array | None) -> jax.Array:
  """Mean over the real tokens.

  Args:
    h: `[B, L, D]`.
    mask: `[B, L]` bool, the real tokens, or None for all.

  Returns:
    `[B, D]`; 0 where no token is real.
  """
  if mask is None:
    return jnp.mean(h, axis=1)
  real = mask[..., None].astype(h.dtype)
  return jnp.sum(h * real, axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1)
