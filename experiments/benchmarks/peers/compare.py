"""One case: every side is checked against ours, then all take turns."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import pathlib
import statistics
import subprocess
import sys
from typing import Any
from typing import TypeAlias

from cxjax import errors
from experiments.benchmarks import machine as machine
from experiments.benchmarks import rounds as rounds
from experiments.benchmarks.accelerator import pipe as pipe
from experiments.benchmarks.peers import cases as cases_lib
from experiments.benchmarks.peers import environments as environments
from experiments.benchmarks.peers import limit as limit_lib
from experiments.benchmarks.peers import sides as sides_lib

Row: TypeAlias = dict[str, Any]

OURS = 'ours'
# Largest difference of losses: relative, and relative to the first loss.
TOLERANCE = 1e-4
# Cores that others keep busy, above which the table says that it was not quiet.
QUIET = 0.1
# Seconds of a whole run. In a short one the comparison with the teacher, which
# comes at the end alone, takes a larger share than in an experiment.
WHOLE = 60.0


@dataclasses.dataclass(frozen=True)
class Options:
  """Options of the benchmark.

  Attributes:
    size: key of `cases.SIZES`.
    peers: names of the peers.
    rounds: rounds of each side.
    folder: folder of the environments and the jobs.
  """

  size: str
  peers: Sequence[str]
  rounds: int
  folder: pathlib.Path


def compare(case: cases_lib.Case, options: Options) -> list[Row]:
  """Runs a case.

  Args:
    case: the case.
    options: options of the benchmark.

  Returns:
    A row for each side, timed or left out.

  Raises:
    UserError: ours does not run.
  """
  job = options.folder / 'jobs' / options.size / case.name
  _write_job(case, options, job)
  busy = machine.busy_cores()
  with contextlib.ExitStack() as stack:
    sides, left = _started(case, options, job, stack)
    left |= _check(sides)
    for name in left:
      sides.pop(name, None)
    found = list(_measure(sides, options))
    after = _after(sides, 1.0 if options.size == 'tiny' else WHOLE)
  lookahead = sides[f'{OURS} 1'].lookahead
  limit = limit_lib.measure(options.size, case.name, lookahead)
  common = {'case': case.name, 'busy': max(busy, machine.busy_cores())}
  return [
    *(
      {**common, **row}
      for row in _summary(sides, found, after, limit['seconds'])
    ),
    *({**common, 'side': name, 'note': why} for name, why in left.items()),
    {
      **common,
      'side': 'limit',
      'us': 1e6 * limit['seconds'],
      'note': limit['note'],
    },
  ]


def _write_job(
  case: cases_lib.Case, options: Options, job: pathlib.Path
) -> None:
  """Writes the weights and the batches, in a process of its own."""
  command = ['-m', 'experiments.benchmarks.peers.ours']
  found = subprocess.run(
    [sys.executable, *command, options.size, case.name, str(job)],
    cwd=pipe.ROOT,
    env=pipe.environment({'JAX_PLATFORMS': 'cpu'}),
    capture_output=True,
    text=True,
  )
  errors.require(
    not found.returncode,
    f'{case.name}: its job cannot be written: '
    f'{pipe.one_line(found.stderr[-2000:])}',
  )


def _named(peer: environments.Peer, name: str) -> Iterator[tuple[str, str]]:
  """Yields the variants of a peer, with the names of their sides."""
  for variant in peer.variants:
    yield f'{name} {variant}'.strip(), variant


def _started(
  case: cases_lib.Case,
  options: Options,
  job: pathlib.Path,
  stack: contextlib.ExitStack,
) -> tuple[dict[str, sides_lib.Side], dict[str, str]]:
  """Starts and checks one side after the other.

  Returns:
    The sides that have made their first steps, and why others are left out.
  """
  sides: dict[str, sides_lib.Side] = {}
  left: dict[str, str] = {}
  seeds = ('1', str(case.seeds))
  peers = {OURS: environments.Peer('ours', '', (), seeds)}
  peers |= {name: environments.PEERS[name] for name in options.peers}
  for peer_name, peer in peers.items():
    try:
      python = environments.python_of(peer, options.folder / 'environments')
    except environments.NotInstalled as error:
      left |= {
        name: f'does not install: {error}'
        for name, _ in _named(peer, peer_name)
      }
      continue
    for name, variant in _named(peer, peer_name):
      print(f'{case.name}: {name}', file=sys.stderr, flush=True)
      try:
        side = stack.enter_context(
          sides_lib.started(peer.module, job, variant, python)
        )
        side.check(cases_lib.CHECKED_STEPS)
        sides[name] = side
      except sides_lib.Left as error:
        errors.require(peer_name != OURS, f'{case.name}: {name} {error}.')
        left[name] = str(error)
  return sides, left


def _check(sides: Mapping[str, sides_lib.Side]) -> dict[str, str]:
  """Compares the losses with ours; returns why sides are left out."""
  left = {}
  want = sides[f'{OURS} 1'].losses
  atol = TOLERANCE * abs(want[0])
  for name, side in sides.items():
    try:
      rounds.difference(side.losses, want, rtol=TOLERANCE, atol=atol)
    except errors.UserError as error:
      errors.require(not name.startswith(f'{OURS} '), f'{name}: {error}')
      left[name] = f'{error} It was not timed.'
  return left


def _measure(
  sides: Mapping[str, sides_lib.Side], options: Options
) -> Iterator[Row]:
  """Yields the rounds, with microseconds of CPU of a student's step."""
  tiny = options.size == 'tiny'
  for side in sides.values():
    side.seconds(side.unit)  # The first call may trace and load more.
  for row in rounds.measure(sides, options.rounds, tiny=tiny):
    side = sides[row['side']]
    yield {**row, 'cpu us': 1e6 * side.cpu / row['steps'] / side.seeds}


def _after(
  sides: Mapping[str, sides_lib.Side], seconds: float
) -> dict[str, Row]:
  """Whole runs, and the memory of every side."""
  found = {}
  for name, side in sides.items():
    # The memory of the timed steps, not of an evaluation.
    memory = side.memory()
    try:
      whole = side.whole(seconds)
    except sides_lib.Left:
      whole = None
    found[name] = {'memory': memory, 'whole': whole}
  return found


def _summary(
  sides: Mapping[str, sides_lib.Side],
  found: Sequence[Row],
  after: Mapping[str, Row],
  limit: float,
) -> Iterator[Row]:
  """Yields the row of each side that was timed."""
  us = rounds.times(found)
  for name, side in sides.items():
    median = statistics.median(us[name])
    cpu = [row['cpu us'] for row in found if row['side'] == name]
    whole = after[name]['whole']
    yield {
      'side': name,
      'us': median,
      'low': min(us[name]),
      'high': max(us[name]),
      'times ours': median / statistics.median(us[f'{OURS} 1']),
      'cpu us': statistics.median(cpu),
      'whole us': whole and 1e6 * whole / side.seeds,
      'share': 1e6 * limit / median if side.seeds == 1 else None,
      'compile s': side.compile,
      'first step s': side.first_step,
      'MB': after[name]['memory'],
    }
