"""Curricula that a config spells out, term by term."""

from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
from typing import Any

import optax

from cxjax import errors
from cxjax.methods import losses
from cxjax.methods import stage as stage_lib


def custom(
  stages: Iterable[Mapping[str, Any]], num_steps: int
) -> stage_lib.Curriculum:
  """A curriculum that a config spells out.

  Args:
    stages: for each stage the fields of `Stage`; `terms` holds the fields of
      `Term` for each, with the loss by its name and, beside it, `temperature`
      or `hard_labels`; a weight is a number or a block `dict(schedule='linear',
      start=1.0, end=0.0, until=1.0)`, or 'cosine'. The steps of one stage may
      be left out: it has what the others leave.
    num_steps: total number of updates.

  Returns:
    The stages.

  Raises:
    UserError: a field that there is not, or steps that do not add up.
  """
  blocks = [dict(stage) for stage in stages]
  errors.require(
    bool(blocks),
    'custom.stages=() has no stage: give one, as (dict(name="joint", '
    'terms=(dict(student="logits", target="logits"),)),).',
  )
  names = [field.name for field in dataclasses.fields(stage_lib.Stage)]
  given = sum(stage.get('steps', 0) for stage in blocks)
  open_ended = [stage for stage in blocks if 'steps' not in stage]
  for stage in open_ended[:1]:
    stage['steps'] = num_steps - given
  errors.require(
    len(open_ended) < 2 and sum(s['steps'] for s in blocks) == num_steps,
    f'The steps of custom.stages add up to {given} of num_steps={num_steps}: '
    'they must be as many, or one stage leaves its steps out.',
  )
  found = []
  for i, stage in enumerate(blocks):
    for name in stage:
      errors.lookup(f'field of custom.stages[{i}]', name, dict.fromkeys(names))
    terms = tuple(map(_configured_term, stage.pop('terms', ())))
    found.append(
      stage_lib.Stage(**{'name': f'stage {i}', **stage, 'terms': terms})
    )
  return tuple(found)


def _configured_term(fields: Mapping[str, Any]) -> stage_lib.Term:
  """A term from the block of a config."""
  fields = dict(fields)
  temperature = fields.pop('temperature', 1.0)
  hard_labels = fields.pop('hard_labels', False)
  names = [field.name for field in dataclasses.fields(stage_lib.Term)]
  for name in fields:
    errors.lookup('field of a term', name, dict.fromkeys(names))
  if fields.get('loss') in losses.LOGIT_LOSSES:
    fields['loss'] = losses.logit_loss(
      fields['loss'], temperature, hard_labels, fields.get('top_k', 0)
    )
  else:
    errors.require(
      temperature == 1 and not hard_labels,
      f'A term with loss={fields.get("loss")!r} has a temperature or '
      f'hard_labels: they are for {", ".join(losses.LOGIT_LOSSES)}.',
    )
  if isinstance(fields.get('weight'), Mapping):
    fields['weight'] = weight_schedule(**fields['weight'])
  return stage_lib.Term(**fields)


def weight_schedule(
  schedule: str = 'linear',
  start: float = 1.0,
  end: float = 0.0,
  until: float = 1.0,
) -> stage_lib.Schedule:
  """A weight that changes from `start` to `end` within a stage.

  Args:
    schedule: 'linear' or 'cosine'.
    start: weight at the beginning of the stage.
    end: weight from `until` on.
    until: fraction of the stage, in (0, 1].

  Returns:
    A schedule of the fraction of the stage that is done.

  Raises:
    UserError: an unknown schedule, or a number out of range.
  """
  errors.require(0 < until <= 1, f'until={until} must be in (0, 1].')
  shapes = {'linear': _linear, 'cosine': _cosine}
  make = errors.lookup('weight schedule', schedule, shapes)
  return make(start, end, until)


def _linear(start: float, end: float, until: float) -> stage_lib.Schedule:
  return optax.linear_schedule(start, end, until)  # type: ignore[arg-type]


def _cosine(start: float, end: float, until: float) -> stage_lib.Schedule:
  fall = optax.cosine_decay_schedule(1.0, until)  # type: ignore[arg-type]
  return lambda fraction: end + (start - end) * fall(fraction)
