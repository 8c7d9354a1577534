"""Shapes and costs of a stage, known before it is trained."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cxjax import errors
from cxjax import tables
from cxjax import types
from cxjax.methods import flops as flops_lib
from cxjax.methods import legacy
from cxjax.methods import losses
from cxjax.methods import projections
from cxjax.methods import stage as stage_lib
from cxjax.methods import targets as targets_lib
from cxjax.methods import train_step

# Number of equal parts of a stage at whose ends a schedule is checked.
CHECKED_PARTS = 100


@dataclasses.dataclass(frozen=True)
class TermPlan:
  """Shapes of one term.

  Attributes:
    projection: shape `(d_T, r)` of the random projection, or None.
    regressor: shape `(d_S, r)` of the regressor, or None.
    teacher_width: width of the target, or None for labels.
    student_width: width of the activation that is trained.
  """

  projection: tuple[int, int] | None
  regressor: tuple[int, int] | None
  teacher_width: int | None
  student_width: int


@legacy.plan_of_one_term
@dataclasses.dataclass(frozen=True)
class StagePlan:
  """One stage, with the shapes and costs that the models give it.

  Attributes:
    stage: the stage.
    mask: which of the student's parameters it trains.
    terms: the shapes of each term, by its name.
    student_flops: FLOPs of one update of one student, None if unknown.
    teacher_flops: FLOPs of the targets of one batch, None if unknown.
  """

  stage: stage_lib.Stage
  mask: train_step.Mask
  terms: dict[str, TermPlan]
  student_flops: float | None = None
  teacher_flops: float | None = None

  @property
  def projections(self) -> dict[str, tuple[int, int]]:
    """Shape of each random projection, by the name of its term."""
    return {n: t.projection for n, t in self.terms.items() if t.projection}

  @property
  def regressors(self) -> dict[str, tuple[int, int]]:
    """Shape of each regressor, by the name of its term."""
    return {n: t.regressor for n, t in self.terms.items() if t.regressor}


def plan_stage(
  stage: stage_lib.Stage,
  batch: types.Batch,
  student: types.Apply,
  student_params: types.Params,
  teacher: types.Apply | None = None,
  teacher_params: types.Params = None,
  *,
  trainable: str = '',
) -> StagePlan:
  """A stage with its shapes; every argument may be shapes alone.

  Args:
    stage: the stage.
    batch: `{'x': [B, ...], 'y': [B]}`.
    student: the student.
    student_params: of one student.
    teacher: the teacher, for a stage that needs one.
    teacher_params: the teacher's.
    trainable: pattern of the paths of the parameters that may be trained, as of
      `train_step.path_mask`; '' is all.

  Returns:
    The plan of the stage, its costs unknown.

  Raises:
    UserError: an activation that does not exist, widths that do not fit, or a
      weight that is no scalar.
  """
  ours = jax.eval_shape(
    functools.partial(targets_lib.forward, student), student_params, batch['x']
  )
  theirs: targets_lib.Activations = {}
  if stage.needs_teacher:
    if teacher is None:
      raise errors.UserError(
        f'Stage {stage.name!r} compares the student with a teacher, and there '
        'is none. Give one, or the target labels.'
      )
    theirs = jax.eval_shape(
      functools.partial(targets_lib.forward, teacher),
      teacher_params,
      targets_lib.without_dropout(batch['x']),
    )
  terms = {}
  for name, term in stage.named_terms.items():
    _check_schedule(stage, term)
    terms[name] = _plan_term(stage, term, batch, ours, theirs)
  mask = train_step.trainable_mask(
    student, student_params, batch['x'], stage, trainable
  )
  return StagePlan(stage, mask, terms)


def _check_schedule(stage: stage_lib.Stage, term: stage_lib.Term) -> None:
  """Raises UserError for a schedule that makes no finite positive scalars."""
  if not term.scheduled:
    return
  what = f'The weight of {term.student!r} in stage {stage.name!r}'
  try:
    shape = jax.eval_shape(term.weight_at, jax.ShapeDtypeStruct((), float))
  except Exception as error:  # Whatever a function of the user raises.
    reason = str(error).partition('\n')[0].rstrip('.')
    raise errors.UserError(
      f'{what} is no schedule of the fraction of the stage that is done: '
      f'{reason}.'
    ) from error
  errors.require(
    getattr(shape, 'shape', None) == (),
    f'{what} is a schedule that returns {shape}: it must return a scalar, as '
    'optax.linear_schedule(1.0, 0.0, 1.0) does.',
  )
  fractions = np.linspace(0, 1, CHECKED_PARTS + 1, dtype=np.float32)
  weights = np.asarray(jax.vmap(term.weight_at)(jnp.asarray(fractions)))
  for fraction, weight in zip(fractions, weights, strict=True):
    errors.require(
      0 <= weight < math.inf,
      f'{what} is {weight:g} after {round(float(fraction), 2)} of the stage: '
      'it must be finite and not negative.',
    )


def _plan_term(
  stage: stage_lib.Stage,
  term: stage_lib.Term,
  batch: types.Batch,
  ours: targets_lib.Activations,
  theirs: targets_lib.Activations,
) -> TermPlan:
  """Shapes of a term from the shapes of all activations."""

  def shape(found: targets_lib.Activations, name: str) -> tuple[int, ...]:
    one = lambda found, x: targets_lib.compared(found, x, name, term)
    shape = jax.eval_shape(one, found, batch['x']).shape
    errors.require(
      len(shape) > 1,
      f'{name!r} of shape {shape} has no width: give it a last axis, as in '
      '[B, 1].',
    )
    return shape

  *axes, student_width = shape(ours, term.student)
  if not term.needs_teacher:
    _check_loss(stage, term, (*axes, student_width), batch)
    return TermPlan(None, None, None, student_width)
  *others, teacher_width = shape(theirs, term.target)
  errors.require(
    axes == others,
    f'Stage {stage.name!r} cannot compare {term.student!r}, '
    f'{[*axes, student_width]}, with {term.target!r}, '
    f'{[*others, teacher_width]}: all axes but the last must agree. Choose '
    "another pair of layers, or pool='mean'.",
  )
  errors.require(
    term.top_k <= teacher_width,
    f'top_k={term.top_k}: the teacher has {teacher_width} logits.',
  )
  projection = regressor = None
  got = teacher_width
  if term.projection is not None:
    projection = targets_lib.projection_shape(
      term, teacher_width, student_width
    )
    draw = functools.partial(
      projections.random_projection,
      projection=term.projection,
      shape=projection,
    )
    jax.eval_shape(draw, jax.random.key(0))
    got = projection[1]
  if term.regressor:
    regressor = (student_width, got)
  errors.require(
    got == student_width or term.regressor,
    f'Stage {stage.name!r} compares {term.student!r}, {student_width} wide, '
    f'with {term.target!r}, {got} wide. Give it a projection, as '
    "projection='gaussian'.",
  )
  _check_loss(stage, term, (*axes, got), batch)
  return TermPlan(projection, regressor, teacher_width, student_width)


def _check_loss(
  stage: stage_lib.Stage,
  term: stage_lib.Term,
  shape: tuple[int, ...],
  batch: types.Batch,
) -> None:
  """Raises UserError for a loss that does not reduce the last axis alone."""
  features = jax.ShapeDtypeStruct(shape, jnp.float32)
  want: Any = features
  if term.top_k:
    want = jax.eval_shape(lambda x: losses.top_k(x, term.top_k), features)
  elif not term.needs_teacher:
    if 'y' not in batch:
      return
    want = jax.eval_shape(lambda y: y, batch['y'])
  found = _evaluated_loss(stage, term, features, want)
  got = list(getattr(found, 'shape', [None]))
  errors.require(
    got == list(shape[:-1]),
    f'The loss of stage {stage.name!r} makes {got} of {list(shape)}: it must '
    f'reduce the last axis alone, to {list(shape[:-1])}, as cxjax.mse does.',
  )


def _evaluated_loss(
  stage: stage_lib.Stage, term: stage_lib.Term, got: Any, want: Any
) -> Any:
  """Shape of what a term's loss returns; its errors in one line."""
  try:
    return jax.eval_shape(term.loss, got, want)  # type: ignore[arg-type]
  except Exception as error:  # Whatever a function of the user raises.
    reason = str(error).partition('\n')[0].rstrip('.')
    sizes = ' and '.join(str(list(x.shape)) for x in jax.tree.leaves(want))
    raise errors.UserError(
      f"The loss of stage {stage.name!r} does not take the student's "
      f'{term.student!r}, {list(got.shape)}, and {term.target!r}, {sizes}: '
      f'{reason}.'
    ) from error


