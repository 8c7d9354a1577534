"""Functions of users at other sizes, where an axis is as long as another.

A loss that reduces the batch in place of the classes makes a result of the
right shape when there are as many classes as examples.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import jax

from cxjax import types


def result(
  fun: Callable[..., Any], axes: Sequence[int], *shapes: Any
) -> tuple[tuple[int, ...], Any] | None:
  """Result of a function whose leading axes have lengths of their own.

  Args:
    fun: a function of trees of arrays.
    axes: lengths of the leading axes that it must keep.
    *shapes: shapes of its arguments, whose first axes these are.

  Returns:
    The other lengths and the shape of the result; None if no axis is as long as
    another, or if the function is of its own lengths alone, as `x[rows]`.
  """
  if not _is_in_doubt(axes, shapes):
    return None
  for lengths in _others(axes, shapes):
    made = _made(fun, axes, lengths, shapes)
    if made is not None:
      fixed = _has(made, axes) and _has(
        _made(fun, axes, lengths, shapes, longer=1), axes
      )
      return None if fixed else (lengths, made)
  return None


def _made(
  fun: Callable[..., Any],
  axes: Sequence[int],
  lengths: Sequence[int],
  shapes: Any,
  longer: int = 0,
) -> Any:
  """Shapes of a result with other lengths; None if the function fails."""
  change = lambda leaf: _changed(leaf, axes, lengths, longer)
  try:
    return jax.eval_shape(fun, *jax.tree.map(change, shapes))
  except Exception:  # A function of the user may raise anything.
    return None


def _has(made: Any, axes: Sequence[int]) -> bool:
  """True if a result has the lengths that the arguments no longer have."""
  leaves = jax.tree.leaves(made)
  return bool(leaves) and all(leaf.shape == tuple(axes) for leaf in leaves)


def _is_in_doubt(axes: Sequence[int], shapes: Any) -> bool:
  """True if an array has a leading axis that is as long as another axis."""
  leaves = [leaf.shape for leaf in jax.tree.leaves(shapes)]
  return any(shape.count(n) > 1 for shape in leaves for n in axes)


def _others(axes: Sequence[int], shapes: Any) -> Iterator[tuple[int, ...]]:
  """Other lengths of the leading axes: all of them, or those of the batch."""
  longest = max(n for leaf in jax.tree.leaves(shapes) for n in leaf.shape)
  yield tuple(longest + 1 + i for i in range(len(axes)))
  yield (longest + 1, *axes[1:])


def _changed(
  leaf: Any, axes: Sequence[int], lengths: Sequence[int], longer: int
) -> jax.ShapeDtypeStruct:
  """A shape whose leading axes have other lengths, and a `longer` last one."""
  pairs = list(zip(leaf.shape, axes, lengths, strict=False))
  first = [new if size == old else size for size, old, new in pairs]
  rest = list(leaf.shape[len(first) :])
  if rest:
    rest[-1] += longer * (max(lengths) + 1)
  return types.shape_struct((*first, *rest), leaf.dtype)
