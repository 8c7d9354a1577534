"""Signals that ask the process to stop."""

from collections.abc import Iterator
import contextlib
import signal
import threading
from typing import Any


@contextlib.contextmanager
def catch() -> Iterator[list[str]]:
  """Collects SIGTERM and SIGINT in a list instead of ending the process.

  The loop looks at the list after every dispatch. A second signal raises
  KeyboardInterrupt: the process ends without saving.
  """
  seen: list[str] = []

  def note(number: int, frame: Any) -> None:
    del frame
    if seen:
      raise KeyboardInterrupt
    seen.append(signal.Signals(number).name)

  if threading.current_thread() is not threading.main_thread():
    yield seen  # Handlers can be set in the main thread alone.
    return
  numbers = (signal.SIGTERM, signal.SIGINT)
  # A job in the background may have been told to ignore them.
  heard = [n for n in numbers if signal.getsignal(n) != signal.SIG_IGN]
  before = {n: signal.signal(n, note) for n in heard}
  try:
    yield seen
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
