"""Values that are finite, or allowed, and make a loss that is not finite."""

from typing import Any

import jax
import jax.numpy as jnp

from cxjax import errors
from cxjax.models import probabilities

# A divergence depends on differences of logits, whose digits are lost in
# float32: numbers near 1e7 are 1 apart. A multiplication before it may be
# rounded in the one place and not in the other, and the largest logit then
# differs from itself.
LARGEST_LOGIT = 1e6
# The square of 1e19 and more overflows, and that of many smaller ones summed.
LARGEST = 1e15


def check_excluded(what: str, value: jax.Array) -> None:
  """Raises UserError for rows in which every class is excluded.

  Args:
    what: the model and its activation, for the message.
    value: `[B, ..., C]` logits.

  Raises:
    UserError: it names the first example with such a row.
  """
  bad = jnp.isneginf(value).all(axis=-1)
  errors.require(
    not bool(bad.any()),
    lambda: (
      f'{what} is -inf for every class in {int(bad.sum())} of {bad.size} '
      f'rows, the first of example {_example(bad)}: such a row has no '
      'distribution. '
      "Give each row a class at least, or leave it out with 'weights' of 0."
    ),
  )


def check_size(what: str, value: jax.Array, loss: Any) -> None:
  """Raises UserError for values that are too large for a loss.

  Args:
    what: the model and its activation, for the message.
    value: `[B, ..., C]` values; those that are not finite are not judged.
    loss: the loss that compares them, with its temperature if it has one.

  Raises:
    UserError: it names the largest value and its example.
  """
  value = jnp.abs(jnp.where(jnp.isfinite(value), value, 0))
  limit, largest = _limit(loss), float(value.max(initial=0))
  errors.require(
    largest <= limit,
    lambda: (
      f'{what} has values as large as {largest:.3g}, the first in example '
      f'{_example(value == largest)}. This loss is reliable up to {limit:g} '
      'in float32: scale the values down in the model.'
    ),
  )


def _limit(loss: Any) -> float:
  """The largest values that a loss computes reliably."""
  of_logits = probabilities.bare(loss) in probabilities.OF_LOGITS
  return LARGEST_LOGIT if of_logits else LARGEST


def _example(marks: jax.Array) -> int:
  """The first example with a mark."""
  return int(marks.reshape(len(marks), -1).any(axis=1).argmax())
