"""One transformer: BERT's encoder or GPT-2's decoder, from scratch.

In shapes, `B` is the batch, `L` the length, `P` the positions that are read,
`D` the width.

References:
  Devlin et al. "BERT", 2018. https://arxiv.org/abs/1810.04805.
  Radford et al. "Language models are unsupervised multitask learners", 2019.
"""

from collections.abc import Callable
from collections.abc import Mapping
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp

from cxjax import errors

# Up to here a lookup is a product with one-hot rows: its gradient is a product
# too, where a scatter would run one row at a time.
ONE_HOT_VOCABULARY = 256
MASKED = -1e9  # Score of a key that is hidden; finite, so no row is NaN.


def read(h: jax.Array, positions: jax.Array | None) -> jax.Array:
  """Rows of `h` at some positions, `[B, L, ...]` to `[B, P, ...]`.

  Args:
    h: `[B, L, ...]`.
    positions: `[B, P]` integers, or None for all.

  Returns:
    `[B, P, ...]`, or `h` itself.
  """
  if positions is None:
    return h
  index = positions.reshape(*positions.shape, *(1,) * (h.ndim - 2))
  return jnp.take_along_axis(h, index, axis=1)


def attention(
  query: jax.Array, key: jax.Array, value: jax.Array, visible: jax.Array | None
) -> jax.Array:
  """Scaled dot-product attention.

  Divides by the sum of the weights after the product with the values, not
  before: `Q K` divisions become `Q d`.

  Args:
    query: `[B, Q, H, d]`.
    key: `[B, K, H, d]`.
    value: `[B, K, H, d]`.
    visible: `[B or 1, Q or 1, K]` bool, or None where all see all.

  Returns:
    `[B, Q, H, d]`, in the dtype of `value`.

  References:
    Vaswani et al., 2017. https://arxiv.org/abs/1706.03762, section 3.2.
  """
  query = query * query.shape[-1] ** -0.5
  scores = jnp.einsum(
    'bqhd,bkhd->bhqk', query, key, preferred_element_type=jnp.float32
  )
  if visible is not None:
    scores = jnp.where(visible[:, None], scores, MASKED)
  top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
  weights = jnp.exp(scores - top)
  total = jnp.sum(weights, axis=-1)[..., None]
  out = jnp.einsum('bhqk,bkhd->bhqd', weights.astype(value.dtype), value)
  return (out / total.astype(value.dtype)).transpose(0, 2, 1, 3)


def gelu(x: jax.Array) -> jax.Array:
  """`x Phi(x)`, the exact function.

  By erf: `jax.nn.gelu` goes by erfc, which takes longer and is the more exact
  only far below 0, where the result is next to nothing.

  Args:
    x: any shape.

  Returns:
    The same shape; within 1e-6 of the exact values.

  References:
    Hendrycks, Gimpel, 2016. https://arxiv.org/abs/1606.08415.
  """
  return 0.5 * x * (1 + jax.lax.erf(x * 2**-0.5))


def dropout(
  h: jax.Array, keys: jax.Array | None, number: int, rate: float
) -> jax.Array:
  """Drops activations at random, each example by a key of its own.

  Args:
    h: `[B, ...]`.
    keys: `[B]` typed PRNG keys, or None: nothing is dropped.
    number: of the place in the model; names the draw.
    rate: probability of each value to become 0; the others grow by
      `1 / (1 - rate)`.

  Returns:
    `[B, ...]`.

  References:
    Srivastava et al. "Dropout", 2014. JMLR 15.
  """
  if keys is None or rate == 0:
    return h
  keep = lambda key: jax.random.bernoulli(
    jax.random.fold_in(key, number), 1 - rate, h.shape[1:]
  )
  return jnp.where(jax.vmap(keep)(keys), h / (1 - rate), 0)


