"""Messages between processes: one JSON value a line.

JAX and PyTorch each load CUDA's libraries and keep GPU memory, and a case that
runs out of memory can leave its process unusable. Each has a process of its
own, which takes orders on its standard input.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any
from typing import TextIO

ROOT = pathlib.Path(__file__).parents[3]
PACKAGE = 'experiments.benchmarks.accelerator'
# JAX takes GPU memory as it needs it, and leaves some to PyTorch.
MEMORY = {
  'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
  'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.6',
}
# A second try on the same machine finds its programs compiled.
CACHE = {
  'JAX_COMPILATION_CACHE_DIR': os.path.join(
    tempfile.gettempdir(), 'cxjax_accelerator'
  ),
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.3',
}
LONGEST = 300  # Characters of an error.


def environment(extra: Mapping[str, str]) -> dict[str, str]:
  """Returns the environment of a child process.

  Args:
    extra: variables to set; XLA_FLAGS are added to those that are there, and
      variables of `CACHE` do not replace them.

  Returns:
    The variables.
  """
  own = {name: value for name, value in extra.items() if name not in CACHE}
  found = {**MEMORY, **extra, **os.environ, **own}
  flags = (os.environ.get('XLA_FLAGS', ''), extra.get('XLA_FLAGS', ''))
  found['XLA_FLAGS'] = ' '.join(filter(None, flags))
  paths = (str(ROOT), os.environ.get('PYTHONPATH', ''))
  found['PYTHONPATH'] = os.pathsep.join(filter(None, paths))
  return found


def one_line(error: BaseException | str) -> str:
  """Returns an error as one line of limited length."""
  if isinstance(error, BaseException):
    error = f'{type(error).__name__}: {error}'
  return ' '.join(error.split())[:LONGEST]


class Ended(Exception):
  """The process ended before it answered."""


class Process:
  """A Python module that runs in a process of its own."""

  def __init__(
    self,
    module: str,
    args: Sequence[str] = (),
    *,
    extra: Mapping[str, str] | None = None,
    log: Any = None,
    group: bool = True,
    python: str = sys.executable,
    package: str = PACKAGE,
  ) -> None:
    """Starts the process.

    Args:
      module: name of the module in `package`.
      args: its arguments.
      extra: environment variables, as for `environment`.
      log: file of its standard error; None is that of this process.
      group: whether it leads a process group, which ends with it.
      python: the interpreter.
      package: the package of the module.
    """
    self._group = group
    self._process = subprocess.Popen(
      [python, '-m', f'{package}.{module}', *args],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=log,
      env=environment(extra or {}),
      cwd=ROOT,
      process_group=0 if group else None,
    )
    self._buffer = b''

  def send(self, message: Any) -> None:
    """Sends a message; a process that has ended is found by `receive`."""
    assert self._process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.write(json.dumps(message).encode() + b'\n')
      self._process.stdin.flush()

  def receive(self, seconds: float | None = None) -> Any:
    """Waits for the next message.

    Args:
      seconds: longest time to wait; None waits until there is one.

    Returns:
      The message; None if there was none in time.

    Raises:
      Ended: the process ended.
    """
    assert self._process.stdout is not None
    end = None if seconds is None else time.monotonic() + seconds
    while b'\n' not in self._buffer:
      left = None if end is None else max(end - time.monotonic(), 0)
      if not select.select([self._process.stdout], [], [], left)[0]:
        return None
      found = os.read(self._process.stdout.fileno(), 1 << 16)
      if not found:
        code = self._process.wait()
        raise Ended(f'the process ended with code {code}')
      self._buffer += found
    line, _, self._buffer = self._buffer.partition(b'\n')
    return json.loads(line)

  def close(self) -> None:
    """Ends the process and those that it started."""
    if self._group:
      kill(self._process)
    else:
      self._process.kill()
      self._process.wait()
    for stream in (self._process.stdin, self._process.stdout):
      assert stream is not None
      stream.close()


def kill(
  process: subprocess.Popen[bytes], number: int = signal.SIGKILL
) -> None:
  """Signals the process group that a process leads, and waits after SIGKILL."""
  with contextlib.suppress(ProcessLookupError):
    os.killpg(process.pid, number)
  if number == signal.SIGKILL:
    process.wait()


class Server:
  """The other end: what a process is asked, and its answers.

  Standard output becomes standard error, so that what libraries print does not
  come between the messages.
  """

  def __init__(self) -> None:
    """Takes standard output over."""
    self._out: TextIO = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)

  def __iter__(self) -> Iterator[Any]:
    """Yields the messages until the other side closes."""
    for line in sys.stdin:
      yield json.loads(line)

  def reply(self, **message: Any) -> None:
    """Sends a message."""
    self._out.write(json.dumps(message) + '\n')
    self._out.flush()
