"""Standard streams that a program may lack or have closed."""

from collections.abc import Iterator
import contextlib
import sys
import threading
from typing import Any


class Tolerant:
  """A text stream that drops what cannot be written.

  Its other attributes are those of the stream.
  """

  def __init__(self, stream: Any) -> None:
    """Wraps a stream: open, closed, broken, or None."""
    self._stream = stream

  def __getattr__(self, name: str) -> Any:
    """Returns an attribute of the stream."""
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    """Writes a text if the stream takes it, and returns its length."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
      self._stream.write(text)
    return len(text)

  def flush(self) -> None:
    """Flushes the stream if that works."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
      self._stream.flush()


_SILENT: Any = Tolerant(None)
_lock = threading.Lock()
_missing: list[Any] = []  # The stderr that each thread found, closed or None.


def is_usable(stream: Any) -> bool:
  """Returns True for a stream that is there and open."""
  return stream is not None and not getattr(stream, 'closed', False)


def is_terminal(stream: Any) -> bool:
  """Returns True for an open terminal."""
  return is_usable(stream) and bool(getattr(stream, 'isatty', bool)())


def show(text: str) -> None:
  """Prints a text on stdout, if the program has one."""
  Tolerant(sys.stdout).write(f'{text}\n')


@contextlib.contextmanager
def with_stderr() -> Iterator[None]:
  """Drops messages where stderr is closed or None.

  A log or a warning raises there, and would end a training: ours, or one of
  JAX. An open stderr is left alone. The last thread that leaves puts back what
  was found.

  Yields:
    Nothing.
  """
  with _lock:
    silent = sys.stderr is _SILENT or not is_usable(sys.stderr)
    if silent:
      _missing.append(_missing[0] if _missing else sys.stderr)
      sys.stderr = _SILENT
  try:
    yield
  finally:
    if silent:
      with _lock:
        found = _missing.pop()
        if not _missing and sys.stderr is _SILENT:
          sys.stderr = found
