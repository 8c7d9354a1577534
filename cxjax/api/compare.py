"""Comparison of methods for one teacher, one student and one budget."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from cxjax import arguments
from cxjax import checks
from cxjax import errors
from cxjax import folders
from cxjax import settings
from cxjax import tables
from cxjax import types
from cxjax.api import budgets
from cxjax.api import comparison
from cxjax.api import contest
from cxjax.api import feature_axes
from cxjax.api import fit_batches
from cxjax.api import held_out as held_out_lib
from cxjax.api import matching
from cxjax.api import mode_warnings
from cxjax.api import named_plans
from cxjax.api import placement
from cxjax.api import plan as plan_lib
from cxjax.api import starts as starts_lib
from cxjax.methods import flops as flops_lib
from cxjax.models import adapters
from cxjax.training import metrics as metrics_lib
from cxjax.training import optimizers

# Compared unless others are asked for; the first without labels.
METHODS = ('one_shot', 'extracted', 'fitnets', 'joint')
LABELED = ('supervised', 'extracted_labels')
# Where it can be fitted: not to layers that are wider than the teacher's, or
# than the batches have examples.
FITTED = 'extracted_pca_rotated_labels'
RATES = (1e-3, 3e-3, 1e-2)
SHARE = arguments.Range(0, 1, ends=(False, True))
# Of each stage. Without one transformers may not learn at a rate that they bear
# with it, and methods would be told apart by that.
WARMUP = 0.06
# Arguments of `distill` that a comparison passes on.
OPTIONS = (
  'last_batch',
  'microbatches',
  'mesh',
  'trainable',
  'fit_on',
  'optimizer',
)


@settings.own()
@mode_warnings.once()
def compare(
  teacher: adapters.ModelAdapter,
  student: starts_lib.Student,
  batches: Iterable[Any],
  *,
  held_out: Any,
  num_steps: int,
  methods: named_plans.Methods | None = None,
  rates: Sequence[float] = RATES,
  seeds: int = 3,
  equal: str = 'flops',
  budget: float = 1.0,
  layers: matching.Layers = None,
  loss: str | types.Loss = 'kl',
  temperature: float = 1.0,
  alpha: float = 0.0,
  dtype: Any = None,
  vocab: int | None = None,
  feature_axis: feature_axes.FeatureAxis = None,
  metrics: Any = None,
  workdir: str | pathlib.Path | None = None,
  costs: str = 'compiled',
  report: Callable[[str], Any] = print,
  **options: Any,
) -> comparison.Comparison:
  """Compares methods, each with the same search and the same budget.

  Every method is searched over the same learning rates by successive halving:
  each round has half of the rates of the one before and twice its steps; the
  last round has half of the budget. Each run is a whole, shorter curriculum
  with its own schedule. The search uses the first seed alone. Then the best
  rate of each method is trained with all seeds for the whole budget. Rates of a
  round and seeds train side by side on the same batches, and the teacher sees
  each batch once. The cost is reported before anything is trained.

  Args:
    teacher: the trained model.
    student: one fresh student, from which other starts are drawn for the other
      seeds; a list with one student per seed; or a function `seed -> student`.
    batches: training batches, as for `distill`. Every method reads the same
      ones: a list, or a loader that gives the same batches in the same order
      each time it is iterated. One that shuffles anew is refused.
    held_out: examples to evaluate on, as for `distill`.
    num_steps: steps of 'one_shot', or of the first method without it; with
      `equal='steps'` of every method.
    methods: names of registered methods, or a dict with names of your choice
      for plans of these models, whose stages keep their shares, and for
      options: `{'short': {'method': 'extracted', 'share': 0.1}}`. By default
      'one_shot', 'extracted', 'fitnets' and 'joint'; if the batches have class
      labels also 'supervised', 'extracted_labels' and, if there are enough
      examples to fit it, 'extracted_pca_rotated_labels'; if the teacher has
      earlier checkpoints also 'progressive'. Hidden stages have the default
      share of `plan`, unless a method has its own.
    rates: peak learning rates of Adam with a warm-up of 6% of each stage and a
      cosine, or of `optimizer`; by default 0.001, 0.003 and 0.01.
    seeds: number of students of each method, at most 10,000.
    equal: quantity that is equal for all methods: 'flops' of a student and its
      teacher; 'student_flops', of the student alone, as with stored targets;
      'steps'; 'examples', which is the same as 'steps' because batches are
      equal; or 'seconds', which is refused if timings do not repeat.
    budget: fraction of the budget to use; below 1 the result is a prediction,
      and says so.
    layers: pairs of activations, as for `plan`.
    loss: loss between the outputs, as for `plan`.
    temperature: temperature of the loss.
    alpha: weight of the labels beside the teacher's output.
    dtype: dtype to compute in.
    vocab: number of leading classes that are compared, as for `plan`.
    feature_axis: axis of the features of hidden activations, as for `plan`.
    metrics: metrics, as for `distill`; the first one decides.
    workdir: folder that keeps every run, so that the same call resumes, and
      gets comparison.{md,csv,png} and search.csv.
    costs: how FLOPs are found, 'compiled' or 'counted'.
    report: function that is called with the cost before anything is trained,
      and with a line for each method.
    **options: options of `distill`: `last_batch`, `microbatches`, `mesh`,
      `trainable`, `fit_on` and `optimizer`. The latter is a dict of the fields
      that differ, `{'name': 'adamw', 'warmup': 0.0}`, because the search sets
      the learning rate.

  Returns:
    The comparison. `print(found)` shows it; `found.rows`, `found.plot(path)`,
    `found.preferred.params` and `found.best.plan` are its parts.

  Raises:
    UserError: methods that do not fit the models or the batches, batches that
      differ each time, a budget that is too small for the search, or timings
      that do not repeat.
  """
  num_steps = arguments.integer('num_steps', num_steps, 1, 2**31 - 1)
  errors.lookup('equal', equal, dict.fromkeys(budgets.EQUAL))
  errors.lookup('costs', costs, flops_lib.COUNTS)
  report = _reporter(report)
  options['optimizer'] = _optimizer(options)
  errors.require(
    held_out is not None, 'held_out is missing: give examples to evaluate on.'
  )
  errors.require(
    metrics is None or isinstance(metrics, Mapping | tuple | list | str),
    f"metrics={metrics!r} must be names, as ('accuracy',), or a dict of "
    'functions by name.',
  )
  share, folder = arguments.number('budget', budget, SHARE), _folder(workdir)
  seeds = arguments.integer('seeds', seeds, 1, starts_lib.MOST_SEEDS)
  begin = starts_lib.starts(student, seeds)
  planner = named_plans.Planner(
    teacher,
    begin.student,
    named_plans.example_of(batches),
    layers,
    named_plans.Output(loss, temperature, alpha, dtype, vocab),
    feature_axis,
    named_plans.plan_of_all(methods),
  )
  begin.require_one_function(planner.one_shot.batch['x'])
  chosen = _default_methods(planner) if methods is None else methods
  plans = _plans(planner, chosen, num_steps, options.get('trainable', ''))
  if methods is None and planner.has_classes:
    plans |= _fitted(planner, num_steps, options, batches, report)
  if folder is not None:
    for name in plans:
      folders.check(folder / name, f'Method {name!r} in the workdir')
  fit_on = fit_batches.shared(options.get('fit_on'), batches, *plans.values())
  placed = _placed(plans, options.get('mesh'))
  entrants = contest.Contest(
    plans=plans,
    starts=begin,
    batches=batches,
    evaluation=_evaluation(placed, held_out, metrics),
    rates=_rates(rates),
    workdir=folder,
    flops=budgets.Flops(costs, charged=equal != 'student_flops'),
    options={**options, 'fit_on': fit_on},
  )
  entrants.check_metric()
  begin.require_untrained(entrants.score(), entrants.num_examples)
  lengths = entrants.lengths(budgets.part_of(num_steps, share), equal)
  report(described := entrants.describe(lengths, equal))
  found = dataclasses.replace(
    entrants.run(lengths, report),
    description=described,
    reference=entrants.reference,
    predicted_steps=num_steps if share < 1 else None,
    share=share,
    charged=equal != 'student_flops',
  )
  if entrants.workdir is not None:
    found.write(entrants.workdir)
  return found


def advise(*args: Any, budget: float = 0.1, **kwargs: Any) -> Any:
  """A quick comparison, at a tenth of the budget, that predicts the whole.

  Args:
    *args: positional arguments of `compare`.
    budget: part of the budget.
    **kwargs: keyword arguments of `compare`.

  Returns:
    The comparison, which says that it is a prediction.
  """
  return compare(*args, budget=budget, **kwargs)


def _reporter(report: Any) -> contest.Report:
  """The function that is called with texts; stdout may be closed."""
  arguments.function('report', report, 'print')
  return tables.show if report is print else report


def _optimizer(options: dict[str, Any]) -> dict[str, Any]:
  """Fields of the optimizer; raises UserError for options it has not."""
  for name in options:
    errors.lookup('option', name, dict.fromkeys(OPTIONS))
  optimizer = options.get('optimizer')
  errors.require(
    optimizer is None or isinstance(optimizer, Mapping),
    f'optimizer={str(optimizer)[:60]} must be a dict of its fields, as '
    "{'name': 'adamw', 'warmup': 0.05}: the rates are those of the search.",
  )
  found = {'warmup': WARMUP, **(optimizer or {})}
  optimizers.named(found)
  return found


def _folder(workdir: Any) -> pathlib.Path | None:
  """The folder that keeps the runs; raises UserError for one that cannot."""
  if workdir is None:
    return None
  errors.require(
    isinstance(workdir, str | os.PathLike) and bool(workdir),
    f'workdir={workdir!r} must be a folder, or None to keep nothing.',
  )
  found = checks.path('workdir', workdir)
  folders.check(found)
  return found


def _rates(rates: Any) -> tuple[float, ...]:
  """The learning rates, lowest first; raises UserError for anything else."""
  errors.require(
    (isinstance(rates, Sequence) and not isinstance(rates, str))
    or (isinstance(rates, np.ndarray) and rates.ndim == 1),
    f'rates={rates!r} must be learning rates, as (1e-3, 1e-2).',
  )
  errors.require(len(rates) > 0, 'rates is empty: give one at least.')
  found = optimizers.peak_learning_rates(
    [arguments.plain(r) for r in rates], len(rates)
  )
  assert isinstance(found, tuple)
  errors.require(
    len(set(found)) == len(found), f'rates={rates!r} has a rate twice.'
  )
  return tuple(sorted(found))


def _default_methods(planner: named_plans.Planner) -> tuple[str, ...]:
  """The methods that can always be planned for the models and the batches."""
  labeled = LABELED if planner.has_classes else ()
  stored = ('progressive',) if planner.has_checkpoints else ()
  return (*labeled, *METHODS, *stored)


def _fitted(
  planner: named_plans.Planner,
  num_steps: int,
  options: Mapping[str, Any],
  batches: Any,
  report: contest.Report,
) -> dict[str, plan_lib.Plan]:
  """The plan of `FITTED`, if it can be fitted; else what is missing is said."""
  try:
    found = _plans(planner, [FITTED], num_steps, options.get('trainable', ''))
  except errors.UserError as error:
    reason = str(error)
  else:
    fit_on = fit_batches.shared(options.get('fit_on'), batches, *found.values())
    reason = fit_batches.lacking(found[FITTED], fit_on)
  if not reason:
    return found
  report(f'{FITTED} is left out. {reason}')
  return {}


def _plans(
  planner: named_plans.Planner, methods: Any, num_steps: int, trainable: Any
) -> dict[str, plan_lib.Plan]:
  """The plans of the methods, whose costs are those of what is trained."""
  plans = {
    name: planner.plan(name, entry, num_steps)
    for name, entry in named_plans.entries(methods).items()
  }
  if isinstance(trainable, str) and not trainable:
    return plans
  return {
    name: budgets.trained(plan, trainable) for name, plan in plans.items()
  }


def _placed(
  plans: dict[str, plan_lib.Plan], mesh: Any
) -> dict[str, plan_lib.Plan]:
  """The plans with their parameters on the devices of their runs."""
  return {
    name: placement.placed(plan, placement.layout(plan, mesh))
    for name, plan in plans.items()
  }


def _evaluation(
  plans: dict[str, plan_lib.Plan], held_out: Any, metrics: Any
) -> held_out_lib.Evaluation:
  """The evaluation that all methods have; raises UserError if they differ."""
  first, *others = plans
  evaluate = lambda name, held_out: held_out_lib.evaluation(
    plans[name], held_out, 'held_out', metrics
  )
  found = evaluate(first, held_out)
  metrics_lib.require_direction(*next(iter(found.metrics.items())))
  if hasattr(held_out, '__next__'):  # It is read.
    held_out = found.read
  by = lambda one: 'the labels' if one.by_labels else "the teacher's outputs"
  for name in others:
    other = evaluate(name, held_out)
    errors.require(
      (found.by_labels, list(found.metrics))
      == (other.by_labels, list(other.metrics)),
      f'Method {first!r} is evaluated by {by(found)}, as '
      f'{", ".join(found.metrics)}, and {name!r} by {by(other)}, as '
      f'{", ".join(other.metrics)}: they cannot be compared. Give metrics, or '
      'leave one of them out.',
    )
    errors.require(
      named_plans.same(found.counted, other.counted),
      f'The masks of {first!r} and {name!r} leave other tokens or examples of '
      'held_out out: they cannot be compared. Give plans with one mask as '
      'methods; a method by name has none.',
    )
  return found
