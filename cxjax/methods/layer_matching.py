"""Which layers are matched, and how long each stage is."""

from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any

from cxjax import arguments
from cxjax import errors

Pair = tuple[str, str]
SHARE = arguments.Range(0, 1, ends=(False, False))


def match_layers(
  teacher: Sequence[str], student: Sequence[str]
) -> tuple[Pair, ...]:
  """Pairs of layers by depth fraction.

  Layer `i` of `L_S`, counted from 1, is matched with layer
  `round(i L_T / L_S)`, halves up; equal depths give i -> i.

  Args:
    teacher: names of the teacher's layers, lowest first.
    student: names of the student's layers, lowest first.

  Returns:
    One `(teacher, student)` pair per layer of the student.

  Raises:
    UserError: one of the two has no layers.
  """
  teacher, student = _names('teacher', teacher), _names('student', student)
  high, low = len(teacher), len(student)
  errors.require(
    high > 0 and low > 0,
    f'Cannot match {high} layers of the teacher with {low} of the student. '
    'Name activations in layers; none, (), is one-shot distillation.',
  )
  # In integers: a half must not be lost to rounding.
  index = (max((2 * i * high + low) // (2 * low), 1) for i in range(1, low + 1))
  return tuple(
    (teacher[i - 1], name) for i, name in zip(index, student, strict=True)
  )


def _names(role: str, layers: Any) -> tuple[str, ...]:
  """The names of layers; raises UserError for anything else."""
  listed = isinstance(layers, Iterable) and not isinstance(layers, str | bytes)
  try:
    names = tuple(layers) if listed else None
  except TypeError:  # An array of no dimensions.
    names = None
  errors.require(
    names is not None
    and not isinstance(layers, set | frozenset)  # These have no order.
    and all(isinstance(name, str) for name in names),
    f'{role}={layers!r} must be names of layers, lowest first, as '
    "('block0', 'block1').",
  )
  assert names is not None
  return names


def check_pairs(layers: Any) -> tuple[Pair, ...]:
  """The pairs of `layers`; raises UserError for anything else."""
  errors.require(
    isinstance(layers, Iterable) and not isinstance(layers, str),
    f"layers={layers!r} must be pairs of the teacher's and the student's "
    "activation, as [('block3', 'block1')], or a pattern with a star, as "
    "'blocks/*'.",
  )
  try:
    pairs = tuple(layers)  # An iterator can be read once.
  except TypeError as error:  # An array of no dimensions.
    raise errors.UserError(f'layers={layers!r} are no pairs.') from error
  for pair in pairs:
    errors.require(
      isinstance(pair, Sequence)
      and not isinstance(pair, str)
      and len(pair) == 2
      and all(isinstance(name, str) for name in pair),
      f"layers: {pair!r} is not a pair of the teacher's and the student's "
      "activation, as in [('block3', 'block1')].",
    )
  return tuple((teacher, student) for teacher, student in pairs)


def whole_steps(steps: Any) -> tuple[int, ...]:
  """The lengths of stages; raises UserError for anything else."""
  try:
    found = None if isinstance(steps, str | bytes) else tuple(steps)
  except TypeError:
    found = None
  errors.require(
    found is not None,
    f'steps={steps!r} must be the lengths of the stages, as (100, 200).',
  )
  assert found is not None
  return tuple(arguments.integer('steps', n) for n in found)


def split_steps(
  num_steps: int, parts: int, share: float, steps: Sequence[int] = ()
) -> tuple[int, ...]:
  """Lengths of the stages of a run of `num_steps`.

  Args:
    num_steps: the total.
    parts: number of stages before the last, at least 1.
    share: fraction of the total for those together, in (0, 1), split evenly.
    steps: explicit lengths of all stages, the last included, in place of
      `share`.

  Returns:
    `parts + 1` lengths that add up to `num_steps`.

  Raises:
    UserError: explicit lengths that do not add up, or a share outside (0, 1).
  """
  num_steps = arguments.integer('num_steps', num_steps, 1, 2**31 - 1)
  parts = arguments.integer('parts', parts, 1)
  steps = whole_steps(steps)
  if steps:
    errors.require(
      sum(steps) == num_steps and len(steps) == parts + 1,
      f'Stages of {tuple(steps)} steps do not add up: they must be '
      f'{parts + 1} numbers with the sum num_steps={num_steps}, not '
      f'{sum(steps)}.',
    )
    return steps
  share = arguments.number('share', share, SHARE)
  errors.require(
    num_steps > parts,
    f'num_steps={num_steps} is too few for {parts + 1} stages.',
  )
  most = (num_steps - 1) // parts
  first = min(max(round(num_steps * share / parts), 1), most)
  return (first,) * parts + (num_steps - parts * first,)
