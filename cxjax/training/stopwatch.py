"""Time of a run by purpose, measured where the host waits for the device."""

from collections.abc import Callable
import time
from typing import Any

import jax

PURPOSES = ('compile', 'train', 'evaluate', 'save')


class Stopwatch:
  """Adds up seconds by purpose.

  The device works through what is dispatched in order, so the time from one
  wait to the next is that of what the second waits for.
  """

  def __init__(self, compiled: Callable[[], float]) -> None:
    """Starts.

    Args:
      compiled: seconds that compiling took so far; they count for nothing else.
    """
    self._compiled = compiled
    self._spent = dict.fromkeys(PURPOSES, 0.0)
    self._last = time.perf_counter(), compiled()

  @property
  def seconds(self) -> dict[str, float]:
    """Seconds by purpose, over all restarts."""
    spent = dict(self._spent)
    spent['compile'] += self._compiled()
    return spent

  def add(self, seconds: dict[str, float]) -> None:
    """Adds the seconds of an earlier process, or of a purpose."""
    for purpose, value in seconds.items():
      self._spent[purpose] = self._spent.get(purpose, 0.0) + value

  def restart(self) -> None:
    """Forgets the time since the last wait."""
    self._last = time.perf_counter(), self._compiled()

  def wait(self, purpose: str, tree: Any = ()) -> Any:
    """Values of `tree` on the host; the time since the last wait is counted."""
    found = jax.device_get(tree)
    began, compiled = self._last
    self.restart()
    elapsed = self._last[0] - began - (self._last[1] - compiled)
    self._spent[purpose] += max(elapsed, 0.0)
    return found
