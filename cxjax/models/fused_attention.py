"""Attention by cuDNN on a GPU, which keeps no scores in memory.

In shapes, `B` is the batch, `Q` and `K` the numbers of queries and keys, `H`
the number of heads, `G` that of keys' heads and `d` the width of a head.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
from jax import custom_batching
import jax.numpy as jnp

# `(query, key, value, visible) -> output`.
Attention = Callable[..., jax.Array]

DTYPES = (jnp.bfloat16, jnp.float16)


def or_plain(
  plain: Attention,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  visible: jax.Array | None,
  scale: float,
) -> jax.Array:
  """Scaled dot-product attention, by cuDNN where it can.

  It can on one GPU from Ampere on, in bfloat16 or float16, with heads of at
  most 128 (Hopper: 256) channels, a multiple of 8. With a mask, the numbers of
  queries and keys must be even.

  Args:
    plain: the same attention in JAX, for all else.
    query: `[B, Q, H, d]`.
    key: `[B, K, G, d]`; `G` divides `H`.
    value: `[B, K, G, d]`.
    visible: `[B or 1, Q or 1, K]` bool, or None.
    scale: factor of the scores.

  Returns:
    `[B, Q, H, d]`.

  References:
    Dao et al. "FlashAttention", 2022. https://arxiv.org/abs/2205.14135.
  """
  if not _one_gpu() or query.dtype not in DTYPES:
    return plain(query, key, value, visible)
  operands = [query, key, value]
  if visible is not None:
    shape = (*visible.shape[:1], query.shape[1], key.shape[1])
    operands.append(jnp.broadcast_to(visible, shape))
  fused = _make(float(scale), _cudnn)
  try:
    jax.eval_shape(functools.partial(_both_ways, fused), *operands)
  except (NotImplementedError, RuntimeError, ValueError):
    return plain(query, key, value, visible)  # An older GPU, or other sizes.
  return jax.lax.platform_dependent(
    *operands,
    cuda=fused,
    default=lambda *a: plain(*a[:3], a[3] if len(a) > 3 else None),
  )


def _one_gpu() -> bool:
  """True on one GPU; how cuDNN's operands may be sharded was not tried."""
  mesh = jax.sharding.get_abstract_mesh()
  return jax.default_backend() == 'gpu' and (mesh.empty or mesh.size == 1)


def _both_ways(attend: Attention, *operands: jax.Array) -> Any:
  out, back = jax.vjp(
    lambda *inputs: attend(*inputs, *operands[3:]), *operands[:3]
  )
  return back(out)


def _cudnn(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *visible: jax.Array,
  scale: float,
) -> jax.Array:
  mask = visible[0][:, None] if visible else None
  return jax.nn.dot_product_attention(
    query, key, value, mask=mask, scale=scale, implementation='cudnn'
  )


@functools.cache
def _make(scale: float, attend: Attention) -> Attention:
  """Attention whose students and examples are one batch.

  cuDNN's own rule for `jax.vmap` does not take a mask that all heads share.
  Its gradient computes the output again.
  """
  once = functools.partial(attend, scale=scale)

  def pull(gradient: jax.Array, *operands: jax.Array) -> Any:
    inputs, visible = operands[:3], operands[3:]
    _, back = jax.vjp(lambda *inputs: once(*inputs, *visible), *inputs)
    return back(gradient)

  output, gradients = _one_batch(once), _one_batch(pull)
  fused = jax.custom_vjp(output)

  def forward(*operands: jax.Array) -> Any:
    return output(*operands), operands

  def backward(operands: Any, gradient: jax.Array) -> Any:
    return *gradients(gradient, *operands), *(None,) * len(operands[3:])

  fused.defvjp(forward, backward)
  return fused


def _one_batch(fun: Callable[..., Any]) -> Callable[..., Any]:
  """Makes a function for which a mapped axis is part of the batch."""
  mapped = custom_batching.custom_vmap(fun)

  @mapped.def_vmap
  def rule(size: int, batched: Any, *operands: jax.Array) -> Any:
    batch = max(
      operand.shape[is_batched]
      for operand, is_batched in zip(operands, batched, strict=True)
    )

    def flat(operand: jax.Array, is_batched: bool) -> jax.Array:
      rest = operand.shape[1 + is_batched :]
      if not is_batched:
        if len(operand) == 1 < batch:
          return operand  # A mask of all examples is one of all students.
        operand = operand[None]
      return jnp.broadcast_to(operand, (size, batch, *rest)).reshape(-1, *rest)

    full = map(flat, operands, batched)
    apart = lambda out: out.reshape(size, batch, *out.shape[1:])
    out = jax.tree.map(apart, mapped(*full))
    return out, jax.tree.map(lambda _: True, out)

  return mapped
