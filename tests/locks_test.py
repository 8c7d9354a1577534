"""Locks of the folders of runs."""

import errno
import os
import pathlib
import subprocess
import sys
from unittest import mock

from absl.testing import parameterized
import jax
import pytest

from cxjax import errors
from cxjax import locks

LOCK = """
import pathlib, sys
from cxjax import errors, locks
try:
  with locks.lock(pathlib.Path(sys.argv[1])):
    print('locked')
except errors.UserError as error:
  print(error)
"""


class LockTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  @pytest.mark.slow
  def test_keeps_other_processes_out(self):
    start = lambda: subprocess.run(
      [sys.executable, '-c', LOCK, str(self.folder)],
      env={**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))},
      capture_output=True,
      text=True,
      check=False,
    )
    with locks.lock(self.folder):
      self.assertIn('is in use by another process. Wait', start().stdout)
    done = start()
    self.assertEqual(done.stdout, 'locked\n', done.stderr)

  def test_is_released_after_an_error(self):
    with self.assertRaises(KeyError), locks.lock(self.folder):
      raise KeyError
    with locks.lock(self.folder):
      pass

  def test_other_processes_of_the_run_take_none(self):
    with (
      mock.patch.object(jax, 'process_index', lambda: 1),
      locks.lock(self.folder),
    ):
      self.assertEmpty(os.listdir(self.folder))

  def test_links_are_not_written_through(self):
    other = self.folder / 'other'
    other.write_text('mine')
    (self.folder / 'lock').symlink_to(other)
    with (
      self.assertRaisesRegex(errors.UserError, 'It is a link: remove it'),
      locks.lock(self.folder),
    ):
      pass
    self.assertEqual(other.read_text(), 'mine')

  @parameterized.parameters(errno.EROFS, errno.EACCES)
  def test_who_may_only_read_shares_it(self, code):
    """Readers go on side by side, a writer keeps them out, none begins."""
    call, access = os.open, os.access

    def only_read(path, flags, *args, **kwargs):
      if flags & (os.O_RDWR | os.O_CREAT):
        raise OSError(code, os.strerror(code))
      return call(path, flags, *args, **kwargs)

    reading = lambda: mock.patch.multiple(
      os,
      open=only_read,
      access=lambda path, mode: mode != os.W_OK and access(path, mode),
    )
    with (
      reading(),
      self.assertRaisesRegex(errors.UserError, 'Cannot write .*lock.*Allow it'),
      locks.lock(self.folder),
    ):
      pass
    with (
      locks.lock(self.folder),
      reading(),
      self.assertRaisesRegex(errors.UserError, 'in use'),
      locks.lock(self.folder),
    ):
      pass
    with reading(), locks.lock(self.folder), locks.lock(self.folder):
      pass
    # The lock of somebody else in a folder that others write to is not shared.
    with (
      mock.patch.object(os, 'open', only_read),
      self.assertRaisesRegex(errors.UserError, 'Cannot write .*lock'),
      locks.lock(self.folder),
    ):
      pass
    # A copy of a run without its lock is read; a folder of nothing is not.
    (self.folder / 'lock').unlink()
    with (
      reading(),
      self.assertRaisesRegex(errors.UserError, 'Cannot write .*lock'),
      locks.lock(self.folder),
    ):
      pass
    (self.folder / 'config.json').touch()
    with reading(), locks.lock(self.folder):
      self.assertEqual(os.listdir(self.folder), ['config.json'])
