"""One block of a decoder with rotary positions: attention and a gated MLP.

In shapes, `B` is the batch, `L` the length, `P` the number of target positions,
`D` the width, `G` the number of key and value heads and `d` the width of a
head.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import TypeAlias

from flax import linen as nn
import jax
import jax.numpy as jnp

from cxjax.models import attention
from cxjax.models import rotary

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  'silu': nn.silu,
  'gelu': attention.gelu,
  'gelu_tanh': nn.gelu,
}
NORMS = ('rms', 'rms_offset', 'layer')
# Keys and values, `[B, K, G, d]` each.
KeysValues: TypeAlias = tuple[jax.Array, jax.Array]


class RMSNorm(nn.Module):
  """Division by the root mean square of the last axis, and a scale.

  Attributes:
    epsilon: added to the mean square.
    offset: whether the factor is `1 + scale`, as in Gemma.
    dtype: dtype of the result; computed in float32.

  References:
    Zhang, Sennrich, 2019. https://arxiv.org/abs/1910.07467, equation 4.
  """

  epsilon: float
  offset: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Computes the norm of `[..., D]`."""
    zeros, ones = nn.initializers.zeros_init(), nn.initializers.ones_init()
    start = zeros if self.offset else ones
    scale = self.param('scale', start, (x.shape[-1],))
    scale = jnp.expand_dims(scale, range(x.ndim - 1))
    x = x.astype(jnp.float32)
    x = x * jax.lax.rsqrt(
      jnp.mean(x * x, axis=-1, keepdims=True) + self.epsilon
    )
    if self.offset:
      return (x * (1 + scale.astype(jnp.float32))).astype(self.dtype)
    # Llama rounds before the product.
    return x.astype(self.dtype) * scale.astype(self.dtype)


@dataclasses.dataclass(frozen=True)
class BlockSpec:
  """Sizes and kinds of a block, all resolved.

  Attributes:
    width: `D`.
    heads: number of query heads.
    kv_heads: `G`.
    head_width: `d`.
    mlp_width: width of the hidden layer of the MLP.
    activation: name of an activation of `ACTIVATIONS`.
    norm: one of `NORMS`.
    norm_eps: epsilon of the norms.
    post_norms: whether the outputs of attention and MLP are normalized too.
    qk_norm: whether the queries and keys of each head are normalized.
    qkv_bias: whether the layers of queries, keys and values have a bias.
    out_bias: whether the last layer of the attention has a bias.
    mlp_bias: whether the layers of the MLP have a bias.
    scale: factor of the attention scores.
    score_cap: soft cap of the attention scores; 0 for none.
    dtype: dtype of the computation.
    init_std: standard deviation of the initial kernels.
    out_std: the same of the last layer before a residual sum.
    dropout: dropout rate of what attention and the MLP add.
  """

  width: int
  heads: int
  kv_heads: int
  head_width: int
  mlp_width: int
  activation: str
  norm: str
  norm_eps: float
  post_norms: bool
  qk_norm: bool
  qkv_bias: bool
  out_bias: bool
  mlp_bias: bool
  scale: float
  score_cap: float
  dtype: jnp.dtype
  init_std: float
  out_std: float
  dropout: float

  def make_norm(self, name: str) -> nn.Module:
    """A norm with a name."""
    if self.norm == 'layer':
      return nn.LayerNorm(
        epsilon=self.norm_eps, use_bias=False, dtype=self.dtype, name=name
      )
    offset = self.norm == 'rms_offset'
    return RMSNorm(self.norm_eps, offset, self.dtype, name=name)

  def make_dense(
    self, features: int, name: str, bias: bool, out: bool = False
  ) -> nn.Module:
    """A linear layer with a name; `out` if a residual sum follows."""
    start = nn.initializers.normal(self.out_std if out else self.init_std)
    return nn.Dense(
      features, use_bias=bias, dtype=self.dtype, kernel_init=start, name=name
    )


