"""Costs of a compiled program, with each loop counted as often as it runs.

XLA's own analysis counts the body of a loop once. Here the body counts as often
as the trip count that the program states; the caller gives the trip counts of
loops that are known only when the program runs.

FLOPs come from private functions of jaxlib, since jax has no public name for
them. No module of `cxjax` outside `cxjax.analysis` imports this one.
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import importlib.metadata
import math
import re

from cxjax import errors
from cxjax.analysis import hlo_text
from cxjax.parallel import devices as devices_lib

# Share of the whole array that each of `n` devices in a ring sends: the array
# that all of them reduce, that all have in the end (all-gather), or that all
# have at first.
SENT = {
  'all-reduce': lambda n: 2 * (n - 1) / n,
  'all-gather': lambda n: (n - 1) / n,
  'reduce-scatter': lambda n: (n - 1) / n,
  'all-to-all': lambda n: (n - 1) / n,
  'ragged-all-to-all': lambda n: (n - 1) / n,
  'collective-permute': lambda n: 1.0,
  'collective-broadcast': lambda n: 1.0,
}
# Instructions that move no bytes themselves.
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
_UPDATES = ('dynamic-update-slice', 'scatter')


@dataclasses.dataclass(frozen=True)
class Cost:
  """Cost of a program for one device.

  Attributes:
    flops: FLOPs, as XLA counts them.
    moved: bytes that instructions read from memory and write to it, without
      what a TPU's compiler keeps on the core and without the padding of tiles.
    collectives: bytes of the whole arrays that devices exchange, by kind.
    sent: bytes that a device sends for that, if messages travel in rings.
  """

  flops: float = 0.0
  moved: float = 0.0
  collectives: Mapping[str, float] = dataclasses.field(default_factory=dict)
  sent: float = 0.0

  def plus(self, other: 'Cost', times: float = 1.0) -> 'Cost':
    """The sum of this cost and `times` another."""
    kinds = dict(self.collectives)
    for kind, size in other.collectives.items():
      kinds[kind] = kinds.get(kind, 0.0) + times * size
    return Cost(
      self.flops + times * other.flops,
      self.moved + times * other.moved,
      kinds,
      self.sent + times * other.sent,
    )


def cost(text: str, trip_counts: Sequence[float] = ()) -> Cost:
  """The cost of a compiled program.

  Args:
    text: the program, as `Compiled.as_text()` prints it.
    trip_counts: trip counts of loops that the program does not state: first
      that of the outermost loops, then that of the loops in their bodies, and
      so on; 1 for loops beyond the last.

  Returns:
    Its cost.

  Raises:
    UserError: this version of jaxlib lacks the private functions.
  """
  program = hlo_text.parse(text)
  return _total(program, program.entry, tuple(trip_counts), {})


def xla_flops(text: str) -> float:
  """FLOPs of an HLO module, as XLA counts them: each loop once.

  Args:
    text: the module, as XLA prints it.

  Returns:
    FLOPs.

  Raises:
    UserError: this version of jaxlib lacks the private functions.
  """
  client = devices_lib.host().client
  try:
    from jaxlib import _hlo  # type: ignore[attr-defined]
    from jaxlib import _jax

    module = _hlo.hlo_module_from_text(text)
    found = _jax.hlo_module_cost_analysis(client, module)
  except (ImportError, AttributeError, TypeError) as error:
    raise errors.UserError(
      f'jaxlib {importlib.metadata.version("jaxlib")} does not have the '
      f'private functions that count FLOPs of compiled programs ({error}). '
      'Install the jaxlib that the tests ran on, or leave out --dry_run.'
    ) from error
  return found.get('flops', 0.0)


def _total(
  program: hlo_text.Program,
  name: str,
  trip_counts: tuple[float, ...],
  cache: dict[str, Cost],
) -> Cost:
  """The cost of a computation and all that it runs.

  Args:
    program: the program.
    name: name of the computation.
    trip_counts: trip counts of loops that the program does not state.
    cache: costs with each loop counted once, by computation; filled here.

  Returns:
    Its cost.
  """
  total = _once(program, name, cache)
  for body, known in program.loops(name):
    rest = trip_counts if known is not None else trip_counts[1:]
    times = known if known is not None else (trip_counts or (1.0,))[0]
    total = total.plus(_total(program, body, rest, cache), times)
    total = total.plus(_once(program, body, cache), -1)
  return total


def _once(program: hlo_text.Program, name: str, cache: dict[str, Cost]) -> Cost:
  """The cost of a computation with every loop in it counted once."""
  if name not in cache:
    every = program.reachable(name)
    total = Cost(_flops(program, name, every))
    for one in program.reachable(name, 'calls', 'to_apply'):
      total = total.plus(Cost(moved=_moved(program, one)))
    for part in _collectives(program, every):
      total = total.plus(part)
    cache[name] = total
  return cache[name]


def _flops(program: hlo_text.Program, name: str, every: set[str]) -> float:
  """FLOPs of a computation that runs `every`, which includes itself."""
  others = [other for other in program.lines if other in every - {name}]
  text = '\n'.join(line for other in others for line in program.lines[other])
  entry = '\n'.join(program.lines[name])
  return xla_flops(f'HloModule _\n{text}\nENTRY {entry}')


def _collectives(
  program: hlo_text.Program, names: Iterable[str]
) -> Iterator[Cost]:
  """The cost of each collective in some computations."""
  seen = set()
  for name in names:
    shapes = {one.name: one.shape for one in program.instructions[name]}
    for one in program.instructions[name]:
      kind = one.op.removesuffix('-start')
      # To overlap it with other work, a TPU's compiler splits a collective over
      # several fusions, of the same channel.
      channel = re.search(r'channel_id=(\d+)', one.attributes)
      key = channel.group(1) if channel else one.name
      if kind not in SENT or key in seen:
        continue
      seen.add(key)
      if name.startswith('all-reduce-scatter'):
        kind = 'reduce-scatter'  # The name that a TPU's compiler gives to it.
      size = sum(sum(hlo_text.array_bytes(shapes[n])) for n in one.operands)
      devices = hlo_text.group_size(one.attributes)
      if kind == 'all-gather':
        size *= devices
      yield Cost(collectives={kind: size}, sent=size * SENT[kind](devices))


def _moved(program: hlo_text.Program, name: str) -> float:
  """Bytes that the instructions of a computation read and write themselves."""
  instructions = program.instructions[name]
  shapes = {one.name: one.shape for one in instructions}
  total = 0.0
  for one in instructions:
    if one.op in _STILL or one.op.endswith('-done'):
      continue
    if one.op.endswith('-start'):
      total += _moved_by_start(one)
      continue
    inside = program.instructions.get(one.called('calls') or '')
    if inside is None:
      inside = _alone(one, shapes)
    total += _moved_by(one, shapes, inside)
  return total


def _moved_by_start(one: hlo_text.Instruction) -> float:
  """Bytes that an asynchronous instruction moves; it returns its source too."""
  written = hlo_text.array_bytes(one.shape, memory=True)
  if one.op == 'slice-start':
    read = hlo_text.array_bytes(one.shape)[1] if written[0] else 0.0
    return written[1] + read
  return sum(written)


def _moved_by(
  one: hlo_text.Instruction,
  shapes: Mapping[str, str],
  inside: Sequence[hlo_text.Instruction],
) -> float:
  """Bytes that an instruction reads and writes.

  Args:
    one: the instruction.
    shapes: shapes of its operands, by name.
    inside: the instructions of its fusion.

  Returns:
    Bytes in memory.
  """
  written = hlo_text.array_bytes(one.shape, memory=True)
  read = [
    sum(hlo_text.array_bytes(shapes[n], memory=True)) for n in one.operands
  ]
  for i, size in _sliced(inside):
    read[i] = min(read[i], size)
  for i, size in _updated(inside):
    written[i] = min(written[i], size)
  # An output that aliases an operand is passed on, not moved.
  for out, i in re.findall(r'\{(\d*)\}: \((\d+), \{\}', one.attributes):
    written[int(out or 0)] = read[int(i)] = 0.0
  return sum(written) + sum(read)


def _alone(
  one: hlo_text.Instruction, shapes: Mapping[str, str]
) -> list[hlo_text.Instruction]:
  """An instruction as a fusion of it alone: its parameters, then itself."""
  parameters = [
    hlo_text.Instruction(False, name, shapes[name], 'parameter', str(i), '')
    for i, name in enumerate(one.operands)
  ]
  return [*parameters, dataclasses.replace(one, root=True)]


def _sliced(
  inside: Sequence[hlo_text.Instruction],
) -> Iterator[tuple[int, float]]:
  """The bytes that a fusion reads of each parameter, by its number.

  Infinite if the fusion reads more of it than slices.
  """
  users: dict[str, list[hlo_text.Instruction]] = {}
  for one in inside:
    for name in one.operands:
      users.setdefault(name, []).append(one)

  def read(name: str) -> float:
    total = 0.0
    for user in users.get(name, ()):
      first = user.operands[0] == name
      if user.op == 'bitcast':
        total += read(user.name)
      elif user.op in _SLICES and first:
        total += sum(hlo_text.array_bytes(user.shape))
      elif user.op not in _UPDATES or not first:
        return math.inf
    return total

  for one in inside:
    if one.op == 'parameter':
      yield int(one.inside), read(one.name)


def _updated(
  inside: Sequence[hlo_text.Instruction],
) -> Iterator[tuple[int, float]]:
  """The bytes of each result that a fusion updates in place, by its number."""
  by_name = {one.name: one for one in inside}
  (root,) = (one for one in inside if one.root)
  results = (
    [by_name[n] for n in root.operands] if root.op == 'tuple' else [root]
  )
  for i, one in enumerate(results):
    while one.op == 'bitcast':
      one = by_name[one.operands[0]]
    if one.op in _UPDATES:
      update = one.operands[1 if one.op == 'dynamic-update-slice' else -1]
      yield i, sum(hlo_text.array_bytes(by_name[update].shape))
