"""One block of a transformer: self-attention and an MLP.

In shapes, `B` is the batch, `L` the length, `P` the number of target positions
and `D` the width.
"""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp

from cxjax.models import attention


class Block(nn.Module):
  """Attention and an MLP, each with a residual connection and a layer norm.

  The norms come after the sums in an encoder (BERT), before the layers in a
  decoder (GPT-2).

  Attributes:
    width: `D`.
    heads: number of attention heads; it divides the width.
    mlp_width: width of the hidden layer of the MLP.
    causal: whether it is a block of a decoder.
    dense: makes a linear layer, `(features, name=...)`.
    dense_out: the same for the last layer before a residual sum.
    norm: makes a layer norm, `(name=...)`.
    dropout: dropout rate of what attention and the MLP add.
    dropout_layer: number of the last dropout layer below the block.
  """

  width: int
  heads: int
  mlp_width: int
  causal: bool
  dense: functools.partial
  dense_out: functools.partial
  norm: functools.partial
  dropout: float
  dropout_layer: int

  @nn.compact
  def __call__(
    self,
    h: jax.Array,
    visible: jax.Array | None,
    keys: jax.Array | None = None,
    positions: jax.Array | None = None,
    bias: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes the block.

    Args:
      h: `[B, L, D]`.
      visible: `[B or 1, L or 1, L]` bool, or None if every token sees every
        token.
      keys: `[B]` typed PRNG keys of dropout, or None for no dropout.
      positions: `[B, P]`, where the output is computed; None for everywhere.
      bias: `[1, H, L, L]`, added to the attention scores of queries and keys,
        or None.

    Returns:
      The outputs of the block, of its attention and of its MLP, `[B, P, D]`
      each; the last two are taken before the residual sums.
    """
    drop = functools.partial(attention.dropout, keys=keys, rate=self.dropout)
    attention_norm = self.norm(name='attention_norm')
    mlp_norm = self.norm(name='mlp_norm')
    source = attention_norm(h) if self.causal else h
    attended = self._attend(source, visible, positions, bias)
    h = attention.take_positions(h, positions)
    h = h + drop(attended, layer=self.dropout_layer + 1)
    if not self.causal:
      h = attention_norm(h)
    hidden = mlp_norm(h) if self.causal else h
    hidden = self.dense(self.mlp_width, name='mlp_in')(hidden)
    # BERT uses the exact GELU, GPT-2 the tanh approximation.
    hidden = nn.gelu(hidden) if self.causal else attention.gelu(hidden)
    hidden = self.dense_out(self.width, name='mlp_out')(hidden)
    out = h + drop(hidden, layer=self.dropout_layer + 2)
    return out if self.causal else mlp_norm(out), attended, hidden

  def _attend(
    self,
    source: jax.Array,
    visible: jax.Array | None,
    positions: jax.Array | None,
    bias: jax.Array | None,
  ) -> jax.Array:
    """Multi-head self-attention; its queries are at the target positions."""
    if bias is not None and positions is not None:
      bias = jnp.take(bias[0], positions, axis=1).transpose(1, 0, 2, 3)
    if visible is not None and visible.shape[1] > 1 and positions is not None:
      visible = jnp.broadcast_to(visible, (source.shape[0], *visible.shape[1:]))
      visible = attention.take_positions(visible, positions)
    queries = attention.take_positions(source, positions)
    shape = (self.heads, self.width // self.heads)
    query, key, value = (
      self.dense(self.width, name=name)(part).reshape(*part.shape[:2], *shape)
      for name, part in (
        ('query', queries),
        ('key', source),
        ('value', source),
      )
    )
    out = attention.dot_product_attention(query, key, value, visible, bias)
    return self.dense_out(self.width, name='attention_out')(
      out.reshape(queries.shape)
    )
