"""The logic of the accelerator benchmark, on the CPU."""

import csv
import os
import pathlib
from unittest import mock

from absl.testing import absltest
import jax
import numpy as np
import pytest

from experiments import pcfg_bert
from experiments.benchmarks.accelerator import agreement as agreement
from experiments.benchmarks.accelerator import cases as cases_lib
from experiments.benchmarks.accelerator import commands as commands
from experiments.benchmarks.accelerator import device as device
from experiments.benchmarks.accelerator import page as page_lib
from experiments.benchmarks.accelerator import pipe as pipe
from experiments.benchmarks.accelerator import text as text_lib

STEP = {
  'table': 'steps',
  'case': 'base_bfloat16',
  'compute': 'bfloat16',
  'side': 'ours 1',
  'us': 5_000.0,
  'low': 4_900.0,
  'high': 5_200.0,
  'tokens/s': 1.6e6,
  'times ours': '1 (1)',
  'flops': 2e12,
  'difference': 0.001,
  'build s': 30.0,
}


class RandomTextTest(absltest.TestCase):
  @pytest.mark.slow
  def test_masks_real_tokens_alone(self):
    task = text_lib.RandomText(vocab_size=50, length=32)
    batch = jax.jit(task.batch, static_argnums=2)(jax.random.key(0), 3, 64)
    x, real = batch['x'], np.array(batch['x']['mask'])
    lengths = real.sum(1)
    self.assertBetween(lengths.min(), 16, 32)
    self.assertGreater(len({*lengths.tolist()}), 5)
    self.assertFalse(np.any(np.array(x['tokens'])[~real]))
    self.assertTrue(np.all(np.array(x['tokens'])[real] > 0))
    at = np.array(x['target_positions'])
    used = np.array(batch['weights']) > 0
    self.assertTrue(np.all(np.take_along_axis(real, at, 1)[used]))
    self.assertBetween(used.sum() / real.sum(), 0.1, 0.2)
    again = task.batch(jax.random.key(0), 4, 64)
    self.assertFalse(np.array_equal(again['x']['tokens'], x['tokens']))


class AgreementTest(absltest.TestCase):
  def test_lengths_depend_on_no_accuracy(self):
    for group, (_, methods) in agreement.GROUPS.items():
      for method in methods:
        config = agreement.config(group, method)
        self.assertEqual(config.teacher.stop_at, 2)
        self.assertEqual(config.stop_at, 2)
        self.assertEqual(config.progressive.rule, 'even')
    self.assertEqual(pcfg_bert.tiny().data.start, config.data.start)

  def test_differences(self):
    run = lambda loss, accuracy: {
      'losses': [[0.5, 0.5], [loss, 0.25]],
      'final': {'accuracy': [accuracy, 1.0], 'loss': [0.1, 0.1]},
    }
    cpu = dict.fromkeys('abcd', run(0.25, 0.5))
    found = agreement.compare(
      {
        'a': run(0.25, 0.5),
        'b': run(0.251, 0.5),
        'c': run(0.25, 0.6),
        'd': run(float('nan'), 0.5),
      },
      cpu,
    )
    a, b, c, d = found
    self.assertEqual([r['agrees'] for r in (a, b, c, d)], [True] + [False] * 3)
    self.assertAlmostEqual(b['first losses'], 0.002)
    self.assertAlmostEqual(c['final metrics'], 0.1)
    self.assertEqual(c['of'], 'accuracy')


class TestsLogTest(absltest.TestCase):
  PROGRESS = """\
[gw0] [ 33%] PASSED tests/a_test.py::ATest::test_one
tests/a_test.py::ATest::test_FAILED_words
[gw1] [ 66%] FAILED tests/a_test.py::ATest::test_two
[gw1] [ 99%] SKIPPED tests/b_test.py::BTest::test_three
"""

  def read(self, text):
    log = pathlib.Path(self.create_tempdir().full_path) / 'log'
    log.write_text(text)
    return commands.read_tests('tests', log)

  def test_counts_and_first_lines(self):
    counts, failure = self.read(
      self.PROGRESS
      + '=== short test summary info ===\n'
      + 'FAILED tests/a_test.py::ATest::test_two - ValueError: no\n'
      + '=== 1 failed, 1 passed ===\n'
    )
    self.assertEqual([counts[name] for name in commands.COUNTED], [1, 1, 0, 1])
    self.assertEqual(failure['test'], 'tests/a_test.py::ATest::test_two')
    self.assertEqual(failure['error'], 'ValueError: no')

  def test_a_run_that_was_stopped_counts_as_far_as_it_came(self):
    counts, failure = self.read(self.PROGRESS)
    self.assertEqual(counts['passed'], 1)
    self.assertEqual(failure['test'], 'tests/a_test.py::ATest::test_two')

  def test_without_tests_the_last_line_is_the_error(self):
    with self.assertRaisesRegex(RuntimeError, 'no test ran: no module x'):
      self.read('usage:\nno module x\n')


