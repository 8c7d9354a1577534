"""Labels of users: integer classes, or probabilities of all classes.

Probabilities, one for each class, are one-hot or soft labels.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cxjax import errors
from cxjax import types
from cxjax.methods import weights as weights_lib
from cxjax.models import adapters

# By how much the probabilities of a soft label may differ from a sum of 1.
SUM_TOLERANCE = 1e-2


def check(student: adapters.ModelAdapter, batch: types.Batch) -> None:
  """Raises UserError unless there are labels and weights for each output.

  Labels are integer classes, or the probabilities of all classes (soft labels).

  Args:
    student: the student.
    batch: shapes or arrays of a batch with labels.
  """
  output = adapters.outputs(student, batch['x'], 'student')[0]
  want, y = output.shape[:-1], batch['y']
  classes = jnp.issubdtype(y.dtype, jnp.integer) and y.shape == want
  errors.require(
    classes or is_soft(y, output),
    f'The labels are {y.dtype}{list(y.shape)}; they must be integer classes of '
    f'shape {list(want)}, or probabilities of the classes (one-hot or soft '
    f'labels) of shape {list(output.shape)}. For a regression leave labels and '
    'alpha out, or give your own loss and metrics.',
  )
  if 'weights' not in batch:
    return
  weights = batch['weights']
  errors.require(
    weights.shape == want or weights_lib.is_of_examples(weights, want),
    f"'weights' of shape {list(weights.shape)}: give one weight for each "
    f'output, {list(want)}, or one for each example, {list(want[:1])}.',
  )


def is_soft(y: Any, output: Any) -> bool:
  """True if labels have a value for each class, as the output of a model."""
  return is_real(y.dtype) and tuple(y.shape) == tuple(output.shape)


def is_real(dtype: Any) -> bool:
  """True for the dtypes of booleans, integers and floating-point numbers."""
  kinds = (bool, jnp.integer, jnp.floating)
  return any(jnp.issubdtype(dtype, kind) for kind in kinds)


def checked(
  batch: types.Batch,
  classes: int | None,
  soft: bool,
  with_mask: Callable[[types.Batch], types.Batch] | None = None,
) -> types.Batch:
  """Checks the labels of a batch.

  Args:
    batch: NumPy arrays.
    classes: number of classes; None does not check labels.
    soft: whether labels are probabilities of the classes.
    with_mask: adds the mask of a plan to a batch; None if the batch has one.

  Returns:
    The batch; labels that its own weights or mask leave out are 0 in it.

  Raises:
    UserError: a label of positive weight is not one of the classes, or no
      probabilities.
  """
  counts = _counts(batch, classes, soft)
  batch = _clear_ignored(batch, counts)
  y = batch.get('y')
  if classes is None or not isinstance(y, np.ndarray) or not y.size:
    return batch
  try:
    _check(y, counts, classes, soft)
  except errors.UserError:
    if with_mask is None:
      raise
    # The mask may read the labels, so that they stay in the batch.
    whole = {**with_mask(batch), 'y': y}
    counts = _counts(whole, classes, soft)
    counts = None if counts is None else np.asarray(counts)
    _check(_clear_ignored(whole, counts)['y'], counts, classes, soft)
  return batch


def _check(
  y: np.ndarray, counts: np.ndarray | None, classes: int, soft: bool
) -> None:
  """Raises UserError for labels that are no classes, or no probabilities."""
  if soft:
    _check_probabilities(y, counts)
    return
  low, high = y.min(), y.max()
  tokens = "tokens out with mask=lambda batch: batch['y'] >= 0, or"
  left_out = tokens if y.ndim > 1 else 'examples out'
  errors.require(
    low >= 0 and high < classes,
    f'Labels from {low} to {high}: the output has {classes} classes, 0 to '
    f"{classes - 1}. Leave {left_out} with 'weights' of 0.",
  )


def _check_probabilities(y: np.ndarray, weights: np.ndarray | None) -> None:
  """Raises UserError unless soft labels that count are distributions."""
  sums = y.sum(-1, dtype=np.float64)
  wrong = ~((np.abs(sums - 1) < SUM_TOLERANCE) & (y >= 0).all(-1))
  if weights is not None and weights.shape == wrong.shape:
    wrong &= weights != 0
  if wrong.any():
    raise errors.UserError(
      'Labels with a value for each class must be probabilities, not negative '
      f'and of sum 1, and there are some of sum {sums[wrong][0]:g}. Give '
      'classes, or divide by the sum; for several labels at once give a loss '
      'and metrics of your own.'
    )


def _counts(
  batch: types.Batch, classes: int | None, soft: bool
) -> np.ndarray | None:
  """Weights of the labels: those of the batch, or else the mask.

  The mask of the input is read for classes alone: their axes are known to be
  those of the tokens.
  """
  y, weights = batch.get('y'), batch.get('weights')
  if not isinstance(y, np.ndarray):
    return weights
  axes = y.shape[:-1] if soft else y.shape
  each = weights is not None and weights_lib.is_of_examples(weights, axes)
  if classes is None or not (weights is None or each):
    return weights
  found = weights_lib.output_weights(batch, (*axes, classes))
  return None if found is None else np.asarray(found)


def _clear_ignored(batch: types.Batch, counts: Any) -> types.Batch:
  """Sets labels of weight 0 to class 0: many data sets mark them by -100."""
  y = batch.get('y')
  if not isinstance(y, np.ndarray) or not isinstance(counts, np.ndarray):
    return batch
  if counts.shape != y.shape[: counts.ndim]:
    return batch
  counts = counts.reshape(*counts.shape, *[1] * (y.ndim - counts.ndim))
  return {**batch, 'y': np.where(counts == 0, np.zeros_like(y), y)}


def placeholders(rows: types.Batch) -> jax.Array:
  """Placeholder labels, `[B]` int32 zeros, which no stage reads."""
  return jnp.zeros(jax.tree.leaves(rows)[0].shape[:1], jnp.int32)
