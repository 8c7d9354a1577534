"""Trees of losses, one for each of several outputs."""

from collections.abc import Mapping
import numbers
from typing import Any

import jax

from cxjax import errors


def flat(loss: Any) -> dict[str, Any]:
  """Losses by the paths of their outputs.

  Args:
    loss: a tree of names, functions, pairs with weights, and None.

  Returns:
    The leaves by path.

  Raises:
    UserError: a leaf is something else.
  """
  stop = lambda node: node is None or isinstance(node, str) or callable(node)
  leaf = lambda node: stop(node) or _is_pair(node)
  found = {
    jax.tree_util.keystr(path, simple=True, separator='/'): one
    for path, one in jax.tree.leaves_with_path(loss, is_leaf=leaf)
  }
  for path, one in found.items():
    errors.require(
      leaf(one),
      f'loss: {one!r} for the output {path!r} must be the name of a loss, a '
      "function, a pair with its weight, as ('mse', 0.5), or None.",
    )
  return found


def expanded(losses: Mapping[str, Any], tree: Any) -> dict[str, Any]:
  """The losses, with None for each output of a subtree that is left out.

  Args:
    losses: losses by path, from `flat`.
    tree: the outputs.

  Returns:
    Losses by path. A None of nothing, as the tree may have it, is left out too.
  """
  path_of = lambda path: jax.tree_util.keystr(path, simple=True, separator='/')
  leaves = {
    path_of(path): leaf
    for path, leaf in jax.tree.leaves_with_path(
      tree, is_leaf=lambda node: node is None
    )
  }
  found = {}
  for path, one in losses.items():
    inside = [p for p in leaves if p == path or p.startswith(f'{path}/')]
    if one is not None or not inside:
      found[path] = one
      continue
    for p in inside:
      if leaves[p] is not None and (p == path or p not in losses):
        found[p] = None
  return found


def _is_pair(node: Any) -> bool:
  """True for a loss and its weight."""
  return (
    isinstance(node, tuple | list)
    and len(node) == 2
    and (isinstance(node[0], str) or callable(node[0]))
    and isinstance(node[1], numbers.Real)
  )


def pair(loss: Any) -> tuple[Any, float]:
  """A loss and its weight, by default 1."""
  return (loss[0], loss[1]) if _is_pair(loss) else (loss, 1.0)
