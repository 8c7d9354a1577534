"""Stages of a plan: those that are given, and checks of all of them."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax

from cxjax import arguments
from cxjax import errors
from cxjax import types
from cxjax.api import matching
from cxjax.data import labels
from cxjax.methods import losses
from cxjax.methods import stage as stage_lib
from cxjax.models import adapters

LOSSES = {**losses.LOGIT_LOSSES, **losses.HIDDEN_LOSSES}


def given(
  stages: Any, num_steps: int | None, beside: Mapping[str, bool]
) -> stage_lib.Curriculum:
  """The curriculum that the user gave as stages.

  Args:
    stages: argument `stages` of `plan`, as the user gave it.
    num_steps: the sum of their steps, or None.
    beside: whether each of the other options was given too, by its name.

  Returns:
    The stages.

  Raises:
    UserError: no stages, other steps, or an option that stages say themselves.
  """
  if isinstance(stages, stage_lib.Stage):
    stages = (stages,)
  errors.require(
    isinstance(stages, Sequence)
    and all(isinstance(stage, stage_lib.Stage) for stage in stages),
    f'stages={stages!r} must be a tuple of cxjax.Stage, or one of them.',
  )
  errors.require(len(stages) > 0, 'stages=() has no stage: give one.')
  unread = [name for name, is_given in beside.items() if is_given]
  errors.require(
    not unread,
    f'{", ".join(unread)}: a curriculum that is given as stages says that '
    'itself. Leave it out.',
  )
  total = sum(stage.steps for stage in stages)
  errors.require(
    num_steps is None or arguments.integer('num_steps', num_steps) == total,
    f'num_steps={num_steps}, and the stages have {total} steps together. Leave '
    'num_steps out, or give that number.',
  )
  return tuple(stages)


def output_loss(stage: stage_lib.Stage) -> str | None:
  """Name of the loss between the outputs in a stage.

  Args:
    stage: the last one of a curriculum.

  Returns:
    A key of `LOSSES`; 'kl' for its variants and without such a term; None for a
    function of the user.
  """
  found = [t.loss for t in stage.terms if t.student == t.target == 'logits']
  if not found:
    return 'kl'
  loss = getattr(found[0], 'func', found[0])  # `logit_loss` makes partials.
  if loss in (losses.top_k_kl, losses.hard_kl):
    return 'kl'
  return next((name for name, fun in LOSSES.items() if fun is loss), None)


def check(
  stages: stage_lib.Curriculum,
  teacher: adapters.ModelAdapter,
  student: adapters.ModelAdapter,
  batch: types.Batch,
) -> None:
  """Raises UserError for stages that the models and the batch do not allow.

  Args:
    stages: stages of a plan.
    teacher: the teacher.
    student: the student.
    batch: shapes of a batch.
  """
  for stage in stages:
    _check_checkpoint(stage, teacher)
  matching.check_batch_axis(stages, teacher, student, batch['x'])
  if any(stage.needs_labels for stage in stages):
    errors.require(
      'y' in batch,
      'The curriculum needs the labels: give (x, labels) as the example, and '
      'as batches.',
    )
  if reads_classes(stages):
    labels.check(student, batch)
  theirs, ours = (
    jax.eval_shape(model.apply, model.one, batch['x'])[0].shape
    for model in (teacher, student)
  )
  for term in stages[-1].terms:
    compared = (term.student, term.target) == ('logits', 'logits')
    errors.require(
      not compared or bool(term.regressor or term.projection) or theirs == ours,
      f"The teacher's output is {list(theirs)}, the student's {list(ours)}: "
      'the last stage compares them as they are. Give them the same classes '
      '(the same vocabulary, in the same order), or the number of those that '
      'both have first, as vocab=50_257.',
    )


def reads_classes(stages: stage_lib.Curriculum) -> bool:
  """True if any term reads the labels as classes."""
  terms = (term for stage in stages for term in stage.terms)
  return any(term.loss is losses.cross_entropy for term in terms)


def _check_checkpoint(
  stage: stage_lib.Stage, teacher: adapters.ModelAdapter
) -> None:
  """Raises UserError for a checkpoint that the teacher does not have."""
  if stage.checkpoint is None:
    return
  have = ', '.join(map(str, teacher.checkpoints)) or 'none'
  errors.require(
    stage.checkpoint in teacher.checkpoints,
    f'The stage {stage.name!r} learns from the checkpoint {stage.checkpoint} '
    f'of the teacher, which has {have}. Give it with '
    'cxjax.with_checkpoints(teacher, {step: model}).',
  )
