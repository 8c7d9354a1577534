"""Steps that were dispatched, and the record of metrics that comes of them."""

import dataclasses
from typing import Any

from cxjax import types
from cxjax.training import run_spec


@dataclasses.dataclass(frozen=True)
class Pending:
  """Steps that were dispatched and whose metrics nobody has read yet.

  Attributes:
    start: first step.
    stop: one past the last step.
    stage: number of the stage.
    rows: rows that the batches were made of, or None.
    out: sums of the losses, on the device.
    metrics: held-out metrics, on the device, where they were evaluated.
  """

  start: int
  stop: int
  stage: int
  rows: Any
  out: dict[str, Any]
  metrics: dict[str, Any] | None

  def record(self, spec: run_spec.RunSpec, out: dict[str, Any]) -> types.Record:
    """The record of the steps, without held-out metrics.

    Args:
      spec: specification of the run.
      out: `self.out`, on the host.

    Returns:
      'step', 'stage', the mean 'loss' of the steps and the students, the same
      of each term if there are several, and 'learning_rate' if it is known.
    """
    mean = lambda total: float(total.mean()) / (self.stop - self.start)
    terms = out.get('terms', {}).items()
    return {
      'step': self.stop,
      'stage': spec.stages[self.stage].name,
      'loss': mean(out['loss']),
      **{f'loss/{name}': mean(total) for name, total in terms},
      **spec.learning_rate(self.stage, self.stop, out),
    }
