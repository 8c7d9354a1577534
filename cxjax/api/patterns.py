"""Patterns of layers: all of a form, every k-th of them, or by their number."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import difflib
import fnmatch
import re
from typing import TypeAlias
from typing import TypeVar

from absl import logging

from cxjax import arguments
from cxjax import errors

T = TypeVar('T')
# Layers by the names of the blocks that return them among other arrays.
Blocks: TypeAlias = Mapping[str, str]

_STEP = re.compile(r'(?P<form>.*\*.*):(?P<step>[^:/*]*)')
# A number from the end, as in 'blocks/-1' and 'layer_-2/attention'.
_FROM_END = re.compile(r'(?P<head>(.*[/_])?)-(?P<number>\d+)(?P<tail>(/.*)?)')


@dataclasses.dataclass(frozen=True)
class Every:
  """Every `step`-th of the layers that are found, up to the last."""

  step: int

  def __post_init__(self) -> None:
    """Raises UserError for a step that is no whole number from 1."""
    object.__setattr__(self, 'step', arguments.integer('every', self.step, 1))


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
  """True if a name is of a pattern, whose stars stay within a component.

  The first call of a module has no number: 'block' is of 'block#*'.
  """
  if name.count('/') != pattern.count('/'):
    return False
  first = '#' in pattern and '#' not in name
  names = (name, f'{name}#1') if first else (name,)
  return any(fnmatch.fnmatchcase(each, pattern) for each in names)


def of_run(pattern: str, names: Sequence[str]) -> tuple[str, ...]:
  """The names of the pattern of a run, whose stars are numbers.

  Args:
    pattern: pattern of the layers of a model, as 'stage*_block*'.
    names: all activations of another model, in the order of computation.

  Returns:
    Some of `names`.
  """
  numbered = re.escape(pattern).replace(re.escape('*'), '[0-9]+')
  is_one = lambda name: '#' in pattern or re.fullmatch(numbered, name)
  return tuple(n for n in names if fits(n, pattern) and is_one(n))


def is_inside(name: str, pattern: str) -> bool:
  """True for a part of a layer of a pattern, up to its last number."""
  return fnmatch.fnmatchcase(name, f'{pattern[: pattern.rindex("*")]}*')


def form_of(pattern: str) -> str:
  """The pattern without its step: 'blocks/*' of 'blocks/*:2'."""
  found = _STEP.fullmatch(pattern)
  return found['form'] if found else pattern


def matches(
  pattern: str, names: Sequence[str], role: str, blocks: Blocks
) -> tuple[str, ...]:
  """The names that a pattern matches.

  Args:
    pattern: pattern of names, as 'blocks/*', or 'blocks/*:2' for every second,
      up to the last.
    names: all activations, in the order of computation.
    role: 'teacher' or 'student', for messages.
    blocks: layers that stand for the blocks that return them.

  Returns:
    Some of `names`.

  Raises:
    UserError: it matches none of them, or its step is no whole number from 1.
  """
  form, step = form_of(pattern), 1
  if found := _STEP.fullmatch(pattern):
    number = found['step']
    errors.require(
      number.isdecimal() and int(number) > 0,
      f'layers={pattern!r}: after the colon stands a whole number from 1, as '
      f"in '{form}:2' for every second layer.",
    )
    step = int(number)
  hits = _hits(form, names, blocks)
  if not hits:
    raise _unknown(pattern, form, names, role)
  return spaced(hits, step)


def _hits(form: str, names: Sequence[str], blocks: Blocks) -> list[str]:
  """The names of a form, of blocks that return several arrays one for each."""
  known = {name for name in names if fits(name, form)}
  inside = {blocks[name] for name in blocks if fits(name, form)}
  known = {name for name in known if name not in blocks} | inside
  return [name for name in names if name in known]


def _unknown(
  given: str, form: str, names: Sequence[str], role: str
) -> errors.UserError:
  """The error for a name or a pattern that is of no activation."""
  known = dict.fromkeys([*forms(names), *names])
  close = difflib.get_close_matches(form, known, n=1)
  hint = f' Did you mean {close[0]!r}?' if close else ''
  shown = ', '.join(names[:8]) + (', ...' if len(names) > 8 else '')
  return errors.UserError(
    f'layers={given!r} matches no activation of the {role}.{hint} They are: '
    f'{shown}.'
  )


def forms(names: Iterable[str]) -> Iterable[str]:
  """Patterns of names with numbers."""
  return (re.sub(r'\d+', '*', name) for name in names)


def resolved(name: str, names: Sequence[str], role: str, blocks: Blocks) -> str:
  """An activation by its name, by its number from the end, or by its block.

  Args:
    name: name of an activation, as 'blocks/3', or 'blocks/-1' for the last.
    names: all activations.
    role: 'teacher' or 'student', for messages.
    blocks: layers that stand for the blocks that return them.

  Returns:
    The name of the activation; an unknown name as it is.

  Raises:
    UserError: there are fewer siblings, or none.
  """
  if name in names:
    if name in blocks:
      logging.warning(
        '%r of the %s is not what the next layer reads: that is %r.',
        name,
        role,
        blocks[name],
      )
    return name
  found = _FROM_END.fullmatch(name)
  if found is None:
    return blocks.get(name, name)
  head, tail = found['head'], found['tail']
  siblings = re.compile(rf'{re.escape(head)}(\d+){re.escape(tail)}')
  known = dict.fromkeys([*names, *blocks])
  hits = [match for match in map(siblings.fullmatch, known) if match]
  form, number = f'{head}*{tail}', int(found['number'])
  if not hits:
    raise _unknown(name, form, names, role)
  errors.require(
    1 <= number <= len(hits),
    f'layers: {name!r} does not exist, the {role} has {len(hits)} of '
    f'{form!r}: from -1, the last, to -{len(hits)}.',
  )
  chosen = sorted(hits, key=lambda match: int(match[1]))[-number][0]
  return blocks.get(chosen, chosen)
