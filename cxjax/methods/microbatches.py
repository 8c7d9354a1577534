"""Parts of a batch that are computed one after the other, to save memory."""

from collections.abc import Callable
from typing import Any

import jax


def split(tree: Any, parts: int) -> Any:
  """Splits `[B, ...]` leaves into `[parts, B / parts, ...]`.

  Example `i` goes to part `i % parts`: a batch that is sharded over devices is
  so in each of its parts, and none of it moves.
  """
  return jax.tree.map(
    lambda leaf: leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1), tree
  )


def apply(fun: Callable[[Any], Any], tree: Any, parts: int) -> Any:
  """Computes `fun(tree)` one part of the leading axis after the other."""
  if parts == 1:
    return fun(tree)
  out = jax.lax.map(fun, split(tree, parts))
  join = lambda leaf: leaf.swapaxes(0, 1).reshape(-1, *leaf.shape[2:])
  return jax.tree.map(join, out)
