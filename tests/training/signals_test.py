"""Tests of the signals that ask a process to stop."""

import os
import signal
import threading

from absl.testing import parameterized

from cxjax.training import signals


class CatchTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    # A job in the background ignores SIGINT, and then so does a run.
    for number in (signal.SIGINT, signal.SIGTERM):
      before = signal.signal(number, signal.default_int_handler)
      self.addCleanup(signal.signal, number, before)

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
