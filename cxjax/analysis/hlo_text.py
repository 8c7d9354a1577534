"""Optimized HLO as text: instructions, loops, array sizes and device groups.

`Compiled.as_text()` is the only form in which jax shows what XLA compiled. This
module reads from it what `hlo_cost` counts.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
import re

_INSTRUCTION = re.compile(
  r' *(ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\(([^)]*)\)(.*)'
)
_ARRAY = re.compile(r'\b([a-z]+(\d*)\w*)\[([\d,]*)\](\{[^}]*\})?')
_NAME = re.compile(r'%([\w.\-]+)')
_CALLED = re.compile(r'=\{?((?:%[\w.\-]+(?:, )?)+)')
_METADATA = re.compile(r', metadata=\{(?:"[^"]*"|[^{}"])*\}')


@dataclasses.dataclass(frozen=True)
class Instruction:
  """An instruction, `%name = shape op(inside)attributes`.

  Attributes:
    root: whether it is the result of its computation.
    name: its name.
    shape: its array, or the tuple of its arrays.
    op: name of the operation, as in 'fusion'.
    inside: the text between the parentheses.
    attributes: the text after them.
  """

  root: bool
  name: str
  shape: str
  op: str
  inside: str
  attributes: str

  @property
  def operands(self) -> list[str]:
    """Names of the instructions that it reads."""
    return _NAME.findall(self.inside)

  def called(self, attribute: str) -> str | None:
    """The computation that an attribute names, if the attribute is there."""
    found = re.search(rf'{attribute}=%([\w.\-]+)', self.attributes)
    return found and found.group(1)

  def all_called(self, skipped: Sequence[str] = ()) -> list[str]:
    """The computations that its attributes name, without those skipped."""
    attributes = self.attributes
    for attribute in skipped:
      attributes = re.sub(rf'{attribute}=%[\w.\-]+', '', attributes)
    return _NAME.findall(' '.join(_CALLED.findall(attributes)))


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled program.

  Attributes:
    entry: name of the computation that it begins with.
    lines: text of each computation, by name; a computation stands before those
      that use it.
    instructions: the instructions of each computation.
  """

  entry: str
  lines: Mapping[str, Sequence[str]]
  instructions: Mapping[str, Sequence[Instruction]]

  def reachable(self, name: str, *skipped: str) -> set[str]:
    """A computation and those that it runs, directly or not.

    Args:
      name: name of the computation.
      *skipped: attributes that are not followed, as in 'body'. Those of a call
        are followed in any case.

    Returns:
      Names of computations.
    """
    found, todo = {name}, [name]
    while todo:
      for one in self.instructions[todo.pop()]:
        is_call = one.op in ('call', 'async-start')
        names = one.all_called(() if is_call else skipped)
        new = {n for n in names if n in self.lines} - found
        todo += new
        found |= new
    return found

  def loops(self, name: str) -> Iterator[tuple[str, int | None]]:
    """The outermost loops of a computation: their body and trip count."""
    for part in self.reachable(name, 'body', 'condition'):
      for one in self.instructions[part]:
        body = one.called('body') if one.op == 'while' else None
        if body is not None:
          yield body, self._trip_count(one)

  def _trip_count(self, loop: Instruction) -> int | None:
    """The trip count of a loop, if the program states it."""
    known = r'"known_trip_count":\{"n":"(\d+)"'
    if found := re.search(known, loop.attributes):
      return int(found.group(1))
    # A TPU's compiler states none. The condition of a loop of jax is `index <
    # constant`, and the index counts from 0 in steps of 1.
    condition = self.instructions[loop.called('condition') or '']
    constants = {i.name: i.inside for i in condition if i.op == 'constant'}
    compares = [i for i in condition if i.op == 'compare']
    if len(compares) == 1 and 'direction=LT' in compares[0].attributes:
      last = compares[0].operands[-1]
      return int(constants[last]) if last in constants else None
    return None


def parse(text: str) -> Program:
  """Parses a program as `Compiled.as_text()` prints it."""
  entry, lines = '', []
  computations: dict[str, list[str]] = {}
  for line in _METADATA.sub('', text).splitlines():
    if line.startswith(('%', 'ENTRY ')) and line.endswith('{'):
      name = _NAME.findall(line)[0]
      if line.startswith('ENTRY '):
        entry = name
      lines = computations[name] = []
    lines.append(line.removeprefix('ENTRY '))
  instructions = {
    name: [
      Instruction(bool(found[1]), *found.groups()[1:])
      for found in map(_INSTRUCTION.match, lines)
      if found
    ]
    for name, lines in computations.items()
  }
  return Program(entry, computations, instructions)


def array_bytes(shape: str, memory: bool = False) -> list[float]:
  """Bytes of each array of a shape.

  Args:
    shape: an array or a tuple, as in 'f32[16,4]{1,0}'.
    memory: whether an array counts as 0 if it is in a memory space of its own,
      close to the core, rather than in the device's main memory.

  Returns:
    Bytes, one number for each array.
  """
  found = []
  for _, bits, sizes, layout in _ARRAY.findall(shape):
    count = math.prod(int(n) for n in sizes.split(',') if n)
    near = memory and 'S(' in layout
    # The type `pred`, which has no number of bits in its name, takes 8.
    found.append(0.0 if near else count * int(bits or 8) / 8)
  return found


def group_size(attributes: str) -> int:
  """Number of devices in each group of a collective."""
  # [groups,devices]<=[...], {{0,1},{2,3}}, or mesh['a'=4,'b'=2] {'a'}.
  if found := re.search(r'replica_groups=\[\d+,(\d+)\]', attributes):
    return int(found.group(1))
  if found := re.search(r'replica_groups=\{\{([\d,]*)\}', attributes):
    return len(found.group(1).split(','))
  meshed = r'replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}'
  if found := re.search(meshed, attributes):
    mesh, names = found.groups()
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh))
    # 'a':(2)4 is 4 devices along a part of the axis 'a'.
    axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", names)
    return math.prod(int(part or sizes[name]) for name, part in axes)
  return 2  # A permutation has pairs of devices instead of groups.
