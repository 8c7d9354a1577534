"""Work of other processes on the machine that is measured."""

import os
import pathlib
import time

STAT = pathlib.Path('/proc/stat')


def _busy() -> float:
  """Seconds that all cores together have worked since the start."""
  _, user, nice, system, _, _, *rest = STAT.read_text('utf-8').split()[:9]
  worked = [user, nice, system, *rest[:2]]  # Not idle, nor waiting for a disk.
  return sum(map(int, worked)) / os.sysconf('SC_CLK_TCK')


def busy_cores(seconds: float = 1.0) -> float:
  """Returns the number of cores that other processes keep busy.

  This one sleeps meanwhile. Where there is no /proc/stat it is the load of the
  last minute, which counts what this process did.

  Args:
    seconds: how long to look.

  Returns:
    The number, a mean over these seconds.
  """
  if not STAT.exists():
    return os.getloadavg()[0]
  begin, before = time.perf_counter(), _busy()
  time.sleep(seconds)
  return (_busy() - before) / (time.perf_counter() - begin)
