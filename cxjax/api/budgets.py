"""Equal budgets: plans of other lengths, and what their steps cost."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import itertools
import math
import pathlib
import statistics
import time
from typing import Any

from absl import logging
import jax

from cxjax import errors
from cxjax import files
from cxjax import settings
from cxjax.api import costs as costs_lib
from cxjax.api import distill as distill_lib
from cxjax.api import fit_batches
from cxjax.api import plan as plan_lib
from cxjax.api import stage_identity
from cxjax.api import trainable as trainable_lib
from cxjax.methods import stage as stage_lib
from cxjax.methods import stage_plan

# What is equal; 'examples' are 'steps', as all plans have the same batches.
EQUAL = ('flops', 'student_flops', 'steps', 'examples', 'seconds')
# Steps of one timing, timings of a stage, and those of its beginning that do
# not count, in which it is compiled.
WINDOW, WINDOWS, BEGINNING = 20, 12, 3
TRUSTED = 0.1  # Largest spread of timings relative to their median.
FILE = 'seconds.json'  # Of a workdir: the timings, which decide the lengths.
# Options of `distill` that change what a step computes, beside the plan.
TIMED = ('last_batch', 'microbatches', 'mesh', 'optimizer')


def scaled(plan: plan_lib.Plan, num_steps: int) -> plan_lib.Plan:
  """A plan of another length, whose stages keep their shares.

  Args:
    plan: any plan.
    num_steps: at least one for each stage.

  Returns:
    The plan. Its FLOPs are counted: they were compiled once for all lengths.
  """
  steps = split(num_steps, [stage.steps for stage in plan.stages])
  stages = tuple(
    dataclasses.replace(stage, steps=n)
    for stage, n in zip(plan.stages, steps, strict=True)
  )
  planned = tuple(
    dataclasses.replace(one, stage=stage)
    for one, stage in zip(plan.stage_plans, stages, strict=True)
  )
  return dataclasses.replace(
    plan, stages=stages, stage_plans=planned, costs='counted'
  )


def part_of(num_steps: int, budget: float) -> int:
  """Number of steps at a part of a budget, one at least."""
  return max(round(num_steps * budget), 1)


def trained(plan: plan_lib.Plan, trainable: Any) -> plan_lib.Plan:
  """A plan whose stages cost what training some of the parameters costs.

  Args:
    plan: any plan.
    trainable: trainable parameters, as for `distill`.

  Returns:
    The plan.

  Raises:
    UserError: it stands for no parameter, or a stage trains none of them.
  """
  chosen = trainable_lib.resolved(trainable, plan.student)
  both, training = costs_lib.traced_models(plan)
  batch = jax.eval_shape(plan.with_mask, plan.batch)
  planned = tuple(
    stage_plan.plan_stage(
      stage, batch, *both, trainable=chosen, training=training
    )
    for stage in plan.stages
  )
  return dataclasses.replace(plan, stage_plans=planned)


def split(total: int, parts: Sequence[int]) -> tuple[int, ...]:
  """Splits a whole number in the proportions of `parts`, each at least 1."""
  left = total - len(parts)
  ends = [left * end // sum(parts) for end in itertools.accumulate(parts)]
  return tuple(1 + b - a for a, b in itertools.pairwise([0, *ends]))


# The cost of a step in a stage of a plan.
Price = Callable[[plan_lib.Plan, int], float]


def total(plan: plan_lib.Plan, price: Price) -> float:
  """Cost of a plan."""
  return sum(
    stage.steps * price(plan, i) for i, stage in enumerate(plan.stages)
  )


def steps_for(plan: plan_lib.Plan, budget: float, price: Price) -> int:
  """Number of steps at which a plan costs as much as a budget, or just less.

  Args:
    plan: any plan.
    budget: size of the budget, in the unit of `price`.
    price: function that returns the price of a step.

  Returns:
    The number; 0 if the budget is too small for one step of each stage.

  Raises:
    UserError: a step costs nothing that is known.
  """
  cost = lambda num_steps: total(scaled(plan, num_steps), price)
  fewest = len(plan.stages)
  errors.require(
    all(price(plan, i) > 0 for i in range(fewest)),
    'XLA gives no FLOPs for a step on this platform: give '
    "costs='counted', or equal='steps'.",
  )
  if cost(fewest) > budget * (1 + 1e-9):
    return 0
  low, high = fewest, fewest + 1
  while cost(high) <= budget * (1 + 1e-9):
    low, high = high, 2 * high
  while high - low > 1:
    middle = (low + high) // 2
    if cost(middle) <= budget * (1 + 1e-9):
      low = middle
    else:
      high = middle
  return low


def _alone(plan: plan_lib.Plan, index: int, **fields: Any) -> plan_lib.Plan:
  """A plan of one of the stages of another."""
  stage = dataclasses.replace(
    plan.stages[index], steps=fields.pop('steps', plan.stages[index].steps)
  )
  planned = dataclasses.replace(plan.stage_plans[index], stage=stage)
  return dataclasses.replace(
    plan, stages=(stage,), stage_plans=(planned,), **fields
  )


class Flops:
  """FLOPs of a step of one student, with the teacher's forward pass or not."""

  unit = 'FLOP'

  def __init__(self, costs: str, *, charged: bool = True) -> None:
    """Finds nothing yet.

    Args:
      costs: 'compiled' or 'counted'.
      charged: with the teacher's forward pass; else the FLOPs are those of a
        student whose targets were stored before.
    """
    self._costs, self._charged = costs, charged
    self._known: dict[stage_lib.Stage, float] = {}

  def __call__(self, plan: plan_lib.Plan, index: int) -> float:
    """FLOPs of a step in the stage `index` of a plan, compiled once."""
    key = plan.stages[index].objective
    if key not in self._known:
      (one,) = _alone(plan, index, costs=self._costs).stage_plans_with_costs
      teacher = one.teacher_flops if self._charged else 0
      self._known[key] = (one.student_flops or 0) + (teacher or 0)
    return self._known[key]


