"""Held-out evaluation of a student, by its labels or by its teacher."""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from cxjax import arguments
from cxjax import checks
from cxjax import types
from cxjax.methods import microbatches
from cxjax.methods import stage as stage_lib
from cxjax.methods import targets
from cxjax.methods import weights as weights_lib
from cxjax.parallel import mesh as mesh_lib
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
    params: the student's.
    batch: as in `cxjax.types`, of `N` examples; positions of weight 0 do not
      count, nor, without weights, outputs of tokens that the mask excludes.
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
    lambda batch: (_output(apply, params, batch), batch['y']),
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
    params: the student's.
    teacher_params: the teacher's.
    batch: as for `evaluate`.
    apply: the student.
    teacher: the teacher.
    metrics: as for `evaluate`, of the two outputs.
    parts: as for `evaluate`.

  Returns:
    A scalar for each; by default `{'agreement': share of equal top-1,
    'teacher_kl': KL(teacher || student) in nats}`.
  """
  return _measure(
    lambda batch: (
      _output(apply, params, batch),
      _output(teacher, teacher_params, batch),
    ),
    batch,
    metrics_lib.resolve(metrics),
    parts,
  )


def _output(
  apply: types.Apply, params: types.Params, batch: types.Batch
) -> jax.Array:
  x = targets.without_dropout(batch['x'])
  return targets.forward(apply, params, x)[stage_lib.LOGITS]


def _measure(
  pair: Callable[[types.Batch], tuple[jax.Array, jax.Array]],
  batch: types.Batch,
  metrics: Mapping[str, metrics_lib.Metric],
  parts: int,
) -> dict[str, jax.Array]:
  """Metrics of the two arrays that `pair` makes of a batch."""

  def statistics(batch: types.Batch) -> tuple[Any, jax.Array | None]:
    outputs = pair(mesh_lib.constrain_batch(batch, axis=0))
    weights = weights_lib.output_weights(batch, outputs[0].shape)
    every = outputs[0].shape[:-1]
    counted = batch['weights'].shape if 'weights' in batch else every
    metrics_lib.check(metrics, *outputs, counted, batch)
    outputs = weights_lib.cleared(outputs, weights)
    found = {
      name: jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32),
        metric.statistics(*outputs, *(batch[n] for n in metric.others)),
      )
      for name, metric in metrics.items()
    }
    return found, weights

  found, weights = microbatches.apply(statistics, batch, parts)
  return {
    name: metric.total(found[name], weights) for name, metric in metrics.items()
  }
