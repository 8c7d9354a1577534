"""Weights of the teacher's head on the devices, sharded like its parameters."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from cxjax import types
from cxjax.methods import stored_output
from cxjax.methods import targets as targets_lib
from cxjax.parallel import mesh as mesh_lib
from cxjax.training import run_spec

Make = Callable[[types.Params], tuple[jax.Array, ...]]


def maker(spec: run_spec.RunSpec) -> Make:
  """The function from the teacher's parameters to the weights of its head.

  Args:
    spec: the run; shapes are enough of its teacher.

  Returns:
    The function; it raises UserError for a teacher without a head.
  """
  batch = jax.eval_shape(spec.batch, jax.random.key(0), 0, spec.host.rows)
  x = targets_lib.without_dropout(batch['x'])
  assert spec.teacher is not None
  apply = spec.teacher_apply
  return lambda params: stored_output.require_head(apply, params, x)[1]


def shardings(spec: run_spec.RunSpec) -> tuple[NamedSharding, ...]:
  """Shardings of the weights, as they follow from those of the parameters."""
  layout, make = spec.layout, maker(spec)
  assert spec.teacher is not None
  params = mesh_lib.abstract(
    jax.eval_shape(lambda params: params, spec.teacher.params),
    layout.mesh,
    layout.teacher,
  )
  # A head may be a slice or another dtype of a parameter: XLA knows where that
  # lies.
  return tuple(jax.jit(make).lower(params).compile().output_shardings)


def place(spec: run_spec.RunSpec, weights: Any) -> tuple[jax.Array, ...]:
  """Puts weights, which every process has, on the devices, sharded."""
  if spec.layout.teacher.mode == 'replicated':
    return mesh_lib.replicate(tuple(weights), spec.layout.mesh)
  return mesh_lib.put(tuple(weights), shardings(spec))


def gather(spec: run_spec.RunSpec) -> Callable[[Any], Any] | None:
  """The function that gathers the weights over 'fsdp', for use under `jax.jit`.

  As `mesh_lib.gathered` does it of parameters; None if they are not sharded
  over it.
  """
  layout = spec.layout
  if layout.teacher.mode == 'replicated' or (
    layout.mesh.shape[mesh_lib.FSDP] == 1
  ):
    return None
  specs = tuple(_without_fsdp(one.spec) for one in shardings(spec))
  return lambda weights: jax.lax.with_sharding_constraint(weights, specs)


def _without_fsdp(spec: PartitionSpec) -> PartitionSpec:
  """A partition spec that shards no axis over 'fsdp'."""

  def kept(names: Any) -> Any:
    if isinstance(names, tuple):
      return tuple(name for name in names if name != mesh_lib.FSDP) or None
    return None if names == mesh_lib.FSDP else names

  return PartitionSpec(*map(kept, spec))
