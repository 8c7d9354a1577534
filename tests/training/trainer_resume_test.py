"""Runs that are killed or asked to stop, and go on."""

import os
import pathlib
import signal
import time
from unittest import mock

from absl.testing import parameterized
import chex
import pytest

from cxjax import errors
from cxjax.training import checkpoints
from cxjax.training import metric_log
from tests import faults
from tests.training import runs

pytestmark = pytest.mark.slow


class ResumeTest(runs.TestCase):
  """A run that is killed ends where a whole one does, bit for bit."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(cls('create_tempdir').create_tempdir().full_path)
    cls.whole = {}

  def variant(self, name):
    """A specification, and the folder of its whole run."""
    fields = {
      'usual': {},
      'one schedule, carried state': dict(
        restart_schedule=False, carry_state=True
      ),
    }[name]
    if name not in self.whole:
      spec = runs.changed(runs.main(), **fields)
      folder = self.root / name
      runs.fit(spec, folder)
      self.whole[name] = spec, folder
    return self.whole[name]

  # A checkpoint comes with records 3, 6 and 7; stages end with 2 and 4.
  @parameterized.parameters(
    *(('usual', n) for n in range(1, 8)),
    *(('one schedule, carried state', n) for n in (4, 5, 6)),
  )
  def test_killed_after_any_record(self, name, records):
    spec, whole = self.variant(name)
    folder = self.folder()
    with faults.killed_after(records):
      self.fit(spec, folder)
    logged = metric_log.read(folder)
    self.assertLen(logged, records)
    self.fit(spec, folder)
    self.assert_same_run(spec, whole, folder)

  def test_variants_are_other_runs(self):
    one, two = (
      self.variant(name)[1] / 'metrics.jsonl'
      for name in ('usual', 'one schedule, carried state')
    )
    self.assertNotEqual(one.read_text(), two.read_text())

  @parameterized.parameters(1, 2, 3, 4, 7)
  def test_a_hook_that_raises_ends_the_run_and_it_goes_on(self, number):
    spec, whole = self.variant('usual')
    folder, seen = self.folder(), []

    def stop(record):
      seen.append(record['step'])
      if len(seen) == number:
        raise RuntimeError('Enough.')

    with self.assertRaisesRegex(RuntimeError, 'Enough'):
      self.fit(spec, folder, stop)
    self.assertLen(metric_log.read(folder), number)
    self.fit(spec, folder, lambda record: seen.append(record['step']))
    self.assert_same_run(spec, whole, folder)
    # Those after the last checkpoint come again.
    saved = [0, 8, 16, 20]
    first = [4, 6, 8, 11, 12, 16, 20][:number]
    # The hook sees a record before its checkpoint is saved.
    resumed = max(s for s in saved if s < first[-1])
    again = [s for s in (4, 6, 8, 11, 12, 16, 20) if s > resumed]
    self.assertEqual(seen, first + again)

  # It raises at 4, 6, 8 (saved, so that nothing is on its way), 11, 16, 20.
  @parameterized.parameters((1, 6), (2, 8), (3, 11), (4, 12), (6, 20), (7, 20))
  def test_a_hook_ends_the_run_with_the_next_record(self, number, end):
    spec, whole = self.variant('usual')
    folder, seen = self.folder(), []

    def stop(record):
      seen.append(record)
      if len(seen) >= number:
        raise StopIteration

    result = self.fit(spec, folder, stop)
    self.assertEqual(seen, result.records)
    self.assertEqual(result.records[-1]['step'], end)
    self.assertIn('eval/agreement', result.records[-1])
    # Up to there it is the whole run, and its end is saved.
    every = metric_log.read(whole)[: len(seen)]
    losses = [[r['loss'] for r in records] for records in (every, seen)]
    self.assertEqual(*losses)
    self.assertEqual(checkpoints.latest(folder), end)
    # It is finished: nothing is trained, and the hook is not called.
    again = self.fit(spec, folder, lambda record: self.fail())
    chex.assert_trees_all_equal(again.params, result.params)

  def test_killed_after_a_hook_ended_it(self):
    """The hook sees the records after the last checkpoint again."""
    spec, _ = self.variant('usual')
    folder, other = self.folder(), self.folder()

    def stop(record):
      if record['step'] >= 11:
        raise StopIteration

    def kill(record):
      if record['step'] == 12:
        raise faults.Killed
      stop(record)

    with self.assertRaises(faults.Killed):
      self.fit(spec, folder, kill)
    self.assertEqual(checkpoints.latest(folder), 8)
    for one in (folder, other):
      self.assertEqual(self.fit(spec, one, stop).records[-1]['step'], 12)
    self.assert_same_run(spec, folder, other)

  @parameterized.parameters(('SIGTERM', 1), ('SIGINT', 2), ('SIGTERM', 3))
  def test_a_signal_saves_and_stops(self, name, records):
    spec, whole = self.variant('usual')
    folder, number = self.folder(), getattr(signal, name)
    # A job in the background ignores SIGINT, and then so does a run.
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)
    self.addCleanup(signal.signal, signal.SIGINT, outside)
    before, seen = signal.getsignal(number), []

    def ask(record):
      seen.append(record['step'])
      if len(seen) == records:
        os.kill(os.getpid(), number)

    with self.assertRaisesRegex(
      errors.Stopped, f'Stopped by {name}: saved step .* same command resumes'
    ) as caught:
      self.fit(spec, folder, ask)
    # The steps that were on their way are read and saved.
    step = {1: 6, 2: 8, 3: 8}[records]
    self.assertIn(f'saved step {step} ', str(caught.exception))
    self.assertEqual(checkpoints.latest(folder), step)
    self.assertEqual(seen[-1], step)
    self.assertIs(signal.getsignal(number), before)
    self.fit(spec, folder)
    self.assert_same_run(spec, whole, folder)
    self.assertEqual(checkpoints.steps(folder), [8, 16, 20])

  def test_seconds_are_those_of_all_processes(self):
    spec, _ = self.variant('usual')
    folder = self.folder()
    with faults.killed_after(4):
      self.fit(spec, folder)
    before = checkpoints.read_record(folder, 8)['seconds']
    with mock.patch.object(time, 'perf_counter', lambda: 0.0):
      after = self.fit(spec, folder).seconds
    self.assertEqual(after['train'], before['train'])
