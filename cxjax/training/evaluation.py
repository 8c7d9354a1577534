"""Held-out metrics of a student, and how near it is to its teacher."""

from collections.abc import Callable
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from cxjax.methods import losses
from cxjax.parallel import mesh as mesh_lib
from cxjax.methods import train_step

Metrics = Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]]


def _same_top(ours, theirs):
  return jnp.argmax(ours, axis=-1) == jnp.argmax(theirs, axis=-1)


LABEL_METRICS = {
  'accuracy': lambda logits, y: jnp.argmax(logits, axis=-1) == y,
  'loss': losses.cross_entropy,
}
TEACHER_METRICS = {'agreement': _same_top, 'teacher_kl': losses.kl}


def evaluate(
  params: train_step.Params,
  batch: train_step.Batch,
  *,
  apply: train_step.Apply,
  metrics: Metrics = LABEL_METRICS,
  parts: int = 1,
) -> dict[str, jax.Array]:
  """Held-out metrics of one student.

  Args:
    params: the student's.
    batch: as in `step.py`, of `N` examples; positions of weight 0 do not count.
    apply: the student.
    metrics: `(output, y) -> [...]`, one value per example or position.
    parts: computed one after the other, to save memory; they divide `N`.

  Returns:
    The mean of each, scalars; by default `{'accuracy': in [0, 1], 'loss': in
    nats}`.
  """
  return _measure(
    lambda batch: (_output(apply, params, batch), batch['y']),
    batch,
    metrics,
    parts,
  )


def agreement(
  params: train_step.Params,
  teacher_params: train_step.Params,
  batch: train_step.Batch,
  *,
  apply: train_step.Apply,
  teacher: train_step.Apply,
  metrics: Metrics = TEACHER_METRICS,
  parts: int = 1,
) -> dict[str, jax.Array]:
  """How near one student's held-out outputs are to its teacher's.

  Args:
    params: the student's.
    teacher_params: the teacher's.
    batch: as for `evaluate`.
    apply: the student.
    teacher: the teacher.
    metrics: `(output, output of the teacher) -> [...]`.
    parts: as for `evaluate`.

  Returns:
    The mean of each, scalars; by default `{'agreement': share of equal top-1,
    'teacher_kl': KL(teacher || student) in nats}`.
  """
  return _measure(
    lambda batch: (
      _output(apply, params, batch),
      _output(teacher, teacher_params, batch),
    ),
    batch,
    metrics,
    parts,
  )


def _output(apply, params, batch):
  return apply(params, train_step.without_dropout(batch['x']))[0]


def _measure(pair, batch, metrics, parts):
  """Means of `metrics` of the two arrays that `pair` makes of a batch."""

  def measure(batch):
    pairs = pair(mesh_lib.split(batch, axis=0))
    return jnp.stack([metric(*pairs) for metric in metrics.values()], axis=1)

  measured = train_step.by_parts(measure, batch, parts)
  return {
    name: train_step.mean(measured[:, i], batch.get('weights'))
    for i, name in enumerate(metrics)
  }
