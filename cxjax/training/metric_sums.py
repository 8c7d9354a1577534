"""Held-out metrics that are sums of others."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax

from cxjax.training import metrics as metrics_lib


def _no_statistics(*args: Any) -> Any:
  """Statistics of a sum, which reads other metrics and no output."""
  raise TypeError('A sum of metrics has no statistics of its own.')


@dataclasses.dataclass(frozen=True)
class WeightedSum(metrics_lib.Metric):
  """The weighted sum of other metrics of the same evaluation, best if low.

  Attributes:
    weights: names of the other metrics, each with its weight.
  """

  weights: tuple[tuple[str, float], ...] = ()

  def of(self, totals: Mapping[str, jax.Array]) -> jax.Array:
    """The sum, from the values of the metrics by name."""
    parts = [weight * totals[name] for name, weight in self.weights]
    return sum(parts[1:], parts[0])


def weighted(weights: Mapping[str, float]) -> WeightedSum:
  """The sum of losses to the teacher's outputs, each with its weight."""
  return WeightedSum(
    _no_statistics,
    reference='teacher',
    higher_is_better=False,
    rowwise=True,
    weights=tuple(weights.items()),
  )


def apart(
  metrics: Mapping[str, metrics_lib.Metric],
) -> tuple[dict[str, metrics_lib.Metric], dict[str, WeightedSum]]:
  """The metrics that read outputs, and those that are sums of them."""
  sums = {n: m for n, m in metrics.items() if isinstance(m, WeightedSum)}
  return {n: m for n, m in metrics.items() if n not in sums}, sums
