"""Models as `plan` checks them, and as a run compares them."""

import dataclasses
from typing import Any

from cxjax import types
from cxjax.api import matching
from cxjax.methods import stage as stage_lib
from cxjax.models import adapters
from cxjax.models import modes
from cxjax.models import scanned


def traced_once(model: adapters.ModelAdapter) -> adapters.ModelAdapter:
  """The model for the checks of a plan, which read it many times."""
  if not isinstance(model, adapters.ModelAdapter):
    return model  # `adapters.outputs` says what it must be.
  training = model.training and modes.traced_once(model.training)
  return dataclasses.replace(
    model, apply=modes.traced_once(model.apply), training=training
  )


def with_layers(
  model: adapters.ModelAdapter, dtype: Any
) -> adapters.ModelAdapter:
  """The model with all layers of its scans, in a compute dtype if not None."""
  model = scanned.with_layers(model)
  if dtype is not None:
    model = adapters.with_compute_dtype(model, dtype)
  return traced_once(model)


def as_compared(
  models: tuple[adapters.ModelAdapter, adapters.ModelAdapter],
  stages: stage_lib.Curriculum,
  x: types.Input,
  dtype: Any,
) -> tuple[adapters.ModelAdapter, ...]:
  """Teacher and student with those layers of scans that a stage compares."""
  terms = [term for stage in stages for term in stage.terms]
  names = (
    {term.target for term in terms if term.needs_teacher},
    {term.student for term in terms}.union(*(s.frozen for s in stages)),
  )
  found = []
  for model, used in zip(models, names, strict=True):
    if used := used - set(matching.shapes(traced_once(model), x)):
      model = scanned.with_layers(model, used)
    if dtype is not None:
      model = adapters.with_compute_dtype(model, dtype)
    found.append(model)
  return tuple(found)
