"""The sentence with which a comparison ends: which method to take, and why.

The best mean decides, by the rule of `spread.differ`. Among the methods that it
does not tell apart, one that learns with every seed comes before one that
learns with some of them, by `spread.less_reliable`. Where seeds differ widely
the sentence gives their range.
"""

from collections.abc import Sequence
import math
from typing import Any

from cxjax.analysis import spread


def sentence(found: Any) -> str:
  """Says which method to take, and why.

  Args:
    found: a `Comparison`.

  Returns:
    One sentence.
  """
  best, chosen = found.best, found.preferred
  if math.isnan(best.mean):
    return _all_diverged(found)
  others = [one for one in found.contenders if one is not best]
  if not others:
    text = (
      f'There is nothing to compare {_named(best)} with: {found.metric} '
      f'{_shown(best)}'
    )
  elif len(best.scores) == 1:
    text = (
      f'{_named(best)} came out best, with {found.metric} {_shown(best)}, but '
      'one seed says nothing of the spread: repeat it with three or more'
    )
  else:
    text = _chosen(found, chosen)
  if found.predicted_steps is not None:
    text = (
      f'A prediction for {found.predicted_steps:,} steps of {found.reference}, '
      f'from {100 * found.share:.3g}% of their budget: {text}'
    )
  return f'{text}.'


def _all_diverged(found: Any) -> str:
  """Says that no method trained all of its students."""
  if not any(math.isfinite(s) for c in found.contenders for s in c.scores):
    return 'Every method diverged: try lower learning rates.'
  each = '; '.join(
    f'{c.method}, {spread.shown(c.scores)}' for c in found.ranked
  )
  return (
    f'No method trained all of its students ({each}): try lower learning rates.'
  )


def _chosen(found: Any, chosen: Any) -> str:
  """Says which of several methods to take, with several seeds."""
  reliable = list(filter(found.is_reliable, found.candidates))
  uneven = [one for one in found.candidates if one not in reliable]
  ties = [
    one
    for one in reliable
    if one is not chosen and not spread.differ(one.scores, chosen.scores)
  ]
  score = f'{found.metric} {_shown(chosen)}'
  if uneven:
    higher = found.kind.higher_is_better
    worst = min(chosen.scores) if higher else max(chosen.scores)
    bound = 'at least' if higher else 'at most'
    score = f'{found.metric} {_moments(chosen)}, every seed {bound} {worst:.4g}'
  if ties:
    mean = (
      'the best mean of those that are reliable' if uneven else 'the best mean'
    )
    text = f'{_named(chosen)} has {mean}, {score}{_tied(chosen, ties)}'
  elif not uneven:
    text = (
      f'Take {_named(chosen)}: {score}, better than every other method'
      f'{" of several seeds" if _single(found) else ""} by more than the spread'
    )
  else:
    text = f'Take {_named(chosen)}: {score}'
  return ''.join([text, *_asides(found, uneven)])


def _tied(chosen: Any, ties: Sequence[Any]) -> str:
  """Says which methods cannot be told from the chosen one, and why."""
  few = [one for one in ties if spread.apart(one.scores, chosen.scores)]
  close = [one for one in ties if one not in few]
  text = ''
  if close:
    text = (
      f', but {_listed(close)} within the spread: choose among them by other '
      f'reasons, or take more seeds{_cheapest([chosen, *close])}'
    )
  if few:
    text += (
      f'; {_listed(few)} apart from it by more than the spread, but '
      f'{len(chosen.scores)} seeds are too few for the test: take more'
    )
  return text


def _listed(some: Sequence[Any]) -> str:
  """Names of methods and their verb."""
  names = ', '.join(map(_ranged, some))
  return f'{names} {"are" if len(some) > 1 else "is"}'


def _asides(found: Any, uneven: Sequence[Any]) -> list[str]:
  """Clauses about seeds that differ widely, are single, or diverged."""
  clauses = []
  for one in uneven:
    better = ' has a better mean but' if one is found.best else ''
    clauses.append(
      f'; {one.method}{better} is less reliable, with '
      f'{spread.shown(one.scores)}'
    )
  for one in _single(found):
    clauses.append(
      f'; {one.method} has one seed ({one.mean:.4g}), so it may be as good'
    )
  for one in found.contenders:
    if math.isnan(one.mean):
      clauses.append(f'; {one.method}: {spread.shown(one.scores)}')
  return clauses


def _single(found: Any) -> list[Any]:
  """Methods with one score, as of students that end alike."""
  return [
    one
    for one in found.contenders
    if len(one.scores) == 1 and math.isfinite(one.mean)
  ]


def _named(one: Any) -> str:
  return f'{one.method} at a learning rate of {one.rate:g}'


def _moments(one: Any) -> str:
  width = spread.sd(one.scores)
  return f'{one.mean:.4g}' + ('' if width is None else f' +- {width:.2g}')


def _shown(one: Any) -> str:
  """Mean and spread of a method, with the range of seeds that differ widely."""
  ends = f' ({spread.shown(one.scores)})' if spread.wide(one.scores) else ''
  return f'{_moments(one)}{ends}'


def _ranged(one: Any) -> str:
  """A method by name, with the range of its seeds if they differ widely."""
  ends = f' ({spread.shown(one.scores)})' if spread.wide(one.scores) else ''
  return f'{one.method}{ends}'


def _cheapest(equals: Sequence[Any]) -> str:
  """A clause with a reason to take one of several methods, if there is one."""
  for cost, why in (
    (lambda one: one.flops, 'takes the fewest FLOPs'),
    (lambda one: one.steps, 'takes the fewest steps'),
  ):
    low, *others = sorted(map(cost, equals))
    if others[0] > 1.05 * low:
      return f'; {min(equals, key=cost).method} {why}'
  return ''
