"""Cost of the teacher's head, which stored hidden states still need."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax

from cxjax import types
from cxjax.methods import flops as flops_lib
from cxjax.methods import output_split
from cxjax.methods import stage_plan
from cxjax.methods import stored_output
from cxjax.methods import targets as targets_lib
from cxjax.training import batch_targets
from cxjax.training import output_memory
from cxjax.training import run_spec


def plan_with_costs(
  spec: run_spec.RunSpec, flops: Callable[..., float] = flops_lib.compiled
) -> list[stage_plan.StagePlan]:
  """The stages of a run on stored targets, with their costs.

  Args:
    spec: the run; with hidden states its teacher has heads.
    flops: how FLOPs are counted, as for `RunSpec.plan_with_costs`.

  Returns:
    The plans. The teacher's FLOPs are those of its head, in stages that compare
    its output, and 0 in others and without heads.
  """
  found, plans = {}, []
  if spec.teacher is None or spec.teacher.heads is None:
    return spec.plan_with_costs(flops)
  for planned in spec.plan_with_costs(flops):
    stage = planned.stage
    if stored_output.terms(stage):
      if stage.objective not in found:
        found[stage.objective] = _head_flops(spec, planned, flops)
      planned = dataclasses.replace(
        planned, teacher_flops=found[stage.objective]
      )
    plans.append(planned)
  return plans


def _head_flops(
  spec: run_spec.RunSpec,
  planned: stage_plan.StagePlan,
  flops: Callable[..., float],
) -> float:
  """FLOPs of the targets of one batch, from its last hidden states."""
  ending, weights = output_memory.teacher_ending(spec)
  batch = jax.eval_shape(spec.batch, jax.random.key(0), 0, spec.host.rows)
  batch['x'] = targets_lib.without_dropout(batch['x'])
  assert spec.teacher is not None
  hidden = jax.eval_shape(
    output_split.with_features(spec.teacher_apply),
    jax.eval_shape(lambda params: params, spec.teacher.params),
    batch['x'],
  )[1][output_split.FEATURES]
  first = next(iter(stored_output.terms(planned.stage)))

  def make(weights: Any, hidden: jax.Array, batch: types.Batch) -> Any:
    one = lambda leaf: leaf[None, None]  # One batch of one stream.
    return batch_targets.completed(
      ending,
      weights,
      {first: one(hidden)},
      jax.tree.map(one, batch),
      planned.stage,
    )

  return flops(make, weights, hidden, batch)
