"""Results of a comparison: a table, a picture, and what follows from them."""

import dataclasses
import math
import pathlib
from typing import Any
from typing import TypeAlias

import numpy as np

from cxjax import checks
from cxjax import files
from cxjax import tables
from cxjax import types
from cxjax.analysis import spread
from cxjax.api import advice as advice_lib
from cxjax.training import metrics as metrics_lib

Row: TypeAlias = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Contender:
  """A method at its best learning rate, trained with every seed.

  Attributes:
    method: its name in the comparison.
    plan: plan that was trained.
    rate: peak learning rate.
    params: parameters of the best student, in the form that it came in.
    students: the parameters of all students.
    scores: score of each student by the first metric.
    history: records of the run, as of `distill`.
    steps: number of updates.
    stage_flops: FLOPs of a step in each stage, as `Comparison.charged` says.
    at_edge: the rate is the lowest or the highest of several that were tried.
  """

  method: str
  plan: Any = dataclasses.field(repr=False)
  rate: float
  params: Any = dataclasses.field(repr=False)
  students: list[Any] = dataclasses.field(repr=False)
  scores: tuple[float, ...]
  history: list[types.Record] = dataclasses.field(repr=False)
  steps: int
  stage_flops: tuple[float, ...]
  at_edge: bool = False

  @property
  def mean(self) -> float:
    """Mean score; NaN if a student diverged."""
    return float(np.mean(self.scores))

  @property
  def flops(self) -> float:
    """FLOPs of one student, with or without its teacher's passes."""
    return self.flops_until(self.steps)

  def flops_until(self, step: int) -> float:
    """FLOPs of the first `step` steps."""
    found = 0.0
    for stage, flops in zip(self.plan.stages, self.stage_flops, strict=True):
      taken = min(stage.steps, step)
      found, step = found + taken * flops, step - taken
    return found


