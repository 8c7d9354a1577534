"""Gradients that the devices exchange at once, not array by array."""

from collections.abc import Callable
import functools
import itertools
from typing import Any
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from cxjax.parallel import mesh as mesh_lib

T = TypeVar('T')
# Elements of an array up to which it is exchanged as a part of another one: its
# copy takes less time than an exchange of its own.
SMALL = 2**16
# Rows for each column from which a matrix is a table of embeddings.
TALL = 8


def fit(model: Any, mesh: jax.sharding.Mesh) -> bool:
  """True for a model whose gradients are exchanged faster so.

  Args:
    model: the model; the abilities that its own class declares say that it
      computes `by_example`. A subclass may compute otherwise, and inherits no
      such promise.
    mesh: the devices.
  """
  abilities = getattr(model, 'abilities', None)
  kinds = [kind for kind in type(model).__mro__ if 'abilities' in vars(kind)]
  return (
    getattr(abilities, 'by_example', None) is True
    and all(kind is type(model) for kind in kinds[:1])
    and mesh.shape[mesh_lib.FSDP] == mesh.shape[mesh_lib.MODEL] == 1
    and mesh.devices.flat[0].platform == 'cpu'
  )


def by_example(
  fun: Callable[[Any, Any, Any], T], learned: Any, fixed: Any, split: Any
) -> T:
  """Computes `fun(learned, fixed, split)`, each device for its own examples.

  Left to XLA, the devices of a CPU exchange the gradient of each array by
  itself, and wait for each other every time. Here they exchange the small ones
  as one array.

  Args:
    fun: `(learned, fixed, split) -> each`, a tree of arrays that has a value
      for each example; it treats each example by itself.
    learned: a tree of arrays without examples, whose gradient is computed.
    fixed: another one, whose gradient is 0.
    split: a tree of arrays with examples as their first axis, on the mesh in
      force.

  Returns:
    The result for all examples. `fun` is called as it is outside of a mesh, and
    if the examples do not divide among the devices.
  """
  shards = mesh_lib.num_batch_shards()
  sizes = {leaf.shape[0] for leaf in jax.tree.leaves(split)}
  fixed = jax.lax.stop_gradient(fixed)
  if shards == 1 or any(size % shards for size in sizes):
    return fun(learned, fixed, split)
  axes = (mesh_lib.DATA, mesh_lib.FSDP)
  rows = PartitionSpec(axes)

  def own(copies: Any, fixed: Any, split: Any) -> T:
    learned = jax.tree.map(lambda leaf: leaf[0], copies)
    return fun(jax.tree.map(_turned, learned), fixed, split)

  return jax.shard_map(
    own,
    in_specs=(rows, PartitionSpec(), rows),
    out_specs=rows,
    axis_names=set(axes),
    check_vma=False,
  )(_copies(shards, jax.tree.map(_turned, learned)), fixed, split)


def _turned(leaf: jax.Array) -> jax.Array:
  """A kernel, or its transpose; the gradient of one is first the other's.

  So a device need not transpose the gradient before the exchange, in which XLA
  would take another, slower product for it. Twice is the same as never.
  """
  if leaf.ndim != 2 or max(leaf.shape) > TALL * min(leaf.shape):
    return leaf
  return leaf.T


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _copies(count: int, tree: Any) -> Any:
  """A tree of `[count, ...]` leaves, a copy for each device."""
  return jax.tree.map(
    lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), tree
  )


def _forward(count: int, tree: Any) -> tuple[Any, None]:
  return _copies(count, tree), None


def _backward(count: int, _: None, grads: Any) -> tuple[Any]:
  leaves, structure = jax.tree.flatten(grads)
  sums = [jnp.zeros(())] * len(leaves)
  groups: dict[Any, list[int]] = {}
  for i, leaf in enumerate(leaves):
    if leaf.size <= count * SMALL:
      groups.setdefault(leaf.dtype, []).append(i)
    else:
      sums[i] = jnp.sum(leaf, axis=0)
  for group in groups.values():
    parts = [leaves[i].reshape(count, -1) for i in group]
    total = jnp.sum(jnp.concatenate(parts, axis=1), axis=0)
    ends = itertools.accumulate(part.shape[1] for part in parts)
    found = jnp.split(total, list(ends)[:-1])
    for i, part in zip(group, found, strict=True):
      sums[i] = part.reshape(leaves[i].shape[1:])
  return (jax.tree.unflatten(structure, sums),)


_copies.defvjp(_forward, _backward)
