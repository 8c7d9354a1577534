"""Losses of relations between examples or positions, and of attention maps.

The student and its target need not have the same coordinates, only the same
relations, as far as widths are equal: a random projection of the target, which
a term can have, keeps them up to its noise. Rows are those of the axis before
the last: the examples of a batch of vectors, `[B, D]`, or the positions of each
sequence, `[B, L, D]`; pooled tokens are vectors. A row whose target is zero is
padding and has no relations.
"""

from collections.abc import Callable
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp

from cxjax import arguments
from cxjax import errors
from cxjax import types
from cxjax.methods import loss_values


def gram(student: jax.Array, target: jax.Array) -> jax.Array:
  """Squared error of the cosines between each row and all others.

  Args:
    student: `[..., N, D]` activations.
    target: `[..., N, D]` what their relations should be.

  Returns:
    `[..., N]`, the mean over the rows that each is compared with.

  References:
    Tung, Mori, 2019. https://arxiv.org/abs/1907.09682.
    Park et al., 2019. https://arxiv.org/abs/1904.05068.
  """
  student, target, real = _rows(student, target)
  ours, theirs = (_cosines(_unit(x)) for x in (student, target))
  pairs = real[..., :, None] * real[..., None, :]
  error = jnp.sum(pairs * jnp.square(ours - theirs), axis=-1)
  return error / jnp.maximum(jnp.sum(real, axis=-1, keepdims=True), 1)


def cka(student: jax.Array, target: jax.Array) -> jax.Array:
  """One minus the linear centered kernel alignment of the rows.

  Args:
    student: `[..., N, D]` activations.
    target: `[..., N, D]` what their relations should be.

  Returns:
    `[..., N]`, the same for every row, between 0 and 1; 1, without a gradient,
    where all rows of one of the two are equal.

  References:
    Kornblith et al., 2019. https://arxiv.org/abs/1905.00414.
    Saha et al., 2022. https://arxiv.org/abs/2206.14723 (as a loss).
  """
  student, target, real = _rows(student, target)
  count = jnp.maximum(jnp.sum(real, axis=-1), 1)[..., None, None]

  def centered(x: jax.Array) -> jax.Array:
    x = loss_values.within_range(x * real[..., None], (-2, -1))
    mean = jnp.sum(x, axis=-2, keepdims=True) / count
    x = (x - mean) * real[..., None]
    # A scale of its own: the squares of squares must not overflow.
    return loss_values.scaled(x, (-2, -1))

  ours, theirs = centered(student), centered(target)
  square = lambda a, b: jnp.sum(
    jnp.square(jnp.einsum('...nd,...ne->...de', a, b)), axis=(-2, -1)
  )
  size = square(ours, ours) * square(theirs, theirs)
  constant = size == 0
  safe = jnp.where(constant, 1.0, size)
  found = jnp.where(constant, 0.0, square(ours, theirs) * jax.lax.rsqrt(safe))
  return jnp.broadcast_to((1 - found)[..., None], student.shape[:-1])


def attention(student: jax.Array, target: jax.Array) -> jax.Array:
  """Squared error of the maps of where activations are large.

  A map has the sum of squares of each position, all of an example scaled to
  length 1.

  Args:
    student: `[B, ..., D]` activations of positions.
    target: `[B, ..., D]` what their map should be.

  Returns:
    `[B, ...]`, times the number of positions, so that the mean over them is the
    squared distance of the two maps.

  Raises:
    UserError: vectors, which have no positions.

  References:
    Zagoruyko, Komodakis, 2017. https://arxiv.org/abs/1612.03928.
  """
  arguments.equal_shapes(student=student, target=target)
  errors.require(
    student.ndim > 2,
    f'An attention map needs positions, and the activations are '
    f"{list(student.shape)}: give [batch, positions, width], pool='none'.",
  )

  def attention_map(x: jax.Array) -> jax.Array:
    # The map has length 1, whatever that of the activations is.
    x = loss_values.within_range(
      loss_values.precise(x), tuple(range(1, x.ndim))
    )
    squares = jnp.sum(jnp.square(x), axis=-1)
    return loss_values.scaled(squares, tuple(range(1, squares.ndim)))

  theirs = attention_map(target)
  axes = tuple(range(1, theirs.ndim))
  count = jnp.sum(theirs != 0, axis=axes, keepdims=True, dtype=theirs.dtype)
  return jnp.square(attention_map(student) - theirs) * count


def compares_examples(loss: Any, values: jax.Array) -> bool:
  """True for a loss of ours that compares examples with each other.

  Args:
    loss: loss of a term.
    values: arrays that it compares, `[B, D]` or with more axes.
  """
  fun = getattr(loss, 'func', loss)
  return values.ndim == 2 and (fun is gram or fun is cka)


def warn_of_microbatches(name: str, microbatches: int) -> None:
  """Warns once that the loss of an activation compares fewer examples."""
  logging.log_first_n(
    logging.WARNING,
    'The loss of %r compares examples with each other, and only those of one '
    'of the %d microbatches: it is another loss than without them.',
    1,
    name,
    microbatches,
  )


def _rows(
  student: jax.Array, target: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Both in float32, and `[..., N]` ones for the rows that are no padding."""
  arguments.equal_shapes(student=student, target=target)
  errors.require(
    student.ndim > 1,
    f'Relations need rows, and the activations are {list(student.shape)}: give '
    '[batch, width].',
  )
  student, target = loss_values.precise(student), loss_values.precise(target)
  real = jnp.any(target != 0, axis=-1).astype(student.dtype)
  return student, target, real


def _unit(x: jax.Array) -> jax.Array:
  return loss_values.scaled(x, (-1,))


def _cosines(x: jax.Array) -> jax.Array:
  return jnp.einsum('...nd,...md->...nm', x, x)


# By name, as `losses.LOSSES`.
LOSSES: dict[str, Callable[..., jax.Array] | types.Loss] = {
  'gram': gram,
  'cka': cka,
  'attention': attention,
}
