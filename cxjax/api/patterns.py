"""Patterns of layers: all of a form, every k-th of them, or by their number."""

from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import difflib
import fnmatch
import re
from typing import TypeVar

from cxjax import arguments
from cxjax import errors

T = TypeVar('T')

_STEP = re.compile(r'(?P<form>.*\*.*):(?P<step>[^:/*]*)')
# A number from the end, as in 'blocks/-1' and 'layer_-2/attention'.
_FROM_END = re.compile(r'(?P<head>(.*[/_])?)-(?P<number>\d+)(?P<tail>(/.*)?)')


@dataclasses.dataclass(frozen=True)
class Every:
  """Every `step`-th of the layers that are found, up to the last."""

  step: int

  def __post_init__(self) -> None:
    """Raises UserError for a step that is no whole number from 1."""
    object.__setattr__(self, 'step', arguments.whole('every', self.step, 1))


def every(step: int) -> Every:
  """Every `step`-th layer, for `layers` of `plan`.

  Of six layers `every(2)` is the second, the fourth and the sixth. A pattern
  says the same as 'blocks/*:2'.

  Args:
    step: 1 is all of the layers.

  Returns:
    A value of `layers`.

  Raises:
    UserError: `step` is no whole number from 1.
  """
  return Every(step)


def spaced(layers: Sequence[T], step: int) -> tuple[T, ...]:
  """Every `step`-th of some layers; the last one is among them."""
  return tuple(layers[::-1][::step][::-1])


def is_pattern(name: str) -> bool:
  """True for a pattern of names; a name has no stars."""
  return '*' in name


def fits(name: str, pattern: str) -> bool:
  """True if a name is of a pattern, whose stars stay within a component."""
  depth = name.count('/') == pattern.count('/')
  return depth and fnmatch.fnmatchcase(name, pattern)


def matches(pattern: str, names: Sequence[str], role: str) -> tuple[str, ...]:
  """The names that a pattern matches.

  Args:
    pattern: as 'blocks/*', or 'blocks/*:2' for every second, up to the last.
    names: all activations, in the order of computation.
    role: 'teacher' or 'student', for messages.

  Returns:
    Some of `names`.

  Raises:
    UserError: it matches none of them, or its step is no whole number from 1.
  """
  form, step = pattern, 1
  if found := _STEP.fullmatch(pattern):
    form, number = found['form'], found['step']
    errors.require(
      number.isdecimal() and int(number) > 0,
      f'layers={pattern!r}: after the colon stands a whole number from 1, as '
      f"in '{form}:2' for every second layer.",
    )
    step = int(number)
  hits = [name for name in names if fits(name, form)]
  if not hits:
    raise _unknown(pattern, form, names, role)
  return spaced(hits, step)


def _unknown(
  given: str, form: str, names: Sequence[str], role: str
) -> errors.UserError:
  """The error for a name or a pattern that is of no activation."""
  known = dict.fromkeys([*_forms(names), *names])
  close = difflib.get_close_matches(form, known, n=1)
  hint = f' Did you mean {close[0]!r}?' if close else ''
  shown = ', '.join(names[:8]) + (', ...' if len(names) > 8 else '')
  return errors.UserError(
    f'layers={given!r} matches no activation of the {role}.{hint} They are: '
    f'{shown}.'
  )


def _forms(names: Iterable[str]) -> Iterable[str]:
  """Patterns of names with numbers."""
  return (re.sub(r'\d+', '*', name) for name in names)


def resolved(name: str, names: Sequence[str], role: str) -> str:
  """A name whose number counts from the end, as it is: 'blocks/-1'.

  Args:
    name: of an activation.
    names: all activations.
    role: 'teacher' or 'student', for messages.

  Returns:
    The name with the number that it stands for; other names as they are.

  Raises:
    UserError: there are fewer siblings, or none.
  """
  found = _FROM_END.fullmatch(name)
  if found is None or name in names:
    return name
  head, tail = found['head'], found['tail']
  siblings = re.compile(rf'{re.escape(head)}(\d+){re.escape(tail)}')
  hits = [match for match in map(siblings.fullmatch, names) if match]
  form, number = f'{head}*{tail}', int(found['number'])
  if not hits:
    raise _unknown(name, form, names, role)
  errors.require(
    1 <= number <= len(hits),
    f'layers: {name!r} does not exist, the {role} has {len(hits)} of '
    f'{form!r}: from -1, the last, to -{len(hits)}.',
  )
  return sorted(hits, key=lambda match: int(match[1]))[-number][0]