class Block(nn.Module):
  """Attention and MLP, each with a residual connection and a layer norm.

  The norms come after the sums in an encoder (BERT), before the layers in a
  decoder (GPT-2).

  Attributes:
    width: `D`.
    heads: of the attention; they divide the width.
    mlp_width: of the hidden layer of the MLP.
    causal: a decoder.
    dense: makes a linear layer, `(features, name=...)`.
    dense_out: the same for the last layer before a residual sum.
    norm: makes a layer norm, `(name=...)`.
    drop: dropout of what each branch adds, `(h, number)`.
  """

  width: int
  heads: int
  mlp_width: int
  causal: bool
  dense: functools.partial
  dense_out: functools.partial
  norm: functools.partial
  drop: Callable[[jax.Array, int], jax.Array]

  @nn.compact
  def __call__(
    self,
    h: jax.Array,
    visible: jax.Array | None,
    positions: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The block's output, and of its attention and its MLP.

    Args:
      h: `[B, L, D]`.
      visible: as for `attention`, `Q = L`.
      positions: `[B, P]`, where an output is wanted; None is everywhere.

    Returns:
      Three of `[B, P, D]`; the last two are before the residual sum.
    """
    attention_norm = self.norm(name='attention_norm')
    mlp_norm = self.norm(name='mlp_norm')
    source = attention_norm(h) if self.causal else h
    attended = self._attend(read(source, positions), source, visible, positions)
    h = read(h, positions) + self.drop(attended, 1)
    if not self.causal:
      h = attention_norm(h)
    hidden = mlp_norm(h) if self.causal else h
    hidden = self.dense(self.mlp_width, name='mlp_in')(hidden)
    # BERT's is the exact function, GPT-2's its approximation.
    hidden = nn.gelu(hidden) if self.causal else gelu(hidden)
    hidden = self.dense_out(self.width, name='mlp_out')(hidden)
    out = h + self.drop(hidden, 2)
    return out if self.causal else mlp_norm(out), attended, hidden

  def _attend(self, queries, source, visible, positions):
    if visible is not None and visible.shape[1] > 1 and positions is not None:
      visible = jnp.broadcast_to(visible, (source.shape[0], *visible.shape[1:]))
      visible = read(visible, positions)
    shape = (self.heads, self.width // self.heads)
    query, key, value = (
      self.dense(self.width, name=name)(part).reshape(*part.shape[:2], *shape)
      for name, part in (
        ('query', queries),
        ('key', source),
        ('value', source),
      )
    )
    out = attention(query, key, value, visible)
    return self.dense_out(self.width, name='attention_out')(
      out.reshape(queries.shape)
    )


class Transformer(nn.Module):
  """An encoder as BERT, or a causal decoder as GPT-2.

  Learned positions, GELU, layer norms; kernels and embeddings start at
  N(0, 0.02^2) and biases at 0, and the decoder's last layers of each residual
  branch at that over `sqrt(2 depth)`, as in GPT-2. BERT's sentence types are
  left out: there is one sentence.

  Attributes:
    vocab_size: number of token ids.
    max_length: number of positions.
    num_classes: `C`, the number of logits; 0 is no head.
    width: `D`.
    heads: heads of each attention; they divide the width.
    depth: number of blocks.
    causal: a decoder; else an encoder.
    mlp_width: of the MLPs; 0 is four times the width.
    tied: the head's kernel is that of the embeddings.
    dtype: of the computation; parameters and logits are float32.
    remat: compute a block's inside again for its gradient, to save memory.
    init_std: standard deviation of the kernels at the start.
    dropout: rate, of the embeddings and of what attention and MLP add; it acts
      where the input brings keys. Attention weights stay whole: our choice.
    norm_eps: added to the variance in the layer norms; 0 is BERT's 1e-12 resp.
      GPT-2's 1e-5.
  """

  vocab_size: int
  max_length: int
  num_classes: int
  width: int
  heads: int
  depth: int
  causal: bool
  mlp_width: int = 0
  tied: bool = False
  dtype: jnp.dtype = jnp.float32
  remat: bool = False
  init_std: float = 0.02
  dropout: float = 0.0
  norm_eps: float = 0.0

  def __post_init__(self):
    """Raises UserError for sizes that do not fit."""
    for name in ('vocab_size', 'max_length', 'width', 'heads'):
      value = getattr(self, name)
      errors.require(value >= 1, f'{name}={value} must be at least 1.')
    errors.require(
      self.num_classes >= 0,
      f'num_classes={self.num_classes} must not be negative; 0 is no head.',
    )
    errors.require(
      self.depth >= 1 and self.mlp_width >= 0,
      f'depth={self.depth} must be at least 1 and mlp_width={self.mlp_width} '
      'not negative.',
    )
    errors.require(
      self.width % self.heads == 0,
      f'heads={self.heads} do not divide width={self.width}: every head is '
      'width / heads wide.',
    )
    errors.require(
      not self.tied or self.num_classes == self.vocab_size,
      f'tied=True needs as many classes ({self.num_classes}) as token ids '
      f'({self.vocab_size}).',
    )
    errors.require(
      0 <= self.dropout < 1, f'dropout={self.dropout} must be in [0, 1).'
    )
    errors.require(
      self.norm_eps >= 0, f'norm_eps={self.norm_eps} must not be negative.'
    )
    super().__post_init__()

  @property
  def layers(self) -> tuple[str, ...]:
    """Names of the blocks, lowest first."""
    return tuple(f'block{i}' for i in range(self.depth))

  @nn.compact
  def __call__(
    self, x: jax.Array | Mapping[str, jax.Array]
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Logits where they are read, and the activations.

    Args:
      x: `[B, L]` token ids, or `{'tokens': [B, L]}` with, optionally, `'mask'`:
        `[B, L]` bool, the real tokens, which alone are attended to;
        `'positions'`: `[B, P]`, where the logits are read, else everywhere;
        `'segments'`: `[B, L]` integers, a token sees those of its own segment;
        `'position_ids'`: `[B, L]` integers, positions for the embedding, else `0..L -
        1`; `'dropout'`: `[B]` typed PRNG keys; nothing is dropped without.

    Returns:
      Logits `[B, P, C]` in float32, or 'final' in float32 where there is no
      head; and `[B, L, D]` activations: 'embeddings', 'block0',
      'block0/attention', 'block0/mlp' and so on; 'final', what the head reads,
      is `[B, P, D]`. The last block is computed at the positions read alone,
      unless another of its activations is used.

    Raises:
      UserError: a sequence longer than the positions.
    """
    if not isinstance(x, Mapping):
      x = {'tokens': x}
    tokens, positions = x['tokens'], x.get('target_positions')
    length = tokens.shape[1]
    errors.require(
      length <= self.max_length,
      f'A sequence of {length} tokens is longer than the {self.max_length} '
      'positions of the model.',
    )
    start = nn.initializers.normal(self.init_std)
    dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=start)
    dense_out = dense
    if self.causal:
      std = self.init_std / (2 * self.depth) ** 0.5
      dense_out = functools.partial(
        dense, kernel_init=nn.initializers.normal(std)
      )
    norm = functools.partial(
      nn.LayerNorm,
      epsilon=self.norm_eps or (1e-5 if self.causal else 1e-12),
      dtype=self.dtype,
    )
    embed = nn.Embed(
      self.vocab_size,
      self.width,
      dtype=self.dtype,
      embedding_init=start,
      name='tokens',
    )
    h = _lookup(embed.embedding.astype(self.dtype), tokens)
    table = self.param('positions', start, (self.max_length, self.width))
    table = table.astype(self.dtype)
    if 'position_ids' in x:
      h = h + _lookup(table, x['position_ids'])
    else:
      h = h + table[None, :length]
    if not self.causal:
      h = norm(name='embeddings_norm')(h)
    drop = lambda h, number: dropout(h, x.get('dropout'), number, self.dropout)
    h = drop(h, 0)
    in_block = lambda i: lambda h, number: drop(h, 2 * i + number)
    activations = {'embeddings': h}
    visible = _visible(length, self.causal, x.get('mask'), x.get('segments'))
    for i, name in enumerate(self.layers):
      block = (nn.remat(Block) if self.remat else Block)(
        width=self.width,
        heads=self.heads,
        mlp_width=self.mlp_width or 4 * self.width,
        causal=self.causal,
        dense=dense,
        dense_out=dense_out,
        norm=norm,
        drop=in_block(i),
        name=name,
      )
      below = h
      h, attended, hidden = block(below, visible)
      activations[name] = h
      activations[f'{name}/attention'] = attended
      activations[f'{name}/mlp'] = hidden
    if positions is not None:
      h, _, _ = block(below, visible, positions)
    if self.causal:
      h = norm(name='final_norm')(h)
    activations['final'] = h
    if not self.num_classes:
      return h.astype(jnp.float32), activations
    return self._head(h, dense, norm, embed), activations

  def _head(self, h, dense, norm, embed):
    if not self.causal:
      h = gelu(dense(self.width, name='transform')(h))
      h = norm(name='transform_norm')(h)
    if self.tied:
      logits = embed.attend(h)
    else:
      logits = dense(self.num_classes, use_bias=False, name='logits')(h)
    logits = logits.astype(jnp.float32)
    if self.causal:
      return logits
    zeros = nn.initializers.zeros_init()
    bias = self.param('logits_bias', zeros, (self.num_classes,))
    return logits + bias[None, None]


def _lookup(table, ids):
  """Rows of `table`, `[V, D]`, at `[B, L]` ids."""
  if len(table) <= ONE_HOT_VOCABULARY:
    return jax.nn.one_hot(ids, len(table), dtype=table.dtype) @ table
  return jnp.take(table, ids, axis=0)


def _visible(length, causal, mask, segments=None):
  """Which keys each query sees: `[B or 1, L or 1, L]`, None where all do."""
  visible = None
  if causal:
    visible = jnp.tril(jnp.ones((1, length, length), bool))
  if mask is not None:
    real = mask[:, None]
    visible = real if visible is None else visible & real
  if segments is not None:
    own = segments[:, :, None] == segments[:, None]
    visible = own if visible is None else visible & own
  return visible
