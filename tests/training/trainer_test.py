"""Tests of the loop: its records, its rates, its loader."""

import dataclasses
import functools
import json
import pathlib
import types
from unittest import mock

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax.training import checkpoints
from cxjax.training import compiled_steps
from cxjax.training import run_spec
from cxjax.training import stopwatch
from tests import faults
from tests.training import runs

pytestmark = pytest.mark.slow

Stage, Term = runs.Stage, runs.Term


class WholeRunTest(runs.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(cls('create_tempdir').create_tempdir().full_path)
    cls.seen = []
    cls.result = runs.fit(runs.main(), cls.root, cls.seen.append)

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
    step, items = runs.last(runs.main(), self.root)
    self.assertEqual(step, 20)
    chex.assert_trees_all_equal(items['params'], self.result.params)

  def test_seconds_by_purpose(self):
    self.assertCountEqual(self.result.seconds, stopwatch.PURPOSES)
    self.assertGreater(self.result.seconds['train'], 0)

  def test_every_stage_has_keys_of_its_own(self):
    """Regressors and projections of a stage are drawn with them."""
    keys, numbers = compiled_steps.CompiledSteps.keys, []

    def note(steps, of, number):
      numbers.append(number)
      return keys(steps, of, number)

    with mock.patch.object(compiled_steps.CompiledSteps, 'keys', note):
      self.fit(runs.main())
    self.assertEqual(numbers, [1, 0, 3, 2, 5])

  def test_untrained_networks_are_kept_where_all_checkpoints_are(self):
    folder = self.folder()
    self.fit(runs.changed(runs.main(), loop={'keep': 0}), folder)
    self.assertEqual(checkpoints.steps(folder), [0, 8, 16, 20])

  def test_a_finished_run_is_not_trained_again(self):
    with mock.patch.object(
      compiled_steps.CompiledSteps,
      'train_many_steps',
      side_effect=AssertionError,
    ):
      again = runs.fit(runs.main(), self.root)
    self.assertEqual(again.records, self.result.records)
    chex.assert_trees_all_equal(again.params, self.result.params)


class ScheduleTest(runs.TestCase):
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
      self.fit(runs.changed(runs.main(), carry_state=carry), folder)
      _, items = runs.last(runs.main(), folder)
      np.testing.assert_array_equal(items['opt_state'][0].count, count)


class LoaderTest(runs.TestCase):
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
      runs.labels(),
      draw=lambda key, t, rows: rows,
      host=run_spec.HostData(Loader, batch),
    )

  def test_is_that_of_the_same_batches(self):
    calls, folder = [], self.folder()
    spec = self.spec(calls)
    found = self.fit(spec, folder)
    rows = [('rows', start) for start in range(0, 40, 4)]
    self.assertEqual(calls, ['open', *rows, 'close'])
    expected = self.fit(runs.labels())
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
