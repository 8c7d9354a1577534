"""Errors for people: one line, the value, what is allowed, what to do."""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import difflib
import operator
from typing import Any
from typing import TypeVar

T = TypeVar('T')


class UserError(ValueError):
  """A mistake that one line explains; `launch.py` prints it alone."""


def require(condition: bool, message: str) -> None:
  """Raises `UserError(message)` unless `condition` holds."""
  if not condition:
    raise UserError(message)


def lookup(kind: str, name: str, table: Mapping[str, T]) -> T:
  """The entry `name` of `table`.

  Args:
    kind: what the table holds, for the message ('method', 'activation', ...).
    name: the key asked for.
    table: the allowed names and what they stand for.

  Returns:
    `table[name]`.

  Raises:
    UserError: `name` is not there; the message lists the names that are.
  """
  if name in table:
    return table[name]
  close = difflib.get_close_matches(str(name), table, n=1)
  hint = f' Did you mean {close[0]!r}?' if close else ''
  raise UserError(
    f'Unknown {kind} {name!r}.{hint} Choose one of: {", ".join(table)}.'
  )


def whole(name: str, value: Any) -> int:
  """An int, whatever library it is of; raises UserError for anything else."""
  try:
    return int(operator.index(value))
  except TypeError as error:
    raise UserError(f'{name}={value!r} must be a whole number.') from error


@contextlib.contextmanager
def about(what: str) -> Iterator[None]:
  """Puts `what` and a colon before the message of a UserError."""
  try:
    yield
  except UserError as error:
    raise UserError(f'{what}: {error}') from error


class Stopped(Exception):
  """The process was asked to stop; what it did is saved."""
