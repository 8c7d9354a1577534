"""One-line errors: what is wrong, the value, what is allowed, what to do."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import difflib
import re
from typing import TypeVar

T = TypeVar('T')


# Characters of a message that are shown: both ends of a longer one.
HEAD, TAIL = 700, 300
# The same of a word, as of a name in a stranger's file.
LONG_WORD = re.compile(r'(\S{250})\S{150,}(\S{100})')


class UserError(ValueError):
  """Invalid input, explained in one line; `launch.py` prints only the line.

  A message may have values of a user, or of a stranger's file: its lines are
  joined, characters that cannot be printed are escaped, and the middle of long
  words is left out.
  """

  def __init__(self, message: str = '') -> None:
    """Makes one line of the message."""
    line = ' '.join(part.strip() for part in str(message).splitlines())
    super().__init__(shown(line))


class Stopped(Exception):
  """The process was asked to stop.

  Attributes:
    signal: name of the signal, as 'SIGTERM'.
    step: steps that the run had done.
  """

  def __init__(self, message: str, signal: str = '', step: int = 0) -> None:
    """Keeps what the message is about."""
    super().__init__(message)
    self.signal, self.step = signal, step


def shown(text: str) -> str:
  """Text that can be printed: escaped, without the middle of long parts.

  Args:
    text: any text, as a message with names of a stranger's file: a control
      character would change the terminal, and half of a pair cannot be printed.

  Returns:
    The text with escapes in place of characters that cannot be printed; the
    middle of a long word, or of a long text, is left out.
  """
  if not text.isprintable():
    text = ''.join(
      c if c.isprintable() else c.encode('unicode_escape').decode()
      for c in text
    )
  text = LONG_WORD.sub(r'\1[...]\2', text)
  if len(text) > HEAD + TAIL:
    text = f'{text[:HEAD]} [...] {text[-TAIL:]}'
  return text


def require(condition: bool, message: str | Callable[[], str]) -> None:
  """Raises `UserError(message)` unless `condition` holds.

  Args:
    condition: condition that must hold.
    message: the message, or a function that makes it, for values whose repr
      takes long: a corpus, or an array of another device.
  """
  if not condition:
    raise UserError(message if isinstance(message, str) else message())


def lookup(kind: str, name: str, table: Mapping[str, T], other: str = '') -> T:
  """Returns the entry `name` of `table`.

  Args:
    kind: the kind of the entries, for the message ('method', 'activation').
    name: the key.
    table: the entries by their allowed names.
    other: value that may be given in place of a name, for the message, as 'a
      function of (student, target)'.

  Returns:
    `table[name]`.

  Raises:
    UserError: `name` is not in the table; the message names the nearest key and
      lists all keys.
  """
  try:
    if name in table:
      return table[name]
  except TypeError:  # No key of a dict, as a list.
    pass
  close = difflib.get_close_matches(str(name), table, n=1)
  hint = f' Did you mean {close[0]!r}?' if close else ''
  other = f'; or give {other}' if other else ''
  raise UserError(
    f'Unknown {kind} {name!r}.{hint} Choose one of: {", ".join(table)}{other}.'
  )


@contextlib.contextmanager
def about(subject: str) -> Iterator[None]:
  """Prefixes the message of a UserError with `subject` and a colon."""
  try:
    yield
  except UserError as error:
    raise UserError(f'{subject}: {error}') from error


@contextlib.contextmanager
def calling(what: str, do: str = '') -> Iterator[None]:
  """Raises UserError for any exception of code that a user gives.

  Args:
    what: name of the code, as in 'The model'.
    do: advice to the user, one sentence.
  """
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    reason = str(error).partition('\n')[0].rstrip('.')
    raise UserError(
      f'{what} raises {type(error).__name__}: {reason}. {do}'.rstrip()
    ) from error
