"""Weights of the values that a loss compares: padding has weight 0.

What has weight 0 changes neither the loss nor its gradient, not even as NaN:
`cleared` replaces it before the loss sees it, so that no NaN is ever multiplied
by 0. For losses of one row alone `cleared_gradient` is enough.
"""

from collections.abc import Callable
from collections.abc import Mapping
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cxjax import types
from cxjax.methods import stage as stage_lib


def cleared(tree: Any, weights: jax.Array | None) -> Any:
  """Arrays with zeros at the positions of weight 0.

  Args:
    tree: arrays whose first axes are those of the weights; others are returned
      as they are.
    weights: `[B, ...]`; None is 1 everywhere.

  Returns:
    The tree. Its gradient is 0 at those positions, whatever comes back to them.
  """
  if weights is None:
    return tree

  def one(leaf: jax.Array) -> jax.Array:
    if leaf.shape[: weights.ndim] != weights.shape:
      return leaf
    counts = weights.reshape(*weights.shape, *[1] * (leaf.ndim - weights.ndim))
    return jnp.where(counts != 0, leaf, jnp.zeros_like(leaf))

  return jax.tree.map(one, tree)


@jax.custom_jvp
def cleared_factor(value: jax.Array, weights: jax.Array) -> jax.Array:
  """`cleared` for a factor of a product that is cleared in turn.

  What comes back to it is 0 at weight 0 already, and passes as it is: one more
  mask would round the gradients differently.
  """
  return cleared(value, weights)


cleared_factor.defjvp(
  lambda primals, tangents: (cleared(*primals), tangents[0])
)


@jax.custom_jvp
def cleared_gradient(value: jax.Array, weights: jax.Array) -> jax.Array:
  """The value, whose gradient is 0 at weight 0, whatever comes back to it.

  For losses of one row alone: a NaN of weight 0 is in a loss that does not
  count, and nowhere else. It saves the selects of `cleared` over two arrays.
  """
  del weights
  return value


cleared_gradient.defjvp(
  lambda primals, tangents: (primals[0], cleared(tangents[0], primals[1]))
)


def cleared_input(batch: types.Batch) -> types.Batch:
  """A batch whose inputs that do not count are numbers.

  The gradient of a layer is the product of its input and of what comes back
  from the loss; a NaN times 0 would be a NaN.

  Args:
    batch: batch of JAX or NumPy arrays, as in `cxjax.types`.

  Returns:
    The batch, with zeros for what is not finite in examples of weight 0, and
    for NaN in tokens of padding: those that the mask excludes, or, without a
    mask, those of weight 0. An infinite value there may be a bias of the
    attention.
  """
  weights, tokens = batch.get('weights'), _token_counts(batch)
  examples = None if weights is None else _any(weights)

  def one(leaf: Any) -> Any:
    if not _is_real(leaf):
      return leaf
    leaf = _numbers(leaf, examples, lambda library, x: library.isfinite(x))
    return _numbers(leaf, tokens, lambda library, x: ~library.isnan(x))

  if examples is None and tokens is None:
    return batch
  return {**batch, 'x': jax.tree.map(one, batch['x'])}


def _numbers(leaf: Any, counts: Any, is_good: Callable[..., Any]) -> Any:
  """An array with zeros for values that neither count nor are good."""
  if counts is None or leaf.shape[: counts.ndim] != counts.shape:
    return leaf
  library = np if isinstance(leaf, np.ndarray) else jnp
  good = is_good(library, leaf)
  if library is np and good.all():
    return leaf
  each = counts.reshape(*counts.shape, *[1] * (leaf.ndim - counts.ndim))
  return library.where(each | good, leaf, library.zeros_like(leaf))


def _token_counts(batch: types.Batch) -> Any:
  """`[B, L]` booleans: the tokens that are no padding; None if all may be."""
  x, weights = batch['x'], batch.get('weights')
  mask = token_mask(x)
  if mask is not None:
    return mask != 0
  at_targets = isinstance(x, Mapping) and 'target_positions' in x
  if weights is None or weights.ndim < 2 or at_targets:
    return None
  return weights != 0


def _is_real(leaf: Any) -> bool:
  return jnp.issubdtype(leaf.dtype, jnp.floating)


def _any(weights: jax.Array) -> jax.Array:
  """`[B]` booleans: the examples that have any weight."""
  return (weights != 0).any(axis=tuple(range(1, weights.ndim)))


def loss_weights(
  batch: types.Batch, term: stage_lib.Term, name: str, shape: tuple[int, ...]
) -> jax.Array | None:
  """Weights of the values of a term's loss; None if all are 1.

  At the target positions, and for outputs, they are the batch's 'weights', or
  else the mask of the real tokens; weights of examples, `[B]`, are shared by
  all real values of each. For other hidden activations and for pooled ones they
  are the mask times the weights of the examples, and for one of several
  outputs, of other axes than the weights, those of the examples. Of one value
  for each example, such as a pooled output, the mask says which examples have a
  token.

  Args:
    batch: batch of examples, as in `cxjax.types`.
    term: one term of a stage.
    name: the activation that is compared, of the student or of the teacher.
    shape: its shape, `[B, ..., D]`, before it is pooled.

  Returns:
    An array of the shape of the loss, or None.
  """
  weights, real = batch.get('weights'), _real_tokens(batch, term, name, shape)
  axes = shape[:-1] if term.pool == 'none' else shape[:1]
  several = name.startswith(stage_lib.OUTPUT)
  # Those of tokens are weights of the values of an output of tokens.
  own = several and weights is not None and weights.shape == axes != shape[:1]
  if (not term.all_tokens or own) and term.pool == 'none':
    if weights is None:
      return real
    if is_of_examples(weights, axes):
      shared = _of_examples(weights, axes)
      return shared if real is None else real * shared
    return _of_examples(weights, axes) if several else weights
  weights = _spread(batch, axes, real)
  if real is None or weights is None:
    return weights if real is None else real
  return real * weights


