"""One-line errors: what is wrong, the value, what is allowed, what to do."""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import difflib
import operator
from typing import Any
from typing import TypeVar

T = TypeVar('T')


class UserError(ValueError):
  """Invalid input, explained in one line; `launch.py` prints only the line."""


class Stopped(Exception):
  """The process was asked to stop, and the run is saved."""


def require(condition: bool, message: str) -> None:
  """Raises `UserError(message)` unless `condition` holds."""
  if not condition:
    raise UserError(message)


def lookup(kind: str, name: str, table: Mapping[str, T]) -> T:
  """Returns the entry `name` of `table`.

  Args:
    kind: the kind of the entries, for the message ('method', 'activation').
    name: the key.
    table: the entries by their allowed names.

  Returns:
    `table[name]`.

  Raises:
    UserError: `name` is not in the table; the message names the nearest key and
      lists all keys.
  """
  if name in table:
    return table[name]
  close = difflib.get_close_matches(str(name), table, n=1)
  hint = f' Did you mean {close[0]!r}?' if close else ''
  raise UserError(
    f'Unknown {kind} {name!r}.{hint} Choose one of: {", ".join(table)}.'
  )


def whole(name: str, value: Any) -> int:
  """Converts a whole number of any library to an int.

  Args:
    name: the name of the value, for the message.
    value: the number.

  Returns:
    The int.

  Raises:
    UserError: `value` is no whole number.
  """
  try:
    return int(operator.index(value))
  except TypeError as error:
    raise UserError(f'{name}={value!r} must be a whole number.') from error


@contextlib.contextmanager
def about(subject: str) -> Iterator[None]:
  """Prefixes the message of a UserError with `subject` and a colon."""
  try:
    yield
  except UserError as error:
    raise UserError(f'{subject}: {error}') from error
