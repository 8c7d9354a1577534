"""Shapes and costs of a stage, known before it is trained."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import functools
import sys
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import optax

from cxjax import arguments
from cxjax import checks
from cxjax import errors
from cxjax import tables
from cxjax import types
from cxjax.methods import fitted
from cxjax.methods import flops as flops_lib
from cxjax.methods import gradients
from cxjax.methods import legacy
from cxjax.methods import masks
from cxjax.methods import optimizer
from cxjax.methods import stage as stage_lib
from cxjax.methods import targets as targets_lib
from cxjax.methods import term_plan
from cxjax.methods import train_step
from cxjax.methods import training_mode


@legacy.plan_of_one_term
@dataclasses.dataclass(frozen=True)
class StagePlan:
  """One stage, with the shapes and costs that the models give it.

  Attributes:
    stage: the stage.
    mask: mask of the student's parameters that it trains.
    terms: the shapes of each term, by its name.
    student_flops: FLOPs of one update of one student, None if unknown.
    teacher_flops: FLOPs of the targets of one batch, None if unknown.
    costs: how the FLOPs were found, 'compiled' or 'counted'.
  """

  stage: stage_lib.Stage
  mask: masks.Mask
  terms: dict[str, term_plan.TermPlan]
  student_flops: float | None = None
  teacher_flops: float | None = None
  costs: str = 'compiled'

  @property
  def projections(self) -> dict[str, tuple[int, int]]:
    """Shape `(d_T, r)` of each projection, by the name of its term."""
    return {n: t.projection for n, t in self.terms.items() if t.projection}

  @property
  def matrices(self) -> dict[str, tuple[int, int]]:
    """Shape of the array of each projection, by the name of its term."""
    terms = self.stage.named_terms
    return {
      name: fitted.matrix_shape(terms[name].projection, shape)
      for name, shape in self.projections.items()
    }

  @property
  def regressors(self) -> dict[str, tuple[int, int]]:
    """Shape of each regressor, by the name of its term."""
    return {n: t.regressor for n, t in self.terms.items() if t.regressor}


MODELS = {
  'batch': checks.batch,
  'student': targets_lib.APPLY,
  'student_params': arguments.shapes,
  'teacher': checks.optional(targets_lib.APPLY),
  'teacher_params': arguments.shapes,
  'training': checks.optional(targets_lib.APPLY),
}


@checks.checked(stage=targets_lib.STAGE, **MODELS)
def plan_stage(
  stage: stage_lib.Stage,
  batch: types.Batch,
  student: types.Apply,
  student_params: types.Params,
  teacher: types.Apply | None = None,
  teacher_params: types.Params = None,
  *,
  trainable: masks.Trainable = '',
  training: types.Training | None = None,
) -> StagePlan:
  """A stage with its shapes; every argument may be shapes alone.

  Args:
    stage: the stage.
    batch: `{'x': [B, ...], 'y': [B]}`.
    student: the student.
    student_params: parameters of one student.
    teacher: the teacher, for a stage that needs one.
    teacher_params: the teacher's.
    trainable: pattern of the paths of the parameters that may be trained, as of
      `masks.path_mask`; '' is all.
    training: the student in training mode, if it has one.

  Returns:
    The plan of the stage, its costs unknown.

  Raises:
    UserError: an activation that does not exist, widths that do not fit, a
      weight that is no scalar, or a term that cannot teach: its loss is
      constant, or its gradient reaches no parameter.
  """
  run = student if training is None else training_mode.without_key(training)
  ours = jax.eval_shape(
    functools.partial(targets_lib.forward, run), student_params, batch['x']
  )
  theirs: targets_lib.Activations = {}
  if stage.needs_teacher:
    if teacher is None:
      raise errors.UserError(targets_lib.NO_TEACHER.format(stage.name))
    theirs = jax.eval_shape(
      functools.partial(targets_lib.forward, teacher),
      teacher_params,
      targets_lib.without_dropout(batch['x']),
    )
  terms = {}
  for name, term in stage.named_terms.items():
    terms[name] = term_plan.plan_term(stage, term, batch, ours, theirs)
  term_plan.check_weights(stage)
  mask = masks.trainable_mask(
    student, student_params, batch['x'], stage, trainable, training
  )
  planned = StagePlan(stage, mask, terms)
  gradients.check(stage, run, student_params, batch, mask, planned.regressors)
  return planned


@checks.checked(
  planned=checks.instance(StagePlan, 'plan_stage'),
  tx=optimizer.check,
  flops=checks.function_like('cxjax.methods.flops.counted'),
  stored=arguments.flag,
  **MODELS,
)
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
  training: types.Training | None = None,
) -> StagePlan:
  """The plan of a stage with its FLOPs per step.

  Args:
    planned: plan from `plan_stage`, with the same models.
    batch: shapes of a batch.
    tx: the optimizer.
    student: the student.
    student_params: shapes of its parameters.
    teacher: the teacher, for a stage that needs one.
    teacher_params: shapes of its parameters.
    flops: function that counts the FLOPs of a function and its arguments:
      `flops.compiled`, `flops.counted` or `flops.lowered`.
    stored: the targets were computed before: they cost nothing now.
    training: the student in training mode, if it has one.

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
  options = {'stage': stage, 'tx': tx, 'mask': planned.mask}
  if training is not None:
    options |= {'training': training, 'key': jax.random.key(0)}
  update = functools.partial(train_step.train_step, apply=student, **options)
  targets = jax.eval_shape(make, *args)
  progress = jax.ShapeDtypeStruct((), jnp.float32)
  teacher_flops = 0.0
  with errors.calling('flops'):
    if stage.needs_teacher and not stored:
      teacher_flops = flops(make, *args)
    student_flops = flops(update, state, batch, targets, progress)
  return dataclasses.replace(
    planned,
    student_flops=student_flops,
    teacher_flops=teacher_flops,
    costs='counted' if flops is flops_lib.counted else 'compiled',
  )


