"""The teacher of a run, with its parameters or without them."""

from collections.abc import Callable
import dataclasses
from typing import Any

from cxjax import types


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A trained model and, if they were kept, its earlier checkpoints.

  Attributes:
    apply: `(params, x) -> (logits, activations)`.
    params: parameters of the final teacher; shapes alone where it is not
      available.
    layers: names of its hidden activations, lowest first.
    checkpoints: `(step, score)` of each checkpoint, oldest first; the score is
      the primary metric of its task.
    load: the parameters at the step of a checkpoint.
    available: whether there are parameters. A teacher whose targets are stored,
      or whose stages are only planned, has shapes in their place.
    heads: the weights of its head at the step of a checkpoint; None is the
      final teacher. Stored targets have them that are last hidden states.
    stored: identity of the stored targets that replace those it would compute,
      although there are parameters; '' is none.
  """

  apply: types.Apply
  params: types.Params
  layers: tuple[str, ...] = ()
  checkpoints: tuple[tuple[int, float], ...] = ()
  load: Callable[[int], types.Params] | None = None
  available: bool = True
  heads: Callable[[int | None], tuple[Any, ...]] | None = None
  stored: str = ''

  @property
  def is_run(self) -> bool:
    """True if it computes the targets of training."""
    return self.available and not self.stored

  def at(self, checkpoint: int | None) -> types.Params:
    """Parameters at the step of a checkpoint; None is the final teacher."""
    if checkpoint is None or not self.available:
      return self.params
    assert self.load is not None
    return self.load(checkpoint)


def of(model: Any) -> Teacher:
  """The teacher of a `ModelAdapter`, with the checkpoints that it has."""
  return Teacher(
    model.apply, model.params, load=lambda step: model.checkpoints[step]
  )
