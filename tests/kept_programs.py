"""Compiled programs that one run of the tests keeps for the next. Not a test.

JAX finds a program by its text, the flags and the version of XLA; the folder is
of one kind of processor.
"""

import contextlib
import hashlib
import os
import pathlib
import shutil
import sys
import threading
from unittest import mock

import jax.experimental.compilation_cache.compilation_cache  # noqa: F401

FOLDER = pathlib.Path(__file__).parent.parent / '.jax_cache'
LARGEST = 2**30  # Bytes; programs that no test has any more are among them.


def folder():
  """The folder for this processor, made anew if it has grown too large."""
  found = FOLDER / processor()
  found.mkdir(parents=True, exist_ok=True)
  with contextlib.suppress(FileNotFoundError):  # Another run renames it.
    if sum(file.stat().st_size for file in found.iterdir()) > LARGEST:
      shutil.rmtree(found, ignore_errors=True)
  return found


def processor(information=pathlib.Path('/proc/cpuinfo')):
  """Name of a processor by its instructions, which XLA compiles for."""
  text = information.read_text() if information.exists() else ''
  flags = [line for line in text.splitlines() if line.startswith('flags')]
  return hashlib.sha256(''.join(flags[:1]).encode()).hexdigest()[:16]


def install():
  """Writes programs whole or not at all from here on, in this process.

  JAX writes them in place: another process reads a part, and a process that is
  killed leaves one.
  """
  cache = sys.modules['jax._src.lru_cache'].LRUCache

  def put(self, key, value):
    file = pathlib.Path(str(self.path), f'{key}-cache')
    if file.exists():
      return
    own = file.with_name(f'{os.getpid()}-{threading.get_ident()}')
    own.write_bytes(value)
    own.replace(file)

  mock.patch.object(cache, 'put', put).start()
