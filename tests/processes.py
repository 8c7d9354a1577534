"""Starts programs in processes of this machine. Not a test."""

import atexit
import functools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent


def environment(**variables):
  """The variables of a process that finds the package."""
  return {**os.environ, 'PYTHONPATH': str(ROOT), **variables}


def on_tmpfs(*folders, size, overrides=True):
  """Command before another one that sees an own tmpfs at each folder.

  Args:
    *folders: existing folders.
    size: size of each, as '1m'.
    overrides: whether it keeps root's right to ignore permissions.

  Returns:
    The words of the command; None without the right to mount.
  """
  mounts = [f'mount -t tmpfs -o size={size} tmpfs {one}' for one in folders]
  drop = '' if overrides else 'setpriv --bounding-set=-dac_override '
  script = ' && '.join([*mounts, f'exec {drop}"$@"'])
  before = ('unshare', '--mount', '--map-root-user', 'sh', '-c', script, '-')
  done = subprocess.run([*before, 'true'], check=False)
  return None if done.returncode else before


@functools.cache
def _server():
  """The process that others are forked from."""
  server = subprocess.Popen(
    [sys.executable, ROOT / 'tests' / 'fork_server.py'],
    cwd=ROOT,
    env=environment(),
    stdin=subprocess.PIPE,
    stderr=subprocess.DEVNULL,  # JAX warns of forks.
    text=True,
  )
  atexit.register(server.communicate)  # Its input ends, and so does it.
  return server


class Forked:
  """A process of Python that has imported JAX and cxjax already.

  Like `subprocess.Popen`, with its output in files.
  """

  def __init__(self, *command, **variables):
    self.returncode = None
    self._folder = tempfile.TemporaryDirectory()
    self._path = pathlib.Path(self._folder.name)
    env = environment(**variables)
    request = {'command': command, 'env': env, 'folder': self._folder.name}
    _server().stdin.write(json.dumps(request) + '\n')
    _server().stdin.flush()

  def communicate(self, timeout=300):
    """Waits for its end; what it wrote to stdout and to stderr."""
    deadline = time.monotonic() + timeout
    status = self._path / 'status'
    while not status.exists():
      if time.monotonic() > deadline or _server().poll() is not None:
        os.kill(int((self._path / 'process').read_text()), signal.SIGKILL)
        raise TimeoutError((self._path / 'stderr').read_text())
      time.sleep(0.01)
    self.returncode = int(status.read_text())
    said = [(self._path / name).read_text() for name in ('stdout', 'stderr')]
    self._folder.cleanup()
    return said


def forked(*command, **variables):
  """Runs a program to its end: its exit code, its stdout and its stderr."""
  process = Forked(*command, **variables)
  said = process.communicate()
  return process.returncode, *said


def free_port():
  """The number of a port that nobody listens to."""
  with socket.socket() as one:
    one.bind(('127.0.0.1', 0))
    return one.getsockname()[1]


def has_ipv6():
  """Returns whether this machine has an IPv6 loopback."""
  try:
    with socket.create_server(('::1', 0), family=socket.AF_INET6):
      return True
  except OSError:
    return False


def start_two(*command, devices=1):
  """Starts a command of Python twice; '{}' in it is 0 and 1."""
  return [
    Forked(
      *(part.replace('{}', str(i)) for part in command),
      JAX_NUM_CPU_DEVICES=str(devices),
    )
    for i in range(2)
  ]


def start_run(*flags, command=('launch.py',), devices=1):
  """Starts one run of launch.py in two processes."""
  return start_two(
    *command,
    *flags,
    f'--coordinator=127.0.0.1:{free_port()}',
    '--num_processes=2',
    '--process_id={}',
    devices=devices,
  )


def finished(both):
  """Waits for processes; their exit codes, and their stdout and stderr."""
  said = [one.communicate(timeout=300) for one in both]
  return [one.returncode for one in both], said
