"""Spread of scores over seeds, and the rule by which two methods differ."""

from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import math

from jax.scipy import special
import numpy as np

LEVEL = 0.05
RULE = (
  'Two methods differ if their intervals mean +- sd over the seeds do not '
  f"overlap and Welch's t-test has p < {LEVEL:g}, without a correction for the "
  'number of pairs. They are within the spread if the intervals overlap. If '
  'neither holds, the seeds are too few to tell.'
)

# Range of the seeds of a method, relative to the largest score, beyond which
# they differ widely.
WIDE = 0.05
# Seeds without which two equal scores may be chance.
FEW = 3
RELIABLE = (
  f'A method of {FEW} seeds or more is less reliable than another within its '
  'spread, of as many, if its seeds '
  f'differ by more than {WIDE:.0%} of the largest score, an F-test finds their '
  f'variance larger, with p < {LEVEL:g}, and every seed of the other lies in '
  'the better half of the range of its seeds, or beyond.'
)


def sd(scores: Sequence[float]) -> float | None:
  """Standard deviation of a sample, of `n - 1` degrees; None for one score."""
  return float(np.std(scores, ddof=1)) if len(scores) > 1 else None


def welch(a: Sequence[float], b: Sequence[float]) -> float:
  """Two-sided p-value of Welch's t-test.

  Args:
    a: at least two scores.
    b: at least two others.

  Returns:
    The probability of means that are as far apart, if those of the populations
    are equal.

  References:
    Welch, 1947. The generalization of "Student's" problem.
  """
  errors = [np.var(scores, ddof=1) / len(scores) for scores in (a, b)]
  total, distance = sum(errors), float(np.mean(a) - np.mean(b))
  if total == 0:
    return float(distance == 0)
  degrees = total**2 / sum(
    error**2 / (len(scores) - 1)
    for error, scores in zip(errors, (a, b), strict=True)
  )
  # Of Student's t: a float32 of 1e-30 counts as 0, which is near enough.
  at = degrees / (degrees + distance**2 / total)
  return float(special.betainc(degrees / 2, 0.5, at))


def differ(a: Sequence[float], b: Sequence[float]) -> bool | None:
  """Decides by `RULE` if two methods differ.

  Args:
    a: scores of one method, one for each seed.
    b: scores of another.

  Returns:
    True or False; None if one of them has a single score, whose spread nobody
    knows. A score that is not finite is that of a failure: such a method
    differs from one without.
  """
  finite = [bool(np.isfinite(scores).all()) for scores in (a, b)]
  if not all(finite):
    return any(finite)
  if len(a) == 1 or len(b) == 1:
    return None
  return apart(a, b) and welch(a, b) < LEVEL


def apart(a: Sequence[float], b: Sequence[float]) -> bool:
  """True if the intervals of mean +- sd of two methods do not overlap."""
  widths = (sd(a) or 0.0) + (sd(b) or 0.0)
  return math.fabs(float(np.mean(a) - np.mean(b))) > widths


def wide(scores: Sequence[float]) -> bool:
  """Decides if the seeds of a method differ widely, by `WIDE`.

  Args:
    scores: scores of a method, one for each seed; those that are not finite
      count as seeds that failed.

  Returns:
    True if some seeds failed and some did not, or if the finite ones differ by
    more than `WIDE` of the largest of them in size.
  """
  finite = [score for score in scores if math.isfinite(score)]
  if not finite or len(finite) < len(scores):
    return bool(finite)
  return max(finite) - min(finite) > WIDE * max(map(abs, finite))


def larger_variance(a: Sequence[float], b: Sequence[float]) -> float:
  """One-sided p-value of the F-test of two variances.

  Args:
    a: at least two scores.
    b: at least two others.

  Returns:
    The probability of a ratio of the variances of `a` and `b` that is as large,
    if those of the populations are equal.
  """
  first, second = (float(np.var(scores, ddof=1)) for scores in (a, b))
  if first == 0:
    return 1.0
  degrees = len(a) - 1, len(b) - 1
  at = degrees[1] * second / (degrees[1] * second + degrees[0] * first)
  return float(special.betainc(degrees[1] / 2, degrees[0] / 2, at))


