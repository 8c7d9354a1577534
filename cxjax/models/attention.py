"""Pieces of a transformer, as pure functions without parameters.

In shapes, `B` is the batch, `L` the length, `P` the number of target positions,
`D` the width of the model, `H` the number of heads and `d` the width of a head.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

# Up to this vocabulary size, a lookup is a product with one-hot vectors: its
# gradient is a product too, instead of a scatter that runs row by row.
ONE_HOT_VOCABULARY = 256
# Score of an invisible key. It is finite, so that a query that sees no key does
# not become NaN.
MASKED = -1e9


def dot_product_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  visible: jax.Array | None,
  bias: jax.Array | None = None,
) -> jax.Array:
  """Scaled dot-product attention.

  Divides by the sum of the weights after the product with the values, not
  before it: `Q d` divisions instead of `Q K`.

  Args:
    query: `[B, Q, H, d]`.
    key: `[B, K, H, d]`.
    value: `[B, K, H, d]`.
    visible: `[B or 1, Q or 1, K]` bool, from `visibility`, or None if every
      query sees every key.
    bias: `[B or 1, H, Q, K]`, added to the scores, or None.

  Returns:
    `[B, Q, H, d]`, in the dtype of `value`.

  References:
    Vaswani et al., 2017. https://arxiv.org/abs/1706.03762, section 3.2.
  """
  query = query * query.shape[-1] ** -0.5
  scores = jnp.einsum(
    'bqhd,bkhd->bhqk', query, key, preferred_element_type=jnp.float32
  )
  if bias is not None:
    scores = scores + bias
  if visible is not None:
    scores = jnp.where(visible[:, None], scores, MASKED)
  top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
  weights = jnp.exp(scores - top)
  total = jnp.sum(weights, axis=-1)[..., None]
  out = jnp.einsum('bhqk,bkhd->bhqd', weights.astype(value.dtype), value)
  return (out / total.astype(value.dtype)).transpose(0, 2, 1, 3)


def grouped_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  visible: jax.Array | None,
  scale: float,
  cap: float = 0.0,
) -> jax.Array:
  """Attention in which groups of queries share a key and a value.

  Args:
    query: `[B, Q, H, d]`.
    key: `[B, K, G, d]`; `G` divides `H`, and the first `H / G` queries share
      the first key.
    value: `[B, K, G, d]`.
    visible: `[B or 1, Q or 1, K]` bool, from `visibility`, or None if every
      query sees every key.
    scale: factor of the scores.
    cap: scores are `cap * tanh(scores / cap)`; 0 for no cap.

  Returns:
    `[B, Q, H, d]`, in the dtype of `value`.

  References:
    Ainslie et al. "GQA", 2023. https://arxiv.org/abs/2305.13245, section 2.2.
  """
  groups = key.shape[2]
  shape = (*query.shape[:2], groups, query.shape[2] // groups, query.shape[3])
  scores = scale * jnp.einsum(
    'bqgrd,bkgd->bgrqk',
    query.reshape(shape),
    key,
    preferred_element_type=jnp.float32,
  )
  if cap:
    scores = cap * jnp.tanh(scores / cap)
  if visible is not None:
    scores = jnp.where(visible[:, None, None], scores, MASKED)
  top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
  weights = jnp.exp(scores - top)
  total = jnp.sum(weights, axis=-1)[..., None]
  out = jnp.einsum('bgrqk,bkgd->bgrqd', weights.astype(value.dtype), value)
  out = (out / total.astype(value.dtype)).transpose(0, 3, 1, 2, 4)
  return out.reshape(query.shape)


def visibility(
  length: int,
  causal: bool,
  mask: jax.Array | None = None,
  segments: jax.Array | None = None,
  window: int = 0,
) -> jax.Array | None:
  """Attention mask: the keys that each query sees.

  Args:
    length: `L`.
    causal: whether a token sees only itself and the tokens before it.
    mask: `[B, L]` bool, the real tokens, or None if all are.
    segments: `[B, L]` integers, or None; a token sees the tokens of its own
      segment.
    window: a token sees only tokens that are fewer than `window` positions
      away; 0 for no limit.

  Returns:
    `[B or 1, L or 1, L]` bool, or None if every query sees every key.
  """
  visible = None
  if causal:
    visible = jnp.tril(jnp.ones((1, length, length), bool))
  if 0 < window < length:
    places = jnp.arange(length)
    near = (jnp.abs(places[:, None] - places[None]) < window)[None]
    visible = near if visible is None else visible & near
  if mask is not None:
    real = (mask != 0)[:, None]
    visible = real if visible is None else visible & real
  if segments is not None:
    same = segments[:, :, None] == segments[:, None]
    visible = same if visible is None else visible & same
  return visible


def relative_buckets(length: int, count: int) -> np.ndarray:
  """Buckets of the distances between tokens.

  Half of them are for keys behind the query. In each half the first half is
  for one distance each, and the others grow up to a distance of 128.

  Args:
    length: `L`.
    count: number of buckets, a multiple of 4.

  Returns:
    `[L, L]` integers below `count`, of queries and keys.

  References:
    Raffel et al. "T5", 2019. https://arxiv.org/abs/1910.10683, section 2.1.
  """
  places = np.arange(length)
  ahead = places[None] - places[:, None]
  half, exact = count // 2, count // 4
  distance = np.abs(ahead)
  # In float32, as the models were trained: it decides at the edges.
  ratio = np.maximum(distance, 1).astype(np.float32) / np.float32(exact)
  grown = np.log(ratio) / np.float32(np.log(128 / exact))
  far = exact + (grown * np.float32(half - exact)).astype(np.int64)
  bucket = np.where(distance < exact, distance, np.minimum(far, half - 1))
  return bucket + half * (ahead > 0)


def gelu(x: jax.Array) -> jax.Array:
  """`x Phi(x)`, the exact GELU.

  Uses erf. `jax.nn.gelu` uses erfc, which is slower and more exact only far
  below 0, where the result is almost 0.

  Args:
    x: any shape.

  Returns:
    The same shape; within 1e-6 of the exact values.

  References:
    Hendrycks, Gimpel, 2016. https://arxiv.org/abs/1606.08415.
  """
  return 0.5 * x * (1 + jax.lax.erf(x * 2**-0.5))


def dropout(
  h: jax.Array, keys: jax.Array | None, layer: int, rate: float
) -> jax.Array:
  """Sets random values to 0, with a key for each example.

  Args:
    h: `[B, ...]`.
    keys: `[B]` typed PRNG keys, or None for no dropout.
    layer: number of the dropout layer, folded into the keys.
    rate: probability that a value becomes 0; the others are divided by
      `1 - rate`.

  Returns:
    `[B, ...]`.

  References:
    Srivastava et al. "Dropout", 2014. JMLR 15.
  """
  if keys is None or rate == 0:
    return h
  keep = lambda key: jax.random.bernoulli(
    jax.random.fold_in(key, layer), jnp.float32(1 - rate), h.shape[1:]
  )
  return jnp.where(jax.vmap(keep)(keys), h / (1 - rate), 0)


def take_positions(h: jax.Array, positions: jax.Array | None) -> jax.Array:
  """Selects positions of a sequence.

  Args:
    h: `[B, L, ...]`.
    positions: `[B, P]` integers, or None for all positions.

  Returns:
    `[B, P, ...]`, or `h` itself.
  """
  if positions is None:
    return h
  index = positions.reshape(*positions.shape, *(1,) * (h.ndim - 2))
  return jnp.take_along_axis(h, index, axis=1)


def embedding_lookup(
  table: jax.Array, ids: jax.Array, dtype: jnp.dtype
) -> jax.Array:
  """Selects the embeddings of ids.

  A row's gradient is summed in float32 at least: in bfloat16 the sum over a
  frequent token stops growing, and a GPU adds its terms one after the other.

  Args:
    table: `[V, D]` embeddings.
    ids: `[B, L]` integers.
    dtype: dtype of the result.

  Returns:
    `[B, L, D]`.
  """
  wide = functools.partial(jnp.promote_types, jnp.float32)
  if len(table) <= ONE_HOT_VOCABULARY:
    one_hot = jax.nn.one_hot(ids, len(table), dtype=dtype)
    found = jnp.matmul(
      one_hot, table.astype(dtype), preferred_element_type=wide(dtype)
    )
  else:
    found = jnp.take(table.astype(wide(table.dtype)), ids, axis=0)
  return found.astype(dtype)
