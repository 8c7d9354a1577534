"""Auxiliary losses that a student sows or returns, for `plan`."""

from collections.abc import Mapping
import difflib
from typing import Any
from typing import TypeAlias

from absl import logging
import jax

from cxjax import errors
from cxjax.methods import stage as stage_lib
from cxjax.models import outputs as outputs_lib

# Collections of linen that hold losses by convention.
LOSSES = ('losses', 'aux_loss', 'aux_losses')
# Those that hold none, and that a call needs.
OTHERS = ('params', 'batch_stats', 'cache', 'intermediates')
# Weights of auxiliary losses, by the pattern of their names.
Weights: TypeAlias = Mapping[str, Any]


def weights(auxiliary: Any) -> Weights:
  """The argument `auxiliary` of `plan`; raises UserError for anything else."""
  errors.require(
    auxiliary is None
    or (
      isinstance(auxiliary, Mapping)
      and all(isinstance(name, str) and name for name in auxiliary)
    ),
    f'auxiliary={auxiliary!r} must be the weights of auxiliary losses by their '
    "names or patterns, as {'losses/*': 0.01}.",
  )
  return dict(auxiliary or {})


def terms(auxiliary: Weights) -> list[stage_lib.Term]:
  """A term for each pattern."""
  return [
    stage_lib.Term(
      outputs_lib.AUXILIARY + pattern,
      stage_lib.NOTHING,
      weight=weight,
      pool='mean',
      name=pattern.strip('*/') or 'auxiliary',
    )
    for pattern, weight in auxiliary.items()
  ]


def sums(values: Any, auxiliary: Weights, size: int) -> dict[str, jax.Array]:
  """The auxiliary losses as activations, by pattern.

  Args:
    values: arrays that a model sows and returns, by name.
    auxiliary: weights by pattern.
    size: number of examples.

  Returns:
    `[size, 1]` for each pattern.
  """
  return {
    outputs_lib.AUXILIARY + pattern: outputs_lib.auxiliary(
      values, pattern, size
    )
    for pattern in auxiliary
  }


def collections(auxiliary: Weights) -> tuple[str, ...]:
  """Collections of linen that auxiliary losses may be sown in."""
  named = [pattern.partition('/')[0] for pattern in auxiliary]
  kept = [name for name in named if name.isidentifier() and name not in OTHERS]
  return tuple(dict.fromkeys([*LOSSES, *kept]))


def check(auxiliary: Weights, scalars: Any, size: int) -> None:
  """Checks patterns against what a student reports.

  Args:
    auxiliary: weights by pattern.
    scalars: shapes of what it sows and returns, by name.
    size: number of examples.

  Raises:
    UserError: a pattern of no scalar, or of values for each example.
  """
  for pattern in auxiliary:
    found = outputs_lib.matching(scalars, pattern)
    errors.require(
      bool(found),
      f'auxiliary: {pattern!r} is no scalar that the student sows or returns.'
      f'{nearest(pattern, scalars)}',
    )
    for name in found:
      shape = scalars[name].shape
      errors.require(
        shape in ((), (1,)) or shape[0] != size,
        f'auxiliary: {name!r} is {list(shape)}, one value for each example or '
        'step: sow or return a scalar, as their mean.',
      )


def warn(scalars: Any) -> None:
  """Warns of losses that a student reports and that are left out.

  Args:
    scalars: shapes of what it sows and returns, by name.
  """
  lost = [
    name
    for name in scalars
    if name.partition('/')[0] in LOSSES or 'loss' in name.rpartition('/')[2]
  ]
  if lost:
    first = lost[0].partition('/')[0]
    logging.warning(
      'The student reports losses that are left out: %s. Give weights to plan, '
      'as auxiliary={%r: 0.01}.',
      ', '.join(lost[:8]),
      f'{first}/*' if first in LOSSES else lost[0],
    )


def nearest(name: str, names: Any) -> str:
  """The nearest of some names, and all of them, for a message."""
  close = difflib.get_close_matches(name, list(names), n=1)
  hint = f' Did you mean {close[0]!r}?' if close else ''
  return f'{hint} They are: {", ".join(map(repr, names)) or "none"}.'