class PageTest(absltest.TestCase):
  ROWS = (
    {'table': 'environment', 'measure': 'device', 'value': 'gpu: card'},
    {
      'table': 'environment',
      'measure': 'peak bfloat16, TFLOP/s',
      'value': 800.0,
    },
    STEP,
    {'table': 'steps', 'case': 'base', 'side': 'graphs', 'error': 'no graph'},
    {
      'table': 'attention',
      'length': 512,
      'masked': True,
      'implementation': 'cudnn',
      'error': 'not here',
    },
  )
  CASES = ({'case': 'environment', 'result': 'done', 'seconds': 1.0},)

  def test_share_of_the_measured_peak(self):
    self.assertEqual(page_lib.share(STEP, {'bfloat16': 800.0}), '50.0%')
    self.assertIsNone(page_lib.share(STEP, {'float32': 50.0}))
    self.assertIsNone(
      page_lib.share({**STEP, 'flops': None}, {'bfloat16': 800.0})
    )

  def test_every_row_is_on_the_page(self):
    text = page_lib.page(self.ROWS, self.CASES)
    self.assertIn('| 5,000 (4,900..5,200) |', text)
    self.assertIn('50.0%', text)
    self.assertRegex(text, r'steps base graphs +\| no graph')
    self.assertRegex(text, r'attention 512 cudnn masked +\| not here')
    self.assertNotIn('## Fast tests', text)

  def test_the_csv_has_all_columns(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    page_lib.write(folder, self.ROWS, self.CASES)
    with (folder / 'accelerator.csv').open() as file:
      rows = list(csv.DictReader(file))
    self.assertLen(rows, len(self.ROWS) + 1)
    self.assertEqual(rows[2]['flops'], '2000000000000.0')
    self.assertEqual(rows[-1]['result'], 'done')


class CasesTest(absltest.TestCase):
  def test_names_are_those_of_the_issue_and_in_order(self):
    self.assertEqual(next(iter(cases_lib.TIMED)), 'environment')
    self.assertLen({*cases_lib.NAMES}, len(cases_lib.NAMES))
    for name in ('base_hidden_bfloat16', 'small_float32', 'parity_hidden'):
      self.assertIn(name, cases_lib.TIMED)

  def test_own_variables_win_over_those_of_the_shell(self):
    shell = {
      'XLA_FLAGS': '--a',
      'JAX_PLATFORMS': 'cuda',
      'JAX_COMPILATION_CACHE_DIR': '/shell',
    }
    extra = {**pipe.CACHE, 'XLA_FLAGS': '--b', 'JAX_PLATFORMS': 'cpu'}
    with mock.patch.dict(os.environ, shell):
      found = pipe.environment(extra)
    self.assertEqual(found['XLA_FLAGS'], '--a --b')
    self.assertEqual(found['JAX_PLATFORMS'], 'cpu')
    self.assertEqual(found['JAX_COMPILATION_CACHE_DIR'], '/shell')
    self.assertEqual(found['XLA_PYTHON_CLIENT_PREALLOCATE'], 'false')

  def test_an_error_is_one_line_of_limited_length(self):
    found = pipe.one_line(ValueError('a\n  b' + 'c' * 1_000))
    self.assertStartsWith(found, 'ValueError: a b')
    self.assertLen(found, pipe.LONGEST)


class DeviceTest(absltest.TestCase):
  @pytest.mark.slow
  def test_implementations_agree_with_a_mask(self):
    rows = list(device.attention(tiny=True))
    for row in rows:
      if row['implementation'] != 'cudnn':
        self.assertTrue(row['agrees'], row)
    self.assertEqual([r['masked'] for r in rows], [False] * 3 + [True] * 3)

  @pytest.mark.slow
  def test_a_wrong_implementation_does_not_agree(self):
    ours = device._implementations()['ours']
    wrong = lambda q, k, v, lengths: ours(q, k, v, None)
    both = {'ours': ours, 'wrong': wrong}
    with mock.patch.object(device, '_implementations', lambda: both):
      rows = list(device.attention(tiny=True))
    agrees = [row['agrees'] for row in rows]
    self.assertEqual(agrees, [True, True, True, False])
