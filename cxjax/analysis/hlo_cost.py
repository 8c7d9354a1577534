"""Costs of a compiled program, its loops counted as often as they turn.

XLA's own analysis counts the body of a loop once. Here a loop whose number of
turns is in the program is counted that often; of one that learns it when it
runs, the caller says how often.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
import re

# Where `Lowered.cost_analysis` has it from; jax has no public name for it.
from jaxlib import _hlo  # type: ignore[attr-defined]
from jaxlib import _jax

from cxjax.parallel import devices as devices_lib

# What a device of a ring of `n` sends, as a share of the whole array: of what
# all of them reduce, or have in the end (all-gather) or at first.
SENT = {
  'all-reduce': lambda n: 2 * (n - 1) / n,
  'all-gather': lambda n: (n - 1) / n,
  'reduce-scatter': lambda n: (n - 1) / n,
  'all-to-all': lambda n: (n - 1) / n,
  'ragged-all-to-all': lambda n: (n - 1) / n,
  'collective-permute': lambda n: 1.0,
  'collective-broadcast': lambda n: 1.0,
}
# Instructions that move nothing themselves.
_STILL = {
  'after-all',
  'bitcast',
  'call',
  'conditional',
  'constant',
  'get-tuple-element',
  'parameter',
  'partition-id',
  'tuple',
  'while',
}
_SLICES = ('dynamic-slice', 'gather', 'slice')
_INSTRUCTION = re.compile(
  r' *(ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\(([^)]*)\)(.*)'
)
_ARRAY = re.compile(r'\b([a-z]+(\d*)\w*)\[([\d,]*)\](\{[^}]*\})?')
_NAME = re.compile(r'%([\w.\-]+)')
_CALLED = re.compile(r'=\{?((?:%[\w.\-]+(?:, )?)+)')
_METADATA = re.compile(r', metadata=\{(?:"[^"]*"|[^{}"])*\}')


@dataclasses.dataclass(frozen=True)
class Cost:
  """Of one device.

  Attributes:
    flops: as XLA counts them.
    moved: bytes that instructions read from memory and write to it; what a
      TPU's compiler keeps on the core is not among them, nor what tiles pad.
    collectives: bytes of the whole arrays that devices exchange, by kind.
    sent: bytes that a device sends for that, if they go round in rings.
  """

  flops: float = 0.0
  moved: float = 0.0
  collectives: Mapping[str, float] = dataclasses.field(default_factory=dict)
  sent: float = 0.0

  def plus(self, other: 'Cost', times: float = 1.0) -> 'Cost':
    """The sum with `times` another."""
    kinds = dict(self.collectives)
    for kind, size in other.collectives.items():
      kinds[kind] = kinds.get(kind, 0.0) + times * size
    return Cost(
      self.flops + times * other.flops,
      self.moved + times * other.moved,
      kinds,
      self.sent + times * other.sent,
    )


def cost(text: str, turns: Sequence[float] = ()) -> Cost:
  """Of a compiled program.

  Args:
    text: as `Compiled.as_text()` has it.
    turns: of the loops that learn it when they run: those of the program
      itself, those in their bodies, and so on; 1 where it ends.

  Returns:
    Its cost.
  """
  program = _Program(text)
  return program.cost(program.entry, tuple(turns))


@dataclasses.dataclass(frozen=True)
class _Instruction:
  """`%name = shape op(operands)attributes`."""

  root: bool
  name: str
  shape: str
  op: str
  inside: str
  attributes: str

  @property
  def operands(self):
    return _NAME.findall(self.inside)

  def called(self, attribute):
    """The computation that an attribute names, or None."""
    found = re.search(rf'{attribute}=%([\w.\-]+)', self.attributes)
    return found and found.group(1)


class _Program:
  """The computations of a program, by name."""

  def __init__(self, text):
    self.lines: dict[str, list[str]] = {}
    self.entry, lines = '', []
    for line in _METADATA.sub('', text).splitlines():
      if line.startswith(('%', 'ENTRY ')) and line.endswith('{'):
        name = _NAME.findall(line)[0]
        if line.startswith('ENTRY '):
          self.entry = name
        lines = self.lines[name] = []
      lines.append(line.removeprefix('ENTRY '))
    self.instructions = {
      name: [
        _Instruction(bool(found[1]), *found.groups()[1:])
        for found in map(_INSTRUCTION.match, lines)
        if found
      ]
      for name, lines in self.lines.items()
    }
    self._cache: dict[str, Cost] = {}

  def cost(self, name, turns) -> Cost:
    """Of a computation and all that it runs."""
    total = self._once(name)
    for body, known in self._loops(name):
      times, rest = known, turns
      if times is None:
        times, rest = turns[0] if turns else 1, turns[1:]
      total = total.plus(self.cost(body, rest), times)
      total = total.plus(self._once(body), -1)
    return total

  def _once(self, name) -> Cost:
    """Every loop in it counted once."""
    if name not in self._cache:
      every = self._below(name)
      total = Cost(self._flops(name, every - {name}))
      for one in self._below(name, 'calls', 'to_apply'):
        total = total.plus(Cost(moved=self._moved(one)))
      for one in self._collectives(every):
        total = total.plus(one)
      self._cache[name] = total
    return self._cache[name]

  def _flops(self, name, others):
    # A computation stands before those that use it.
    blocks = [self.lines[other] for other in self.lines if other in others]
    text = '\n'.join(line for block in blocks for line in block)
    entry = '\n'.join(self.lines[name])
    module = _hlo.hlo_module_from_text(f'HloModule _\n{text}\nENTRY {entry}')
    client = devices_lib.host().client
    return _jax.hlo_module_cost_analysis(client, module).get('flops', 0.0)

  def _below(self, name, *without) -> set[str]:
    """A computation and those that it runs, but for what `without` names.

    That is attributes; 'calls' and 'to_apply' of a call are followed anyhow.
    """
    found, todo = {name}, [name]
    while todo:
      for one in self.instructions[todo.pop()]:
        attributes = one.attributes
        if one.op == 'call' or one.op == 'async-start':
          skipped: tuple[str, ...] = ()
        else:
          skipped = without
        for attribute in skipped:
          attributes = re.sub(rf'{attribute}=%[\w.\-]+', '', attributes)
        names = _NAME.findall(' '.join(_CALLED.findall(attributes)))
        new = {n for n in names if n in self.lines} - found
        todo += new
        found |= new
    return found

  def _loops(self, name) -> Iterator[tuple[str, int | None]]:
    """The loops in a computation but not in each other: body, turns."""
    for part in self._below(name, 'body', 'condition'):
      for one in self.instructions[part]:
        if one.op == 'while':
          yield one.called('body'), self._turns(one)

  def _turns(self, loop) -> int | None:
    """How often a loop turns, if the program says so."""
    known = r'"known_trip_count":\{"n":"(\d+)"'
    if found := re.search(known, loop.attributes):
      return int(found.group(1))
    # For a TPU: index < constant, from 0 in steps of 1, as jax makes them.
    condition = self.instructions[loop.called('condition')]
    constants = {i.name: i.inside for i in condition if i.op == 'constant'}
    compares = [i for i in condition if i.op == 'compare']
    if len(compares) == 1 and 'direction=LT' in compares[0].attributes:
      last = compares[0].operands[-1]
      return int(constants[last]) if last in constants else None
    return None

  def _collectives(self, names) -> Iterator[Cost]:
    """Of every collective in some computations."""
    seen = set()
    for name in names:
      shapes = {one.name: one.shape for one in self.instructions[name]}
      for one in self.instructions[name]:
        kind = one.op.removesuffix('-start')
        # For a TPU one may be parted over several fusions, to overlap.
        channel = re.search(r'channel_id=(\d+)', one.attributes)
        key = channel.group(1) if channel else one.name
        if kind not in SENT or key in seen:
          continue
        seen.add(key)
        if name.startswith('all-reduce-scatter'):
          kind = 'reduce-scatter'  # So a TPU's compiler spells it.
        size = sum(sum(_sizes(shapes[n])) for n in one.operands)
        devices = _group(one.attributes)
        if kind == 'all-gather':
          size *= devices
        yield Cost(collectives={kind: size}, sent=size * SENT[kind](devices))

  def _moved(self, name) -> float:
    """Bytes from and to memory, of what a computation does itself."""
    instructions = self.instructions[name]
    shapes = {one.name: one.shape for one in instructions}
    total = 0.0
    for one in instructions:
      if one.op in _STILL or one.op.endswith('-done'):
        continue
      written = _sizes(one.shape, memory=True)
      read = [sum(_sizes(shapes[n], memory=True)) for n in one.operands]
      if one.op == 'slice-start':  # It returns its source and the slice.
        total += written[1] + (_sizes(one.shape)[1] if written[0] else 0)
        continue
      if one.op.endswith('-start'):  # What it returns has its source, too.
        total += sum(written)
        continue
      inside = self.instructions.get(one.called('calls') or '')
      if inside is None:  # As a fusion of this alone.
        inside = _alone(one, shapes)
      for i, size in _in_part(inside):
        read[i] = min(read[i], size)
      for i, size in _written_in_part(inside):
        written[i] = min(written[i], size)
      # Passed on, not moved.
      passed = r'\{(\d*)\}: \((\d+), \{\}'
      for out, i in re.findall(passed, one.attributes):
        written[int(out or 0)] = read[int(i)] = 0.0
      total += sum(written) + sum(read)
    return total


def _alone(one, shapes):
  """An instruction as the inside of a fusion: its parameters, then itself."""
  return [
    *(
      _Instruction(False, name, shapes[name], 'parameter', str(i), '')
      for i, name in enumerate(one.operands)
    ),
    dataclasses.replace(one, root=True),
  ]


def _in_part(inside) -> Iterator[tuple[int, float]]:
  """Parameters of a fusion of which only slices are read: number, bytes."""
  users: dict[str, list[_Instruction]] = {}
  for one in inside:
    for name in one.operands:
      users.setdefault(name, []).append(one)

  def read(name):
    total = 0.0
    for user in users.get(name, ()):
      first = user.operands[0] == name
      if user.op == 'bitcast':
        total += read(user.name)
      elif user.op in _SLICES and first:
        total += sum(_sizes(user.shape))
      elif user.op not in ('dynamic-update-slice', 'scatter') or not first:
        return math.inf
    return total

  for one in inside:
    if one.op == 'parameter':
      yield int(one.inside), read(one.name)


def _written_in_part(inside) -> Iterator[tuple[int, float]]:
  """Results of a fusion that are updated in place: number, bytes."""
  by_name = {one.name: one for one in inside}
  (root,) = (one for one in inside if one.root)
  results = (
    [by_name[n] for n in root.operands] if root.op == 'tuple' else [root]
  )
  for i, one in enumerate(results):
    while one.op == 'bitcast':
      one = by_name[one.operands[0]]
    if one.op in ('dynamic-update-slice', 'scatter'):
      update = one.operands[1 if one.op == 'dynamic-update-slice' else -1]
      yield i, sum(_sizes(by_name[update].shape))


def _sizes(shape: str, memory: bool = False) -> list[float]:
  """Bytes of each array of a shape; with `memory` 0 where it is not in it."""
  found = []
  for _, bits, sizes, layout in _ARRAY.findall(shape):
    count = math.prod(int(n) for n in sizes.split(',') if n)
    near = memory and 'S(' in layout  # A memory space of its own.
    found.append(0.0 if near else count * int(bits or 8) / 8)  # pred has none.
  return found


def _group(attributes: str) -> int:
  """How many devices take part in a collective, each in its own group."""
  # [groups,devices]<=[...], {{0,1},{2,3}}, or mesh['a'=4,'b'=2] {'a'}.
  if found := re.search(r'replica_groups=\[\d+,(\d+)\]', attributes):
    return int(found.group(1))
  if found := re.search(r'replica_groups=\{\{([\d,]*)\}', attributes):
    return len(found.group(1).split(','))
  meshed = r'replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}'
  if found := re.search(meshed, attributes):
    mesh, names = found.groups()
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh))
    # 'a':(2)4 is a part of an axis, 4 devices long.
    axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", names)
    return math.prod(int(part or sizes[name]) for name, part in axes)
  return 2  # A permutation has pairs instead.
