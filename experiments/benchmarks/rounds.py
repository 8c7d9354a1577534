"""Rounds of the benchmarks: losses that agree, then times in turns.

A side trains students one way. Each benchmark compares several sides, which
take turns, so that other work on the machine slows all of them.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import importlib.util
import os
import statistics
from typing import Any
from typing import Protocol
from typing import TypeAlias

from absl import flags
import jax
import numpy as np

from cxjax import errors
from experiments.benchmarks import machine

ROUNDS = flags.DEFINE_integer('rounds', 5, 'Rounds of each side.', 1)
OUT = flags.DEFINE_string(
  'out', 'experiments/results/benchmark', 'Folder of the results.'
)
CHECKED_STEPS = 100
# Least time of a round, and of one where sizes are tiny.
ROUND_SECONDS, TINY_SECONDS = 0.4, 0.02
Row: TypeAlias = dict[str, Any]


class Side(Protocol):
  """One way to train students.

  Attributes:
    seeds: number of students at once.
    block: number of batches that the teacher sees at once; `timed` shows it.
    unit: number of steps of which a round is a multiple.
    limit: maximal number of steps of a round.
  """

  seeds: int
  block: int
  unit: int
  limit: float

  def losses(self, num_steps: int) -> Any:
    """Trains; returns the losses of the first student, in order."""

  def seconds(self, num_steps: int) -> float:
    """Trains; returns the seconds that it took."""


def begin() -> None:
  """Chooses the CPU.

  Raises:
    UserError: PyTorch is not installed.
  """
  errors.require(
    importlib.util.find_spec('torch') is not None,
    "Run pip install 'torch>=2.13': this needs PyTorch.",
  )
  jax.config.update('jax_platforms', 'cpu')


def difference(
  got: Sequence[float], want: Sequence[float], *, rtol: float, atol: float
) -> float:
  """Compares two sequences of losses.

  Args:
    got: losses.
    want: the losses that they should be.
    rtol: allowed relative difference.
    atol: allowed absolute difference on top.

  Returns:
    The largest difference, relative to the first loss.

  Raises:
    UserError: a difference is too large, or a loss is not finite.
  """
  apart = np.abs(np.subtract(got, want))
  # A comparison with NaN is false.
  bad = ~(apart <= rtol * np.abs(want) + atol)
  at = int(bad.argmax())
  errors.require(
    not bad.any(),
    f'the losses differ at step {at}: {got[at]:.6g} in place of '
    f'{want[at]:.6g}.',
  )
  return float(np.max(apart) / abs(want[0]))


def check(
  name: str, sides: Mapping[str, Side], *, rtol: float, atol: float
) -> None:
  """Checks that the losses of the first steps agree.

  Args:
    name: name of what is timed, for the message.
    sides: the sides before their first step; the first is the reference.
    rtol: allowed relative difference.
    atol: allowed absolute difference on top.

  Raises:
    UserError: the losses differ. Nothing was timed.
  """
  (first, side), *others = sides.items()
  want = side.losses(CHECKED_STEPS)
  for other, side in others:
    with errors.about(f'{name}, {other!r} against {first!r}'):
      difference(side.losses(CHECKED_STEPS), want, rtol=rtol, atol=atol)


def choose_steps(side: Side, enough: float) -> int:
  """Returns the steps of a round of `enough` seconds; also warms up."""
  steps = side.unit
  while side.seconds(steps) < enough and 2 * steps <= side.limit:
    steps *= 2
  return steps


def measure(
  sides: Mapping[str, Side], turns: int, *, tiny: bool = False
) -> Iterator[Row]:
  """Times all sides in turns.

  Args:
    sides: the sides by name.
    turns: number of rounds of each side.
    tiny: whether rounds are short.

  Yields:
    A row for each round and side; 'us' is microseconds of a student's step.
  """
  enough = TINY_SECONDS if tiny else ROUND_SECONDS
  steps = {name: choose_steps(side, enough) for name, side in sides.items()}
  for turn in range(turns):
    for name, side in sides.items():
      seconds = side.seconds(steps[name])
      yield {
        'side': name,
        'round': turn,
        'steps': steps[name],
        'seconds': seconds,
        'us': 1e6 * seconds / steps[name] / side.seeds,
      }


def timed(labels: Mapping[str, Any], sides: Mapping[str, Side]) -> list[Row]:
  """Times all sides as the flags say.

  Args:
    labels: first columns of every row.
    sides: the sides by name.

  Returns:
    The rows of `measure` with these and with the sizes of their sides.
  """
  rows = []
  for row in measure(sides, ROUNDS.value):
    side = sides[row['side']]
    sizes = {'seeds': side.seeds, 'lookahead': side.block}
    rows.append({**labels, 'side': row['side'], **sizes, **row})
  return rows


def times(rows: Sequence[Row]) -> dict[str, list[float]]:
  """Returns the 'us' of every round by side."""
  us: dict[str, list[float]] = {}
  for row in rows:
    us.setdefault(row['side'], []).append(row['us'])
  return us


def spread(times: Sequence[float] | None) -> str | None:
  """Returns median and range as text; None for None."""
  if times is None:
    return None
  median, low, high = (
    f'{t:,.0f}' if t >= 100 else f'{t:.3g}'
    for t in (statistics.median(times), min(times), max(times))
  )
  return f'{median} ({low}..{high})'


def ratio(theirs: Sequence[float] | None, ours: Sequence[float]) -> str | None:
  """Returns the ratio of the medians and the median of the ratios as text.

  Args:
    theirs: times of the rounds; None if the side was left out.
    ours: times of the rounds of the other side.

  Returns:
    The text; None for None.
  """
  if theirs is None:
    return None
  of_medians = statistics.median(theirs) / statistics.median(ours)
  each = [a / b for a, b in zip(theirs, ours, strict=True)]
  return f'{of_medians:.3g} ({statistics.median(each):.3g})'


def describe() -> str:
  """Returns the versions, the machine and a legend of the table."""
  import torch  # noqa: PLC0415 It is slow to import, and no requirement.

  return (
    f'jax {jax.__version__}, torch {torch.__version__} with '
    f'{torch.get_num_threads()} threads, {os.cpu_count()} CPUs, '
    f'{jax.device_count()} devices of JAX, {machine.busy_cores():.1f} cores '
    'busy with others.\n\n'
    'Microseconds of one step of one student: median (min..max) of the rounds. '
    'Ratio of the medians (median of the ratios of the rounds).\n\n'
  )
