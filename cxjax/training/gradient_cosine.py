"""Cosine of the gradients of a hidden stage and of the last one.

While a hidden stage helps the last one, an update for it is one for the other
as well, and the cosine is positive. Where it falls to 0 or below, the two
contradict each other. It is reported and stops nothing.

References:
  Yu et al. "Gradient surgery for multi-task learning", 2020.
  https://arxiv.org/abs/2001.06782.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from cxjax import errors
from cxjax import types
from cxjax.methods import masks
from cxjax.methods import stage_plan
from cxjax.methods import targets as targets_lib
from cxjax.methods import train_step
from cxjax.methods import training_mode
from cxjax.parallel import mesh as mesh_lib
from cxjax.training import compiled_steps
from cxjax.training import run_spec

NAME = 'gradient_cosine'


class GradientCosine:
  """Measures the cosine in the hidden stages of a run, if it is asked for."""

  def __init__(
    self,
    spec: run_spec.RunSpec,
    planned: list[stage_plan.StagePlan],
    steps: compiled_steps.CompiledSteps,
  ) -> None:
    """Compiles nothing yet.

    Args:
      spec: the run.
      planned: its stages.
      steps: its programs, which draw the projections.

    Raises:
      UserError: it is asked for, and there is nothing to compare.
    """
    self._spec, self._planned, self._steps = spec, planned, steps
    self._compiled: dict[int, Any] = {}
    self._fixed: dict[int, tuple[Any, Any]] = {}
    if spec.loop.gradient_cosine:
      check(spec, planned)

  def __call__(
    self, index: int, states: train_step.State
  ) -> dict[str, jax.Array]:
    """`[S]` cosines in the stage `index`, by `NAME`; {} in the last one."""
    hidden, last = self._planned[index], self._planned[-1]
    if not self._spec.loop.gradient_cosine or index + 1 == len(self._planned):
      return {}
    if index not in self._compiled:
      one = functools.partial(_cosine, self._models(), hidden, last)
      axes = (0, 0, (0, 0), None, None)
      self._compiled[index] = jax.jit(jax.vmap(one, in_axes=axes))
      matrices = [
        self._steps.matrices(one, at) or {}
        for at, one in ((index, hidden), (len(self._planned) - 1, last))
      ]
      teachers = [self._steps.stage_teacher(one) for one in (hidden, last)]
      self._fixed = {index: (tuple(matrices), tuple(teachers))}
    matrices, teachers = self._fixed[index]
    found = self._compiled[index](
      states.params, states.regressors, matrices, teachers, self._batch()
    )
    return {NAME: found}

  def _models(self) -> tuple[types.Apply, types.Apply]:
    """The student and the teacher, whose sharded parameters are gathered."""
    layout = self._spec.layout
    return (
      mesh_lib.gathered(self._spec.student.apply, layout.student),
      mesh_lib.gathered(self._spec.teacher_apply, layout.teacher),
    )

  def _batch(self) -> types.Batch:
    """The first examples of the held-out set, as many as a batch has."""
    size = self._spec.batch_size
    return jax.tree.map(lambda leaf: leaf[:size], dict(self._spec.held_out))


def check(spec: run_spec.RunSpec, planned: list[stage_plan.StagePlan]) -> None:
  """Raises UserError for a run without two gradients to compare."""
  errors.require(
    len(planned) > 1 and spec.teacher is not None and spec.teacher.is_run,
    'gradient_cosine compares a hidden stage with the last one, and the '
    'curriculum has one stage, or a teacher that is not run: leave it out.',
  )
  last = planned[-1].stage
  errors.require(
    not planned[-1].regressors,
    f'gradient_cosine compares with the last stage, {last.name!r}, which has a '
    'regressor that is not trained yet: leave it out.',
  )
  for stage in (one.stage for one in planned):
    errors.require(
      not stage.needs_labels or bool(spec.teacher_metrics),
      'gradient_cosine needs labels in held_out, from which the stage '
      f'{stage.name!r} learns: leave it out, or give held_out with labels of '
      'classes.',
    )


def _cosine(
  models: tuple[types.Apply, types.Apply],
  hidden: stage_plan.StagePlan,
  last: stage_plan.StagePlan,
  params: types.Params,
  regressors: Any,
  matrices: tuple[Any, Any],
  teachers: tuple[types.Params, types.Params],
  batch: types.Batch,
) -> jax.Array:
  """The cosine for one student; 0 where a gradient is 0."""
  student, teacher = models
  both = lambda a, b: a and b
  mask = jax.tree.map(both, hidden.mask, last.mask)
  trainable, frozen = masks.split(params, mask)
  found = []
  for one, trained, drawn, weights in zip(
    (hidden, last), (regressors, {}), matrices, teachers, strict=True
  ):
    targets = targets_lib.make_targets(
      teacher, weights, drawn, batch, one.stage
    )
    forward = training_mode.forward(student, None)
    loss = train_step.loss_function(forward, one.stage, frozen, batch)
    value = lambda trainable, loss=loss, trained=trained, targets=targets: loss(
      (trainable, trained), {}, None, batch, targets
    )[0]
    grads = jax.grad(value)(trainable)
    flat = [jnp.ravel(g).astype(jnp.float32) for g in jax.tree.leaves(grads)]
    found.append(jnp.concatenate(flat) if flat else jnp.zeros(1))
  return cosine(*found)


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
  """Cosine of two vectors: 0 if one of them is 0, NaN if a value is."""
  size = jnp.linalg.norm(a) * jnp.linalg.norm(b)
  nothing = size == 0
  return jnp.where(nothing, 0.0, a @ b / jnp.where(nothing, 1.0, size))
