"""Decisions by the held-out metrics: when a run saves and when it ends."""

import math
from typing import Any

from absl import logging

from cxjax import errors
from cxjax.training import patience as patience_lib
from cxjax.training import run_spec

Metrics = dict[str, list[float]]


class Milestones:
  """Follows the metrics of a run, and decides by them.

  The score is the primary metric of the worst seed.

  Attributes:
    end: the step at which the run ends, as far as is known.
    best_step: with `keep_best`, the step that was the best so far.
  """

  def __init__(self, spec: run_spec.RunSpec) -> None:
    """Nothing was observed yet."""
    self._spec, self._loop = spec, spec.loop
    self._metric = spec.primary_metric
    self._best_score: float | None = None
    self._best_kept: float | None = None  # The mean over the seeds.
    self.best_step: int | None = None
    self._decides = spec.loop.keep_best or spec.primary
    self._patience = patience_lib.Patience(
      spec.metrics[self._decides], spec.loop.patience
    )
    self.end = spec.ends[-1]
    # A threshold that no score reaches decides nothing.
    possible = self._metric.is_possible
    self._save_at = tuple(filter(possible, spec.loop.save_at))
    stop_at = spec.loop.stop_at
    self._stop_at = stop_at
    if stop_at is not None and not possible(stop_at):
      self._stop_at = None

  def stop(self, step: int) -> None:
    """Ends the run after a step."""
    self.end = min(step, self.end)

  def state(self) -> dict[str, Any]:
    """The state that `restore` takes; JSON values."""
    return {
      'end': self.end,
      'best_score': self._best_score,
      'best_kept': self._best_kept,
      'best_step': self.best_step,
      **self._patience.state(),
    }

  def restore(self, record: dict[str, Any]) -> None:
    """Goes on with a state."""
    self.end = record['end']
    self._patience.restore(record)
    by_metrics = self._stop_at is not None or self._patience.exhausted
    if not by_metrics and self.end < self._spec.ends[-1]:
      logging.warning(
        'The run was ended at step %d of %d, by its on_record, and stays so. '
        'Choose another workdir to train it to its end.',
        self.end,
        self._spec.ends[-1],
      )
    self._best_score = record['best_score']
    self._best_kept = record['best_kept']
    if self._loop.keep_best:
      errors.require(
        'best_step' in record,
        'An earlier release began this run, and did not keep which of its '
        'checkpoints is the best. Start it again in another workdir.',
      )
      self.best_step = record['best_step']

  def is_saved(self, step: int) -> bool:
    """True if the schedule saves a checkpoint at a step."""
    scheduled = step % self._loop.save_every == 0 or step == self.end
    return scheduled and self._loop.saves

  def is_evaluated(self, step: int, stage_end: int) -> bool:
    """True if the students are evaluated at a step."""
    return step % self._loop.eval_every == 0 or step == stage_end

  def depend_on(self, step: int, final: bool) -> bool:
    """True if the metrics of a step may decide what comes right after it.

    Args:
      step: step that was evaluated.
      final: whether the last stage is under way.

    Returns:
      False where the next steps can be dispatched before they are known.
    """
    loop = self._loop
    if loop.keep_best or not all(map(self._was_reached, self._save_at)):
      return True
    if final and self._patience.may_end:
      return True
    if self._stop_at is None or not (final and self._undecided):
      return False
    return self._end_after(step) <= step + loop.log_every

  def observe(self, metrics: Metrics, step: int, final: bool) -> bool:
    """Takes in the metrics of a step; may bring the end of the run forward.

    Args:
      metrics: values of each metric over the seeds.
      step: step at which they were taken.
      final: whether the last stage was under way.

    Returns:
      Whether the score reached a threshold of `save_at`.
    """
    score = self._metric.worst(metrics[self._spec.primary])
    crossed = any(
      self._metric.reaches(score, at) and not self._was_reached(at)
      for at in self._save_at
    )
    if self._best_score is None or self._metric.better(score, self._best_score):
      self._best_score = score
    stop_at = self._stop_at
    may_end = final and self._undecided
    if may_end and stop_at is not None and self._metric.reaches(score, stop_at):
      self.end = self._end_after(step)
    if final:  # Stages before it do not train what the metric is of.
      self._wait(metrics[self._decides], step)
    return crossed

  def _wait(self, values: list[float], step: int) -> None:
    """Ends the run if its patience is exhausted."""
    if not self._loop.patience:
      return
    self._patience.observe(values)
    if self._patience.exhausted and step < self.end:
      self.stop(step)
      logging.info(
        'Step %d is the last: %r did not improve in %d evaluations.',
        step,
        self._decides,
        self._loop.patience,
      )

  def is_best(self, metrics: Metrics, step: int) -> bool:
    """True if the mean of `keep_best` over the seeds is the best so far."""
    name = self._loop.keep_best
    if not name:
      return False
    score = sum(metrics[name]) / len(metrics[name])
    metric = self._spec.metrics[name]
    if self._best_kept is not None and not metric.better(
      score, self._best_kept
    ):
      return False
    self._best_kept, self.best_step = score, step
    return True

  @property
  def _undecided(self) -> bool:
    return self.end == self._spec.ends[-1]

  def _was_reached(self, threshold: float) -> bool:
    best = self._best_score
    return best is not None and self._metric.reaches(best, threshold)

  def _end_after(self, step: int) -> int:
    """The end of a run whose score is good enough at a step."""
    return min(math.ceil(step * (1 + self._loop.overrun)), self.end)