def with_costs(
  planned: StagePlan,
  batch: types.Batch,
  tx: optax.GradientTransformation,
  student: types.Apply,
  student_params: types.Params,
  teacher: types.Apply | None = None,
  teacher_params: types.Params = None,
  *,
  flops: Callable[..., float] = flops_lib.compiled,
  stored: bool = False,
) -> StagePlan:
  """The plan of a stage with its FLOPs per step.

  Args:
    planned: from `plan_stage`, with the same models.
    batch: shapes of a batch.
    tx: the optimizer.
    student: the student.
    student_params: shapes of its parameters.
    teacher: the teacher, for a stage that needs one.
    teacher_params: shapes of its parameters.
    flops: counts those of a function and its arguments, `flops.compiled` or
      `flops.written`.
    stored: the targets were computed before: they cost nothing now.

  Returns:
    `planned` with `student_flops` and `teacher_flops`.
  """
  stage = planned.stage
  make, args = _target_maker(planned, batch, teacher, teacher_params)
  state = jax.eval_shape(
    functools.partial(
      train_step.init_stage,
      stage=stage,
      shapes=planned.regressors,
      tx=tx,
      mask=planned.mask,
    ),
    jax.random.key(0),
    student_params,
  )
  update = functools.partial(
    train_step.train_step, apply=student, stage=stage, tx=tx, mask=planned.mask
  )
  targets = jax.eval_shape(make, *args)
  teacher_flops = 0.0
  if stage.needs_teacher and not stored:
    teacher_flops = flops(make, *args)
  progress = jax.ShapeDtypeStruct((), jnp.float32)
  return dataclasses.replace(
    planned,
    student_flops=flops(update, state, batch, targets, progress),
    teacher_flops=teacher_flops,
  )


