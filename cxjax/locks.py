"""Locks of the folders of runs: one process at a time writes to a folder."""

from collections.abc import Iterator
import contextlib
import fcntl
import os
import pathlib

from absl import logging
import jax

from cxjax import errors
from cxjax import files

# Files of a run that has begun, and of finished targets.
BEGUN = ('config.json', 'index.json')


@contextlib.contextmanager
def lock(folder: pathlib.Path) -> Iterator[None]:
  """Keeps other runs on this machine out of a run's folder.

  The operating system releases the lock when the process ends, even if it is
  killed. Where nothing may be written, processes that read share it.

  Args:
    folder: the folder of the run; made if it is missing.

  Yields:
    Nothing.

  Raises:
    UserError: another process has the lock, or the folder cannot be written
      and no run was there.
  """
  if jax.process_index() != 0 or (opened := _opened(folder)) is None:
    yield
    return
  number, kind = opened
  with os.fdopen(number, 'rb', buffering=0) as file:
    try:
      fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise errors.UserError(
        f'{folder} is in use by another process. Wait for it, or choose '
        'another workdir.'
      ) from error
    except OSError as error:  # The file system has no locks.
      logging.warning('%s cannot be locked: %s.', folder, error.strerror)
    yield


@contextlib.contextmanager
def turn(folder: pathlib.Path) -> Iterator[None]:
  """Waits until no other process writes the files that runs share in a folder.

  Args:
    folder: the folder; made if it is missing.

  Yields:
    Nothing.

  Raises:
    UserError: the folder cannot be written.
  """
  if (opened := _opened(folder)) is None:
    yield
    return
  with os.fdopen(opened[0], 'rb', buffering=0) as file:
    with contextlib.suppress(OSError):  # The file system has no locks.
      fcntl.flock(file, opened[1])
    yield


def _opened(folder: pathlib.Path) -> tuple[int, int] | None:
  """The descriptor of the file, and the kind of the lock; None for no lock."""
  path, flags = folder / 'lock', os.O_NOFOLLOW | os.O_NONBLOCK
  try:
    with files.written(path):
      files.make_folder(folder)
      return os.open(path, flags | os.O_RDWR | os.O_CREAT, 0o666), fcntl.LOCK_EX
  except errors.UserError as error:
    # Only where nothing else can be written either, which says so next.
    if not files.is_forbidden(error) or os.access(folder, os.W_OK):
      raise
    begun = any((folder / name).exists() for name in BEGUN)
    if begun and not os.path.lexists(path):
      return None  # A copy without this file, where nobody can be writing.
    if not os.access(path, os.R_OK):
      raise
    with files.written(path):
      return os.open(path, flags | os.O_RDONLY), fcntl.LOCK_SH
