"""Work of other processes on the machine that is measured."""

import os
import pathlib
import re
import time

STAT = pathlib.Path('/proc/stat')


def _busy() -> float:
  """Seconds that all cores together have worked since the start."""
  _, user, nice, system, _, _, *rest = STAT.read_text('utf-8').split()[:9]
  worked = [user, nice, system, *rest[:2]]  # Not idle, nor waiting for a disk.
  return sum(map(int, worked)) / os.sysconf('SC_CLK_TCK')


def peak(process: int | str = 'self') -> float:
  """Returns the largest resident size of a process until now, in MB.

  That of `getrusage` begins with the size of the process that started it.

  Args:
    process: its number.

  Returns:
    MB; 0 of a process that has ended, and where there is no /proc.
  """
  try:
    text = pathlib.Path(f'/proc/{process}/status').read_text('utf-8')
  except OSError:
    return 0.0
  found = re.search(r'VmHWM:\s+(\d+) kB', text)
  return int(found[1]) * 1024 / 1e6 if found else 0.0


def free() -> float:
  """Bytes of memory that are free, or kept as a cache of files, on Linux."""
  text = pathlib.Path('/proc/meminfo').read_text('utf-8')
  found = re.search(r'MemAvailable:\s+(\d+) kB', text)
  assert found is not None
  return int(found[1]) * 1024.0


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
