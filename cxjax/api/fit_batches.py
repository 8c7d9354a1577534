"""Batches of a user that projections are fitted on."""

from collections.abc import Callable
from collections.abc import Mapping
import itertools
from typing import Any

import jax
import numpy as np

from cxjax import errors
from cxjax import types
from cxjax.api import held_out as held_out_lib
from cxjax.api import plan as plan_lib
from cxjax.data import conform
from cxjax.methods import fitted
from cxjax.training import fitting


def check(fit_on: Any, *plans: plan_lib.Plan) -> None:
  """Raises UserError for batches to fit on that are no list, or not needed."""
  if fit_on is None:
    return
  errors.require(
    isinstance(fit_on, list | tuple) and len(fit_on) > 0,
    f'fit_on is a {type(fit_on).__name__}: give a list of batches, which are '
    'all read.',
  )
  errors.require(
    any(fitting.is_needed(plan.stages) for plan in plans),
    'fit_on is for projections that are fitted on batches, '
    f'{", ".join(fitted.FITTED)}, and there is none: leave it out.',
  )


def shared(fit_on: Any, batches: Any, *plans: plan_lib.Plan) -> Any:
  """The batches that all methods of a comparison fit on.

  Args:
    fit_on: batches to fit on, as the user gives them, or None.
    batches: training batches, iterated anew for every method.
    *plans: plans of the methods.

  Returns:
    `fit_on`, or the first batches if it is None; None if nothing is fitted.
  """
  check(fit_on, *plans)
  needed = any(fitting.is_needed(plan.stages) for plan in plans)
  if fit_on is not None or not needed:
    return fit_on
  with errors.calling('batches', 'Mend the loader.'):
    first = itertools.islice(iter(batches), fitted.BATCHES)
    # A copy: an iterator may use its buffers again.
    return [jax.tree.map(np.array, batch) for batch in first]


def lacking(plan: plan_lib.Plan, fit_on: Any) -> str:
  """The reason why a plan cannot be fitted on a list of batches, or ''."""
  if not fitting.is_needed(plan.stages):
    return ''
  apply, params = plan.teacher.apply, plan.teacher.params
  x, number = plan.batch['x'], len(fit_on)
  try:
    fitting.check_examples(plan.stage_plans, apply, params, x, number)
  except errors.UserError as error:
    return str(error)
  return ''


def needed(options: Mapping[str, Any], plan: plan_lib.Plan) -> dict[str, Any]:
  """Options of `distill` for a plan: without `fit_on` if it fits nothing."""
  fits = fitting.is_needed(plan.stages)
  return {k: v for k, v in options.items() if fits or k != 'fit_on'}


def read(
  plan: plan_lib.Plan,
  fit_on: Any,
  batches: Any,
  first: Callable[[], Any],
  evaluation: held_out_lib.Evaluation,
  last_batch: str,
) -> tuple[types.Batch, ...]:
  """The batches that the projections of a plan are fitted on.

  Args:
    plan: plan that is trained.
    fit_on: a list of batches; None takes the first of the training batches.
    batches: those, as the user gives them.
    first: function that returns the first of them.
    evaluation: how batches are converted.
    last_batch: 'pad' fills up a batch with fewer examples; else it is left out.

  Returns:
    Batches of the plan's shapes; none if nothing is fitted.

  Raises:
    UserError: a batch of other shapes.
  """
  check(fit_on, plan)
  if not fitting.is_needed(plan.stages):
    return ()
  if fit_on is None:
    known = isinstance(batches, list | tuple) and bool(batches)
    # Of a loader another iteration might change what the run reads.
    fit_on = batches[: fitted.BATCHES] if known else [first()]
  found, short = [], 'pad' if last_batch == 'pad' else 'drop'
  for number, item in enumerate(fit_on, 1):
    what = f'batch {number} to fit on'
    with conform.reported(what):
      batch = evaluation.convert(item)
    fit = conform.fit(batch, plan.batch, what, short)
    if fit is not None:
      found.append(fit)
  errors.require(
    bool(found),
    'No batch to fit a projection on has the size of the example of the plan.',
  )
  return tuple(found)
