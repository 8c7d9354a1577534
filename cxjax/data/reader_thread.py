"""A thread that runs the functions given to it, one after the other."""

from collections.abc import Callable
from concurrent import futures
import contextvars
import queue
import threading
from typing import Any

from absl import logging
import jax

# Seconds to wait at the end for a function that is still running.
PATIENCE = 10.0

_Call = tuple[futures.Future[Any], Callable[..., Any], tuple[Any, ...]]


# Not a ThreadPoolExecutor: the interpreter waits for its threads at exit, and a
# loader of a user may never return.
class ReaderThread:
  """Runs functions in one thread, in the order in which they are submitted.

  The thread starts with the first function, and has its caller's context
  variables and precision (x64). A function that never returns does not keep the
  process from ending.
  """

  def __init__(self) -> None:
    """Starts nothing yet."""
    self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
    self._thread: threading.Thread | None = None
    self._closed = False

  def submit(self, fun: Callable[..., Any], *args: Any) -> futures.Future[Any]:
    """Queues `fun(*args)`; returns the future of its result."""
    assert not self._closed
    future: futures.Future[Any] = futures.Future()
    self._calls.put((future, fun, args))
    if self._thread is None:
      context = contextvars.copy_context()
      x64 = jax.config.jax_enable_x64  # type: ignore[attr-defined]
      self._thread = threading.Thread(
        target=context.run, args=(self._run, x64), name='reader', daemon=True
      )
      self._thread.start()
    return future

  def call(self, fun: Callable[..., Any], *args: Any) -> Any:
    """Returns the result of `fun(*args)`, run in the thread."""
    return self.submit(fun, *args).result()

  def close(
    self, last: Callable[[], Any] = lambda: None, patience: float = PATIENCE
  ) -> None:
    """Cancels what is queued, runs `last` in the thread and ends the thread.

    Args:
      last: run only if the thread was started.
      patience: seconds to wait for a function that is running; after them the
        thread is left behind with a warning, and ends by itself if the function
        returns.
    """
    if self._closed:
      return
    self._closed = True
    if self._thread is None:
      return
    try:
      while (call := self._calls.get_nowait()) is not None:
        call[0].cancel()
    except queue.Empty:
      pass
    self._calls.put((futures.Future(), last, ()))
    self._calls.put(None)
    self._thread.join(patience)
    if self._thread.is_alive():
      logging.warning(
        'A batch that is still being read after %g s is given up.', patience
      )

  def _run(self, x64: bool) -> None:
    with jax.enable_x64(x64):
      while (call := self._calls.get()) is not None:
        future, fun, args = call
        if future.set_running_or_notify_cancel():
          try:
            future.set_result(fun(*args))
          except BaseException as error:  # Raised by `result`.
            future.set_exception(error)
        del call, future, fun, args  # Frees the result if nobody waits for it.
