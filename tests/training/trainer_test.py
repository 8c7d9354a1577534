"""Tests of the loop: what it decides, when it waits, how it goes on."""

import dataclasses
import functools
import itertools
import json
import math
import os
import pathlib
import signal
import time
import types
from unittest import mock

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax import errors
from cxjax.training import checkpoints
from cxjax.training import compiled_steps
from cxjax.training import metric_log
from cxjax.training import run_spec
from cxjax.training import stopwatch
from cxjax.training import trainer
from tests import faults
from tests.training import runs

Stage, Term = runs.Stage, runs.Term


@functools.cache
def main():
  """Three stages of one term or two, of 20 steps together."""
  return runs.spec()


@functools.cache
def labels():
  """One stage without a teacher, of 40 steps."""
  return runs.spec(
    (Stage('labels', 40, runs.LABELS),), teacher=None, teacher_metrics={}
  )


class TestCase(parameterized.TestCase):
  def folder(self):
    return pathlib.Path(self.create_tempdir().full_path) / 'run'

  def fit(self, spec, folder=None, on_record=None):
    return runs.fit(spec, folder or self.folder(), on_record)

  def assert_same_run(self, spec, one, two):
    """Records and everything in the last checkpoint, bit for bit."""
    texts = [(f / 'metrics.jsonl').read_text() for f in (one, two)]
    self.assertEqual(*texts)
    chex.assert_trees_all_equal(runs.last(spec, one), runs.last(spec, two))