class Seconds:
  """Seconds of a step, measured; refused where the clock cannot be trusted.

  A workdir keeps them: measured again they would be others, and so would the
  lengths of the runs, which could not resume.
  """

  unit = 's'

  def __init__(
    self,
    batches: Any,
    held_out: Any,
    options: Mapping[str, Any],
    workdir: pathlib.Path | None = None,
  ) -> None:
    """Measures nothing yet.

    Args:
      batches: training batches, as for `distill`.
      held_out: held-out set, as for `distill`.
      options: others of `distill`, as the runs have them.
      workdir: folder that keeps the timings, or None.

    Raises:
      UserError: its file of timings is damaged.
    """
    self._batches, self._held_out = batches, held_out
    self._options = options
    self._path = None if workdir is None else workdir / FILE
    self._kept = _kept(self._path)
    self._known: dict[stage_lib.Stage, float] = {}

  def __call__(self, plan: plan_lib.Plan, index: int) -> float:
    """Seconds of a step in the stage `index` of a plan, measured once."""
    key = plan.stages[index].objective
    if key not in self._known:
      self._known[key] = self._from_workdir(plan, index)
    return self._known[key]

  def _from_workdir(self, plan: plan_lib.Plan, index: int) -> float:
    """Seconds of a step as the workdir has them, or measured and kept there."""
    if self._path is None:
      return self._measured(plan, index)
    name = _described(plan, index, self._options)
    if name not in self._kept:
      self._kept[name] = self._measured(plan, index)
      record = {'environment': settings.environment(), 'seconds': self._kept}
      files.write_with_digest(self._path, record)
    return self._kept[name]

  def _measured(self, plan: plan_lib.Plan, index: int) -> float:
    """Seconds of a step, from the times between records of a short run."""
    times: list[float] = []
    alone = _alone(plan, index, steps=WINDOW * WINDOWS, costs='counted')
    distill_lib.distill(
      alone,
      self._batches,
      held_out=self._held_out,
      log_every=WINDOW,
      eval_every=WINDOW * WINDOWS,
      on_record=lambda _: times.append(time.perf_counter()),
      **fit_batches.needed(self._options, alone),
    )
    # The last two have the evaluation in them, and its compilation.
    return trusted(times[BEGINNING:-2]) / WINDOW


def _kept(path: pathlib.Path | None) -> dict[str, float]:
  """The timings of a workdir, by digest; those of elsewhere are warned of."""
  if path is None or not path.exists():
    return {}
  record = files.read_with_digest(path)
  differ = files.differences(record['environment'], settings.environment())
  if differ:
    logging.warning(
      'The lengths of the runs follow from timings that were made elsewhere, '
      'which %s keeps. What differs: %s.',
      path,
      differ,
    )
  return dict(record['seconds'])


def _described(
  plan: plan_lib.Plan, index: int, options: Mapping[str, Any]
) -> str:
  """Digest of what a stage computes in a step."""
  planned = plan.stage_plans[index]
  student, batch = plan.student, jax.eval_shape(plan.with_mask, plan.batch)
  return files.digest(
    {
      'terms': stage_identity.terms(planned, student.apply, student.one, batch),
      'trained': jax.tree.leaves(planned.mask),
      'dtype': str(plan.dtype),
      'settings': settings.recorded(),
      'options': {name: str(options.get(name)) for name in TIMED},
      'shapes': [
        f'{leaf.dtype}{list(leaf.shape)}'
        for leaf in jax.tree.leaves((plan.teacher.params, student.one, batch))
      ],
    }
  )


def trusted(times: Sequence[float]) -> float:
  """The median of the intervals between some times.

  Args:
    times: times in seconds after equal amounts of work, in ascending order.

  Returns:
    Seconds.

  Raises:
    UserError: the intervals differ by more than `TRUSTED`.
  """
  found = [b - a for a, b in itertools.pairwise(times)]
  median = statistics.median(found)
  spread = (max(found) - min(found)) / median if median > 0 else math.inf
  errors.require(
    spread <= TRUSTED,
    f"equal='seconds' needs a clock that can be trusted, and {len(found)} "
    f'timings of the same {WINDOW} steps differ by {spread:.0%} of their '
    f'median, {median:.2g} s; at most {TRUSTED:.0%} is allowed. Stop what else '
    "runs here, or choose equal='flops'.",
  )
  return median
