"""The accelerator benchmark in processes: faults, and the whole script."""

import csv
import importlib
import os
import pathlib
import subprocess
import sys
import time
from unittest import mock

from absl.testing import absltest
import pytest

from cxjax import errors
from experiments.benchmarks.accelerator import cases as cases_lib
from experiments.benchmarks.accelerator import commands as commands
from experiments.benchmarks.accelerator import pipe as pipe
from experiments.benchmarks.accelerator import schedule as schedule

pytestmark = pytest.mark.slow

FAULTS = """\
import os, time

def raises(*, tiny):
  yield {'table': 'environment', 'measure': 'before', 'value': 1}
  raise ValueError('out of\\nmemory')

def dies(*, tiny):
  yield {'table': 'environment', 'measure': 'alive', 'value': os.getpid()}
  os.abort()

def hangs(*, tiny):
  yield {'table': 'environment', 'measure': 'hanging', 'value': os.getpid()}
  time.sleep(600)

def works(*, tiny, value):
  import importlib.util, sys
  assert sys.modules['torch'] is None
  print('not a message')
  yield {'table': 'environment', 'measure': 'works', 'value': value}
"""


class ScheduleTest(absltest.TestCase):
  """Cases that fail, in processes."""

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    (self.folder / 'accelerator_faults.py').write_text(FAULTS)
    variables = {'PYTHONPATH': str(self.folder), 'JAX_PLATFORMS': 'cpu'}
    self.enter_context(mock.patch.dict(os.environ, variables))

  def case(self, name, seconds=60.0, **options):
    return cases_lib.Case(name, 'accelerator_faults', name, seconds, options)

  def test_a_failure_is_a_line_and_the_rest_goes_on(self):
    board = schedule.Board(self.folder / 'results')
    cases = [
      self.case('raises'),
      self.case('dies'),
      self.case('hangs', seconds=3.0),
      self.case('missing'),
      self.case('works', value=7),
    ]
    written = []
    add = board.add

    def note(*args):
      add(*args)
      written.append((self.folder / 'results/accelerator.md').read_text())

    with (
      mock.patch.object(board, 'add', note),
      (self.folder / 'log').open('wb') as log,
    ):
      deadline = time.monotonic() + 200
      schedule.run_timed(cases, deadline, board, log, tiny=True)
    self.assertEqual(
      [case['result'] for case in board.cases],
      [
        'ValueError: out of memory',
        'the process ended with code -6; see the log',
        'stopped after 3 s',
        "AttributeError: module 'accelerator_faults' has no attribute "
        "'missing'",
        'done',
      ],
    )
    values = {row['measure']: row['value'] for row in board.rows}
    self.assertEqual(list(values), ['before', 'alive', 'hanging', 'works'])
    self.assertEqual(values['works'], 7)
    with self.assertRaises(ProcessLookupError):
      os.kill(values['hanging'], 0)
    self.assertLen(written, 5)
    self.assertNotIn('hanging', written[1])
    self.assertIn('not a message', (self.folder / 'log').read_text())

  def test_a_case_that_comes_too_late_does_not_start(self):
    board = schedule.Board(self.folder)
    with (self.folder / 'log').open('wb') as log:
      schedule.run_timed(
        [self.case('works', value=7)], time.monotonic(), board, log, tiny=True
      )
    self.assertEqual(board.cases[0]['result'], 'no time left')

  def test_tests_that_take_too_long_are_stopped_and_counted(self):
    (self.folder / 'a_test.py').write_text(
      'import time\n'
      'def test_a(): pass\n'
      'def test_b(): assert 1 == 2\n'
      'def test_c(): time.sleep(600)\n'
    )
    args = ['-m', 'pytest', '-vv', '-rfE', '-p', 'no:cacheprovider']
    args += ['-o', 'addopts=', '--rootdir', str(self.folder), '-c', os.devnull]
    command = commands.Command([*args, str(self.folder / 'a_test.py')], {})
    case = commands.Together(
      {'tests': command},
      lambda folder: commands.read_tests('tests', folder / 'tests.log'),
    )
    with mock.patch.object(commands, 'make', lambda *args: case):
      ((name, rows, result, _),) = commands.run(
        ['tests'], 8, self.folder, tiny=True
      )
    self.assertEqual((name, result), ('tests', 'stopped after 8 s'))
    counts, failure = rows
    self.assertEqual((counts['passed'], counts['failed']), (1, 1))
    self.assertIn('test_b', failure['test'])
    self.assertIn('1 == 2', failure['error'])


class CheckTest(absltest.TestCase):
  """Losses that do not agree: accelerator/compare.py imports PyTorch."""

  def check(self, **losses):
    compare = importlib.import_module(
      'experiments.benchmarks.accelerator.compare'
    )
    case = compare.Comparison(
      'parity', None, 'output', None, 'float32', (1,), (), True
    )
    side = lambda found: mock.Mock(limit=9, losses=lambda num_steps: found)
    sides = {name: side(found) for name, found in losses.items()}
    return case._check(sides, [1.0, 0.5])

  def test_the_plain_loop_must_agree(self):
    with self.assertRaisesRegex(
      errors.UserError, "'eager': .* differ at step 1: 0.6 .*Nothing was timed"
    ):
      self.check(eager=[1.0, 0.6], sdpa=[1.0, 0.5])

  def test_another_side_is_left_out_and_named(self):
    found, failed = self.check(eager=[1.0, 0.5], sdpa=[1.0, 0.6])
    self.assertEqual(found, {'eager': 0.0})
    self.assertRegex(failed['sdpa'], 'step 1: 0.6 .* It was not timed')


class WholeTest(absltest.TestCase):
  """The script at tiny sizes, with PyTorch."""

  def test_tiny(self):
    if importlib.util.find_spec('torch') is None:
      self.skipTest('PyTorch is not installed.')
    results = pathlib.Path(self.create_tempdir().full_path)
    args = ['--tiny', f'--results={results}', '--minutes=15']
    args += ['--cases=environment,parity_hidden,small_hidden_float32,attention']
    module = 'experiments.benchmarks.accelerator'
    done = subprocess.run(
      [sys.executable, '-m', module, *args],
      capture_output=True,
      text=True,
      check=False,
      cwd=pipe.ROOT,
      env=pipe.environment({'JAX_PLATFORMS': 'cpu'}),
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    page = (results / 'accelerator.md').read_text()
    self.assertIn(page, done.stdout)
    with (results / 'accelerator.csv').open() as file:
      rows = list(csv.DictReader(file))
    found = {
      (row['case'], row['side']) for row in rows if row['table'] == 'steps'
    }
    want = {
      ('parity_hidden', s) for s in ('ours 1', 'ours 8', 'eager', 'ahead')
    }
    want |= {
      ('small_hidden_float32', side) for side in ('ours 1', 'eager', 'sdpa')
    }
    self.assertEqual(found, want)
    results = {r['case']: r['result'] for r in rows if r['table'] == 'cases'}
    self.assertEqual({*results.values()}, {'done'})
    # cuDNN is not on a CPU: the other implementations are timed.
    self.assertRegex(page, r'attention 16 cudnn +\| RuntimeError')
    self.assertIn('| ours  ', page)

  def test_an_unknown_case_is_one_line(self):
    module = 'experiments.benchmarks.accelerator'
    done = subprocess.run(
      [sys.executable, '-m', module, '--cases=parrity'],
      capture_output=True,
      text=True,
      check=False,
      cwd=pipe.ROOT,
    )
    self.assertEqual(done.returncode, 2)
    self.assertIn("Unknown case 'parrity'. Did you mean 'parity'?", done.stderr)
