"""What a curriculum will do and cost, known before it is trained."""

from collections.abc import Callable
from collections.abc import Iterable
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cxjax.methods import stage as stage_lib
from cxjax import errors
from cxjax.methods import losses
from cxjax.methods import projections
from cxjax.methods import train_step
from cxjax import tables


@dataclasses.dataclass(frozen=True)
class StagePlan:
  """One stage, with the shapes and costs that the models give it.

  Attributes:
    stage: the stage.
    mask: which of the student's parameters it trains.
    projection: `(d_T, r)` of the random projection, or None.
    readout: `(d_S, r)` of the readout, or None.
    teacher_width: of the target, or None for labels.
    student_width: of the activation that is trained.
    student_flops: of one update of one student, None if unknown.
    teacher_flops: of the targets of one batch, None if unknown.
  """

  stage: stage_lib.Stage
  mask: train_step.Params
  projection: tuple[int, int] | None
  readout: tuple[int, int] | None
  teacher_width: int | None
  student_width: int
  student_flops: float | None = None
  teacher_flops: float | None = None


def plan_stage(
  stage: stage_lib.Stage,
  batch: train_step.Batch,
  student: train_step.Apply,
  student_params: train_step.Params,
  teacher: train_step.Apply | None = None,
  teacher_params: train_step.Params = None,
) -> StagePlan:
  """A stage with its shapes; every argument may be shapes alone.

  Args:
    stage: the stage.
    batch: `{'x': [B, ...], 'y': [B]}`.
    student: the student.
    student_params: of one student.
    teacher: the teacher, for a stage that needs one.
    teacher_params: the teacher's.

  Returns:
    The planned stage, its costs unknown.

  Raises:
    UserError: an activation that does not exist, or widths that do not fit.
  """

  def shape(apply, params, name):
    one = functools.partial(train_step.compared, apply, name=name, stage=stage)
    found = jax.eval_shape(one, params, batch['x']).shape
    errors.require(
      len(found) > 1,
      f'{name!r} of shape {found} has no width: give it a last axis, as in '
      '[B, 1].',
    )
    return found

  *places, student_width = shape(student, student_params, stage.student)
  teacher_width = projection = readout = None
  errors.require(
    stage.needs_teacher or not (stage.law or stage.readout),
    f'Stage {stage.name!r} learns labels: they have no projection and no '
    'readout. Leave law and readout out.',
  )
  if stage.needs_teacher:
    *others, teacher_width = shape(teacher, teacher_params, stage.target)
    errors.require(
      places == others,
      f'Stage {stage.name!r} cannot compare {stage.student!r}, '
      f'{[*places, student_width]}, with {stage.target!r}, '
      f"{[*others, teacher_width]}: the teacher's places are others than the "
      "student's. Choose another pair of layers, or pool='mean'.",
    )
    errors.require(
      stage.top_k <= teacher_width,
      f'top_k={stage.top_k}: the teacher has {teacher_width} logits.',
    )
    got = teacher_width
    if stage.law is not None:
      projection = train_step.projection_shape(stage, teacher_width, student_width)
      draw = functools.partial(
        projections.random_projection, projection=stage.law, shape=projection
      )
      jax.eval_shape(draw, jax.random.key(0))
      got = projection[1]
    if stage.readout:
      readout = (student_width, got)
    errors.require(
      got == student_width or stage.readout,
      f'Stage {stage.name!r} compares {stage.student!r}, {student_width} wide, '
      f'with {stage.target!r}, {got} wide. Give it a projection law.',
    )
    _check_loss(stage, (*places, got))
  mask = train_step.trainable_mask(student, student_params, batch['x'], stage)
  return StagePlan(
    stage, mask, projection, readout, teacher_width, student_width
  )


