"""Tests of the records of `distill`, of what it keeps and how it resumes."""

import dataclasses
import functools
import shutil

from absl.testing import parameterized
import chex
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cxjax
from cxjax import errors
from cxjax.methods import losses
from cxjax.training import checkpoints as checkpoints_lib
from cxjax.training import metric_log
from small_networks import BIG
from small_networks import PLAN
from small_networks import SMALL
from small_networks import X
from small_networks import batches
from small_networks import parameters
from small_networks import two_layers
from tests.api.distilled import Ended
from tests.api.distilled import FolderTest
from tests.api.distilled import distill
from tests.api.distilled import end_after
from tests.api.distilled import whole

pytestmark = pytest.mark.slow


class Arrays:
  """The batches, as grain reads them."""

  def __len__(self):
    return 12

  def __getitem__(self, i):
    return batches()[i]

  def __repr__(self):
    return 'Arrays'


class OnRecordTest(FolderTest):
  def test_is_called_with_every_record_once_and_in_order(self):
    folder, seen, written, taken = self.folder(), [], [], []

    def hook(record):
      seen.append(dict(record))
      written.append(len(metric_log.read(folder)))
      record.clear()  # A copy: the history stays.

    def stream():
      for x in batches(number=20):
        taken.append(len(seen))
        yield x

    _, history = distill(
      data=stream(), held_out=X, workdir=folder, log_every=2, on_record=hook
    )
    self.assertEqual(seen, history)
    self.assertEqual([record['step'] for record in seen], [*range(2, 21, 2)])
    self.assertEqual(written, list(range(1, 11)))  # After it was written.
    self.assertGreater(taken[-1], 3)  # Live: while there is more to train.

  @parameterized.parameters(True, False)
  def test_the_learning_rate_is_that_of_the_last_step(self, restart):
    _, history = distill(
      plan=PLAN, learning_rate=0.5, log_every=2, restart_schedule=restart
    )
    first, second = (stage.steps for stage in PLAN.stages)
    for record in history:
      last = record['step'] - 1
      passed = last / (first + second)
      if restart:
        passed = last / first if last < first else (last - first) / second
      rate = 0.25 * (1 + np.cos(np.pi * passed))
      self.assertAlmostEqual(record['learning_rate'], rate)

  def test_students_have_rates_of_their_own_and_an_optimizer_tells_none(self):
    student = cxjax.from_fn(two_layers, [parameters(1), parameters(2)])
    plan = dataclasses.replace(PLAN, student=student)
    _, history = distill(plan=plan, learning_rate=[0.5, 0.1], log_every=10)
    high, low = history[0]['learning_rate']
    self.assertAlmostEqual(high, 5 * low)
    _, history = distill(optimizer=optax.adam(0.1), log_every=10)
    self.assertNotIn('learning_rate', history[0])

  def test_the_learning_rate_that_an_optimizer_of_optax_keeps(self):
    schedule = optax.linear_schedule(0.5, 0.1, 20)
    adam = optax.inject_hyperparams(optax.adam)(schedule)
    optimizer = optax.chain(optax.clip(1.0), adam)
    _, history = distill(
      optimizer=optimizer, log_every=5, restart_schedule=False
    )
    for record in history:
      want = schedule(record['step'] - 1)
      self.assertAlmostEqual(record['learning_rate'], want, places=6)

  def test_an_exception_ends_the_run_and_the_same_call_resumes(self):
    want, history = whole()
    folder, seen, rest = self.folder(), [], []
    again = functools.partial(
      distill, workdir=folder, held_out=X, log_every=2, save_every=4
    )
    with self.assertRaises(Ended):
      again(on_record=end_after(7, seen))
    self.assertEqual(seen, history[:7])
    self.assertEqual(checkpoints_lib.latest(folder), 12)
    params, same = again(on_record=rest.append)
    chex.assert_trees_all_equal(params, want)
    self.assertEqual(same, history)
    self.assertEqual(rest, history[6:])
    # Finished: nothing is trained, and nothing recorded.
    params, same = again(on_record=end_after(1))
    chex.assert_trees_all_equal(params, want)
    self.assertEqual(same, history)

  def test_early_stopping_without_a_workdir(self):
    """The exception of the hook is the one that is raised."""
    with self.assertRaises(Ended):
      distill(log_every=2, on_record=end_after(1))


def turning(count):
  """A learning rate that is negative from the tenth step on: it unlearns."""
  return jnp.where(count < 10, 0.5, -0.5)


