"""Layers of a model: which of its activations `plan` matches.

The layers are the longest run of numbered siblings, as 'blocks/0', 'blocks/1',
... or 'layer_0', 'layer_1', ..., each computed from the one before.
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import itertools
import re
from typing import TypeAlias

# Runs of layers by their pattern, as 'blocks/*'.
Runs: TypeAlias = dict[str, tuple[str, ...]]

_NUMBERED = re.compile(r'(?P<stem>.*?)(?P<number>\d+)')
# One of several arrays, in place of the first.
_PART = re.compile(r'\d*')
_CALL = re.compile(r'(?P<name>[^#]+)(#(?P<number>\d+))?')
# Divides a name after a number inside of it, as 'stage1_block2_out'.
_INNER = '/\0'
# Calls of one module that are a run: two may be a base class and its child.
_CALLS = 3


@dataclasses.dataclass(frozen=True)
class Activation:
  """An activation that may be a layer.

  Attributes:
    name: its path.
    shape: its shape.
    position: when it is computed.
    node: bit of the equation that computes it.
    ancestors: bits of the equations that it needs.
    products: number of matrix products and convolutions that it needs.
    reach: number of those that need it.
  """

  name: str
  shape: tuple[int, ...]
  position: tuple[int, int]
  node: int
  ancestors: int
  products: int
  reach: int


@dataclasses.dataclass(frozen=True)
class _Run:
  """Siblings, each of which is computed from the one before.

  Attributes:
    pattern: pattern of their names.
    layers: the siblings.
    has_parts: whether there are activations inside of them.
    is_forked: whether there are other siblings, some of which do not need the
      one before, as both directions of a recurrent layer.
  """

  pattern: str
  layers: tuple[Activation, ...]
  has_parts: bool = False
  is_forked: bool = False

  @property
  def length(self) -> int:
    """Number of siblings in a row that have the same shape."""
    shapes = (layer.shape for layer in self.layers)
    return max(len(list(same)) for _, same in itertools.groupby(shapes))

  @property
  def span(self) -> tuple[tuple[int, int], tuple[int, int]]:
    """Positions of the first and the last."""
    return self.layers[0].position, self.layers[-1].position


def find(
  activations: Sequence[Activation], norms: bool = False
) -> tuple[Runs, Runs]:
  """Finds the layers among activations.

  Args:
    activations: candidates, in the order of computation.
    norms: whether norms that end blocks of other modules may be layers.

  Returns:
    The longest run of siblings and those at least half as long, as an encoder
    and a decoder, by pattern, in the order of computation; and shorter runs.
    Without numbered siblings of equal shape, the layers by depth are a run with
    the pattern ''.
  """
  plain = [a for a in activations if a.products]
  activations = [dataclasses.replace(a, name=_divided(a.name)) for a in plain]
  groups = list(_groups(activations))
  chains = [run for run in groups if len(run.layers) > 1 and run.length > 1]
  runs = _outermost(_of_parents(chains, groups))
  runs = _merged(_without_parallel(runs, activations), activations)
  if not norms:
    runs = [run for run in runs if _has_products(run, activations)]
  if not runs:
    runs = _single_block(groups)
  if not runs:
    names = by_depth(plain)
    return ({'': names} if names else {}), {}
  longest = max(run.length for run in runs)
  chosen: Runs = {}
  others: Runs = {}
  for run in sorted(runs, key=lambda run: run.span):
    into = chosen if 2 * run.length >= longest else others
    names = tuple(layer.name.replace(_INNER, '') for layer in run.layers)
    into[_undivided(run)] = names
  return chosen, others


def _divided(name: str) -> str:
  """The name as a path: numbers inside of a component end one of their own.

  So 'stage1_block2_out' is read as 'stage1/block2/out' is.
  """
  path, call, number = name.partition('#')
  return re.sub(r'(?<=\d)_', f'{_INNER}_', path) + call + number


def _undivided(run: _Run) -> str:
  """The pattern of a run, with what follows in the components it ends in."""
  size = run.pattern.count('/') + 1
  rests = set()
  for layer in run.layers:
    inner = layer.name.partition('#')[0].split('/')[size:]
    same = itertools.takewhile(lambda part: part[0] == _INNER[1:], inner)
    rests.add(''.join(same))
  rest = rests.pop() if len(rests) == 1 else '*'
  pattern = run.pattern if ', ' in run.pattern else run.pattern + rest
  return pattern.replace(_INNER, '').replace(_INNER[1:], '')


def _positions(name: str) -> Iterator[tuple[str, tuple[int, ...], str]]:
  """Yields each way to read a name as that of one of numbered siblings.

  Args:
    name: a path.

  Yields:
    The pattern of the siblings, as 'encoder/layer_*'; the numbers in place of
    the stars; the rest of the path.
  """
  match = _CALL.match(name)
  assert match is not None
  call = match['number'] or '1'
  pattern: list[str] = []
  numbers: list[int] = []
  parts = match['name'].split('/')
  rest = name[match.end() :]
  for i, part in enumerate(parts):
    numbered = _NUMBERED.fullmatch(part)
    pattern.append(part if numbered is None else f'{numbered["stem"]}*')
    if numbered is not None:
      numbers.append(int(numbered['number']))
      suffix = '/'.join(parts[i + 1 :]) + rest
      suffix += '' if call == '1' else f'#{call}'
      yield '/'.join(pattern), tuple(numbers), suffix
  if not numbers:
    yield f'{match["name"]}#*', (int(call),), rest


def _groups(activations: Iterable[Activation]) -> Iterator[_Run]:
  """Yields siblings, split where one is not computed from the one before."""
  found: dict[str, dict[tuple[int, ...], dict[str, Activation]]] = {}
  for a in activations:
    for pattern, numbers, suffix in _positions(a.name):
      found.setdefault(pattern, {}).setdefault(numbers, {})[suffix] = a
  for pattern, members in found.items():
    numbers = {each: numbers for numbers, each in _ends(members)}
    ordered = sorted(numbers, key=lambda a: a.position)
    chains = list(_chains(ordered))
    spine = _spine(ordered)
    if len(spine) > 1 and len(spine) >= max(map(len, chains)):
      chains = [spine]
    for chain in chains:
      if not pattern.endswith('#*') or len(chain) >= _CALLS:
        label = _label(pattern, [numbers[a] for a in chain])
        parts = any(len(members[numbers[a]]) > 1 for a in chain)
        yield _Run(label, tuple(chain), parts, len(chains) > 1)


def _ends(
  members: Mapping[tuple[int, ...], Mapping[str, Activation]],
) -> Iterator[tuple[tuple[int, ...], Activation]]:
  """Yields the activation that leaves each of the siblings.

  That has the most products behind it, then the most before it: it is read by
  all that follows, unlike a cache or an auxiliary value. It is the same one of
  all siblings; nothing may read that of the last, which then is another.
  """
  best = {
    numbers: max((_rank(suffix, a), suffix) for suffix, a in each.items())[1]
    for numbers, each in members.items()
  }
  suffixes = list(best.values())
  suffix = max(suffixes, key=suffixes.count)
  last = max(members, key=lambda n: members[n][best[n]].position)
  for numbers, each in members.items():
    own = suffix if suffix in each else best[numbers]
    parts = all(map(_PART.fullmatch, (own, suffix)))
    if own == suffix or (numbers == last and parts):
      yield numbers, each[own]


def _rank(suffix: str, a: Activation) -> tuple[int, int, tuple[int, int], int]:
  return a.products, a.reach, a.position, -len(suffix)


def _chains(ordered: Sequence[Activation]) -> Iterator[list[Activation]]:
  """Splits activations where one does not need the one before."""
  chain: list[Activation] = []
  for a in ordered:
    if chain and (chain[-1].node == a.node or not chain[-1].node & a.ancestors):
      yield chain
      chain = []
    chain.append(a)
  if chain:
    yield chain


def _spine(ordered: Sequence[Activation]) -> list[Activation]:
  """The activations that need, or are needed by, each of the others.

  Of the queries, keys, values and outputs of attention these are the outputs.
  """
  related = lambda a, b: bool(a.node & b.ancestors or b.node & a.ancestors)
  return [a for a in ordered if all(a is b or related(a, b) for b in ordered)]


def _label(pattern: str, numbers: Sequence[tuple[int, ...]]) -> str:
  """The pattern of a run, with the numbers that all of it share."""
  *pieces, last = pattern.split('*')
  label = ''
  for i, values in enumerate(zip(*numbers, strict=True)):
    fixed = len(set(values)) == 1 and i + 1 < len(pieces)
    label += pieces[i] + (str(values[0]) if fixed else '*')
  return label + last


def _is_inside(run: _Run, other: _Run) -> bool:
  """True if the members of a run are parts of those of another.

  Those may be calls of one module: 'block/norm_*' is inside of 'block#*'.
  """
  general = lambda pattern: re.sub(r'\d+', '*', pattern).removesuffix('#*')
  parts, size = run.pattern.split('/'), other.pattern.count('/') + 1
  outer = general('/'.join(parts[:size]))
  return len(parts) > size and outer == general(other.pattern)


def _of_parents(runs: Sequence[_Run], groups: Sequence[_Run]) -> list[_Run]:
  """The runs; of one part of each of several siblings, those siblings.

  They are of other shapes each, as the blocks of a DenseNet.
  """
  found: dict[str, _Run] = {}
  for run in runs:
    for other in groups:
      size = other.pattern.count('/') + 1
      owners = ['/'.join(a.name.split('/')[:size]) for a in run.layers]
      own = {a.name.partition('#')[0] for a in other.layers}
      if (
        _is_inside(run, other)
        and len(set(owners)) == len(owners) > 1
        and set(owners) <= own
      ):
        run = other
    found[run.pattern] = run
  return list(found.values())


def _has_products(run: _Run, activations: Sequence[Activation]) -> bool:
  """True if a member of a run computes a product itself, unlike a norm."""
  size = None if ', ' in run.pattern else run.pattern.count('/') + 1
  module = lambda name: '/'.join(name.split('/')[:size]).partition('#')[0]

  def adds(a: Activation) -> bool:
    own = f'{module(a.name)}/'
    return not any(
      b.products == a.products
      and b.node & a.ancestors
      and not f'{b.name.partition("#")[0]}/'.startswith(own)
      for b in activations
    )

  return any(map(adds, run.layers))


def _outermost(runs: Sequence[_Run]) -> list[_Run]:
  """The runs that are not inside a member of another run.

  A module that only holds a run, as 'stages/0' holds 'stages/0/blocks/*', is
  none.
  """
  holders = [
    o
    for o in runs
    if any(_is_inside(r, o) and set(o.layers) < set(r.layers) for r in runs)
  ]
  runs = [run for run in runs if run not in holders]
  return [run for run in runs if not any(_is_inside(run, o) for o in runs)]


def _without_parallel(
  runs: Sequence[_Run], activations: Sequence[Activation]
) -> list[_Run]:
  """The runs without those of parallel parts of the layers of another run."""
  whole = [
    run for run in runs if not run.is_forked and _has_products(run, activations)
  ]
  meet = lambda a, b: a.span[0] < b.span[1] and b.span[0] < a.span[1]
  return [
    run
    for run in runs
    if not run.is_forked or not any(meet(run, other) for other in whole)
  ]


def _merged(
  runs: Sequence[_Run], activations: Sequence[Activation]
) -> list[_Run]:
  """The runs that compute products, with those in one that are in turns."""
  merged: list[list[_Run]] = []
  for run in sorted(runs, key=lambda run: run.span):
    last = merged[-1] if merged else []
    if last and run.span[0] < max(other.span[1] for other in last):
      last.append(run)
    else:
      merged.append([run])
  return [
    _one(each, activations)
    for each in merged
    if any(_has_products(run, activations) for run in each)
  ]


def _one(runs: Sequence[_Run], activations: Sequence[Activation]) -> _Run:
  """One run of those that are computed in turns, as convolutions and norms.

  A norm before the first product of them all is no layer: it is that of an
  embedding.
  """
  if len(runs) == 1:
    return runs[0]
  starts = [run.span[0] for run in runs if _has_products(run, activations)]
  first = min(starts, default=(-1, -1))
  ordered = sorted(
    (a for run in runs for a in run.layers if a.position >= first),
    key=lambda a: a.position,
  )
  names = set(_ends_of_products(ordered))
  layers = tuple(a for a in ordered if a.name in names)
  kept = [r.pattern for r in runs if any(a.name in names for a in r.layers)]
  return _Run(', '.join(kept), layers)


def _single_block(groups: Sequence[_Run]) -> list[_Run]:
  """The one numbered module that has others inside, of a model of one block."""
  blocks = _outermost([run for run in groups if run.has_parts])
  return blocks if len(blocks) == 1 and len(blocks[0].layers) == 1 else []


def by_depth(activations: Sequence[Activation]) -> tuple[str, ...]:
  """The activations with the shortest paths, if there is more than one."""
  depth = lambda a: a.name.count('/')
  for level in sorted({depth(a) for a in activations}):
    here = [a for a in activations if depth(a) == level]
    if len(here) > 1:
      activations = here
      break
  return _ends_of_products(activations)


def _ends_of_products(activations: Sequence[Activation]) -> tuple[str, ...]:
  """The last activation before each product, of the shape of the first.

  Names of layers: one ends before the next matrix product or convolution, and
  where its shape changes.
  """
  found: dict[int, Activation] = {}
  for a in activations:
    same = found.setdefault(a.products, a)
    if a.shape == same.shape:
      found[a.products] = a
  return tuple(a.name for a in found.values())