def _check_loss(stage, shape):
  """Raises UserError for a loss that does not reduce the last axis alone."""
  features = jax.ShapeDtypeStruct(shape, jnp.float32)
  want = features
  if stage.top_k:
    want = jax.eval_shape(lambda x: losses.top_k(x, stage.top_k), features)
  try:
    found = jax.eval_shape(stage.loss, features, want)
  except Exception as error:  # Whatever a function of the user raises.
    reason = str(error).partition('\n')[0].rstrip('.')
    raise errors.UserError(
      f"The loss of stage {stage.name!r} does not take the student's and the "
      f"target's {list(shape)}: {reason}."
    ) from error
  got = list(getattr(found, 'shape', [None]))
  errors.require(
    got == list(shape[:-1]),
    f'The loss of stage {stage.name!r} makes {got} of {list(shape)}: it must '
    f'reduce the last axis alone, to {list(shape[:-1])}, as cxjax.mse does.',
  )


def with_costs(
  planned: StagePlan,
  batch: train_step.Batch,
  tx: optax.GradientTransformation,
  student: train_step.Apply,
  student_params: train_step.Params,
  teacher: train_step.Apply | None = None,
  teacher_params: train_step.Params = None,
  *,
  flops: Callable[..., float] = train_step.flops,
  stored: bool = False,
) -> StagePlan:
  """The planned stage with its FLOPs a step.

  Args:
    planned: from `plan_stage`, with the same models.
    batch: shapes of a batch.
    tx: the optimizer.
    student: the student.
    student_params: shapes of its parameters.
    teacher: the teacher, for a stage that needs one.
    teacher_params: shapes of its parameters.
    flops: of a function and its arguments, as compiled or as written.
    stored: the targets were computed before: they cost nothing now.

  Returns:
    `planned` with `student_flops` and `teacher_flops`.
  """
  stage = planned.stage
  want, args = _target(planned, batch, teacher, teacher_params)
  state = jax.eval_shape(
    functools.partial(
      train_step.init_stage, stage=stage, shape=planned.readout, tx=tx, mask=planned.mask
    ),
    jax.random.key(0),
    student_params,
  )
  update = functools.partial(
    train_step.train_step, apply=student, stage=stage, tx=tx, mask=planned.mask
  )
  wants = jax.eval_shape(want, *args)
  teacher_flops = 0.0
  if stage.needs_teacher and not stored:
    teacher_flops = flops(want, *args)
  return dataclasses.replace(
    planned,
    student_flops=flops(update, state, batch, wants),
    teacher_flops=teacher_flops,
  )


def _target(planned, batch, teacher, teacher_params):
  """What computes the targets of a batch, and the shapes of its arguments."""
  matrix = None
  if planned.projection:
    matrix = jax.ShapeDtypeStruct(planned.projection, jnp.float32)
  want = functools.partial(train_step.make_targets, teacher, stage=planned.stage)
  return want, (teacher_params, matrix, batch)


def target_flops(
  planned: StagePlan,
  batch: train_step.Batch,
  teacher: train_step.Apply,
  teacher_params: train_step.Params,
) -> float:
  """FLOPs of the targets of one batch, as compiled; shapes are enough."""
  want, args = _target(planned, batch, teacher, teacher_params)
  return train_step.flops(want, *args)


def show(stages: Iterable[StagePlan]) -> str:
  """The plan as a table: what is matched with what, how long, at what cost."""
  return tables.markdown(map(_cells, stages))


def _cells(planned: StagePlan) -> dict[str, Any]:
  stage = planned.stage
  checkpoint = 'final' if stage.checkpoint is None else str(stage.checkpoint)
  law = None
  if planned.projection:
    law = f'{stage.law} {planned.projection[0]} x {planned.projection[1]}'
  if planned.readout:
    law = (
      f'{law or "none"}, readout {planned.readout[0]} x {planned.readout[1]}'
    )
  return {
    'stage': stage.name,
    'checkpoint': checkpoint if stage.needs_teacher else None,
    'teacher layer': stage.target,
    'teacher width': planned.teacher_width,
    'student layer': stage.student,
    'student width': planned.student_width,
    'projection': law,
    'steps': stage.steps,
    'student FLOPs a step': planned.student_flops
    and int(planned.student_flops),
    'teacher FLOPs a step': planned.teacher_flops
    and int(planned.teacher_flops),
  }
