"""The search of settings, in rounds; every search of the project is one.

A round proposes settings, from what was found so far; they are run together,
and none is run twice. `halving` makes the rounds of successive halving.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
from typing import Any
from typing import Generic
from typing import TypeVar

S = TypeVar('S')
F = TypeVar('F')


@dataclasses.dataclass(frozen=True)
class Trial(Generic[S, F]):
  """A setting and its result.

  Attributes:
    setting: setting that was run.
    found: result of that setting.
  """

  setting: S
  found: F


# From what was tried so far, best first, to the settings of a round.
Propose = Callable[[list[Trial[S, F]]], Iterable[S]]


def search(
  rounds: Iterable[Propose],
  run: Callable[[list[S]], Iterable[F]],
  rank: Callable[[F], Any],
) -> list[Trial[S, F]]:
  """Runs the settings of all rounds.

  Args:
    rounds: each proposes settings.
    run: runs settings, and returns a result for each; settings that were run
      before are left out, and it is not called without any.
    rank: sort key of a result; the best has the smallest, and NaN is the last.
      Of equal ones the first that was tried comes first.

  Returns:
    All that was tried, best first.
  """
  tried: dict[Any, Trial[S, F]] = {}
  for propose in rounds:
    proposed = propose(_ranked(tried.values(), rank))
    settings = {_key(setting): setting for setting in proposed}
    new = {k: s for k, s in settings.items() if k not in tried}
    if new:
      results = run(list(new.values()))
      for (key, setting), found in zip(new.items(), results, strict=True):
        tried[key] = Trial(setting, found)
  return _ranked(tried.values(), rank)


def _ranked(
  trials: Iterable[Trial[S, F]], rank: Callable[[F], Any]
) -> list[Trial[S, F]]:
  """The trials, best first; those of rank NaN come last."""

  def place(one: Trial[S, F]) -> tuple[bool, Any]:
    key = rank(one.found)
    failed = isinstance(key, float) and math.isnan(key)
    return failed, 0 if failed else key

  return sorted(trials, key=place)


def _key(setting: Any) -> Any:
  """A setting by which it is found again; a dict in any order."""
  if isinstance(setting, Mapping):
    return tuple((name, _key(setting[name])) for name in sorted(setting))
  if isinstance(setting, list | tuple):
    return tuple(map(_key, setting))
  return setting


@dataclasses.dataclass(frozen=True)
class Round:
  """A round of successive halving.

  Attributes:
    settings: number of settings, the best of the round before.
    share: fraction of the whole budget that each setting gets.
  """

  settings: int
  share: float


def rounds_of(count: int) -> tuple[Round, ...]:
  """The rounds of successive halving of `count` settings.

  Each round has half of the settings of the one before, rounded up, and twice
  the budget for each; the last one has half of the whole budget. One setting
  needs no round.
  """
  number = math.ceil(math.log2(count))
  return tuple(
    Round(math.ceil(count / 2**i), 0.5 ** (number - i)) for i in range(number)
  )


def halving(
  settings: Sequence[S],
  run: Callable[[list[S], Round], Iterable[F]],
  rank: Callable[[F], Any],
) -> list[tuple[Round, list[Trial[S, F]]]]:
  """Successive halving: many settings for a short time, the best for longer.

  Args:
    settings: at least one, no two alike.
    run: runs settings in a round, and returns a result for each.
    rank: sort key of a result; the best has the smallest.

  Returns:
    Each round with what was tried in it, best first. The best setting is the
    first one of the last round; there is no round for a single setting.

  References:
    Jamieson, Talwalkar, 2015. https://arxiv.org/abs/1502.07943.
  """
  found: list[tuple[Round, list[Trial[S, F]]]] = []
  left = list(settings)
  for one in rounds_of(len(left)):
    chosen = left[: one.settings]
    results = zip(chosen, run(chosen, one), strict=True)
    trials = _ranked([Trial(*pair) for pair in results], rank)
    found.append((one, trials))
    left = [trial.setting for trial in trials]
  return found