class KeepBestTest(FolderTest):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    students = cxjax.from_fn(two_layers, [SMALL.params, parameters(2)])
    plan = cxjax.plan(BIG, students, X, num_steps=20, layers=())
    cls.train = staticmethod(
      functools.partial(
        distill, plan, held_out=X, optimizer=optax.sgd(turning), log_every=2
      )
    )
    cls.best = cls.train(keep_best='loss')

  def losses_of(self, students):
    want, _ = BIG.apply(BIG.params, X)
    return [
      float(losses.kl(two_layers(params, X)[0], want).mean())
      for params in students
    ]

  def test_the_best_that_were_evaluated_come_back(self):
    students, history = self.best
    scores = {
      r['step']: np.mean(r['eval/loss']) for r in history if 'eval/loss' in r
    }
    best = min(scores, key=scores.get)
    self.assertEqual(best, 10)
    self.assertEqual(self.best.best_step, 10)
    said = 'Distilled(params, 10 records to step 20, best_step=10)'
    self.assertEqual((repr(self.best), f'{self.best}'), (said, said))
    self.assertLess(scores[10], 0.9 * scores[20])
    record = next(r for r in history if r['step'] == best)
    np.testing.assert_allclose(
      self.losses_of(students), record['eval/loss'], rtol=1e-4
    )
    ended = self.train()
    self.assertIsNone(ended.best_step)
    last, same = ended
    self.assertEqual(same, history)  # What is kept changes nothing else.
    np.testing.assert_allclose(
      self.losses_of(last), history[-1]['eval/loss'], rtol=1e-4
    )

  @parameterized.parameters(4, 7)  # Before and after the best.
  def test_a_run_that_was_ended_finds_it_again(self, number):
    workdir = self.folder()
    want, history = self.best
    with self.assertRaises(Ended):
      self.train(keep_best='loss', workdir=workdir, on_record=end_after(number))
    for _ in range(2):  # Resumed, and finished before.
      students, same = self.train(keep_best='loss', workdir=workdir)
      chex.assert_trees_all_equal(students, want)
      self.assertEqual(same, history)
    shutil.rmtree(checkpoints_lib.step_folder(workdir, 10))
    with self.assertRaisesRegex(errors.UserError, 'Checkpoint 10 .*the best'):
      self.train(keep_best='loss', workdir=workdir)

  def test_patience_ends_the_run_and_the_best_come_back(self):
    students, history = self.best
    found = self.train(keep_best='loss', patience=2)
    self.assertEqual(found.best_step, 10)
    self.assertEqual(found.history, history[:7])  # Two evaluations later.
    chex.assert_trees_all_equal(found.params, students)

  def test_patience_alone_returns_the_students_as_they_end(self):
    """The first metric decides, here the agreement with the teacher."""
    _, history = self.best
    scores = [record['eval/agreement'] for record in history]
    end = next(
      i
      for i in range(2, len(scores))
      if not any(
        max(now[seed] for now in scores[i - 1 : i + 1])
        > max(then[seed] for then in scores[: i - 1])
        for seed in range(2)
      )
    )
    params, same = found = self.train(patience=2)
    self.assertEqual(same, history[: end + 1])
    self.assertLess(len(same), len(history))
    self.assertIsNone(found.best_step)
    np.testing.assert_allclose(
      self.losses_of(params), history[end]['eval/loss'], rtol=1e-4
    )

  def test_patience_counts_on_after_an_interruption(self):
    want, history = self.best
    train = functools.partial(
      self.train, workdir=self.folder(), keep_best='loss', patience=2
    )
    with self.assertRaises(Ended):
      train(on_record=end_after(6))  # After one evaluation that counts.
    with self.assertLogs(level='WARNING') as log:
      for _ in range(2):  # Resumed, and finished before.
        found = train()
        self.assertEqual(found.history, history[:7])
        chex.assert_trees_all_equal(found.params, want)
        self.assertEqual(found.best_step, 10)
    for text in log.output:
      self.assertIn('raises the loss', text)  # As it is meant to, to get worse.
    with self.assertRaisesRegex(
      errors.UserError, r'patience \(2 there, 3 here'
    ):
      train(patience=3)

  def test_more_may_be_better(self):
    """The metric is one's own, and its greatest value is the best."""
    score = cxjax.Metric(lambda got, want: -losses.kl(got, want))
    names = {'agreement': lambda a, b: a[:, 0] > 0, 'score': score}
    best, _ = self.train(keep_best='score', metrics=names)
    chex.assert_trees_all_equal(best, self.best[0])

  def test_a_metric_that_there_is_not(self):
    with self.assertRaisesRegex(
      errors.UserError, "keep_best 'los'. Did you mean 'loss'"
    ):
      self.train(keep_best='los')

  def test_a_function_that_does_not_say_if_less_is_better(self):
    metrics = {'brier': lambda a, b: ((a - b) ** 2).sum(-1)}
    for options in ({'keep_best': 'brier'}, {'patience': 2}):
      with self.assertRaisesRegex(errors.UserError, "'brier' decides"):
        self.train(metrics=metrics, **options)


class ResumeTest(FolderTest):
  @parameterized.parameters('iterator', 'grain', 'grain_loader')
  def test_a_run_that_was_killed_goes_on(self, kind):
    """In the second stage: its batches are those that come next."""
    if kind.startswith('grain'):
      import grain  # noqa: PLC0415

      data = grain.MapDataset.source(batches()).repeat().to_iter_dataset()
      make = lambda: iter(data)
      if kind == 'grain_loader':  # Its states are bytes.
        order = grain.samplers.IndexSampler(12, num_epochs=None)
        make = lambda: grain.DataLoader(data_source=Arrays(), sampler=order)
    else:
      # As those of the list, which comes again and again.
      stream = lambda: iter(batches() + batches() + batches()[:1])
      make = stream
    folder = self.folder()
    again = functools.partial(
      distill, PLAN, workdir=folder, held_out=X, log_every=2
    )
    with self.assertRaises(Ended):
      again(make(), on_record=end_after(7))
    self.assertEqual(checkpoints_lib.latest(folder), 12)
    params, history = again(make())
    want, same = whole(2)
    chex.assert_trees_all_equal(params, want)
    self.assertEqual(history, same)

  def test_as_many_batches_as_steps(self):
    """The last steps are no whole chunk, and are resumed as well."""
    data = batches(number=20)
    want, _ = distill(data=data, held_out=X, log_every=2)
    params, _ = distill(data=iter(data), held_out=X, log_every=7, save_every=7)
    chex.assert_trees_all_close(params, want, rtol=1e-5)
    with self.assertRaisesRegex(errors.UserError, 'ended after 19'):
      distill(data=iter(data[:19]), log_every=7)
