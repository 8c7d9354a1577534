"""The runs of a comparison: a search for each method, then its final run."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import fractions
import functools
import math
import pathlib
from typing import Any
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from cxjax import errors
from cxjax import tables
from cxjax import types
from cxjax.analysis import search as search_lib
from cxjax.analysis import spread
from cxjax.api import budgets
from cxjax.api import comparison
from cxjax.api import distill as distill_lib
from cxjax.api import fit_batches
from cxjax.api import held_out as held_out_lib
from cxjax.api import plan as plan_lib
from cxjax.api import starts as starts_lib
from cxjax.training import evaluation as evaluation_lib
from cxjax.training import optimizers

# The method whose cost in `num_steps` is the budget, if it is compared.
REFERENCE = 'one_shot'
CHARGED = {
  'flops': 'FLOPs, the teacher charged,',
  'student_flops': 'FLOPs of the student, as with stored targets,',
}
Report: TypeAlias = Callable[[str], Any]


def reference_of(names: Iterable[str]) -> str:
  """The method whose cost is the budget: 'one_shot', or else the first."""
  names = list(names)
  return REFERENCE if REFERENCE in names else names[0]


def require_steps(name: str, stages: int, steps: int, rates: int) -> None:
  """Raises UserError for fewer steps than the first round of a search needs.

  Args:
    name: name of the method.
    stages: number of its stages, each of which needs a step.
    steps: number of its steps in the whole budget.
    rates: number of learning rates.
  """
  share = next((one.share for one in search_lib.rounds_of(rates)), 1.0)
  errors.require(
    int(steps * share) >= stages,
    f'The budget is too small: it gives method {name!r}, of {stages} '
    f'stage{"s" * (stages > 1)}, {steps} steps, and {int(steps * share)} of '
    'them in the first round of the search. It needs '
    f'{math.ceil(stages / share)} steps: raise num_steps or budget, or give '
    'fewer rates.',
  )


@dataclasses.dataclass(frozen=True)
class Contest:
  """All that the methods of a comparison share.

  Attributes:
    plans: plans of the methods, by name.
    starts: students at their start, one for each seed.
    batches: training batches, which every run reads anew.
    evaluation: the held-out set and the metrics.
    rates: learning rates, lowest first.
    workdir: folder of all runs, or None.
    flops: function that returns the FLOPs of a step of a plan.
    options: options of `distill`.
  """

  plans: dict[str, plan_lib.Plan]
  starts: starts_lib.Starts
  batches: Any
  evaluation: held_out_lib.Evaluation
  rates: tuple[float, ...]
  workdir: pathlib.Path | None
  flops: budgets.Flops
  options: dict[str, Any]

  @functools.cached_property
  def metric(self) -> str:
    """Name of the metric that decides."""
    return next(iter(self.evaluation.metrics))

  @functools.cached_property
  def examples(self) -> types.Batch:
    """The held-out set as `distill` takes it."""
    unread = () if self.evaluation.by_labels else ('y',)
    read = self.evaluation.read
    return {name: v for name, v in read.items() if name not in unread}

  @property
  def rounds(self) -> tuple[search_lib.Round, ...]:
    """The rounds of each search."""
    return search_lib.rounds_of(len(self.rates))

  @property
  def reference(self) -> str:
    """The method whose cost is the budget."""
    return reference_of(self.plans)

  def lengths(self, num_steps: int, equal: str) -> dict[str, int]:
    """Number of steps of each method.

    Args:
      num_steps: number of steps of the reference.
      equal: quantity that is equal, one of `budgets.EQUAL`.

    Returns:
      Steps by method.

    Raises:
      UserError: the budget is too small for a round of the search.
    """
    self._check_length(self.reference, num_steps)
    found = dict.fromkeys(self.plans, num_steps)
    if equal in ('flops', 'student_flops', 'seconds'):
      price: budgets.Price = self.flops
      if equal == 'seconds':
        price = budgets.Seconds(
          self.batches, self.examples, self.options, self.workdir
        )
      whole = budgets.scaled(self.plans[self.reference], num_steps)
      budget = budgets.total(whole, price)
      for name, plan in self.plans.items():
        found[name] = budgets.steps_for(plan, budget, price)
    for name, steps in found.items():
      self._check_length(name, steps)
    return found

  def _check_length(self, name: str, steps: int) -> None:
    require_steps(name, len(self.plans[name].stages), steps, len(self.rates))

  def describe(self, lengths: dict[str, int], equal: str) -> str:
    """Describes what is compared, how, and at what cost, before it starts.

    Args:
      lengths: steps by method.
      equal: quantity that is equal, one of `budgets.EQUAL`.

    Returns:
      Markdown.
    """
    parts = [
      f'{one.settings} for {fractions.Fraction(one.share)} of the budget'
      for one in self.rounds
    ]
    rates = ', '.join(f'{rate:g}' for rate in self.rates)
    search = f'Learning rate {rates}'
    if self.rounds:
      search = (
        f'Learning rates {rates}, by successive halving with the first seed: '
        f'{", then the best ".join(parts)}'
      )
    seeds = len(self.starts.params)
    rows = [self._cost(name, steps) for name, steps in lengths.items()]
    whole = sum(row['TFLOP in all'] for row in rows)
    same = CHARGED.get(equal, equal)
    higher = self.evaluation.metrics[self.metric].higher_is_better
    better = 'higher' if higher else 'lower'
    teacher, score = '', self.teacher_score
    if score is not None:
      teacher = f' The teacher itself has {self.metric} {score:.4g}.'
    lines = [
      f'Comparison by held-out {self.metric} ({better} is better), at equal '
      f'{same} of '
      f'{self.reference} in {lengths[self.reference]:,} steps. {search}; then '
      f'the best rate with {seeds} seed{"s" * (seeds > 1)} for the whole '
      f'budget. Optimizer: {self._optimizer()}. '
      f'{self.starts.how}{teacher}',
      tables.markdown(rows).rstrip('\n'),
      f'In all at most {whole:.3g} TFLOP; rates of a round and seeds run side '
      "by side and share the teacher's passes.",
    ]
    return '\n\n'.join(lines)

  def _optimizer(self) -> str:
    """Name and schedule of the optimizer."""
    return optimizers.describe(optimizers.named(self.options.get('optimizer')))

  @functools.cached_property
  def teacher_score(self) -> float | None:
    """Score of the teacher, if there are labels."""
    if not self.evaluation.by_labels:
      return None
    teacher = self.plans[self.reference].teacher
    evaluate = functools.partial(
      evaluation_lib.evaluate,
      apply=teacher.apply,
      metrics=self.evaluation.metrics,
    )
    scores = jax.jit(evaluate)(teacher.params, self.evaluation.held_out)
    return float(scores[self.metric])

  def check_metric(self) -> None:
    """Raises UserError if the metric is NaN for the teacher itself."""
    errors.require(
      not math.isnan(self.teacher_score or 0.0),
      f"The teacher's own {self.metric} is NaN, so it cannot compare students. "
      'Mend this metric, or let another one be the first of metrics.',
    )

  def _cost(self, name: str, steps: int) -> dict[str, Any]:
    """The row of a method in the table of costs."""
    plan, seeds = self.plans[name], len(self.starts.params)
    sizes = [(one.settings, int(steps * one.share)) for one in self.rounds]
    sizes.append((seeds, steps))
    cost = lambda n: budgets.total(budgets.scaled(plan, n), self.flops) / 1e12
    return {
      'method': name,
      'stages': ', '.join(stage.name for stage in plan.stages),
      'steps': steps,
      'student steps in all': sum(count * n for count, n in sizes),
      'TFLOP of a student': float(f'{cost(steps):.4g}'),
      'TFLOP in all': sum(count * cost(n) for count, n in sizes),
    }

  @property
  def num_examples(self) -> int:
    """Number of held-out examples."""
    leaf = jax.tree.leaves(self.evaluation.held_out['x'])[0]
    return int(leaf.shape[0])

  def score(self) -> Callable[[types.Params], float]:
    """The held-out score of a student as a function; more is better."""
    held_out, metrics = self.evaluation.held_out, self.evaluation.metrics
    if 'y' not in held_out:  # The teacher's outputs are too large to be kept.
      return lambda params: math.nan
    evaluate = functools.partial(
      evaluation_lib.evaluate,
      apply=self.plans[self.reference].student.apply,
      metrics=metrics,  # It may be the sum of others.
    )
    run = jax.jit(lambda params, batch: evaluate(params, batch)[self.metric])
    score = lambda params: float(run(params, held_out))
    return lambda params: -self._rank(score(params))

  def run(
    self, lengths: dict[str, int], report: Report
  ) -> comparison.Comparison:
    """Runs the search and the final run of every method.

    Args:
      lengths: steps by method.
      report: called with a line for each.

    Returns:
      The comparison.
    """
    contenders, trials = [], []
    for name, steps in lengths.items():
      rate, rows = self._search(name, steps)
      trials += rows
      contenders.append(self._final(name, steps, rate))
      found = contenders[-1]
      width = spread.sd(found.scores)
      report(
        f'{name}: {self.metric} {found.mean:.4g}'
        + ('' if width is None else f' +- {width:.2g}')
        + f' at a learning rate of {rate:g}, {steps:,} steps'
      )
    batch = self.plans[self.reference].batch
    return comparison.Comparison(
      contenders=tuple(contenders),
      trials=tuple(trials),
      metric=self.metric,
      kind=self.evaluation.metrics[self.metric],
      batch_size=jax.tree.leaves(batch)[0].shape[0],
    )

  def _search(
    self, name: str, steps: int
  ) -> tuple[float, list[comparison.Row]]:
    """The best learning rate of a method, and all that were tried."""

    def run(rates: list[float], one: search_lib.Round) -> list[float]:
      folder = f'{name} at {one.share:g} of the budget'
      n = int(steps * one.share)
      pairs = [(rate, 0) for rate in rates]
      return self._train(name, n, pairs, folder, n)[2]

    found = search_lib.halving(self.rates, run, self._rank)
    rows = [
      {
        'method': name,
        'share of the budget': one.share,
        'steps': int(steps * one.share),
        'learning rate': trial.setting,
        self.metric: trial.found,
      }
      for one, results in found
      for trial in results
    ]
    return (found[-1][1][0].setting if found else self.rates[0]), rows

  def _rank(self, score: float) -> float:
    """Sort key of a score; the best has the smallest."""
    if math.isnan(score):
      return math.inf
    higher = self.evaluation.metrics[self.metric].higher_is_better
    return -score if higher else score

  def _final(self, name: str, steps: int, rate: float) -> comparison.Contender:
    """A method at a learning rate, with every seed."""
    pairs = [(rate, seed) for seed in range(len(self.starts.params))]
    students, history, scores = self._train(name, steps, pairs, name, None)
    kept = starts_lib.distinct(students)  # Equal ones are no two seeds.
    students, scores = ([each[i] for i in kept] for each in (students, scores))
    best = min(range(len(scores)), key=lambda i: self._rank(scores[i]))
    plan = budgets.scaled(self.plans[name], steps)
    return comparison.Contender(
      method=name,
      plan=plan,
      rate=rate,
      params=students[best],
      students=students,
      scores=tuple(scores),
      history=history,
      steps=steps,
      stage_flops=tuple(self.flops(plan, i) for i in range(len(plan.stages))),
      at_edge=len(self.rates) > 2 and rate in (self.rates[0], self.rates[-1]),
    )

  def _train(
    self,
    name: str,
    steps: int,
    pairs: Sequence[tuple[float, int]],
    folder: str,
    eval_every: int | None,
  ) -> tuple[list[Any], list[types.Record], list[float]]:
    """Students of a method side by side.

    Args:
      name: name of the method.
      steps: number of steps of each student.
      pairs: the learning rate and the seed of each.
      folder: folder of the run, within that of the comparison.
      eval_every: steps between evaluations, as for `distill`.

    Returns:
      The students, the history, and the score of each, NaN if it diverged.
    """
    plan = budgets.scaled(self.plans[name], steps)
    starts = [self.starts.params[seed] for _, seed in pairs]
    student = dataclasses.replace(plan.student, params=starts)
    workdir = None
    if self.workdir is not None:
      workdir = self.workdir / folder
    students, history = distill_lib.distill(
      dataclasses.replace(plan, student=student),
      self.batches,
      held_out=self.examples,
      metrics=self.evaluation.metrics,
      learning_rate=[rate for rate, _ in pairs],
      seed=[seed for _, seed in pairs],
      eval_every=eval_every,
      workdir=workdir,
      diverged='keep',
      **fit_batches.needed(self.options, plan),
    )
    last = history[-1]
    scores = last[f'eval/{self.metric}']
    losses = last.get('eval/loss') or scores
    return students, history, list(map(_score, scores, losses, students))


def _score(score: float, loss: float, student: Any) -> float:
  """A score; NaN of a student that has something that is not finite."""
  real = (
    leaf
    for leaf in jax.tree.leaves(student)
    if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
  )
  finite = all(bool(np.isfinite(np.asarray(leaf)).all()) for leaf in real)
  known = finite and math.isfinite(score) and math.isfinite(loss)
  return score if known else math.nan