def _target_maker(
  planned: StagePlan,
  batch: types.Batch,
  teacher: types.Apply | None,
  teacher_params: types.Params,
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
  """Function that makes the targets of a batch, and shapes of its arguments."""
  matrices = {
    name: jax.ShapeDtypeStruct(shape, jnp.float32)
    for name, shape in planned.matrices.items()
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
  errors.require(
    isinstance(stages, Iterable) and getattr(stages, 'ndim', 1) > 0,
    f'stages={stages!r} must be a list of plans.',
  )
  stages = list(stages)
  errors.require(bool(stages), 'stages is empty: give a plan at least.')
  for stage in stages:
    checks.instance(StagePlan, 'plan_stage')('A stage', stage)
  rows = [row for planned in stages for row in _rows(planned)]
  unread = [] if len(rows) > len(stages) else ['term', 'loss']
  if all(row['weight'] == 1 for row in rows):
    unread.append('weight')
  kept = {name: name for name in rows[0] if name not in unread}
  if not any(stage.stage.needs_teacher for stage in stages):
    kept = _without_teacher(kept)
  return tables.markdown(
    [{title: row[name] for name, title in kept.items()} for row in rows]
  )


def _without_teacher(names: Iterable[str]) -> dict[str, str]:
  """Titles of the columns for one network, which may be a teacher itself."""
  target, unread = 'teacher layer', ('checkpoint', 'projection')
  return {
    name: 'target' if name == target else name.removeprefix('student ')
    for name in names
    if name == target or not name.startswith(('teacher ', *unread))
  }


def _rows(planned: StagePlan) -> Iterator[dict[str, Any]]:
  """A row for each term; the stage's own cells are in the first alone."""
  stage = planned.stage
  checkpoint = 'final' if stage.checkpoint is None else str(stage.checkpoint)
  count = lambda value: value and int(value)
  unit = 'FLOPs a step'
  if planned.costs == 'counted':
    unit = 'FLOPs a step (counted)'
  for i, (name, term) in enumerate(stage.named_terms.items()):
    shapes = planned.terms[name]
    own = {
      'steps': stage.steps,
      f'student {unit}': count(planned.student_flops),
      f'teacher {unit}': count(planned.teacher_flops),
    }
    yield {
      'stage': stage.name if not i else '+',
      'term': name,
      'checkpoint': checkpoint if term.needs_teacher else None,
      'teacher layer': term.target,
      'teacher width': shapes.teacher_width,
      'student layer': term.student,
      'student width': shapes.student_width,
      'projection': _projection_cell(term, shapes),
      'loss': _loss_cell(term.loss),
      'weight': _weight_cell(term),
      **(own if not i else dict.fromkeys(own)),
    }


def _loss_cell(loss: Any) -> str:
  """The name of a loss."""
  while isinstance(loss, functools.partial):
    loss = loss.func
  return getattr(loss, '__name__', type(loss).__name__)


def _weight_cell(term: stage_lib.Term) -> Any:
  """A weight, or those at both ends of its schedule."""
  if not callable(term.weight):
    return term.weight
  first, last = (float(term.weight_at(fraction)) for fraction in (0.0, 1.0))
  return f'{first:g} to {last:g}'


def _projection_cell(
  term: stage_lib.Term, shapes: term_plan.TermPlan
) -> str | None:
  cell = None
  if shapes.projection:
    cell = f'{term.projection} {shapes.projection[0]} x {shapes.projection[1]}'
  if shapes.regressor:
    size = f'{shapes.regressor[0]} x {shapes.regressor[1]}'
    cell = f'{cell or "none"}, regressor {size}'
  return cell


def log(title: str, stages: Iterable[StagePlan]) -> None:
  """Logs the table of a plan, split where it is wider than the terminal.

  Args:
    title: name of the run.
    stages: its stages.
  """
  table = tables.fit(format_plan(stages), sys.stderr)
  logging.info('The plan of %s:\n%s', title, table)