class Block(nn.Module):
  """Attention and a gated MLP, each after a norm and with a residual sum.

  Attributes:
    spec: sizes and kinds.
    first_norm: whether there is a norm before the attention.
    dropout_layer: number of the last dropout layer below the block.
  """

  spec: BlockSpec
  first_norm: bool = True
  dropout_layer: int = 0

  @nn.compact
  def __call__(
    self,
    h: jax.Array,
    visible: jax.Array | None,
    angles: tuple[jax.Array, jax.Array],
    keys: jax.Array | None = None,
    positions: jax.Array | None = None,
    cache: tuple[KeysValues, jax.Array | int] | None = None,
  ) -> tuple[jax.Array, jax.Array, jax.Array, KeysValues]:
    """Computes the block.

    Args:
      h: `[B, L, D]`.
      visible: `[B or 1, L or 1, K]` bool, or None if every token sees every
        token; `K = L` without a cache.
      angles: cosines and sines of the positions.
      keys: `[B]` typed PRNG keys of dropout, or None for no dropout.
      positions: `[B, P]`, where the output is computed; None for everywhere.
      cache: keys and values of `K` tokens, and the index at which those of the
        `L` tokens are written.

    Returns:
      The outputs of the block, of its attention and of its MLP, `[B, P, D]`
      each, the last two before the residual sums; and the keys and values.
    """
    spec = self.spec
    drop = functools.partial(attention.dropout, keys=keys, rate=spec.dropout)
    source = h
    if self.first_norm:
      source = spec.make_norm('attention_norm')(h)
    attended, pairs = self._attend(source, visible, angles, positions, cache)
    if spec.post_norms:
      attended = spec.make_norm('attention_post_norm')(attended)
    h = attention.take_positions(h, positions)
    h = h + drop(attended, layer=self.dropout_layer + 1)
    hidden = self._mlp(spec.make_norm('mlp_norm')(h))
    if spec.post_norms:
      hidden = spec.make_norm('mlp_post_norm')(hidden)
    out = h + drop(hidden, layer=self.dropout_layer + 2)
    return out, attended, hidden, pairs

  def _mlp(self, h: jax.Array) -> jax.Array:
    spec = self.spec
    gate = spec.make_dense(spec.mlp_width, 'mlp_gate', spec.mlp_bias)(h)
    hidden = spec.make_dense(spec.mlp_width, 'mlp_in', spec.mlp_bias)(h)
    hidden = ACTIVATIONS[spec.activation](gate) * hidden
    return spec.make_dense(spec.width, 'mlp_out', spec.mlp_bias, out=True)(
      hidden
    )

  def _attend(
    self,
    source: jax.Array,
    visible: jax.Array | None,
    angles: tuple[jax.Array, jax.Array],
    positions: jax.Array | None,
    cache: tuple[KeysValues, jax.Array | int] | None,
  ) -> tuple[jax.Array, KeysValues]:
    """Multi-head self-attention; its queries are at the target positions."""
    spec, at = self.spec, angles
    queries = attention.take_positions(source, positions)
    if positions is not None:
      batch = len(source)
      wide = lambda x: jnp.broadcast_to(x, (batch, *x.shape[1:]))
      cos, sin = (
        attention.take_positions(wide(part), positions) for part in angles
      )
      at = cos, sin
      if visible is not None and visible.shape[1] > 1:
        visible = attention.take_positions(wide(visible), positions)

    def project(name: str, x: jax.Array, heads: int) -> jax.Array:
      x = spec.make_dense(heads * spec.head_width, name, spec.qkv_bias)(x)
      return x.reshape(*x.shape[:2], heads, spec.head_width)

    query = project('query', queries, spec.heads)
    key = project('key', source, spec.kv_heads)
    value = project('value', source, spec.kv_heads)
    if spec.qk_norm:
      query = spec.make_norm('query_norm')(query)
      key = spec.make_norm('key_norm')(key)
    query, key = rotary.rotate(query, at), rotary.rotate(key, angles)
    if cache is not None:
      (old_key, old_value), index = cache
      key = jax.lax.dynamic_update_slice_in_dim(old_key, key, index, axis=1)
      value = jax.lax.dynamic_update_slice_in_dim(
        old_value, value, index, axis=1
      )
    out = attention.grouped_attention(
      query, key, value, visible, spec.scale, spec.score_cap
    )
    out = out.reshape(*out.shape[:2], spec.heads * spec.head_width)
    dense = spec.make_dense(
      spec.width, 'attention_out', spec.out_bias, out=True
    )
    return dense(out), (key, value)
