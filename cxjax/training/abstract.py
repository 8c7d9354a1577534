"""Arguments of a run's programs as shapes that know where they lie."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from cxjax import types
from cxjax.methods import stage_plan
from cxjax.parallel import mesh as mesh_lib
from cxjax.training import multi_step
from cxjax.training import run_spec


def arguments(
  spec: run_spec.RunSpec, planned: stage_plan.StagePlan
) -> tuple[Any, ...]:
  """Arguments of `CompiledSteps.compile_train_many_steps`.

  Args:
    spec: specification of the run.
    planned: one of its stages.

  Returns:
    States, schedule, span, start, stop; the teacher's parameters, projections,
    keys, rows and stored targets, or None for those that the stage does
    without; the keys of the students' dropout.
  """
  layout = spec.layout
  sharded = functools.partial(mesh_lib.abstract, mesh=layout.mesh)
  seeds = functools.partial(sharded, sharding=layout.student, seeds=True)
  replicated = functools.partial(sharded, sharding=mesh_lib.REPLICATED)
  params = matrices = None
  if spec.teacher is not None:
    matrices = {
      name: seeds(jax.ShapeDtypeStruct((spec.num_seeds, *shape), jnp.float32))
      for name, shape in planned.matrices.items()
    }
    if planned.stage.needs_teacher:
      params = sharded(spec.teacher.params, sharding=layout.teacher)
  args = (
    seeds(spec.state_shapes(planned)),
    *multi_step.int32_arguments((1, 0), (0, 1), 0, spec.loop.log_every),
    params,
    matrices,
    replicated(spec.keys.data),
    rows(spec),
    None,
  )
  if spec.training is None and not spec.dropout:
    return args
  return *args, replicated(spec.keys.stage)


def rows(spec: run_spec.RunSpec) -> Any:
  """Shapes of the rows of one dispatch, or None without a loader."""
  if spec.host.loader is None:
    return None
  lead = (spec.loop.log_every, spec.keys.data.shape[0])
  found = jax.tree.map(
    lambda leaf: types.shape_struct((*lead, *leaf.shape), leaf.dtype),
    spec.host.rows,
  )
  return mesh_lib.abstract_rows(found, spec.layout.mesh)