def _spread(
  batch: types.Batch, axes: tuple[int, ...], real: jax.Array | None
) -> jax.Array | None:
  """The batch's weights for hidden values of these axes."""
  weights = batch.get('weights')
  if weights is None or (_at_targets(batch) and weights.ndim > 1):
    return None  # They say which predictions count, not which tokens.
  if real is not None and weights.ndim > 1:
    weights = _any(weights)
  return _of_examples(weights, axes)


def _at_targets(batch: types.Batch) -> bool:
  """True if the outputs of a batch are those of some of its tokens."""
  return isinstance(batch['x'], Mapping) and 'target_positions' in batch['x']


def _of_examples(weights: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  """Weights of these axes; those of the examples where the axes differ."""
  if weights.shape == axes:
    return weights
  each = weights if weights.ndim == 1 else _any(weights)
  return jnp.broadcast_to(
    each.reshape(-1, *[1] * (len(axes) - 1)), (len(each), *axes[1:])
  )


def token_mask(x: types.Input) -> jax.Array | None:
  """The mask of the real tokens of an input, if it has one."""
  mask = x.get('mask') if isinstance(x, Mapping) else None
  return mask if hasattr(mask, 'shape') else None


def is_of_examples(weights: Any, axes: tuple[int, ...]) -> bool:
  """True for weights of examples that have several values each."""
  return weights.ndim == 1 < len(axes) and weights.shape == axes[:1]


def is_of_tokens(mask: Any, axes: tuple[int, ...]) -> bool:
  """True for the mask of the tokens of values that each example has one of."""
  return mask.ndim == 2 and axes == mask.shape[:1]


def _real_tokens(
  batch: types.Batch, term: stage_lib.Term, name: str, shape: tuple[int, ...]
) -> jax.Array | None:
  """Mask of the values that are no padding; None if there is none."""
  x = batch['x']
  mask = token_mask(x)
  if mask is None:
    return None
  if term.pool != 'none':
    if len(shape) < 3 or mask.shape != (shape[0], math.prod(shape[1:-1])):
      return None
    return jnp.any(mask != 0, axis=1)  # An example without a token is padding.
  axes = shape[:-1]
  several = term.all_tokens or name.startswith(stage_lib.OUTPUT)
  if several and is_of_tokens(mask, axes):
    return jnp.any(mask != 0, axis=1)
  if term.all_tokens:
    return mask
  positions = x.get('target_positions')
  if positions is not None and mask.ndim == positions.ndim == 2:
    mask = jnp.take_along_axis(mask, positions, axis=1)
    if name not in stage_lib.TARGET_POSITION_ACTIVATIONS:
      axes = positions.shape
  return mask if mask.shape == axes else None


def output_weights(
  batch: types.Batch, shape: tuple[int, ...], name: str = stage_lib.LOGITS
) -> jax.Array | None:
  """Weights of the outputs of a batch; None if all are 1.

  Args:
    batch: batch of examples, as in `cxjax.types`.
    shape: shape `[B, ..., C]` of the outputs.
    name: name of the outputs among the activations.

  Returns:
    `[B, ...]`, or None.
  """
  return loss_weights(batch, stage_lib.Term(), name, shape)


def weighted_mean(
  values: jax.Array,
  weights: jax.Array | None,
  axis: int | tuple[int, ...] | None = None,
) -> jax.Array:
  """Weighted mean over `axis`, by default over all; NaN where nothing counts.

  Args:
    values: any shape; those of weight 0 may be NaN.
    weights: the same shape, or one that broadcasts to it; None is the mean.
    axis: axis or axes of `values`; None is all.

  Returns:
    The mean.
  """
  if weights is None:
    return jnp.mean(values, axis=axis)
  weights = weights.astype(values.dtype)
  values = jnp.where(weights != 0, values, jnp.zeros_like(values))
  total = jnp.sum(weights, axis=axis)
  return jnp.sum(values * weights, axis=axis) / total


def pooled(value: jax.Array, mask: jax.Array | None, pool: str) -> jax.Array:
  """Reduces the axes between the examples and the width.

  Args:
    value: `[B, ..., D]`.
    mask: `[B, L]` of the real tokens, where those axes are the tokens.
    pool: 'none', 'mean' or 'flatten'.

  Returns:
    `[B, D]`, the mean of the real tokens, zeros for an example without any; or
    `[B, L D]`, with zeros for the padding; or `value` as it is.
  """
  if pool == 'none' or value.ndim == 2:
    return value
  flat = value.reshape(len(value), -1, value.shape[-1])
  if mask is not None and mask.shape != flat.shape[:2]:
    mask = None
  if pool == 'flatten':
    return cleared(flat, mask).reshape(len(value), -1)
  if mask is None:
    return jnp.mean(flat, axis=1)
  each = jnp.broadcast_to(mask[..., None], flat.shape).astype(flat.dtype)
  total = jnp.sum(each, axis=1)
  sums = jnp.sum(cleared(flat, mask) * each, axis=1)
  return sums / jnp.where(total == 0, jnp.ones((), total.dtype), total)
