"""Identity of stages and metrics: their fields, and digests of functions.

A name of a registry, as that of a projection, says nothing about the function
that the user registers by it. Hence functions count by what they compute.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cxjax import settings
from cxjax import types
from cxjax.api import identity
from cxjax.methods import projections
from cxjax.methods import stage as stage_lib
from cxjax.methods import stage_plan
from cxjax.methods import targets as targets_lib
from cxjax.training import metric_sums
from cxjax.training import metrics as metrics_lib


def terms(
  planned: stage_plan.StagePlan,
  apply: types.Apply,
  params: types.Params,
  batch: types.Batch,
) -> list[dict[str, Any]]:
  """Fields of the terms of a stage; functions by their digests.

  Args:
    planned: the stage with its shapes.
    apply: the student.
    params: parameters of one student, or their shapes.
    batch: shapes of a batch.

  Returns:
    JSON values, for each term.
  """

  def compared(params: Any, x: Any, term: stage_lib.Term) -> jax.Array:
    found = targets_lib.forward(apply, params, x)
    return targets_lib.compared(found, x, term.student, term)

  found = []
  for name, term in planned.stage.named_terms.items():
    forward = lambda params, x, term=term: compared(params, x, term)
    got = jax.eval_shape(forward, params, batch['x'])
    regressor = planned.regressors.get(name)
    if regressor is not None:
      got = types.shape_struct((*got.shape[:-1], regressor[1]), got.dtype)
    fields = _term(term, got, batch)
    if term.projection in projections.PROJECTIONS:
      fields['draw'] = _draw(term.projection, planned.projections[name])
    found.append(fields)
  return found


def _term(
  term: stage_lib.Term, got: jax.ShapeDtypeStruct, batch: types.Batch
) -> dict[str, Any]:
  """Fields of a term; `got` is the shape that its loss compares."""
  fields = {
    field.name: getattr(term, field.name) for field in dataclasses.fields(term)
  }
  for name, value in fields.items():
    if isinstance(value, np.generic):  # JSON does not know it.
      fields[name] = value.item()
  want: Any = jax.ShapeDtypeStruct(got.shape, jnp.float32)
  if term.target == stage_lib.LABELS:
    want = batch['y']
  elif term.top_k:
    want = jax.eval_shape(lambda want: targets_lib.top(want, term), want)
  fields['loss'] = identity.function_digest(term.loss, got, want)  # type: ignore[arg-type]
  if term.scheduled:
    fraction = jax.ShapeDtypeStruct((), jnp.float32)
    fields['weight'] = identity.function_digest(term.weight_at, fraction)
  return fields


def _draw(projection: str, shape: tuple[int, int]) -> str:
  """Digest of what draws a projection matrix from its key."""
  draw = lambda key: projections.random_projection(key, projection, shape)
  return identity.function_digest(draw, settings.key(0))


def metrics(
  metrics: Mapping[str, metrics_lib.Metric],
  outputs: Mapping[str, Any],
  references: Mapping[str, Any],
  batch: Mapping[str, Any],
) -> dict[str, Any]:
  """Digests of metrics, on the outputs and references that they read.

  Args:
    metrics: metrics by name.
    outputs: shapes of the student's activations and outputs.
    references: those of the teacher, for a batch that does not have them.
    batch: shapes of the held-out batch.

  Returns:
    JSON values, by the name of the metric.
  """
  found = {}
  metrics, sums = metric_sums.apart(metrics)
  for name, metric in metrics.items():
    output = targets_lib.output_name(metric.output)
    kept = batch.get(output if metric.output else 'y')
    args = (
      outputs[output],
      references[output] if kept is None else kept,
      *(batch[other] for other in metric.others),
    )
    statistics = jax.eval_shape(metric.statistics, *args)
    total = lambda statistics, metric=metric: metric.total(statistics, None)
    found[name] = {
      'statistics': identity.function_digest(metric.statistics, *args),
      'finish': identity.function_digest(total, statistics),
      'higher_is_better': metric.higher_is_better,
    }
  found |= {name: {'weights': dict(one.weights)} for name, one in sums.items()}
  return found
