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
  'number of pairs; otherwise they are within the spread.'
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
    True, or False for methods within the spread; None if one of them has a
    single score, whose spread nobody knows. A score that is not finite is that
    of a failure: such a method differs from one without.
  """
  finite = [bool(np.isfinite(scores).all()) for scores in (a, b)]
  if not all(finite):
    return any(finite)
  widths = sd(a), sd(b)
  if widths[0] is None or widths[1] is None:
    return None
  apart = math.fabs(float(np.mean(a) - np.mean(b))) > widths[0] + widths[1]
  return apart and welch(a, b) < LEVEL


def ties(scores: Mapping[str, Sequence[float]]) -> list[tuple[str, str]]:
  """Pairs of methods that are within the spread, by `differ`."""
  return [
    (a, b)
    for a, b in itertools.combinations(scores, 2)
    if differ(scores[a], scores[b]) is False
  ]


def verdict(scores: Mapping[str, Sequence[float]]) -> str:
  """The rule, and which methods are within the spread of each other.

  Args:
    scores: of each method, one for each seed.

  Returns:
    A paragraph; '' for a single method.
  """
  if len(scores) < 2:
    return ''
  single = [name for name, found in scores.items() if len(found) < 2]
  found = [f'{a} and {b}' for a, b in ties(scores)]
  text = f'{RULE} Within the spread: {"; ".join(found) or "none"}.'
  if single:
    text += f' Unknown, because of one seed: {", ".join(single)}.'
  return text
