"""Comparison of two models by what they compute from the same parameters."""

from collections.abc import Sequence
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cxjax import errors
from cxjax import types

ROWS = 2  # Examples of an input, so that outputs are small.
NEAR = 0.02  # Of the largest output: the dtypes to compute in may differ.


def first_other(
  applies: Sequence[types.Apply], params: types.Params, x: Any
) -> int | None:
  """Index of the first function whose output is not that of the first one.

  Args:
    applies: functions `(params, x) -> (output, activations)`.
    params: parameters for all of them.
    x: shapes of an input, which is drawn.

  Returns:
    The index; None if all outputs are the same, or cannot be computed as they
    are, as those of a model with several.
  """
  own: Any = None
  for i, apply in enumerate(applies):
    if i and apply == applies[0]:
      continue
    found = _outputs(apply, params, x)
    if found is None:
      return None
    own = own or found
    if not _near(own[0], found[0]):
      return i
  return None


def is_other(
  ours: types.Apply, theirs: types.Apply, params: types.Params, x: Any
) -> bool:
  """Decides if the output of a function is no output or activation of another.

  Args:
    ours: function `(params, x) -> (output, activations)`.
    theirs: another one, which may choose another output.
    params: parameters for both.
    x: shapes of an input, which is drawn.

  Returns:
    True if `ours` returns arrays of the shape of the output of `theirs`, and
    none of them is that output.
  """
  if ours == theirs:
    return False
  have, other = (_outputs(f, params, x) for f in (ours, theirs))
  if have is None or other is None:
    return False
  output = other[0]
  alike = [leaf for leaf in have if leaf.shape == output.shape]
  return bool(alike) and not any(_near(leaf, output) for leaf in alike)


def _outputs(
  apply: types.Apply, params: types.Params, x: Any
) -> list[np.ndarray] | None:
  """The output and the activations for some rows; None if there are none."""
  keys = jax.dtypes.prng_key
  if any(jnp.issubdtype(leaf.dtype, keys) for leaf in jax.tree.leaves(x)):
    return None
  few = lambda leaf: types.shape_struct(
    (min(leaf.shape[0], ROWS), *leaf.shape[1:]), leaf.dtype
  )
  for shapes in (few, lambda leaf: leaf):  # A model may have one batch size.
    drawn = jax.tree.map(lambda leaf: _drawn(shapes(leaf)), x)  # noqa: B023
    try:
      found = jax.jit(apply)(params, drawn)
    except errors.UserError:
      return None
    except (TypeError, ValueError):
      continue
    return jax.tree.leaves(jax.device_get(found))
  return None


def _drawn(leaf: Any) -> np.ndarray:
  """Normal numbers; integers are 0 and 1 in turn, which all ids may be."""
  if jnp.issubdtype(leaf.dtype, jnp.floating):
    return np.random.default_rng(0).normal(size=leaf.shape).astype(leaf.dtype)
  turns = np.arange(math.prod(leaf.shape)).reshape(leaf.shape) % 2
  return turns.astype(leaf.dtype)


def _near(a: np.ndarray, b: np.ndarray) -> bool:
  """True if two arrays agree up to `NEAR`, where both are finite."""
  if a.shape != b.shape:
    return False
  a, b = (np.asarray(leaf, np.float64) for leaf in (a, b))
  both = np.isfinite(a) & np.isfinite(b)
  if not both.any():
    return True
  distance = np.abs(a[both] - b[both]).max()
  return bool(distance <= NEAR * np.abs(a[both]).max())
