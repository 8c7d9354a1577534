"""Matching of layers: which activations of two models `plan` compares."""

from collections.abc import Mapping
from collections.abc import Sequence
import fnmatch
import functools
from typing import Any
from typing import TypeAlias

from absl import logging
import jax

from cxjax import errors
from cxjax import types
from cxjax.methods import layer_matching
from cxjax.methods import stage as stage_lib
from cxjax.methods import targets as targets_lib
from cxjax.models import adapters
from cxjax.models import layers as layers_lib
from cxjax.models import taps as taps_lib

# The argument of `plan`: pairs, a dict of them, or patterns.
Layers: TypeAlias = Sequence[Any] | Mapping[str, str] | str | None
Pairs: TypeAlias = tuple[layer_matching.Pair, ...]


def pairs(
  layers: Layers,
  teacher: adapters.ModelAdapter,
  student: adapters.ModelAdapter,
  x: types.Input,
  most: int,
) -> tuple[Pairs, str]:
  """Pairs of layers, as they are given or as they are found.

  Args:
    layers: the argument of `plan`.
    teacher: the teacher.
    student: the student.
    x: shapes of a batch.
    most: number of pairs if they are found.

  Returns:
    `(teacher's, student's)` pairs; and how they were chosen, or '' if they were
    given.

  Raises:
    UserError: `layers` is none of these, a pattern matches nothing, or the runs
      of the two models do not match.
  """
  if layers is None:
    found, how = _found(*(taps_lib.taps(m, x) for m in (teacher, student)))
    if len(found) > most:
      last = [(i * len(found)) // most - 1 for i in range(1, most + 1)]
      found = tuple(found[i] for i in last)
    logging.info(how)
    return found, how
  if isinstance(layers, str) and _is_pattern(layers):
    layers = {layers: layers}
  elif (
    isinstance(layers, tuple | list)
    and len(layers) == 2
    and all(isinstance(each, str) and _is_pattern(each) for each in layers)
  ):
    layers = [tuple(layers)]
  if isinstance(layers, Mapping):
    layers = list(layers.items())
  checked = layer_matching.check_pairs(layers)
  if not any(_is_pattern(name) for pair in checked for name in pair):
    return checked, ''
  listed = [
    [tap.name for tap in taps_lib.taps(model, x)]
    for model in (teacher, student)
  ]
  return tuple(p for pair in checked for p in _expanded(pair, listed)), ''


def _is_pattern(name: str) -> bool:
  """True for a pattern of names; a name has no stars."""
  return '*' in name


def _fits(name: str, pattern: str) -> bool:
  """Whether a name is of a pattern, whose stars stay within a component."""
  depth = name.count('/') == pattern.count('/')
  return depth and fnmatch.fnmatchcase(name, pattern)


def _expanded(
  pair: layer_matching.Pair, listed: Sequence[Sequence[str]]
) -> Pairs:
  """The pairs of layers of two patterns, by depth; or one pair of names."""
  errors.require(
    _is_pattern(pair[0]) == _is_pattern(pair[1]),
    f'layers: {pair!r} has one pattern. Give two patterns, or two names.',
  )
  if not _is_pattern(pair[0]):
    return (pair,)
  found = []
  for role, pattern, names in zip(
    ('teacher', 'student'), pair, listed, strict=True
  ):
    hits = [name for name in names if _fits(name, pattern)]
    if not hits:
      shown = ', '.join(names[:8]) + (', ...' if len(names) > 8 else '')
      raise errors.UserError(
        f'layers={pattern!r} matches no activation of the {role}'
        f'. They are: {shown}.'
      )
    found.append(hits)
  return layer_matching.match_layers(*found)


def _found(teacher: taps_lib.Taps, student: taps_lib.Taps) -> tuple[Pairs, str]:
  """Pairs of the layers of two models, run by run, and how they were chosen.

  Runs are matched by name if a model has several, as an encoder and a decoder.
  """
  theirs, ours = teacher.runs, _like(student, teacher.runs)
  all_theirs = {**theirs, **teacher.other_runs}
  all_ours = {**ours, **student.other_runs}
  chosen = [(next(iter(theirs), ''), next(iter(ours), ''))]
  if len(theirs) > 1 or len(ours) > 1:
    chosen = [
      (a, b)
      for a, b in _by_name(all_theirs, all_ours)
      if a in theirs or b in ours
    ]
    highest, lowest = _longest(theirs), _longest(ours)
    if highest not in dict(chosen) or lowest not in dict(chosen).values():
      errors.require(
        1 in (len(theirs), len(ours)),
        f'The teacher has the runs of layers {_listed(theirs)}, the student '
        f'{_listed(ours)}: which belong together? Say it as in '
        f'layers={{{highest!r}: {lowest!r}}}.',
      )
      chosen = [(highest, lowest)]
  found: list[layer_matching.Pair] = []
  parts = []
  for a, b in chosen:
    high, low = all_theirs.get(a, ()), all_ours.get(b, ())
    found.extend(layer_matching.match_layers(high, low))
    parts.append(f'{_named(a, high)} with {_named(b, low)}')
  _warn('teacher', all_theirs, [a for a, _ in chosen])
  _warn('student', all_ours, [b for _, b in chosen])
  how = f'Layers, teacher with student: {"; ".join(parts)}, by depth fraction.'
  return tuple(found), how


def _longest(runs: layers_lib.Runs) -> str:
  """The pattern of the longest run; '' without any."""
  return max(runs, key=lambda name: len(runs[name]), default='')


def _like(student: taps_lib.Taps, theirs: layers_lib.Runs) -> layers_lib.Runs:
  """The runs of a student; one layer is a run if the teacher has its like."""
  ours = student.runs
  if list(ours) != [''] or len(theirs) != 1 or '' in theirs:
    return ours
  pattern = next(iter(theirs))
  named = tuple(tap.name for tap in student if _fits(tap.name, pattern))
  return {pattern: named} if named else ours


def _by_name(
  theirs: layers_lib.Runs, ours: layers_lib.Runs
) -> list[tuple[str, str]]:
  """Pairs of runs of one name, or else of one parent, as 'encoder'."""
  if same := [(name, name) for name in theirs if name in ours]:
    return same
  parent = lambda name: name.rpartition('/')[0]
  parents = {parent(name): name for name in ours}
  return [
    (name, parents[parent(name)])
    for name in theirs
    if parent(name) and parent(name) in parents
  ]


def _named(pattern: str, names: Sequence[str]) -> str:
  """A run in messages."""
  return f'{pattern or "the shortest paths"} ({len(names)})'


def _listed(runs: layers_lib.Runs) -> str:
  """Runs in messages."""
  return ', '.join(_named(name, runs[name]) for name in runs)


def _warn(role: str, runs: layers_lib.Runs, chosen: Sequence[str]) -> None:
  """Warns of runs of layers that are matched with none."""
  if left := {name: runs[name] for name in runs if name not in chosen}:
    logging.warning(
      'Layers of the %s that are matched with none: %s. Name pairs in layers '
      'to match them.',
      role,
      _listed(left),
    )


def shapes(model: adapters.ModelAdapter, x: types.Input) -> Any:
  """Shapes of all activations of a model, and of its output."""
  return jax.eval_shape(
    functools.partial(targets_lib.forward, model.apply),
    jax.eval_shape(lambda params: params, model.one),
    x,
  )


def check_batch_axis(
  stages: stage_lib.Curriculum,
  teacher: adapters.ModelAdapter,
  student: adapters.ModelAdapter,
  x: types.Input,
) -> None:
  """Raises UserError if the first axis of an activation is not the batch."""
  sizes = {leaf.shape[0] for leaf in jax.tree.leaves(x) if leaf.shape}
  terms = [term for stage in stages for term in stage.terms]
  theirs = [term.target for term in terms if term.needs_teacher]
  for role, model, names in (
    ('teacher', teacher, theirs),
    ('student', student, [term.student for term in terms]),
  ):
    if set(names) <= {stage_lib.LOGITS}:
      continue
    found = shapes(model, x)
    stacked = taps_lib.stacked(model, x)
    for name in names:
      shape = errors.lookup('activation', name, found).shape
      errors.require(
        name not in stacked,
        f'{name!r} of the {role} is {list(shape)}: its first axis is the '
        f'{shape[0]} steps of a scan, not the batch. Compare an activation '
        'outside of the scan, or one of its layers if `taps` lists them.',
      )
      errors.require(
        len(sizes) != 1 or shape[0] in sizes,
        f'{name!r} of the {role} is {list(shape)}: its first axis is not the '
        f'batch of {min(sizes, default=0)}. Compare an activation of the form '
        '[batch, ..., width].',
      )
