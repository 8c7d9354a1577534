"""Tests of the thread that reads."""

import contextvars
import threading

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax.data import reader_thread


class ReaderThreadTest(absltest.TestCase):
  def test_all_functions_run_in_one_thread_in_order(self):
    thread, seen = reader_thread.ReaderThread(), []
    note = lambda i: (seen.append(i), threading.get_ident())[1]
    found = {thread.submit(note, i) for i in range(20)}
    self.assertLen({future.result() for future in found}, 1)
    self.assertNotEqual(thread.call(note, 20), threading.get_ident())
    self.assertEqual(seen, list(range(21)))
    thread.close()

  def test_an_error_is_that_of_its_result(self):
    thread = reader_thread.ReaderThread()
    future = thread.submit(lambda: 1 / 0)
    self.assertEqual(thread.call(lambda: 3), 3)
    for _ in range(2):
      with self.assertRaises(ZeroDivisionError):
        future.result()
    thread.close()

  def test_the_end_cancels_what_is_queued_and_runs_the_last(self):
    thread, started, go = (
      reader_thread.ReaderThread(),
      threading.Event(),
      threading.Event(),
    )
    wait = lambda: (started.set(), go.wait(30), threading.get_ident())[2]
    running, queued = thread.submit(wait), thread.submit(wait)
    self.assertTrue(started.wait(30))
    last = []
    threading.Timer(0.05, go.set).start()
    thread.close(lambda: last.append(threading.get_ident()))
    self.assertTrue(queued.cancelled())
    self.assertEqual(last, [running.result()])
    thread.close(lambda: last.append(0))  # It is closed already.
    self.assertLen(last, 1)

  def test_nothing_runs_if_nothing_was_read(self):
    before = threading.active_count()
    reader_thread.ReaderThread().close(self.fail)
    self.assertEqual(threading.active_count(), before)

  def test_a_function_that_does_not_return_is_left_behind(self):
    thread, started, go = (
      reader_thread.ReaderThread(),
      threading.Event(),
      threading.Event(),
    )
    last = threading.Event()
    thread.submit(lambda: (started.set(), go.wait(30)))
    self.assertTrue(started.wait(30))
    with self.assertLogs(level='WARNING') as log:
      thread.close(last.set, patience=0.01)
    self.assertIn('still being read after 0.01 s', log.output[0])
    go.set()  # It ends by itself, and what was open is closed.
    self.assertTrue(last.wait(30))

  def test_it_has_the_context_of_its_caller(self):
    variable = contextvars.ContextVar('variable', default=0)
    variable.set(3)
    with jax.enable_x64(True):
      thread = reader_thread.ReaderThread()
      self.assertEqual(thread.call(lambda: jnp.zeros(1).dtype), np.float64)
    self.assertEqual(thread.call(variable.get), 3)
    thread.close()

  @pytest.mark.filterwarnings('error')
  def test_it_does_not_keep_the_process(self):
    thread = reader_thread.ReaderThread()
    reader = thread.call(threading.current_thread)
    self.assertTrue(reader.daemon)
    thread.close()
    self.assertFalse(reader.is_alive())


if __name__ == '__main__':
  absltest.main()
