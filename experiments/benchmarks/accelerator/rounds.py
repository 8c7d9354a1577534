"""Rounds of the accelerator benchmark: losses that agree, then times in turns.

A side is one way to train. It has `seconds(num_steps)`, which trains and
returns the seconds; `unit`, of which its steps are a multiple; `limit`, its
longest round; and `seeds`, the number of its students.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import functools
from typing import Any
from typing import TypeAlias

import numpy as np

from cxjax import errors

Row: TypeAlias = dict[str, Any]


def difference(
  got: list[float], want: list[float], rtol: float, floor: float
) -> float:
  """Compares two sequences of losses.

  Args:
    got: losses.
    want: the losses that they should be.
    rtol: allowed relative difference.
    floor: allowed difference on top, relative to the first loss.

  Returns:
    The largest difference, relative to the first loss.

  Raises:
    UserError: a difference is too large, or a loss is not finite.
  """
  apart = np.abs(np.subtract(got, want))
  # A comparison with NaN is false.
  bad = ~(apart <= rtol * np.abs(want) + floor * abs(want[0]))
  at = int(bad.argmax())
  errors.require(
    not bad.any(),
    f'the losses differ at step {at}: {got[at]:.6g}, and {want[at]:.6g} of '
    'ours.',
  )
  return float(np.max(apart) / abs(want[0]))


def measure(
  sides: Mapping[str, Any], *, tiny: bool, turns: int | None = None
) -> Iterator[Row]:
  """Times all sides in turns.

  Args:
    sides: the sides by name.
    tiny: whether rounds are few and short.
    turns: number of rounds of each side; None is 2 of short ones, or 5.

  Yields:
    A row for each round and side; 'us' is microseconds of a student's step.
  """
  choose = functools.partial(choose_steps, enough=0.02 if tiny else 0.4)
  steps = {name: choose(side) for name, side in sides.items()}
  for turn in range(turns or (2 if tiny else 5)):
    for name, side in sides.items():
      seconds = side.seconds(steps[name])
      yield {
        'side': name,
        'round': turn,
        'steps': steps[name],
        'seconds': seconds,
        'us': 1e6 * seconds / steps[name] / side.seeds,
      }


def choose_steps(side: Any, enough: float) -> int:
  """Returns the steps of a round of `enough` seconds; also warms up."""
  steps = side.unit
  while side.seconds(steps) < enough and 2 * steps <= side.limit:
    steps *= 2
  return steps
