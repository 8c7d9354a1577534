"""Calls of a model that keep all that it returns and sows.

Adapters select one array as the output of a module and drop scalars and other
collections. Inside of `kept` they do not; a plan with several outputs or with
auxiliary losses reads them so.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import contextvars
from typing import Any

import jax
import jax.numpy as jnp

# Collections of linen that are kept; None outside of `kept`.
_COLLECTIONS: contextvars.ContextVar[tuple[str, ...] | None] = (
  contextvars.ContextVar('collections', default=None)
)


@contextlib.contextmanager
def kept(collections: tuple[str, ...] = ()) -> Iterator[None]:
  """Keeps trees of outputs, scalars, and these collections of linen.

  Args:
    collections: their names, as 'losses'.

  Yields:
    Nothing.
  """
  token = _COLLECTIONS.set(collections)
  try:
    yield
  finally:
    _COLLECTIONS.reset(token)


def is_kept() -> bool:
  """True inside of `kept`."""
  return _COLLECTIONS.get() is not None


def collections() -> tuple[str, ...]:
  """The collections of linen that are kept."""
  return _COLLECTIONS.get() or ()


def sown(state: Mapping[str, Any]) -> dict[str, jax.Array]:
  """Values of the collections that are kept, as 'losses/router'.

  Args:
    state: collections that a call of a linen module has changed.

  Returns:
    The floating-point arrays by path; those of later calls of the same module
    are 'losses/router/1' and so on.
  """
  found = {}
  for name in collections():
    for path, leaf in jax.tree.leaves_with_path(state.get(name, {})):
      suffix = jax.tree_util.keystr(path, simple=True, separator='/')
      if isinstance(leaf, jax.Array) and is_real(leaf):
        found[f'{name}/{suffix.removesuffix("/0")}'] = leaf
  return found


def is_real(leaf: Any) -> bool:
  """True for a floating-point array of any shape, or a shape."""
  dtype = getattr(leaf, 'dtype', None)
  return dtype is not None and jnp.issubdtype(dtype, jnp.floating)
