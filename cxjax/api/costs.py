"""FLOPs of the stages of a plan: counted, or compiled on request."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cxjax import types
from cxjax.methods import flops as flops_lib
from cxjax.methods import masks
from cxjax.methods import stage_plan
from cxjax.models import adapters

# The optimizer of a plan, which knows none.
RATE = 1e-3


def models(
  teacher: adapters.ModelAdapter, student: adapters.ModelAdapter
) -> tuple[Any, ...]:
  """Functions and shapes of the two models, as `plan_stage` takes them."""
  shapes = lambda tree: jax.eval_shape(lambda tree: tree, tree)
  return (
    student.apply,
    shapes(student.one),
    teacher.apply,
    shapes(teacher.params),
  )


def traced_models(plan: Any) -> tuple[tuple[Any, ...], types.Training | None]:
  """The models of a plan as `models`, of functions whose traces JAX keeps.

  Args:
    plan: a `Plan`.

  Returns:
    The result of `models`, and the student in training mode, if it has one.
  """
  theirs, ours, training = plan.traced_functions
  both = models(
    dataclasses.replace(plan.teacher, apply=theirs),
    dataclasses.replace(plan.student, apply=ours),
  )
  return both, training


def with_costs(plan: Any) -> tuple[stage_plan.StagePlan, ...]:
  """The stages of a plan with the FLOPs of their steps for Adam.

  Args:
    plan: a `Plan`.

  Returns:
    Its stages; as many as it has.
  """
  if plan.costs == 'counted':
    return _counted(plan)
  batch = jax.eval_shape(plan.with_mask, plan.batch)
  both, training = models(plan.teacher, plan.student), plan.student.training
  adam, flops = optax.adam(RATE), flops_lib.COUNTS[plan.costs]
  return tuple(
    stage_plan.with_costs(
      one, batch, adam, *both, training=training, flops=flops
    )
    for one in plan.stage_plans
  )


def _counted(plan: Any) -> tuple[stage_plan.StagePlan, ...]:
  """The stages with counted FLOPs, those of Adam from one vector.

  One leaf is traced in place of hundreds, with the same FLOPs.
  """
  batch = jax.eval_shape(plan.with_mask, plan.batch)
  both, training = traced_models(plan)
  adam, found = optax.adam(RATE), []
  for planned in plan.stage_plans:
    one = stage_plan.with_costs(
      planned,
      batch,
      optax.identity(),
      *both,
      training=training,
      flops=flops_lib.counted,
    )
    trainable, _ = masks.split(plan.student.one, planned.mask)
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(trainable))
    size += sum(map(math.prod, planned.regressors.values()))
    vector = jax.ShapeDtypeStruct((size,), jnp.float32)
    state = jax.eval_shape(adam.init, vector)
    flops = flops_lib.counted(adam.update, vector, state)
    flops += one.student_flops or 0
    found.append(dataclasses.replace(one, student_flops=flops))
  return tuple(found)
