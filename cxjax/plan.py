"""What a curriculum will do and cost, known before it is trained."""

from collections.abc import Iterable
import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from cxjax import curriculum
from cxjax import step
from cxjax import table


@dataclasses.dataclass(frozen=True)
class PlannedStage:
  """One stage, with the shapes and costs that the models give it.

  Attributes:
    stage: the stage.
    mask: which of the student's parameters it trains.
    projection: `(d_T, r)` of the random projection, or None.
    readout: `(d_S, r)` of the readout, or None.
    teacher_width: of the target, or None for labels.
    student_width: of the activation that is trained.
    student_flops: of one update of one student, as compiled.
    teacher_flops: of the targets of one batch, as compiled.
  """

  stage: curriculum.Stage
  mask: step.Params
  projection: tuple[int, int] | None
  readout: tuple[int, int] | None
  teacher_width: int | None
  student_width: int
  student_flops: float
  teacher_flops: float


def plan_stage(
  stage: curriculum.Stage,
  batch: step.Batch,
  tx: optax.GradientTransformation,
  student: step.Apply,
  student_params: step.Params,
  teacher: step.Apply | None = None,
  teacher_params: step.Params = None,
) -> PlannedStage:
  """Shapes and compiled costs of one stage; arguments may be shapes alone.

  Args:
    stage: the stage.
    batch: `{'x': [B, ...], 'y': [B]}`.
    tx: the optimizer.
    student: the student.
    student_params: of one student.
    teacher: the teacher, for a stage that needs one.
    teacher_params: the teacher's.

  Returns:
    The planned stage.

  Raises:
    UserError: an activation that does not exist, or widths that do not fit.
  """
  x = batch['x']
  width = lambda apply, params, name: jax.eval_shape(
    functools.partial(step.activation, apply, name=name), params, x
  ).shape[-1]
  student_width = width(student, student_params, stage.student)
  teacher_width = None
  if stage.needs_teacher:
    teacher_width = width(teacher, teacher_params, stage.target)
  projection = readout = matrix = None
  if stage.law is not None:
    projection = step.projection_shape(stage, teacher_width, student_width)
    matrix = jax.ShapeDtypeStruct(projection, jnp.float32)
  if stage.readout:
    readout = (student_width, projection[1] if projection else teacher_width)
  mask = step.trained(student, student_params, x, stage)
  want = functools.partial(step.target, teacher, stage=stage)
  enter = functools.partial(
    step.enter, stage=stage, shape=readout, tx=tx, mask=mask
  )
  update = functools.partial(
    step.train_step, apply=student, stage=stage, tx=tx, mask=mask
  )
  state = jax.eval_shape(enter, jax.random.key(0), student_params)
  wants = jax.eval_shape(want, teacher_params, matrix, batch)
  return PlannedStage(
    stage=stage,
    mask=mask,
    projection=projection,
    readout=readout,
    teacher_width=teacher_width,
    student_width=student_width,
    student_flops=step.flops(update, state, batch, wants),
    teacher_flops=step.flops(want, teacher_params, matrix, batch)
    if stage.needs_teacher
    else 0.0,
  )


def show(stages: Iterable[PlannedStage]) -> str:
  """The plan as a table: what is matched with what, how long, at what cost."""
  header = (
    'stage',
    'checkpoint',
    "teacher's layer",
    'width',
    "student's layer",
    'width',
    'projection',
    'steps',
    'student FLOPs a step',
    'teacher FLOPs a step',
  )
  return table.markdown(header, map(_cells, stages))


def _cells(planned: PlannedStage) -> tuple:
  stage = planned.stage
  checkpoint = 'final' if stage.checkpoint is None else str(stage.checkpoint)
  law = None
  if planned.projection:
    law = f'{stage.law} {planned.projection[0]} x {planned.projection[1]}'
    law += ', readout' if stage.readout else ''
  return (
    stage.name,
    checkpoint if stage.needs_teacher else None,
    stage.target,
    planned.teacher_width,
    stage.student,
    planned.student_width,
    law,
    stage.steps,
    int(planned.student_flops),
    int(planned.teacher_flops),
  )
