"""Tests of the signals that ask a process to stop."""

import contextlib
import gc
import os
import signal
import sys
import threading
from unittest import mock

from absl.testing import parameterized

from cxjax.training import signals


class SignalTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    # A job in the background ignores SIGINT, and then so does a run.
    for number in (signal.SIGINT, signal.SIGTERM):
      before = signal.signal(number, signal.default_int_handler)
      self.addCleanup(signal.signal, number, before)


class CatchTest(SignalTest):
  @parameterized.parameters('SIGTERM', 'SIGINT')
  def test_notes_the_first_one(self, name):
    number = getattr(signal, name)
    with signals.catch() as seen:
      self.assertEqual(seen, [])
      os.kill(os.getpid(), number)
      self.assertEqual(seen, [name])
    self.assertIs(signal.getsignal(number), signal.default_int_handler)

  def test_a_second_one_ends_the_process(self):
    with self.assertRaises(KeyboardInterrupt), signals.catch() as seen:
      os.kill(os.getpid(), signal.SIGTERM)
      os.kill(os.getpid(), signal.SIGINT)
    self.assertEqual(seen, ['SIGTERM'])
    self.assertIs(signal.getsignal(signal.SIGTERM), signal.default_int_handler)

  def test_one_that_is_ignored_stays_ignored(self):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with signals.catch() as seen:
      os.kill(os.getpid(), signal.SIGINT)
      self.assertEqual(seen, [])
    self.assertIs(signal.getsignal(signal.SIGINT), signal.SIG_IGN)

  def test_in_another_thread_nothing_is_caught(self):
    """Only the main thread may set handlers."""
    found = []

    def run():
      with signals.catch() as seen:
        found.append((seen, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    self.assertEqual(found, [([], signal.default_int_handler)])


class OutsideLoopsTest(SignalTest):
  @parameterized.parameters('SIGTERM', 'SIGINT')
  def test_one_in_a_callback_of_the_garbage_collector_comes_again(self, name):
    """Python ignores what such a callback raises."""

    def collected(phase, info):
      del phase, info
      gc.callbacks.remove(collected)
      os.kill(os.getpid(), getattr(signal, name))

    gc.callbacks.append(collected)
    hook = sys.unraisablehook
    with self.assertRaises(signals.Interrupted), signals.outside_loops():
      gc.collect()
      threading.Event().wait(10)
    self.assertIs(sys.unraisablehook, hook)

  def test_one_that_a_package_swallows_ends_the_next_loop(self):
    with self.assertRaises(signals.Interrupted), signals.outside_loops():
      with contextlib.suppress(BaseException):
        os.kill(os.getpid(), signal.SIGTERM)
      with signals.catch():
        self.fail('It trains.')
    with signals.outside_loops(), signals.catch() as seen:
      self.assertEqual(seen, [])

  def test_other_errors_are_shown_as_before(self):
    class Broken:
      def __del__(self):
        raise ValueError('not ours')

    shown = []
    show = lambda unraisable: shown.append(str(unraisable.exc_value))
    with (
      mock.patch.object(sys, 'unraisablehook', show),
      signals.outside_loops(),
    ):
      Broken()
    self.assertEqual(shown, ['not ours'])
