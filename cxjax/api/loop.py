"""The loop of `distill`: the steps of its records, checkpoints and end."""

from collections.abc import Iterator
import contextlib
import math
from typing import Any

import jax

from cxjax import arguments
from cxjax import errors
from cxjax.api import plan as plan_lib
from cxjax.training import run_spec

# Bytes of the batches that lie on the devices at once.
AHEAD = 64e6


def lengths(**steps: Any) -> dict[str, int | None]:
  """Checks numbers of steps by name; None chooses."""
  return {
    name: None if value is None else arguments.integer(name, value, 1)
    for name, value in steps.items()
  }


def of_plan(
  plan: plan_lib.Plan,
  workdir: Any,
  log_every: int | None,
  save_every: int | None,
  eval_every: int | None,
  keep_best: str,
  patience: int | None,
) -> run_spec.Loop:
  """Decides when a run logs, evaluates, saves and ends.

  Args:
    plan: plan that is trained.
    workdir: where checkpoints are kept, or None.
    log_every: steps to a record; None chooses.
    save_every: steps between checkpoints; None chooses.
    eval_every: steps between evaluations; None chooses.
    keep_best: name of a metric, or ''.
    patience: evaluations without improvement that end the run, or None.

  Returns:
    The loop.
  """
  num_steps = sum(stage.steps for stage in plan.stages)
  tenth = max(num_steps // 10, 1)
  if log_every is None:
    size = sum(
      math.prod(s.shape) * s.dtype.itemsize for s in jax.tree.leaves(plan.batch)
    )
    log_every = int(min(100, tenth, max(AHEAD // size, 1)))
    log_every = min(log_every, eval_every or log_every)
  log_every = min(log_every, num_steps)  # So many batches are held at once.
  multiple = lambda steps: max(steps // log_every, 1) * log_every
  return run_spec.Loop(
    log_every=log_every,
    eval_every=multiple(eval_every or tenth),
    save_every=multiple(save_every or (tenth if workdir else num_steps)),
    keep_best=keep_best,
    patience=patience or 0,
    saves=workdir is not None or keep_best != '',
    temporary=workdir is None,
  )


def patience_of(patience: Any, held_out: Any, keep_best: str) -> int | None:
  """Checks `patience`, and that there is something to decide by.

  Args:
    patience: number of evaluations, as the user gives it; None is no early
      stopping.
    held_out: held-out set that students are evaluated on, or None.
    keep_best: name of a metric, or ''.

  Returns:
    The number of evaluations, or None.

  Raises:
    UserError: no such number, or nothing to decide by.
  """
  if patience is None:
    return None
  patience = arguments.integer('patience', patience, 1)
  errors.require(
    held_out is not None or keep_best != '',
    f'patience={patience} needs held_out, examples that the students are not '
    'trained on. Without them the evaluation is of the first batch: give '
    "held_out, or keep_best='loss' to decide by that batch.",
  )
  return patience


@contextlib.contextmanager
def nothing_kept() -> Iterator[None]:
  """Says of a run without a workdir that it is lost when it is stopped."""
  try:
    yield
  except errors.Stopped as stopped:
    raise errors.Stopped(
      f'Stopped by {stopped.signal} after {stopped.step} steps. Without a '
      "workdir nothing is kept; with one, as workdir='runs/mine', the same "
      'call continues.',
      stopped.signal,
      stopped.step,
    ) from None
