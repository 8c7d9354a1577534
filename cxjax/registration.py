"""Registration of what users add by name: tasks, models, metrics."""

from collections.abc import Callable
from typing import Any
from typing import TypeVar

from cxjax import errors

T = TypeVar('T')


def add(
  kind: str, table: dict[str, T], name: str, value: T, source: Any
) -> None:
  """Adds an entry to a registry.

  The same source may register again: absl runs a config file twice, and a cell
  of a notebook may run any number of times.

  Args:
    kind: kind of the entries, for the message ('task', 'metric', ...).
    table: the registry.
    name: name of the entry.
    value: the entry.
    source: the function that the entry is made of; the module and the name of
      its definition tell one entry from another.

  Raises:
    UserError: the name is no text, the source is no function, or another source
      has the name.
  """
  errors.require(
    isinstance(name, str) and bool(name),
    f'The name {name!r} of a {kind} must be a string.',
  )
  errors.require(
    callable(source),
    f'The {kind} {name!r} is a {type(source).__name__}; it must be a function.',
  )
  taken = _SOURCES.get((kind, name))
  if name in table and taken != origin(source):
    raise errors.UserError(
      f'There is a {kind} {name!r} already, by {taken or "cxjax"}. Choose '
      f'another name than one of: {", ".join(table)}.'
    )
  _SOURCES[kind, name] = origin(source)
  table[name] = value


# Where each entry was defined, by kind and name.
_SOURCES: dict[tuple[str, str], str] = {}


def origin(fun: Callable[..., Any]) -> str:
  """Module and name of a function, of that in a partial, or of a class."""
  named = getattr(fun, 'func', fun)
  if not hasattr(named, '__qualname__'):
    named = type(named)
  return f'{named.__module__}.{named.__qualname__}'
