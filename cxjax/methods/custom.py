"""Curricula that a config spells out, term by term."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import jax
import optax

from cxjax import arguments
from cxjax import errors
from cxjax.methods import losses
from cxjax.methods import stage as stage_lib


def custom(
  stages: Sequence[Mapping[str, Any]], num_steps: int
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
  blocks = [
    _block(f'custom.stages[{i}]', stage, stage_lib.Stage)
    for i, stage in enumerate(_blocks('custom.stages', stages))
  ]
  errors.require(
    bool(blocks),
    'custom.stages=() has no stage: give one, as (dict(name="joint", '
    'terms=(dict(student="logits", target="logits"),)),).',
  )
  _fill_steps(blocks, num_steps)
  found = []
  for i, stage in enumerate(blocks):
    where = f'custom.stages[{i}].terms'
    terms = tuple(
      _configured_term(where, term)
      for term in _blocks(where, stage.pop('terms', ()))
    )
    found.append(
      stage_lib.Stage(**{'name': f'stage {i}', **stage, 'terms': terms})
    )
  return tuple(found)


def _blocks(where: str, blocks: Any) -> Sequence[Any]:
  """The blocks of a field; raises UserError for anything else."""
  errors.require(
    isinstance(blocks, Sequence) and not isinstance(blocks, str),
    f'{where}={blocks!r} must be a tuple of blocks, as (dict(...),): mind the '
    'comma.',
  )
  return blocks


def _block(where: str, block: Any, kind: type) -> dict[str, Any]:
  """A copy of a block with the fields of `kind`; raises UserError."""
  errors.require(
    isinstance(block, Mapping), f'{where}={block!r} must be a block, a dict.'
  )
  names = [field.name for field in dataclasses.fields(kind)]
  for name in block:
    errors.lookup(f'field of {where}', name, dict.fromkeys(names))
  return dict(block)


def _fill_steps(blocks: list[dict[str, Any]], num_steps: int) -> None:
  """Gives the stage that leaves its steps out what the others leave."""
  for i, stage in enumerate(blocks):
    if 'steps' in stage:
      name = f'custom.stages[{i}].steps'
      errors.require(
        arguments.integer(name, stage['steps']) >= 1,
        f'{name}={stage["steps"]} must be at least 1.',
      )
  given = sum(stage.get('steps', 0) for stage in blocks)
  open_ended = [stage for stage in blocks if 'steps' not in stage]
  left = num_steps - given
  errors.require(
    (len(open_ended) == 1 and left >= 1) or (not open_ended and left == 0),
    f'The steps of custom.stages add up to {given} of num_steps={num_steps}: '
    'they must be as many, or one stage leaves its steps out and has the rest.',
  )
  for stage in open_ended:
    stage['steps'] = left


def _configured_term(where: str, block: Any) -> stage_lib.Term:
  """A term from the block of a config."""
  fields = _block(where, block, _TermBlock)
  temperature = fields.pop('temperature', 1.0)
  hard_labels = fields.pop('hard_labels', False)
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
  if isinstance(fields.get('loss'), str):  # A config holds no function.
    errors.lookup('loss', fields['loss'], losses.LOSSES)
  if isinstance(fields.get('weight'), Mapping):
    weight = _block(f'{where}.weight', fields['weight'], WeightSchedule)
    fields['weight'] = weight_schedule(**weight)
  return stage_lib.Term(**fields)


@dataclasses.dataclass(frozen=True)
class _TermBlock(stage_lib.Term):
  """The fields of a term in a config."""

  temperature: float = 1.0
  hard_labels: bool = False


@dataclasses.dataclass(frozen=True)
class WeightSchedule:
  """A weight that changes from `start` to `end` within a stage.

  Schedules with the same numbers are equal, so that their stages share what is
  compiled.

  Attributes:
    schedule: 'linear' or 'cosine'.
    start: weight at the beginning of the stage.
    end: weight from `until` on.
    until: fraction of the stage, in (0, 1].
  """

  schedule: str = 'linear'
  start: float = 1.0
  end: float = 0.0
  until: float = 1.0

  def __post_init__(self) -> None:
    """Raises UserError for an unknown schedule, or a number out of range."""
    errors.lookup('weight schedule', self.schedule, SHAPES)
    for name in ('start', 'end', 'until'):
      value: Any = getattr(self, name)
      errors.require(
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and 0 <= value < math.inf,
        f'{name}={value!r} of a weight schedule must be a number that is '
        'finite and not negative.',
      )
    errors.require(
      0 < self.until <= 1, f'until={self.until} must be in (0, 1].'
    )

  def __call__(self, fraction: Any) -> jax.Array:
    """The weight after `fraction` of the stage."""
    fall = SHAPES[self.schedule](self.until)(fraction)
    return self.end + (self.start - self.end) * fall


# Schedules that fall from 1 to 0 at `until`.
SHAPES: dict[str, Callable[[Any], optax.Schedule]] = {
  'linear': lambda until: optax.linear_schedule(1.0, 0.0, until),
  'cosine': lambda until: optax.cosine_decay_schedule(1.0, until),
}


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
  return WeightSchedule(schedule, start, end, until)