def _target_maker(
  planned: StagePlan,
  batch: types.Batch,
  teacher: types.Apply | None,
  teacher_params: types.Params,
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
  """What computes the targets of a batch, and the shapes of its arguments."""
  matrices = {
    name: jax.ShapeDtypeStruct(shape, jnp.float32)
    for name, shape in planned.projections.items()
  }

  def make(params: Any, matrices: Any, batch: Any) -> Mapping[str, Any]:
    return targets_lib.make_targets(
      teacher, params, matrices, batch, planned.stage
    )

  return make, (teacher_params, matrices, batch)


def target_flops(
  planned: StagePlan,
  batch: types.Batch,
  teacher: types.Apply,
  teacher_params: types.Params,
) -> float:
  """FLOPs of the targets of one batch, as compiled; shapes are enough."""
  make, args = _target_maker(planned, batch, teacher, teacher_params)
  return flops_lib.compiled(make, *args)


def format_plan(stages: Iterable[StagePlan]) -> str:
  """The plan as a table: what is matched with what, how long, at what cost."""
  stages = list(stages)
  rows = [row for planned in stages for row in _rows(planned)]
  if all(row['weight'] == 1 for row in rows):
    for row in rows:
      del row['weight']
  return tables.markdown(rows)


def _rows(planned: StagePlan) -> Iterator[dict[str, Any]]:
  """A row for each term; the stage's own cells are in the first alone."""
  stage = planned.stage
  checkpoint = 'final' if stage.checkpoint is None else str(stage.checkpoint)
  count = lambda value: value and int(value)
  for i, (name, term) in enumerate(stage.named_terms.items()):
    shapes = planned.terms[name]
    own = {
      'steps': stage.steps,
      'student FLOPs a step': count(planned.student_flops),
      'teacher FLOPs a step': count(planned.teacher_flops),
    }
    yield {
      'stage': stage.name if not i else '+',
      'checkpoint': checkpoint if term.needs_teacher else None,
      'teacher layer': term.target,
      'teacher width': shapes.teacher_width,
      'student layer': term.student,
      'student width': shapes.student_width,
      'projection': _projection_cell(term, shapes),
      'weight': 'schedule' if callable(term.weight) else term.weight,
      **(own if not i else dict.fromkeys(own)),
    }


def _projection_cell(term: stage_lib.Term, shapes: TermPlan) -> str | None:
  cell = None
  if shapes.projection:
    cell = f'{term.projection} {shapes.projection[0]} x {shapes.projection[1]}'
  if shapes.regressor:
    size = f'{shapes.regressor[0]} x {shapes.regressor[1]}'
    cell = f'{cell or "none"}, regressor {size}'
  return cell
