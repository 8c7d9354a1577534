"""Early stopping: evaluations without improvement after which a run ends."""

from collections.abc import Sequence
from typing import Any

from cxjax.training import metrics as metrics_lib


class Patience:
  """Counts evaluations in a row in which no student improves.

  A student improves if its metric is strictly better than at every evaluation
  before. One that diverged does not, and does not keep the others from it.
  """

  def __init__(self, metric: metrics_lib.Metric, limit: int) -> None:
    """Nothing was observed yet.

    Args:
      metric: the deciding metric.
      limit: number of evaluations without improvement; 0 is no limit.
    """
    self._metric, self._limit = metric, limit
    self._best: list[float] = []
    self._waited = 0

  @property
  def exhausted(self) -> bool:
    """True if as many evaluations as the limit brought no improvement."""
    return 0 < self._limit <= self._waited

  @property
  def may_end(self) -> bool:
    """True if the next evaluation may exhaust it."""
    return 0 < self._limit <= self._waited + 1

  def observe(self, values: Sequence[float]) -> None:
    """Takes in the metric of each student at an evaluation."""
    if not self._best:
      self._best = list(values)
      return
    better = self._metric.better
    improved = [better(a, b) for a, b in zip(values, self._best, strict=True)]
    self._best = [
      value if is_better else best
      for value, best, is_better in zip(
        values, self._best, improved, strict=True
      )
    ]
    self._waited = 0 if any(improved) else self._waited + 1

  def state(self) -> dict[str, Any]:
    """The state that `restore` takes; JSON values, none without a limit."""
    if not self._limit:
      return {}
    return {'waited': self._waited, 'best_of_each': self._best}

  def restore(self, record: dict[str, Any]) -> None:
    """Goes on with a state."""
    if self._limit:
      self._waited = record['waited']
      self._best = list(record['best_of_each'])