@dataclasses.dataclass(frozen=True)
class Comparison(tables.Printed):
  """Result of `compare`; prints as a table with its conclusion.

  Attributes:
    contenders: the methods, in the order in which they were given.
    trials: rows of the search, one for each method, round and learning rate.
    metric: name of the metric that decides.
    kind: the metric.
    batch_size: examples of a step.
    description: text on the methods, the search and its cost, which `compare`
      reports before it begins, and `write` puts above the table.
    reference: the method whose steps are the budget.
    predicted_steps: its number of steps, if the comparison was made at a part
      of the budget; else None.
    share: fraction of the budget at which it was made.
    charged: whether FLOPs include the teacher's passes; if not, targets count
      as stored.
  """

  contenders: tuple[Contender, ...]
  trials: tuple[Row, ...] = dataclasses.field(repr=False)
  metric: str
  kind: metrics_lib.Metric = dataclasses.field(repr=False)
  batch_size: int
  description: str = dataclasses.field(default='', repr=False)
  reference: str = ''
  predicted_steps: int | None = None
  share: float = 1.0
  charged: bool = True

  @property
  def best(self) -> Contender:
    """The method with the best mean score."""
    return self.ranked[0]

  @property
  def ranked(self) -> list[Contender]:
    """The methods, best first; those with a student that diverged come last."""
    sign = -1 if self.kind.higher_is_better else 1
    failed = lambda one: sum(math.isnan(score) for score in one.scores)
    key = lambda one: (failed(one), 0 if failed(one) else sign * one.mean)
    return sorted(self.contenders, key=key)

  @property
  def candidates(self) -> list[Contender]:
    """The best method and those that do not differ from it, in order.

    They are within its spread, or the seeds are too few to tell.
    """
    scores = self.best.scores
    return [
      one
      for one in self.ranked
      if one is self.best or spread.differ(one.scores, scores) is False
    ]

  def is_reliable(self, one: Contender) -> bool:
    """Decides if no method of `candidates` is more reliable."""
    higher = self.kind.higher_is_better
    return not any(
      spread.less_reliable(one.scores, other.scores, higher)
      for other in self.candidates
    )

  @property
  def preferred(self) -> Contender:
    """The method with the best mean of the candidates that are reliable."""
    return next(filter(self.is_reliable, self.candidates))

  @property
  def rows(self) -> list[Row]:
    """Settings, costs, scores and the verdict, a row for each method."""
    return [self._row(one) for one in self.contenders]

  @property
  def within_spread(self) -> list[tuple[str, str]]:
    """Pairs of methods whose difference is within the spread."""
    return spread.ties(self._scores)

  @property
  def _scores(self) -> dict[str, tuple[float, ...]]:
    return {one.method: one.scores for one in self.contenders}

  def _row(self, one: Contender) -> Row:
    finite = [score for score in one.scores if math.isfinite(score)]
    width = spread.sd(one.scores)
    digits = lambda value: None if value is None else float(f'{value:.4g}')
    return {
      'method': one.method,
      'learning rate': one.rate,
      'steps': one.steps,
      'examples': one.steps * self.batch_size,
      'TFLOP': float(f'{one.flops / 1e12:.4g}'),
      f'{self.metric}: mean': digits(one.mean),
      'sd': digits(width),
      'min': digits(min(finite, default=math.nan)),
      'max': digits(max(finite, default=math.nan)),
      'diverged': len(one.scores) - len(finite),
      'against the best': self._verdict(one),
    }

  def _verdict(self, one: Contender) -> str:
    if math.isnan(one.mean):
      return 'diverged'
    if one is self.best:
      return 'best' if self.is_reliable(one) else 'best mean, less reliable'
    differs = spread.differ(one.scores, self.best.scores)
    if differs is None:
      return 'unknown: one seed'
    if differs:
      return 'worse'
    if not self.is_reliable(one):
      return 'less reliable'
    if spread.apart(one.scores, self.best.scores):
      return 'unknown: too few seeds'
    return 'within the spread'

  @property
  def advice(self) -> str:
    """One sentence that follows from the numbers; see `advice.py`."""
    return advice_lib.sentence(self)

  @property
  def notes(self) -> list[str]:
    """Reasons for which the comparison may mislead."""
    edge = [one.method for one in self.contenders if one.at_edge]
    found = [text for text in map(self._undecided, self.contenders) if text]
    if edge:
      found.append(
        'The best learning rate is the lowest or the highest that was tried '
        f'for {", ".join(edge)}: other rates may be better.'
      )
    if self.predicted_steps is not None:
      found.append(
        f'Made at {100 * self.share:.3g}% of the budget: a method that starts '
        'slowly may win at the whole.'
      )
    return found

  def _undecided(self, one: Contender) -> str:
    """Says that the search could not tell the rates of a method apart."""
    width = spread.sd(one.scores)
    rows = [row for row in self.trials if row['method'] == one.method]
    scores = [r[self.metric] for r in rows if r['steps'] == rows[0]['steps']]
    if len(scores) < 2 or not width:
      return ''
    low, high = np.min(scores), np.max(scores)
    if not high - low <= 2 * width:  # NaN, of a failure, is a difference.
      return ''
    return (
      f'In the search for {one.method} all rates scored alike, from {low:.4g} '
      f'to {high:.4g}, no further apart than two standard deviations of its '
      f'seeds: {one.rate:g} is a guess.'
    )

  def markdown(self) -> str:
    """The table, the rule of the spread, notes, and one sentence of advice."""
    parts = [
      tables.markdown(self.rows).rstrip('\n'),
      spread.verdict(self._scores, self.kind.higher_is_better),
      *self.notes,
      self.advice,
    ]
    return '\n\n'.join(filter(None, parts))

  @property
  def page(self) -> str:
    """The description and the result of `markdown`, as in comparison.md."""
    return '\n\n'.join(filter(None, [self.description, self.markdown()]))

  def plot(self, path: str | pathlib.Path) -> None:
    """Plots the metric against FLOPs for every method, as PNG.

    Args:
      path: the file; its folder must exist.

    Raises:
      UserError: the file cannot be written, or the path is that of a folder.
    """
    path = checks.file('path', path)
    # Imported here, as matplotlib is slow to import.
    from cxjax.analysis import plots

    histories = {
      one.method: [
        {**record, 'step': one.flops_until(record['step']) / 1e12}
        for record in one.history
      ]
      for one in self.contenders
    }
    plots.curves(
      histories,
      self.metric,
      f'held-out {self.metric}',
      path,
      xlabel='TFLOP of a student, '
      + ('its teacher included' if self.charged else 'without its teacher'),
    )

  def write(self, folder: str | pathlib.Path) -> None:
    """Writes comparison.{md,csv,png} and search.csv into a folder."""
    folder = checks.path('folder', folder)
    files.write_text(folder / 'comparison.md', f'{self.page}\n')
    tables.write_csv(folder / 'comparison.csv', self.rows)
    if self.trials:
      tables.write_csv(folder / 'search.csv', self.trials)
    self.plot(folder / 'comparison.png')
