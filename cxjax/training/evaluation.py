"""Held-out evaluation of a student, by its labels or by its teacher."""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from cxjax import arguments
from cxjax import checks
from cxjax import errors
from cxjax import types
from cxjax.methods import microbatches
from cxjax.methods import output_pieces
from cxjax.methods import output_split
from cxjax.methods import stage as stage_lib
from cxjax.methods import targets
from cxjax.methods import weights as weights_lib
from cxjax.parallel import mesh as mesh_lib
from cxjax.training import metric_sums
from cxjax.training import metrics as metrics_lib


@checks.checked(
  params=arguments.shapes,
  batch=checks.batch,
  apply=targets.APPLY,
  parts=checks.positive,
)
def evaluate(
  params: types.Params,
  batch: types.Batch,
  *,
  apply: types.Apply,
  metrics: metrics_lib.Metrics = metrics_lib.LABEL_METRICS,
  parts: int = 1,
) -> dict[str, jax.Array]:
  """Held-out metrics of one student.

  Args:
    params: parameters of the student.
    batch: batch of `N` examples, as in `cxjax.types`; positions of weight 0 do
      not count, nor, without weights, outputs of tokens that the mask excludes.
    apply: the student.
    metrics: names of registered metrics, or a mapping as for
      `metrics.resolve`.
    parts: parts of the batch that are computed one after the other, to save
      memory; any number.

  Returns:
    A scalar for each; by default `{'accuracy': in [0, 1], 'loss': in nats,
    'perplexity'}`.
  """
  return _measure(
    lambda batch: (_outputs(apply, params, batch), _references(batch)),
    batch,
    metrics_lib.resolve(metrics),
    parts,
  )


@checks.checked(
  params=arguments.shapes,
  teacher_params=arguments.shapes,
  batch=checks.batch,
  apply=targets.APPLY,
  teacher=targets.APPLY,
  parts=checks.positive,
)
def agreement(
  params: types.Params,
  teacher_params: types.Params,
  batch: types.Batch,
  *,
  apply: types.Apply,
  teacher: types.Apply,
  metrics: metrics_lib.Metrics = metrics_lib.TEACHER_METRICS,
  parts: int = 1,
) -> dict[str, jax.Array]:
  """Held-out agreement of one student with its teacher.

  Args:
    params: parameters of the student.
    teacher_params: parameters of the teacher.
    batch: batch of `N` examples, as for `evaluate`.
    apply: the student.
    teacher: the teacher.
    metrics: metrics of the two outputs, as for `evaluate`.
    parts: number of parts of the batch, as for `evaluate`.

  Returns:
    A scalar for each; by default `{'agreement': share of equal top-1,
    'teacher_kl': KL(teacher || student) in nats}`.
  """
  return _measure(
    lambda batch: (
      _outputs(apply, params, batch),
      _outputs(teacher, teacher_params, batch),
    ),
    batch,
    metrics_lib.resolve(metrics),
    parts,
  )


def _outputs(
  apply: types.Apply, params: types.Params, batch: types.Batch
) -> dict[str, Any]:
  """The outputs of a model at inference, among its activations."""
  return targets.forward(apply, params, targets.without_dropout(batch['x']))


def _references(batch: types.Batch) -> dict[str, Any]:
  """The labels, and the other outputs of the teacher that a batch keeps."""
  named = {n: v for n, v in batch.items() if n.startswith(stage_lib.OUTPUT)}
  return {stage_lib.LOGITS: batch['y'], **named}


def _measure(
  forward: Callable[[types.Batch], tuple[dict[str, Any], dict[str, Any]]],
  batch: types.Batch,
  metrics: Mapping[str, metrics_lib.Metric],
  parts: int,
) -> dict[str, jax.Array]:
  """Metrics of the outputs and references that `forward` makes of a batch."""
  order = list(metrics)
  metrics, sums = metric_sums.apart(metrics)
  outputs = dict.fromkeys(metric.output for metric in metrics.values())

  def statistics(batch: types.Batch) -> dict[str, Any]:
    seen = forward(mesh_lib.constrain_batch(batch, axis=0))
    return {
      path: _statistics(
        {n: m for n, m in metrics.items() if m.output == path},
        path,
        seen,
        batch,
      )
      for path in outputs
    }

  found = microbatches.apply(statistics, batch, parts)
  totals = {}
  for name, metric in metrics.items():
    values, weights = found[metric.output]
    totals[name] = metric.total(values[name], weights)
  totals |= {name: metric.of(totals) for name, metric in sums.items()}
  return {name: totals[name] for name in order}


def check(
  metrics: Mapping[str, metrics_lib.Metric],
  path: str,
  output: Any,
  reference: Any,
  batch: types.Batch,
) -> None:
  """Raises UserError for metrics of one output that do not fit its shapes."""
  whole = 'weights' in batch and not path
  counted = output.shape[:-1]
  if whole and not weights_lib.is_of_examples(batch['weights'], counted):
    counted = batch['weights'].shape
  metrics_lib.check(metrics, output, reference, counted, batch)


def _statistics(
  metrics: Mapping[str, metrics_lib.Metric],
  path: str,
  seen: tuple[dict[str, Any], dict[str, Any]],
  batch: types.Batch,
) -> tuple[Any, jax.Array | None]:
  """Statistics of the metrics of one output, by name, and their weights."""
  name = targets.output_name(path)
  output, reference = (errors.lookup('output', name, found) for found in seen)
  shapes = output_pieces.shape(output), output_pieces.shape(reference)
  check(metrics, path, *shapes, batch)
  weights = weights_lib.output_weights(batch, output.shape, name)

  def compute(output: Any, reference: Any, weights: Any, others: Any) -> Any:
    outputs = weights_lib.cleared((output, reference), weights)
    return {
      name: jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32),
        metric.statistics(*outputs, *(others[n] for n in metric.others)),
      )
      for name, metric in metrics.items()
    }

  others = {n: batch[n] for m in metrics.values() for n in m.others}
  args = (output, reference, weights, others)
  if isinstance(output, output_split.Apart):
    return output_pieces.each(compute, *args), weights
  return compute(*args), weights
