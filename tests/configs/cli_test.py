"""Command-line programs: exit codes, one-line errors, logs, results."""

import logging as std_logging
import os
import pathlib
import signal
import site
import subprocess
import sys
import threading
import time
from unittest import mock

from absl import flags
from absl import logging
from absl.testing import absltest
from absl.testing import flagsaver
from absl.testing import parameterized
import ml_collections
import pytest

import cxjax
from cxjax import errors
from cxjax.configs import cli
from cxjax.parallel import multihost
from cxjax.training import signals

PACKAGE = pathlib.Path(cxjax.__file__).parent
OTHERS = pathlib.Path(site.getsitepackages()[0])


class GuardedTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(flagsaver.flagsaver())
    handler = logging.get_absl_handler()
    filters = list(handler.filters)
    self.addCleanup(lambda: setattr(handler, 'filters', filters))

  def run_main(self, main):
    """The exit code, and the lines on stderr."""
    with mock.patch('sys.stderr', new_callable=_Text) as stderr:
      try:
        cli.guarded(main)(['program'])
        code = 0
      except SystemExit as error:
        code = error.code
    return code, stderr.text

  def test_nothing_is_wrong(self):
    seen = []
    self.assertEqual(self.run_main(seen.append), (0, ''))
    self.assertEqual(seen, [['program']])

  def test_user_error(self):
    def main(argv):
      raise errors.UserError('width=0:\n  must be at least 1. See /a  b.')

    self.assertEqual(
      self.run_main(main),
      (2, 'Error: width=0: must be at least 1. See /a  b.\n'),
    )

  def test_stopped_is_no_error(self):
    def main(argv):
      raise errors.Stopped('Stopped at step 3.')

    self.assertEqual(self.run_main(main), (0, 'Stopped at step 3.\n'))

  @parameterized.parameters(signal.SIGTERM, signal.SIGINT)
  def test_a_signal_while_nothing_is_trained(self, number):
    self.enter_context(mock.patch.object(cli.os, '_exit', sys.exit))

    def main(argv):
      try:
        os.kill(os.getpid(), number)
        time.sleep(10)
      except Exception:  # Of code that calls what a user gave.
        self.fail('The signal was taken for an error.')

    for trained in (False, True):
      with mock.patch.object(signals, '_trained', threading.Event()):
        if trained:
          with signals.catch():
            pass
        code, said = self.run_main(main)
      self.assertEqual(code, 0 if trained else 128 + number)
      self.assertRegex(said, f'^Stopped by {number.name}. .*resumes.\n$')

  @pytest.mark.slow
  def test_what_a_signal_broke_off_cannot_crash_at_exit(self):
    program = (
      'import atexit, os, signal\n'
      'from cxjax.configs import cli\n'
      'atexit.register(lambda: os._exit(9))\n'
      'cli.run(lambda argv: os.kill(os.getpid(), signal.SIGTERM))\n'
    )
    done = subprocess.run(
      [sys.executable, '-c', program],
      cwd=PACKAGE.parent,
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(done.returncode, 128 + signal.SIGTERM)
    self.assertStartsWith(done.stderr, 'Stopped by SIGTERM.')

  def test_a_second_signal_is_one_line(self):
    def main(argv):
      with signals.catch():
        for _ in range(2):
          os.kill(os.getpid(), signal.SIGTERM)

    with mock.patch.object(cli, '_end', sys.exit):
      code, said = self.run_main(main)
    self.assertEqual((code, said), (130, f'{cli.SECOND}\n'))

  @parameterized.parameters(
    (lambda config: config.mesh, 'mesh'),
    (lambda config: config['mesh'], 'mesh'),
    (lambda config: config.data.dd, 'dd'),
  )
  def test_field_that_the_config_lacks(self, read, name):
    config = ml_collections.ConfigDict({'data': {'d': 3}})
    code, said = self.run_main(lambda argv: read(config))
    self.assertEqual(code, 2)
    self.assertStartsWith(said, f'Error: The config has no field {name!r}. Add')
    self.assertEqual(said.count('\n'), 1)

  def test_a_file_that_the_system_refuses(self):
    code, said = self.run_main(lambda argv: os.listdir('/none/file'))
    self.assertEqual(code, 2)
    self.assertStartsWith(said, 'Error: Cannot use /none/file: No such file')
    self.assertEqual(said.count('\n'), 1)

  def test_devices_that_are_not_there(self):
    def main(argv):
      raise RuntimeError("Unable to initialize backend 'abacus': none. (set)")

    code, said = self.run_main(main)
    self.assertEqual(code, 2)
    self.assertEqual(said.count('\n'), 1)

  @parameterized.parameters(KeyError, AttributeError, OSError, MemoryError)
  def test_other_errors_keep_their_traceback(self, kind):
    def main(argv):
      raise kind('x')

    with self.assertRaises(kind):
      cli.guarded(main)(['program'])

  def test_other_processes_are_told(self):
    """And the program ends at once, which JAX would not let it."""

    def main(argv):
      raise errors.UserError('wrong.')

    with (
      mock.patch.object(multihost, 'leave', return_value=True) as leave,
      mock.patch('os._exit', side_effect=SystemExit) as leave_at_once,
    ):
      self.run_main(main)
    leave.assert_called_once_with('wrong.')
    leave_at_once.assert_called_once_with(2)

  def test_fails_at_once_if_the_disk_does(self):
    """Threads of orbax would wait for the disk."""
    error = errors.UserError('Cannot write x.')
    error.__cause__ = OSError()
    with (
      mock.patch('os._exit', side_effect=SystemExit) as leave_at_once,
      mock.patch('sys.stderr'),
      self.assertRaises(SystemExit),
    ):
      cli.fail(error)
    leave_at_once.assert_called_once_with(2)


class ParseTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(flagsaver.flagsaver())

  def said(self, call, *args):
    """The exit code, and the lines on stderr."""
    with (
      mock.patch('sys.stderr', new_callable=_Text) as stderr,
      self.assertRaises(SystemExit) as caught,
    ):
      call(*args)
    return caught.exception.code, stderr.text

  @parameterized.parameters(
    ('word', "Unknown argument 'word': flags begin with --."),
    ('--verbositi=1', "Unknown command line flag 'verbositi'."),
    ('--verbosity=x', '--verbosity=x must be an integer.'),
    ('--alsologtostderr=x', '--alsologtostderr=x must be true or false.'),
    ('--verbosity', 'Missing value for flag --verbosity'),
    ('--flagfile=/none', 'Unable to open flagfile'),
    ('--' + 'x' * 5_000, 'A flag is too long'),
  )
  def test_a_mistake(self, word, message):
    code, said = self.said(cli.parse, ['program', word])
    self.assertEqual(code, 2)
    self.assertStartsWith(said, f'Error: {message}')
    self.assertEqual(said.count('\n'), 1)
    self.assertLess(len(said), 1_100)

  def test_flags_that_do_not_agree(self):
    def check():
      raise errors.UserError('Leave one out.')

    found = self.said(cli.parse, ['program'], check)
    self.assertEqual(found, (2, 'Error: Leave one out.\n'))

  def test_a_signal_meanwhile(self):
    stop = lambda: os.kill(os.getpid(), signal.SIGTERM)
    with (
      mock.patch.object(signals, '_trained', threading.Event()),
      mock.patch.object(cli.os, '_exit', sys.exit),
    ):
      code, said = self.said(cli.parse, ['program'], stop)
    self.assertEqual(code, 143)
    self.assertStartsWith(said, 'Stopped by SIGTERM.')

  @parameterized.parameters('', 'x', '3,', '0', '-1', '1.5', '²', '٣', '9' * 20)
  def test_no_whole_numbers(self, text):
    words = text.split(',') if text else []
    with self.assertRaisesRegex(errors.UserError, f'^--k={text}'):
      cli.whole_numbers('k', words)

  def test_whole_numbers(self):
    self.assertEqual(cli.whole_numbers('k', ['3', '10']), [3, 10])

  @parameterized.parameters('', 'x', '0', '-1', 'nan', 'inf', '1,', '1e-2,0.01')
  def test_no_positive_numbers(self, text):
    words = text.split(',') if text else []
    with self.assertRaisesRegex(errors.UserError, f'^--k={text}'):
      cli.positive_numbers('k', words)

  def test_positive_numbers(self):
    self.assertEqual(cli.positive_numbers('k', ['1e-2', '3']), [0.01, 3.0])


class _Text:
  """A stream that keeps what is written."""

  def __init__(self):
    self.text = ''

  def write(self, text):
    self.text += text

  def flush(self):
    pass


class LogTest(parameterized.TestCase):
  @parameterized.parameters(
    (PACKAGE / 'training/trainer.py', std_logging.INFO, True),
    (PACKAGE / 'training/trainer.py', std_logging.DEBUG, True),
    (OTHERS / 'absl/app.py', std_logging.INFO, False),
    (OTHERS / 'absl/app.py', std_logging.WARNING, True),
    (OTHERS / 'orbax/checkpoint/x.py', std_logging.ERROR, False),
    # A clone of this project in a folder of its name, with its environment.
    ('/home/cxjax/.venv/lib/absl/app.py', std_logging.INFO, False),
    (PACKAGE.parent / '.venv/lib/absl/app.py', std_logging.INFO, False),
    (f'{PACKAGE}_more/x.py', std_logging.INFO, False),
  )
  def test_shows(self, path, level, shown):
    record = std_logging.LogRecord('', level, str(path), 1, 'text', (), None)
    self.assertEqual(cli.is_shown(record), shown)

  @flagsaver.flagsaver
  def test_a_level_that_is_given_stays(self):
    handler = mock.Mock()
    with mock.patch.object(logging, 'get_absl_handler', return_value=handler):
      flags.FLAGS['verbosity'].using_default_value = True
      cli.quiet()
      self.assertEqual(logging.get_verbosity(), logging.INFO)
      flags.FLAGS['verbosity'].parse('-1')
      flags.FLAGS['verbosity'].using_default_value = False
      cli.quiet()
      self.assertEqual(logging.get_verbosity(), logging.WARNING)
    handler.addFilter.assert_called_with(cli.is_shown)
    formatter = handler.setFormatter.call_args[0][0]
    record = std_logging.LogRecord(
      '', std_logging.WARNING, 'x.py', 1, 'word ' * 20, (), None
    )
    with mock.patch.dict(os.environ, {'COLUMNS': '80'}):
      first, second = formatter.format(record).splitlines()
    self.assertRegex(first, r'^W\d{4} \d\d:\d\d:\d\d\] (word ){12}word$')
    self.assertEqual(second, '  ' + 'word ' * 6 + 'word')


class WriteTest(parameterized.TestCase):
  def test_prints_and_writes_both_files(self):
    stem = pathlib.Path(self.create_tempdir().full_path) / 'new' / 'table'
    with mock.patch('builtins.print') as printed:
      cli.write(stem, '| a |\n', [{'a': 1}, {'a': 2}])
    printed.assert_called_once_with('| a |\n', flush=True)
    self.assertEqual(stem.with_suffix('.md').read_text(), '| a |\n')
    self.assertEqual(stem.with_suffix('.csv').read_text(), 'a\n1\n2\n')


if __name__ == '__main__':
  absltest.main()
