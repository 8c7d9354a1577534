"""When a run logs, evaluates, saves and ends."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from cxjax import errors
from cxjax.methods import stage as stage_lib
from cxjax.training import metrics as metrics_lib


@dataclasses.dataclass(frozen=True)
class Loop:
  """When a run logs, evaluates, saves and ends.

  Attributes:
    log_every: steps to a record of metrics.
    eval_every: steps between evaluations, a multiple of log_every.
    save_every: steps between checkpoints, a multiple of log_every.
    save_minutes: minutes after which to save as well; 0 is never.
    save_at: scores at which to save as well, when first reached. The score is
      the primary metric of the worst seed.
    keep: number of checkpoints; 0 keeps all, and the untrained network.
    keep_best: name of the metric whose best checkpoint is kept too; '' keeps
      none.
    stop_at: score that, once all seeds have it, ends the last stage; None is
      never.
    overrun: share of the steps so far to go on after that.
    patience: evaluations in a row of the last stage without an improvement of
      `keep_best`, or else of the primary metric, after which the run ends; 0
      never ends it.
    keep_diverged: go on with students whose loss is not finite, as they are.
    saves: whether the schedule saves checkpoints at all.
    temporary: whether the folder of the run is removed after it; messages do
      not name such a folder.
    gradient_cosine: report the cosine of the gradients of a hidden stage and of
      the last one, where it evaluates.
  """

  log_every: int
  eval_every: int
  save_every: int
  save_minutes: float = 0.0
  save_at: tuple[float, ...] = ()
  keep: int = 3
  keep_best: str = ''
  stop_at: float | None = None
  overrun: float = 0.0
  patience: int = 0
  keep_diverged: bool = False
  saves: bool = True
  temporary: bool = False
  gradient_cosine: bool = False

  def __post_init__(self) -> None:
    """Raises UserError for settings that do not fit each other."""
    for name in ('log_every', 'eval_every', 'save_every'):
      value = getattr(self, name)
      errors.require(value >= 1, f'{name}={value} must be at least 1.')
      errors.require(
        value % self.log_every == 0,
        f'{name}={value} must be a multiple of log_every={self.log_every}.',
      )
    errors.require(
      self.keep == 0 or self.keep >= 2,
      f'keep={self.keep} must be 0 (all) or at least 2, so that a damaged '
      'checkpoint has one before it.',
    )


def check_keep_best(loop: Loop, metrics: Mapping[str, Any]) -> None:
  """Raises UserError for a metric to keep the best by that is not computed."""
  name = loop.keep_best
  errors.require(
    not name or name in metrics or name not in metrics_lib.METRICS,
    f'keep_best={name!r} is a registered metric, and this run does not compute '
    f'it, only {", ".join(metrics)}. Name it among the metrics of the task, or '
    'of distill.',
  )
  if name:
    errors.lookup('keep_best', name, metrics)
  decides = name or (next(iter(metrics), '') if loop.patience else '')
  if decides:
    metrics_lib.require_direction(decides, metrics[decides])


def check_patience(stages: stage_lib.Curriculum, loop: Loop) -> None:
  """Raises UserError for a patience that would end nothing, or too early."""
  last, patience, every = stages[-1], loop.patience, loop.eval_every
  if not patience:
    return
  errors.require(
    any(_is_output(term) for term in last.terms),
    f'patience={patience} waits for metrics of the output, which the last '
    f'stage, {last.name!r}, does not train. Leave patience out, or add a stage '
    'that trains the output, as cxjax.Stage(name, steps, (cxjax.Term(),)).',
  )
  end = sum(stage.steps for stage in stages)
  begin = end - last.steps
  number = end // every - begin // every + (end % every > 0)
  most = number - 2  # The first is to be improved on; the last is the end.
  errors.require(
    patience <= most,
    f'patience={patience} can never end this run early: its last stage, '
    f'{last.name!r}, has {number} evaluations, one every {every} steps. Give '
    f'{f"at most {most}, or " if most > 0 else ""}a smaller eval_every.',
  )


def _is_output(term: stage_lib.Term) -> bool:
  return term.student == stage_lib.LOGITS or term.student.startswith(
    stage_lib.OUTPUT
  )