def less_reliable(
  a: Sequence[float], b: Sequence[float], higher_is_better: bool = True
) -> bool:
  """Decides by `RELIABLE` if a method is less reliable than another.

  It tells a method that learns with some seeds alone from one that learns with
  all, where the first has too wide a spread for a difference of means.

  Args:
    a: scores of the method, one for each seed.
    b: scores of the other.
    higher_is_better: whether a higher score of the metric is better.

  Returns:
    True if it is. False for less than `FEW` scores, and for methods with a
    score that is not finite, which differ by `differ` from those without.
  """
  finite = all(bool(np.isfinite(scores).all()) for scores in (a, b))
  if min(len(a), len(b)) < FEW or not finite or not wide(a):
    return False
  sign = 1 if higher_is_better else -1
  a, b = [sign * x for x in a], [sign * x for x in b]
  above = min(b) >= (max(a) + min(a)) / 2
  return above and larger_variance(a, b) < LEVEL


def shown(scores: Sequence[float]) -> str:
  """The lowest and the highest of the finite scores, and those that failed."""
  finite = [score for score in scores if math.isfinite(score)]
  if len(finite) < len(scores):
    return f'{len(scores) - len(finite)} of {len(scores)} seeds diverged'
  return f'seeds from {min(finite):.4g} to {max(finite):.4g}'


def ties(scores: Mapping[str, Sequence[float]]) -> list[tuple[str, str]]:
  """Pairs of methods that are within the spread of one another, by `RULE`."""
  known = {
    name: found
    for name, found in scores.items()
    if len(found) > 1 and np.isfinite(found).all()
  }
  return [
    (a, b)
    for a, b in itertools.combinations(known, 2)
    if not apart(known[a], known[b])
  ]


def groups(scores: Mapping[str, Sequence[float]]) -> list[list[str]]:
  """Largest sets of methods of which every two are within the spread.

  Args:
    scores: scores of each method by its name, one for each seed.

  Returns:
    The sets of two and more, each in the order of `scores`; a method may be in
    several (Bron and Kerbosch, 1973).
  """
  near: dict[str, set[str]] = {name: set() for name in scores}
  for a, b in ties(scores):
    near[a].add(b)
    near[b].add(a)
  found: list[list[str]] = []

  def grow(chosen: list[str], left: list[str], done: set[str]) -> None:
    if not left and not done and len(chosen) > 1:
      found.append(chosen)
    for i, name in enumerate(left):
      after = [other for other in left[i + 1 :] if other in near[name]]
      before = (done | set(left[:i])) & near[name]
      grow([*chosen, name], after, before)

  grow([], list(scores), set())
  return found


def verdict(
  scores: Mapping[str, Sequence[float]], higher_is_better: bool = True
) -> str:
  """The rule, and which methods are within the spread of one another.

  Args:
    scores: scores of each method by its name, one for each seed.
    higher_is_better: whether a higher score of the metric is better.

  Returns:
    A paragraph; '' for a single method.
  """
  if len(scores) < 2:
    return ''
  single = [name for name, found in scores.items() if len(found) < 2]
  found = [f'{", ".join(some[:-1])} and {some[-1]}' for some in groups(scores)]
  text = f'{RULE} Within the spread of one another: '
  text += f'{"; ".join(found) or "none"}.'
  if single:
    text += f' Unknown, because of one seed: {", ".join(single)}.'
  uneven = []
  for name, own in scores.items():
    others = [
      other
      for other, theirs in scores.items()
      if less_reliable(own, theirs, higher_is_better)
      and differ(own, theirs) is False
    ]
    if others:
      uneven.append(f'{name} ({shown(own)}) than {", ".join(others)}')
  if uneven:
    text += f' {RELIABLE} Less reliable: {"; ".join(uneven)}.'
  return text
