"""Matching of layers: which activations of two models `plan` compares."""

from collections.abc import Mapping
from collections.abc import Sequence
import functools
from typing import Any
from typing import TypeAlias
from typing import TypeGuard

from absl import logging
import jax

from cxjax import errors
from cxjax import types
from cxjax.api import layer_kinds
from cxjax.api import loops
from cxjax.api import patterns
from cxjax.methods import layer_matching
from cxjax.methods import stage as stage_lib
from cxjax.methods import targets as targets_lib
from cxjax.models import adapters
from cxjax.models import layers as layers_lib
from cxjax.models import taps as taps_lib

# The argument of `plan`: pairs, a dict of them, or patterns.
Layers: TypeAlias = (
  Sequence[Any] | Mapping[str, str] | patterns.Every | str | None
)
ROLES = 'teacher', 'student'
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
  both = (teacher, student)
  if layers is None or isinstance(layers, patterns.Every):
    step = layers.step if layers else 1
    listed = [taps_lib.taps(model, x) for model in both]
    loops.require_layers(ROLES, both, x, [taps.layers for taps in listed])
    found, how = _found(listed[0], listed[1], step)
    if layers is None and len(found) > most:
      last = [(i * len(found)) // most - 1 for i in range(1, most + 1)]
      found = tuple(found[i] for i in last)
    layer_kinds.warn(found, *listed)
    logging.info(how)
    return found, how
  if isinstance(layers, Mapping):
    layers = list(layers.items())
  elif isinstance(layers, str) and patterns.is_pattern(layers):
    layers = [(layers, layers)]
  names = layers if _is_listed(layers) else ()
  if len(names) == 2:
    layers = [tuple(names)]
  elif names:
    layers = [(name, name) for name in names]
  checked = layer_matching.check_pairs(layers)
  plain = not any(set('*-') & set(name) for pair in checked for name in pair)
  if plain and not any(
    map(_is_in_doubt, both, zip(*checked, strict=True), (x, x))
  ):
    return checked, ''
  listed = [taps_lib.taps(model, x) for model in both]
  if len(names) == 2:
    _check_sides(checked[0], listed)
  try:
    return _expanded(checked, listed)
  except errors.UserError:
    loops.require_outside(checked, ROLES, both, x)
    raise


def _is_listed(layers: Any) -> TypeGuard[Sequence[str]]:
  """True for names in a list, of which some are patterns, and not for pairs."""
  return (
    isinstance(layers, tuple | list)
    and len(layers) > 1
    and all(isinstance(each, str) for each in layers)
    and any(map(patterns.is_pattern, layers))
  )


def _is_in_doubt(
  model: adapters.ModelAdapter, names: Sequence[str], x: types.Input
) -> bool:
  """True if a name is of no activation, or of a module that returns several."""
  found = shapes(model, x)
  return any(name not in found or f'{name}/1' in found for name in names)


def _check_sides(
  pair: layer_matching.Pair, found: Sequence[taps_lib.Taps]
) -> None:
  """Raises UserError for two patterns of which both models have both."""
  forms = set(map(patterns.form_of, pair))
  fits = lambda form, taps: any(patterns.fits(tap.name, form) for tap in taps)
  a, b = pair
  errors.require(
    len(forms) == 1
    or not all(fits(form, taps) for form in forms for taps in found),
    f'layers={pair!r} may be a pair, or two patterns of both models: say it as '
    f'{{{a!r}: {b!r}}} or as {{{a!r}: {a!r}, {b!r}: {b!r}}}.',
  )


def _blocks(taps: taps_lib.Taps) -> dict[str, str]:
  """Layers that are one of several arrays of a block, by name of the block."""
  found = {}
  for tap in taps:
    size = tap.run.count('/') + 1
    block = '/'.join(tap.name.split('/')[:size])
    if tap.run and ', ' not in tap.run and block != tap.name:
      found[block] = tap.name
  return found


def _expanded(
  given: Pairs, listed: Sequence[taps_lib.Taps]
) -> tuple[Pairs, str]:
  """Pairs of layers of patterns, by depth, and of names; and how, in a line."""
  found: list[layer_matching.Pair] = []
  parts = []
  names = [[tap.name for tap in taps] for taps in listed]
  blocks = list(map(_blocks, listed))
  for pair in given:
    errors.require(
      len(set(map(patterns.is_pattern, pair))) == 1,
      f'layers: {pair!r} has one pattern. Give two patterns, or two names.',
    )
    if not patterns.is_pattern(pair[0]):
      high, low = map(patterns.resolved, pair, names, ROLES, blocks)
      found.append((high, low))
      continue
    runs = list(map(patterns.matches, pair, names, ROLES, blocks))
    found.extend(layer_matching.match_layers(*runs))
    parts.append(' with '.join(map(_named, pair, runs)))
  return tuple(found), _told(parts)


def _told(parts: Sequence[str]) -> str:
  """Line on how layers were matched; '' if they were all named."""
  if not parts:
    return ''
  return f'Layers, teacher with student: {"; ".join(parts)}, by depth fraction.'


def _found(
  teacher: taps_lib.Taps, student: taps_lib.Taps, step: int
) -> tuple[Pairs, str]:
  """Pairs of the layers of two models, run by run, and how they were chosen.

  Runs are matched by name if a model has several, as an encoder and a decoder,
  or else by the inputs that they read. Of the student every `step`-th layer is.
  """
  theirs, ours = teacher.runs, _like(student, teacher.runs)
  all_theirs = {**theirs, **teacher.other_runs}
  all_ours = {**ours, **student.other_runs}
  chosen = [(next(iter(theirs), ''), next(iter(ours), ''))]
  if len(theirs) > 1 or len(ours) > 1:
    related = _by_name(all_theirs, all_ours) or _by_inputs(
      _inputs(teacher, all_theirs), _inputs(student, all_ours)
    )
    chosen = [(a, b) for a, b in related if a in theirs or b in ours]
    highest, lowest = _longest(theirs), _longest(ours)
    if highest not in dict(chosen) or lowest not in dict(chosen).values():
      errors.require(
        1 in (len(theirs), len(ours)),
        f'The teacher has the runs of layers {_listed(theirs)}, the student '
        f'{_listed(ours)}: which belong together? Say it as in '
        f'layers={{{highest!r}: {lowest!r}}}.',
      )
      chosen = [(highest, lowest)]
  if len(chosen) == 1 and (
    blocks := layer_kinds.alike(teacher, student, chosen[0])
  ):
    high, low = blocks
    chosen = [(high.label, low.label)]
    all_theirs, all_ours = {high.label: high.layers}, {low.label: low.layers}
  found: list[layer_matching.Pair] = []
  parts = []
  for a, b in chosen:
    high, low = all_theirs.get(a, ()), all_ours.get(b, ())
    found.extend(layer_matching.match_layers(high, patterns.spaced(low, step)))
    each = f', one of every {step}' if step > 1 else ''
    parts.append(f'{_named(a, high)} with {_named(b, low)}{each}')
  _warn('teacher', all_theirs, [a for a, _ in chosen])
  _warn('student', all_ours, [b for _, b in chosen])
  _warn_of_one(teacher, [all_theirs.get(a, ()) for a, _ in chosen])
  return tuple(found), _told(parts)


def _longest(runs: layers_lib.Runs) -> str:
  """The pattern of the longest run; '' without any."""
  return max(runs, key=lambda name: len(runs[name]), default='')


def _like(student: taps_lib.Taps, theirs: layers_lib.Runs) -> layers_lib.Runs:
  """The runs of a student, or its layers of the names of the teacher's run.

  Those are no run if there is one alone, or if each has a shape of its own, as
  with one block in each stage, where parts of them may be one.
  """
  ours = student.runs
  if len(ours) != 1 or len(theirs) != 1 or '' in theirs:
    return ours
  (layers,), (pattern,) = ours.values(), theirs
  named = patterns.of_run(pattern, [tap.name for tap in student])
  inside = all(patterns.is_inside(layer, pattern) for layer in layers)
  parts = '' in ours or (inside and pattern not in ours)
  return {pattern: named} if named and parts else ours


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


def _inputs(
  taps: taps_lib.Taps, runs: layers_lib.Runs
) -> dict[str, tuple[str, ...]]:
  """The inputs that the last layer of each run reads."""
  read = {tap.name: tap.inputs for tap in taps}
  return {pattern: read[names[-1]] for pattern, names in runs.items()}


def _by_inputs(
  theirs: Mapping[str, tuple[str, ...]], ours: Mapping[str, tuple[str, ...]]
) -> list[tuple[str, str]]:
  """Pairs of runs that alone read some inputs, as towers of text and images."""
  alone = lambda runs, read: [name for name in runs if runs[name] == read]
  return [
    (name, alone(ours, read)[0])
    for name, read in theirs.items()
    if len(alone(theirs, read)) == len(alone(ours, read)) == 1
  ]


def _named(pattern: str, names: Sequence[str]) -> str:
  """A run in messages."""
  return f'{pattern or "activations of the shortest paths"} ({len(names)})'


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


def _warn_of_one(teacher: taps_lib.Taps, runs: Sequence[Sequence[str]]) -> None:
  """Warns of a teacher whose other layers were not recognized as such."""
  if len(runs) == 1 and len(runs[0]) == 1:
    logging.warning(
      'One layer of the teacher was found alone, %r. It has the activations '
      '%s: name pairs of them in layers, or a pattern.',
      runs[0][0],
      ', '.join(repr(tap.name) for tap in teacher[:8]),
    )


def shapes(model: adapters.ModelAdapter, x: types.Input) -> Any:
  """Shapes of all activations of a model, and of its output."""
  return jax.eval_shape(
    functools.partial(targets_lib.forward, model.apply),
    jax.eval_shape(lambda params: params, model.one),
    x,
  )


def shape_of(
  name: str, found: Any, role: str, model: adapters.ModelAdapter, x: types.Input
) -> tuple[int, ...]:
  """Shape of an activation.

  Args:
    name: name of the activation.
    found: all of them, from `shapes`.
    role: 'teacher' or 'student', for messages.
    model: the model.
    x: shapes of a batch.

  Returns:
    Its shape.

  Raises:
    UserError: there is none of this name, or it is inside a loop.
  """
  if name not in found:
    loops.require_outside([(name,)], (role,), (model,), x)
  return errors.lookup(f'activation of the {role}', name, found).shape


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
    others = _without_batch(model, x, found)
    for name in names:
      shape = shape_of(name, found, role, model, x)
      errors.require(
        name not in stacked,
        f'{name!r} of the {role} is {list(shape)}: its first axis is the '
        f'{shape[0]} steps of a scan, not the batch. Compare an activation '
        'outside of the scan, or one of its layers if `taps` lists them.',
      )
      errors.require(
        len(sizes) != 1 or (shape[0] in sizes and name not in others),
        f'{name!r} of the {role} is {list(shape)}: its first axis is not the '
        f'batch of {min(sizes, default=0)}. Compare an activation of the form '
        '[batch, ..., width].',
      )


def _without_batch(
  model: adapters.ModelAdapter, x: types.Input, found: Any
) -> set[str]:
  """Activations whose first axis is only by chance as long as the batch.

  They have the same first axis for a batch of another size, as time-major ones
  of as many tokens as there are examples.

  Args:
    model: the model.
    x: shapes of a batch.
    found: shapes of its activations.

  Returns:
    Their names; none if the model runs on batches of this size alone.
  """
  size = jax.tree.leaves(x)[0].shape[0]
  if not any(size in leaf.shape[1:] for leaf in jax.tree.leaves((x, found))):
    return set()
  more = jax.tree.map(
    lambda leaf: types.shape_struct((size + 1, *leaf.shape[1:]), leaf.dtype),
    x,
  )
  try:
    again = shapes(model, more)
  except Exception:  # A model of the user may raise anything.
    return set()
  return {
    name
    for name, leaf in found.items()
    if name in again and leaf.shape[0] == again[name].shape[0] == size
  }
