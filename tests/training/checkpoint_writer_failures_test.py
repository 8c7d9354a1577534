"""Writes of checkpoints that fail."""

import os
import threading
from unittest import mock

import orbax.checkpoint as ocp

from cxjax import errors
from cxjax.training import checkpoint_writer
from cxjax.training import checkpoints
from tests.training.written import WriterTest
from tests.training.written import items


class FailureTest(WriterTest):
  def broken(self, error=None):
    """Every record fails, as on a full disk."""
    error = error or OSError(28, os.strerror(28))
    return mock.patch.object(
      checkpoint_writer.checkpoints, 'file_digests', side_effect=error
    )

  def test_is_raised_when_waited_for(self):
    message = 'Cannot write .*000000020: No space left on device. Make room'
    with self.writer() as writer:
      writer.save(10, items(10), {})
      writer.wait()
      with self.broken():
        writer.save(20, items(20), {})
        with self.assertRaisesRegex(errors.UserError, message) as caught:
          writer.wait()
      self.assertIsInstance(caught.exception.__cause__, OSError)
      writer.wait()  # Once is enough.
      with self.assertLogs(level='WARNING'):
        self.assertEqual(checkpoints.latest(self.folder), 10)
      writer.save(20, items(20), {})
    self.assert_good(10, 20)

  def test_is_raised_by_the_next_save(self):
    with self.writer() as writer, self.broken():
      writer.save(10, items(10), {})
      with self.assertRaisesRegex(errors.UserError, 'Cannot write'):
        writer.save(20, items(20), {})

  def test_is_raised_at_the_end(self):
    with (
      self.assertRaisesRegex(errors.UserError, 'Cannot write'),
      self.broken(),
      self.writer() as writer,
    ):
      writer.save(10, items(10), {})

  def test_an_error_of_the_disk_that_has_no_number(self):
    error = ValueError('UNKNOWN: Error writing "x": Too many open files')
    arrays = mock.patch.object(ocp.CheckpointManager, 'save', side_effect=error)
    with self.writer() as writer, arrays:
      writer.save(10, items(10), {})
      with self.assertRaisesRegex(errors.UserError, 'Allow more open files'):
        writer.wait()

  def test_a_fault_of_the_program_is_not_taken_for_one_of_the_disk(self):
    with self.writer() as writer, self.broken(ZeroDivisionError()):
      writer.save(10, items(10), {})
      with self.assertRaises(ZeroDivisionError):
        writer.wait()

  def test_nothing_is_removed_for_one_that_failed(self):
    with self.writer() as writer:
      for step in (10, 20):
        writer.save(step, items(step), {})
      writer.wait()
      with self.broken():
        writer.save(30, items(30), {})
        with self.assertRaises(errors.UserError):
          writer.wait()
      self.assertEqual(self.steps(), [10, 20, 30])
      writer.save(40, items(40), {})
    self.assert_good(20, 40)

  def test_an_exception_is_not_hidden(self):
    """The last checkpoint is finished; one that fails is logged."""
    with self.assertRaises(ZeroDivisionError), self.writer() as writer:
      writer.save(10, items(10), {})
      raise ZeroDivisionError
    self.assert_good(10)
    with (
      self.broken(),
      self.assertLogs(level='WARNING') as log,
      self.assertRaises(ZeroDivisionError),
      self.writer() as writer,
    ):
      writer.save(20, items(20), {})
      raise ZeroDivisionError
    self.assertRegex(log.output[0], 'is not saved: Cannot write .*000000020')

  def test_an_exception_does_not_wait_for_ever(self):
    began, held, done = (threading.Event() for _ in range(3))

    def hang(path):
      began.set()
      held.wait()
      done.set()
      return {}

    with (
      mock.patch.object(checkpoint_writer, 'PATIENCE', 0.1),
      mock.patch.object(checkpoint_writer, '_sync_all', hang),
      self.assertLogs(level='WARNING') as log,
      self.assertRaises(ZeroDivisionError),
      self.writer() as writer,
    ):
      writer.save(10, items(10), {})
      began.wait()
      raise ZeroDivisionError
    self.assertRegex(log.output[0], 'last checkpoint of .* is given up')
    thread = writer._thread
    self.assertTrue(thread.daemon)
    held.set()
    thread.join()
    self.assertTrue(done.is_set())
    with self.assertLogs(level='WARNING'):  # It is not completed afterwards.
      self.assertIsNone(checkpoints.latest(self.folder))

  def test_a_disk_without_room(self):
    """Noticed before orbax begins."""
    usage = mock.Mock(total=2**30, free=2**17)
    path = self.folder / 'checkpoints'
    with self.writer() as writer:
      writer.save(10, items(10), {})
      writer.wait()
      with mock.patch.object(
        checkpoint_writer.shutil, 'disk_usage', lambda _: usage
      ):
        writer.save(20, items(20), {})
        with self.assertRaisesRegex(errors.UserError, 'No space left'):
          writer.wait()
        self.assertEqual([p.name for p in path.iterdir()], ['000000010'])
        usage.total = usage.free = 0  # A disk that does not say.
        writer.save(20, items(20), {})
    self.assert_good(10, 20)
