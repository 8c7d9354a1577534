"""Scores of a config at which a training ends."""

import math
from typing import Any

from cxjax import errors
from cxjax.training import metrics as metrics_lib


def check(config: Any, name: str, metric: metrics_lib.Metric) -> None:
  """Raises UserError for a threshold that every score reaches.

  A training with it would end at its first evaluation.

  Args:
    config: config of a run.
    name: name of the task's primary metric.
    metric: the metric.
  """
  fields = {
    'stop_at': config.stop_at,
    'teacher.stop_at': config.teacher.stop_at,
  }
  for field, threshold in fields.items():
    errors.require(
      threshold is None or not _is_always_reached(metric, threshold),
      f'{field}={threshold!r} is reached by every {name}, at the first '
      'evaluation. Give the score that ends the training, or None for none.',
    )


def _is_always_reached(metric: metrics_lib.Metric, threshold: float) -> bool:
  """True if no score is worse; of metrics of users only infinity is known."""
  if not metric.higher_is_better:
    return threshold == math.inf
  share = any(metric is known for known in metrics_lib.SHARES)
  return threshold <= 0 if share else threshold == -math.inf
