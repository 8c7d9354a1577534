"""Functions of users at other sizes, where an axis is as long as another.

A loss that reduces the batch in place of the classes makes a result of the
right shape when there are as many classes as examples.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import jax


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
    another, or if the function is of its own lengths alone.
  """
  if not _is_in_doubt(axes, shapes):
    return None
  for lengths in _others(axes, shapes):
    change = lambda leaf, lengths=lengths: _changed(leaf, axes, lengths)
    try:
      return lengths, jax.eval_shape(fun, *jax.tree.map(change, shapes))
    except Exception:  # A function of the user may raise anything.
      continue
  return None


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
  leaf: Any, axes: Sequence[int], lengths: Sequence[int]
) -> jax.ShapeDtypeStruct:
  """A shape whose leading axes have other lengths."""
  pairs = list(zip(leaf.shape, axes, lengths, strict=False))
  first = [new if size == old else size for size, old, new in pairs]
  return jax.ShapeDtypeStruct((*first, *leaf.shape[len(first) :]), leaf.dtype)