@pytest.mark.slow
class WholeRunTest(TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(cls('create_tempdir').create_tempdir().full_path)
    cls.seen = []
    cls.result = runs.fit(main(), cls.root, cls.seen.append)

  def test_a_record_every_log_every_steps_and_at_the_end_of_a_stage(self):
    found = [(r['step'], r['stage']) for r in self.result.records]
    expected = [
      (4, 'early'),
      (6, 'early'),
      (8, 'late'),
      (11, 'late'),
      (12, 'joint'),
      (16, 'joint'),
      (20, 'joint'),
    ]
    self.assertEqual(found, expected)

  def test_records_are_those_of_the_file(self):
    lines = (self.root / 'metrics.jsonl').read_text().splitlines()
    self.assertEqual([*map(json.loads, lines)], self.result.records)

  def test_on_record_has_every_record_once(self):
    self.assertEqual(self.seen, self.result.records)

  def test_evaluates_every_eval_every_steps_and_at_the_end_of_a_stage(self):
    evaluated = [r['step'] for r in self.result.records if 'eval/loss' in r]
    self.assertEqual(evaluated, [6, 8, 11, 16, 20])
    for record in self.result.records:
      if 'eval/loss' in record:
        self.assertLen(record['eval/loss'], runs.SEEDS)

  def test_agreement_with_the_teacher_is_in_the_last_record_alone(self):
    found = [r['step'] for r in self.result.records if 'eval/agreement' in r]
    self.assertEqual(found, [20])

  def test_several_terms_log_the_loss_of_each(self):
    for record in self.result.records:
      terms = {k for k in record if k.startswith('loss/')}
      several = record['stage'] == 'joint'
      self.assertEqual(
        terms, {'loss/labels', 'loss/output'} if several else set()
      )
    # Of one step: its weight is that of the schedule at its beginning, 1.
    one = self.result.records[4]
    total = one['loss/output'] + one['loss/labels']
    self.assertAlmostEqual(one['loss'], total, places=5)

  def test_checkpoints(self):
    self.assertEqual(checkpoints.steps(self.root), [8, 16, 20])
    for step in checkpoints.steps(self.root):
      self.assertIsNone(checkpoints.fault(self.root, step))
    record = checkpoints.read_record(self.root, 16)
    logged = {r['step']: r for r in self.result.records}[16]
    self.assertEqual(record['score'], logged['eval/accuracy'])
    self.assertEqual(record['stage'], 'joint')
    self.assertEqual(record['records'], 6)

  def test_the_students_are_those_of_the_last_checkpoint(self):
    step, items = runs.last(main(), self.root)
    self.assertEqual(step, 20)
    chex.assert_trees_all_equal(items['params'], self.result.params)

  def test_seconds_by_purpose(self):
    self.assertCountEqual(self.result.seconds, stopwatch.PURPOSES)
    self.assertGreater(self.result.seconds['train'], 0)

  def test_every_stage_has_keys_of_its_own(self):
    """Of its regressors and of its projections."""
    keys, numbers = compiled_steps.CompiledSteps.keys, []

    def note(steps, of, number):
      numbers.append(number)
      return keys(steps, of, number)

    with mock.patch.object(compiled_steps.CompiledSteps, 'keys', note):
      self.fit(main())
    self.assertEqual(numbers, [1, 0, 3, 2, 5])

  def test_untrained_networks_are_kept_where_all_checkpoints_are(self):
    folder = self.folder()
    self.fit(runs.changed(main(), loop={'keep': 0}), folder)
    self.assertEqual(checkpoints.steps(folder), [0, 8, 16, 20])

  def test_a_finished_run_is_not_trained_again(self):
    with mock.patch.object(
      compiled_steps.CompiledSteps, 'advance', side_effect=AssertionError
    ):
      again = runs.fit(main(), self.root)
    self.assertEqual(again.records, self.result.records)
    chex.assert_trees_all_equal(again.params, self.result.params)


@pytest.mark.slow
class DispatchTest(TestCase):
  """When the host waits for the device."""

  def events(self, spec):
    """What the loop does, in order, and the result."""
    found = []
    advance = compiled_steps.CompiledSteps.advance
    wait = stopwatch.Stopwatch.wait
    save = trainer.checkpoint_writer.CheckpointWriter.save

    def note_advance(steps, planned, *args):
      start, stop = args[3:5]
      found.append(('advance', start, stop))
      return advance(steps, planned, *args)

    def note_wait(watch, purpose, tree=()):
      found.append(('wait', purpose))
      return wait(watch, purpose, tree)

    def note_save(writer, step, *args, **kwargs):
      found.append(('save', step))
      return save(writer, step, *args, **kwargs)

    folder = self.folder()
    writer = trainer.checkpoint_writer.CheckpointWriter
    with (
      mock.patch.object(compiled_steps.CompiledSteps, 'advance', note_advance),
      mock.patch.object(stopwatch.Stopwatch, 'wait', note_wait),
      mock.patch.object(writer, 'save', note_save),
    ):
      result = self.fit(spec, folder)
    return found, result, folder

  def unread(self, events):
    """Number of dispatches that are not read yet, before each dispatch."""
    counts, unread = {}, 0
    for kind, *what in events:
      if kind == 'advance':
        counts[what[0]] = unread
        unread += 1
      elif kind == 'wait' and what == ['train']:
        unread -= 1
    return counts

  def test_the_next_steps_go_out_before_the_last_ones_are_read(self):
    spec = runs.changed(labels(), loop={'save_every': 40, 'eval_every': 8})
    events, _, _ = self.events(spec)
    # From the second dispatch on there is always one on its way.
    expected = {start: min(start, 1) for start in range(0, 40, 4)}
    self.assertEqual(self.unread(events), expected)
    self.assertEqual(
      events[:8],
      [
        ('advance', 0, 4),
        ('advance', 4, 8),
        ('wait', 'train'),
        ('advance', 8, 12),
        ('wait', 'train'),
        ('wait', 'evaluate'),
        ('advance', 12, 16),
        ('wait', 'train'),
      ],
    )

  def test_a_new_stage_is_no_reason_to_wait(self):
    spec = runs.changed(main(), loop={'save_every': 80, 'eval_every': 8})
    events, _, _ = self.events(spec)
    expected = {0: 0, 4: 1, 6: 1, 8: 1, 11: 1, 12: 1, 16: 1}
    self.assertEqual(self.unread(events), expected)

  def test_it_waits_where_it_saves(self):
    events, _, _ = self.events(main())
    expected = {0: 0, 4: 1, 6: 1, 8: 0, 11: 1, 12: 1, 16: 0}
    self.assertEqual(self.unread(events), expected)
    # And what it saves was found to be finite.
    for i, (kind, *_) in enumerate(events):
      if kind == 'save':
        self.assertEqual(self.unread([*events[:i], ('advance', -1, 0)])[-1], 0)

  @parameterized.parameters(
    ({'keep_best': 'loss'}, {8, 16, 24, 32}),
    ({'save_at': (1.0,)}, {8, 16, 24, 32}),
    ({'stop_at': 1.0}, {8, 16, 24, 32}),
    # No accuracy is above 1.
    ({'stop_at': 2.0}, set()),
    ({'save_at': (0.0, 2.0)}, {8}),
    # The run goes on beyond the next dispatch, whatever the score.
    ({'stop_at': 1.0, 'overrun': 0.5}, {8}),
    ({'save_every': 12}, {12, 24, 36}),
  )
  def test_it_waits_where_metrics_decide(self, loop, waits):
    loop = {'save_every': 40, 'eval_every': 8, **loop}
    events, _, _ = self.events(runs.changed(labels(), loop=loop))
    read = {
      start for start, unread in self.unread(events).items() if not unread
    }
    self.assertEqual(read, {0, *waits})

  @parameterized.parameters(False, True)
  def test_nothing_differs_from_a_loop_that_always_waits(self, late_end):
    loop = {'save_every': 80, 'eval_every': 4}
    if late_end:  # It is known only once the next steps are on their way.
      loop |= {'stop_at': 0.0, 'overrun': 2.0}
    spec = runs.changed(main(), loop=loop)
    _, one, folder = self.events(spec)
    with mock.patch.object(trainer.Trainer, '_must_read', lambda self: True):
      events, two, other = self.events(spec)
    self.assertEqual(set(self.unread(events).values()), {0})
    self.assertEqual(one.records, two.records)
    self.assert_same_run(spec, folder, other)


def scripted(**scores):
  """Evaluations that give these values, one after the other, to every seed.

  A value may be a pair, one for each seed.
  """
  metrics = {
    name: [np.broadcast_to(np.float32(v), (runs.SEEDS,)) for v in values]
    for name, values in scores.items()
  }
  numbers = itertools.count()

  def evaluate(self, params):
    i = next(numbers)
    return {
      name: values[min(i, len(values) - 1)] for name, values in metrics.items()
    }

  return mock.patch.object(compiled_steps.CompiledSteps, 'evaluate', evaluate)


@pytest.mark.slow
class DecisionTest(TestCase):
  """Stops, saves and keeps by metrics that are made up."""

  def run_of(self, loop, folder=None, **scores):
    folder = folder or self.folder()
    loop = {'eval_every': 4, 'save_every': 40, 'keep': 0, **loop}
    scores = {'accuracy': [0.5], 'loss': [1.0], **scores}
    with scripted(**scores):
      result = self.fit(runs.changed(labels(), loop=loop), folder)
    steps = [record['step'] for record in result.records]
    return steps, checkpoints.steps(folder), result

  # The first evaluation is that of the untrained networks, which are kept.
  def test_runs_to_the_end(self):
    steps, saved, result = self.run_of({})
    self.assertEqual(steps, list(range(4, 41, 4)))
    self.assertEqual(saved, [0, 40])
    self.assertIsNone(result.best)

  @parameterized.parameters((0.0, 12), (0.25, 15), (0.5, 18), (10.0, 40))
  def test_stops(self, overrun, end):
    steps, saved, result = self.run_of(
      {'stop_at': 0.9, 'overrun': overrun},
      accuracy=[0.0, 0.5, 0.8, (0.95, 0.91), 0.95],
    )
    self.assertEqual(steps[-1], end)
    self.assertEqual(saved, [0, end])
    self.assertIn('eval/accuracy', result.records[-1])

  def test_the_worst_seed_decides(self):
    steps, _, _ = self.run_of(
      {'stop_at': 0.9}, accuracy=[0.0, (0.95, 0.8), (0.8, 0.95), 0.91]
    )
    self.assertEqual(steps, [4, 8, 12])

  def test_stop_at_acts_in_the_last_stage_alone(self):
    spec = runs.changed(main(), loop={'stop_at': 0.9, 'save_every': 80})
    with scripted(accuracy=[0.95], loss=[1.0]):
      result = self.fit(spec)
    # Stages end at 6, 11 and 20; it is evaluated at 8 and 16 as well.
    self.assertEqual(result.records[-1]['step'], 16)

  def test_saves_at_scores(self):
    _, saved, _ = self.run_of(
      {'save_at': (0.6, 0.9)},
      accuracy=[0.0, 0.5, 0.6, 0.5, 0.7, 0.95, 0.5, 0.95],
    )
    self.assertEqual(saved, [0, 8, 20, 40])

  @parameterized.parameters(
    ('accuracy', [0.5, 0.7, 0.6, 0.7, 0.4], 8),
    ('loss', [2.0, 1.0, 1.5, 1.0, 2.0], 8),
    ('loss', [2.0, (0.1, 3.0), (1.0, 0.9), 2.0], 12),
    ('loss', [math.nan, 2.0, math.nan, 3.0], 8),
    ('accuracy', [0.5, 0.4], 4),
    # A checkpoint of the schedule may be the best.
    ('loss', [2.0, 1.5, 1.2, 1.0, 1.1], 16),
  )
  def test_keeps_the_best(self, name, scores, best):
    _, saved, result = self.run_of(
      {'keep_best': name, 'keep': 2, 'save_every': 16}, **{name: scores}
    )
    self.assertEqual(result.best, best)
    self.assertEqual(saved, [best, 32, 40])

  def test_the_best_of_a_run_that_goes_on(self):
    folder = self.folder()
    loop = {'keep_best': 'loss', 'keep': 2, 'save_every': 16}
    with faults.killed_after(6):
      self.run_of(loop, folder, loss=[2.0, 1.0, 1.5, 3.0, 3.0, 3.0])
    self.assertEqual(checkpoints.steps(folder), [8, 16])
    _, saved, result = self.run_of(loop, folder, loss=[1.2])
    self.assertEqual(result.best, 8)
    self.assertEqual(saved, [8, 32, 40])

  def test_the_end_of_a_run_that_goes_on(self):
    folder = self.folder()
    loop = {'stop_at': 0.9, 'overrun': 1.0, 'save_every': 8}
    with faults.killed_after(3):
      self.run_of(loop, folder, accuracy=[0.0, 0.5, 0.95, 0.0])
    self.assertEqual(checkpoints.latest(folder), 8)
    steps, _, _ = self.run_of(loop, folder, accuracy=[0.0])
    self.assertEqual(steps, [4, 8, 12, 16])

  def test_saves_by_the_clock_as_well(self):
    clock = itertools.count(0, 20).__next__  # Seconds, at every look.
    temporary, save = [], trainer.checkpoint_writer.CheckpointWriter.save

    def note(writer, step, *args, **kwargs):
      temporary.append((step, kwargs['temporary']))
      return save(writer, step, *args, **kwargs)

    with (
      mock.patch.object(trainer.time, 'monotonic', clock),
      mock.patch.object(
        trainer.checkpoint_writer.CheckpointWriter, 'save', note
      ),
    ):
      _, saved, _ = self.run_of(
        {'save_minutes': 0.01, 'keep': 3, 'save_every': 16}
      )
    every = [(step, step not in (16, 32, 40)) for step in range(4, 41, 4)]
    self.assertEqual(temporary, every)
    self.assertEqual(saved, [16, 32, 40])

  def test_does_not_save_by_the_clock_before_it_is_time(self):
    _, saved, _ = self.run_of({'save_minutes': 10.0})
    self.assertEqual(saved, [0, 40])


@pytest.mark.slow
class ResumeTest(TestCase):
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
      spec = runs.changed(main(), **fields)
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


@pytest.mark.slow
class ScheduleTest(TestCase):
  """The learning rate of every step.

  The student is one number, its loss that number: a step of SGD subtracts the
  learning rate from it, so that the records tell all of them.
  """

  def rates(self, folder=None, steps=(4, 6), **fields):
    def apply(params, x):
      return jnp.broadcast_to(params['w'], (len(x), 1)), {}

    term = Term(target='labels', loss=lambda got, labels: got[:, 0])
    names = ('first', 'second', 'third')
    spec = runs.spec(
      [Stage(name, n, term) for name, n in zip(names, steps, strict=False)],
      student=types.SimpleNamespace(
        apply=apply, init=lambda key, x: {'w': jnp.zeros(())}
      ),
      optimizer=functools.partial(
        runs.adam, name='sgd', schedule='linear', learning_rate=1.0
      ),
      teacher=None,
      teacher_metrics={},
      loop=runs.loop(log_every=1, eval_every=2, save_every=2),
      **fields,
    )
    records = self.fit(spec, folder).records
    return -np.diff([record['loss'] for record in records])

  @parameterized.product(restart=(True, False), carry=(True, False))
  def test_of_each_stage_or_of_the_run(self, restart, carry):
    """Whether the optimizer's state, which counts the steps, goes on or not."""
    found = self.rates(restart_schedule=restart, carry_state=carry)
    expected = 1 - np.arange(10) / 10
    if restart:
      expected = np.r_[1 - np.arange(4) / 4, 1 - np.arange(6) / 6]
    np.testing.assert_allclose(found, expected[:-1], rtol=1e-5)

  def test_after_a_kill(self):
    folder = self.folder()
    fields = dict(restart_schedule=True, carry_state=True, steps=(3, 4, 3))
    with faults.killed_after(5):
      self.rates(folder, **fields)
    found = self.rates(folder, **fields)
    expected = [1 - np.arange(n) / n for n in (3, 4, 3)]
    np.testing.assert_allclose(found, np.concatenate(expected)[:-1], rtol=1e-5)

  def test_state_that_is_carried_over(self):
    """Adam counts its steps."""
    for carry, count in ((True, 20), (False, 9)):
      folder = self.folder()
      self.fit(runs.changed(main(), carry_state=carry), folder)
      _, items = runs.last(main(), folder)
      np.testing.assert_array_equal(items['opt_state'][0].count, count)


def poison(at, seed=None, what='x'):
  """Batches of which one is not finite, or has nothing that counts."""
  keys = jax.device_get(jax.random.key_data(runs.keys().data))

  def draw(key, t, rows=None):
    batch, hit = runs.draw(key, t), t == at
    if seed is not None:
      hit &= (jax.random.key_data(key) == keys[seed]).all()
    if what == 'x':
      return {**batch, 'x': batch['x'] * jnp.where(hit, jnp.nan, 1.0)}
    return {**batch, 'weights': jnp.where(hit, 0.0, jnp.ones(runs.SIZE))}

  return draw


@pytest.mark.slow
class FailureTest(TestCase):
  def failed(self, message, folder, *stages, **fields):
    """The one line of a run that fails."""
    stages = stages or (Stage('labels', 40, runs.LABELS),)
    spec = runs.spec(stages, teacher=None, teacher_metrics={}, **fields)
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      self.fit(spec, folder)
    self.assertNotIn('\n', str(caught.exception))
    return spec

  def test_a_loss_that_is_not_finite_is_named_though_steps_go_on(self):
    """Step 9 is read when the steps from 12 on were dispatched."""
    folder, advance, stops = (
      self.folder(),
      compiled_steps.CompiledSteps.advance,
      [],
    )

    def note(steps, planned, *args):
      stops.append(args[4])
      return advance(steps, planned, *args)

    with mock.patch.object(compiled_steps.CompiledSteps, 'advance', note):
      self.failed(
        "seed 0 is not finite at step 9, in stage 'labels': 'x' of the batch "
        'of step 9 is NaN',
        folder,
        draw=poison(9),
      )
    self.assertEqual(stops, [4, 8, 12, 16])
    self.assertEqual(checkpoints.steps(folder), [8])
    self.assertIsNone(checkpoints.fault(folder, 8))
    self.assertEqual([r['step'] for r in metric_log.read(folder)], [4, 8])

  def test_the_stage_is_that_of_the_step(self):
    """Though the next stage was under way."""
    self.failed(
      "seed 1 is not finite at step 9, in stage 'first'",
      self.folder(),
      Stage('first', 10, runs.LABELS),
      Stage('second', 30, runs.LABELS),
      draw=poison(9, seed=1),
    )

  def test_before_the_first_checkpoint(self):
    self.failed('step 2, .*of step 2 is NaN', self.folder(), draw=poison(2))

  def test_a_rate_that_is_too_high(self):
    self.failed(
      'none was saved yet. Try a smaller learning rate',
      self.folder(),
      optimizer=functools.partial(runs.adam, name='sgd', learning_rate=1e38),
    )

  @parameterized.parameters(None, 1)
  def test_a_batch_in_which_nothing_counts(self, seed):
    self.failed(
      f'The batch of seed {seed or 0} at step 13 has no position that counts',
      self.folder(),
      draw=poison(13, seed, 'weights'),
    )


@pytest.mark.slow
class LoaderTest(TestCase):
  """A run whose batches the host reads."""

  def spec(self, calls):
    batch = jax.eval_shape(lambda: runs.draw(jax.random.key(0), 0))
    keys = runs.keys().data
    draw = jax.jit(jax.vmap(jax.vmap(runs.draw, (0, None)), (None, 0)))

    class Loader:
      """Serves the batches that `runs.draw` makes of the first keys."""

      def __enter__(self):
        calls.append('open')
        return self

      def __exit__(self, *error):
        calls.append('close')

      def rows(self, start):
        calls.append(('rows', start))
        return draw(keys, start - start % 4 + jnp.arange(4))

      def targets(self, start):
        return None

      def state(self, step):
        return {'loader': {'seen': step}}

      def restore(self, step, read):
        calls.append(('restore', step, read('loader')))

    return dataclasses.replace(
      labels(),
      draw=lambda key, t, rows: rows,
      host=run_spec.HostData(Loader, batch),
    )

  def test_is_that_of_the_same_batches(self):
    calls, folder = [], self.folder()
    spec = self.spec(calls)
    found = self.fit(spec, folder)
    rows = [('rows', start) for start in range(0, 40, 4)]
    self.assertEqual(calls, ['open', *rows, 'close'])
    expected = self.fit(labels())
    chex.assert_trees_all_close(
      [r['loss'] for r in found.records],
      [r['loss'] for r in expected.records],
      rtol=1e-5,
    )

  def test_goes_on_where_its_checkpoint_was(self):
    calls, folder = [], self.folder()
    spec = self.spec(calls)
    with faults.killed_after(3):
      self.fit(spec, folder)
    self.assertEqual(calls[-1], 'close')  # Whatever happens.
    calls.clear()
    self.fit(spec, folder)
    self.assertEqual(
      calls[:3], ['open', ('restore', 8, {'seen': 8}), ('rows', 8)]
    )
