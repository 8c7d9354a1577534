"""Programs without a stdout or stderr, or with one that is closed."""

import io
import os
import sys
import threading
from unittest import mock
import warnings

from absl import logging
from absl.testing import absltest
from absl.testing import parameterized

from cxjax import deprecation
from cxjax import settings
from cxjax import streams


def closed():
  stream = io.StringIO()
  stream.close()
  return stream


def broken():
  """A pipe that nobody reads."""
  reader, writer = os.pipe()
  os.close(reader)
  return os.fdopen(writer, 'w')


STREAMS = {'closed': closed, 'none': lambda: None, 'broken': broken}


class StreamTest(parameterized.TestCase):
  @parameterized.parameters(*STREAMS)
  def test_what_cannot_be_written_is_dropped(self, name):
    with mock.patch('sys.stdout', STREAMS[name]()) as stream:
      streams.show('text')
      streams.Tolerant(stream).flush()
      self.assertFalse(streams.is_terminal(stream))
      if name == 'broken':
        with self.assertRaises(BrokenPipeError):
          stream.close()

  def test_an_open_stream_is_written(self):
    with mock.patch('sys.stdout', io.StringIO()) as stream:
      streams.show('text')
      self.assertEqual(stream.getvalue(), 'text\n')
      self.assertEqual(streams.Tolerant(stream).getvalue(), 'text\n')


class StderrTest(parameterized.TestCase):
  @parameterized.parameters('closed', 'none')
  def test_messages_are_dropped_where_it_is_closed(self, name):
    """Messages are the logs of absl, and Python's warnings."""
    handler = logging.get_absl_handler()
    with (
      mock.patch('sys.stderr', STREAMS[name]()) as stream,
      mock.patch.object(logging, '_warn_preinit_stderr', True),
      mock.patch.object(handler.python_handler, 'stream', closed()),
      warnings.catch_warnings(),
    ):
      warnings.simplefilter('always')
      # Pytest records warnings; Python's own function writes there.
      warnings.showwarning = lambda text, *args: sys.stderr.write(str(text))
      logger = logging.get_absl_logger()
      with (
        mock.patch.object(logger, 'handlers', [handler]),
        mock.patch.object(logger, 'propagate', False),
        settings.own(),
      ):
        logging.warning('text')
        warnings.warn('text', UserWarning, stacklevel=1)
      self.assertIs(sys.stderr, stream)
      deprecation.warn('a is now b')

  def test_an_open_one_stays(self):
    with mock.patch('sys.stderr', io.StringIO()) as stream:
      with streams.with_stderr():
        self.assertIs(sys.stderr, stream)
        print('text', file=sys.stderr)
      self.assertEqual(stream.getvalue(), 'text\n')

  def test_one_that_is_set_meanwhile_stays(self):
    with mock.patch('sys.stderr', None):
      with streams.with_stderr():
        sys.stderr = stream = io.StringIO()
      self.assertIs(sys.stderr, stream)

  def test_threads(self):
    """The first that leaves does not take it from the other."""
    entered, left = threading.Event(), threading.Event()

    def run():
      with streams.with_stderr():
        entered.set()
        left.wait(10)

    with mock.patch('sys.stderr', closed()) as stream:
      with streams.with_stderr():
        thread = threading.Thread(target=run)
        thread.start()
        entered.wait(10)
      print('text', file=sys.stderr)
      left.set()
      thread.join()
      self.assertIs(sys.stderr, stream)


if __name__ == '__main__':
  absltest.main()
