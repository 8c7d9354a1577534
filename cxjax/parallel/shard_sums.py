"""Sums over the examples of a batch, each device over its own."""

from collections.abc import Callable
from typing import Any
from typing import TypeVar

import jax
from jax.sharding import PartitionSpec

from cxjax.parallel import mesh as mesh_lib

T = TypeVar('T')


def over_shards(
  fun: Callable[[Any, Any], tuple[T, Any]], whole: Any, split: Any, axis: int
) -> tuple[T, Any]:
  """Computes `fun(whole, split)`, each device for its own examples.

  Left to XLA, devices exchange the sums of a loop at every turn; here once.

  Args:
    fun: `(whole, split) -> (sums, each)`: sums over the examples of `split`,
      and a tree of arrays that has a value for each of them.
    whole: a tree of arrays without examples.
    split: a tree of arrays with examples, on the mesh in force.
    axis: the axis of the examples in every leaf of `split` and of `each`.

  Returns:
    The results for all examples. `fun` is called as it is outside of a mesh,
    and if the examples do not divide among the devices.
  """
  shards = mesh_lib.num_batch_shards()
  sizes = {leaf.shape[axis] for leaf in jax.tree.leaves(split)}
  if shards == 1 or any(size % shards for size in sizes):
    return fun(whole, split)
  axes = (mesh_lib.DATA, mesh_lib.FSDP)

  def own(whole: Any, split: Any) -> tuple[T, Any]:
    sums, each = fun(whole, split)
    return jax.lax.psum(sums, axes), each

  everywhere = PartitionSpec()
  rows = PartitionSpec(*(None,) * axis, axes)
  return jax.shard_map(
    own,
    in_specs=(everywhere, rows),
    out_specs=(everywhere, rows),
    axis_names=set(axes),
    check_vma=False,
  )(whole, split)
