"""Signals that ask the process to stop."""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import signal
import sys
import threading
from typing import Any

# Whether this process has trained.
_trained = threading.Event()
# Signals that `outside_loops` heard.
_heard: list[str] = []
DELAY = 0.01  # Seconds until a signal that was swallowed comes again.


class Interrupted(KeyboardInterrupt):
  """A signal that came while nothing was trained; no `except Exception`.

  Attributes:
    code: exit code: 0 if the process has trained before, and saved it; else
      that of the shell for the signal.
  """

  def __init__(self, name: str) -> None:
    """Keeps what the signal means for the process."""
    super().__init__(name)
    number = signal.Signals[name].value
    self.code = 0 if _trained.is_set() else 128 + number


@contextlib.contextmanager
def outside_loops() -> Iterator[None]:
  """Raises `Interrupted` at SIGTERM and SIGINT, except within `catch`.

  Python swallows what is raised in callbacks, as in those of the garbage
  collector, and so may other packages: the signal then comes again, at the
  start of a loop at the latest.
  """

  def stop(number: int, frame: Any) -> None:
    del frame
    _heard.append(signal.Signals(number).name)
    raise Interrupted(_heard[-1])

  def again(unraisable: Any) -> None:
    if not isinstance(unraisable.exc_value, Interrupted):
      former(unraisable)
      return
    number = signal.Signals[str(unraisable.exc_value)]
    main = threading.main_thread().ident
    timer = threading.Timer(DELAY, signal.pthread_kill, (main, number))
    timer.daemon = True
    timer.start()

  former = sys.unraisablehook
  _heard.clear()
  with _handled(stop):
    try:
      sys.unraisablehook = again
      yield
    finally:
      sys.unraisablehook = former
      _heard.clear()


@contextlib.contextmanager
def catch() -> Iterator[list[str]]:
  """Collects SIGTERM and SIGINT in a list instead of ending the process.

  The loop looks at the list after every dispatch. A second signal raises
  KeyboardInterrupt: the process ends without saving.
  """
  if _heard:
    raise Interrupted(_heard[0])
  _trained.set()
  seen: list[str] = []

  def note(number: int, frame: Any) -> None:
    del frame
    if seen:
      raise KeyboardInterrupt
    seen.append(signal.Signals(number).name)

  with _handled(note):
    yield seen


@contextlib.contextmanager
def _handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
  """Sets the handler of both signals, and the former ones afterwards."""
  if threading.current_thread() is not threading.main_thread():
    yield  # Handlers can be set in the main thread alone.
    return
  numbers = (signal.SIGTERM, signal.SIGINT)
  # A job in the background may have been told to ignore them.
  heard = [n for n in numbers if signal.getsignal(n) != signal.SIG_IGN]
  before = {n: signal.signal(n, handler) for n in heard}
  try:
    yield
  finally:
    for number, former in before.items():
      signal.signal(number, former)
