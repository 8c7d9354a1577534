"""Comparisons with a search, from configs of parity and of a text."""

import dataclasses
import re
from unittest import mock

from absl.testing import absltest
import chex
import numpy as np
import pytest

from cxjax import errors
from cxjax import tables
from cxjax.configs import builders
from cxjax.configs import contest
from cxjax.configs import experiment
from cxjax.configs import teachers
from cxjax.parallel import multihost
from cxjax.training import optimizers
import documents
from experiments import causal_text
from tests.configs.parity_runs import METHODS
from tests.configs.parity_runs import FinishedTest
from tests.configs.parity_runs import TestCase
from tests.configs.parity_runs import config_of
from tests.configs.parity_runs import open_

pytestmark = pytest.mark.slow
RATES = (3e-2, 1e-2)


class StoppedError(Exception):
  """The end of a process, as a test makes it."""


def flat(stages):
  """Each term of each stage, as text; the addresses of functions left out."""
  terms = [(s.name, s.steps, s.checkpoint, t) for s in stages for t in s.terms]
  return [re.sub(' at 0x[0-9a-f]+', '', str(term)) for term in terms]


class SearchTest(FinishedTest):
  def search(self, workdir, report=lambda text: None, **kwargs):
    config = config_of(num_steps=20, num_seeds=3)
    names = ('supervised', 'one_shot')
    options = {'rates': RATES, 'equal': 'steps', **kwargs}
    return contest.search(config, names, workdir, report=report, **options)

  def test_a_search_that_was_stopped_ends_as_a_whole_one(self):
    workdir, said = self.fresh(), []

    def stop(text):
      said.append(text)
      if text.startswith('supervised:'):
        raise StoppedError

    with self.assertRaises(StoppedError):
      self.search(workdir, stop)
    self.assertLen(said, 2)
    self.assertFalse((workdir / 'comparison.md').exists())
    found = self.search(workdir, said.append)
    self.assertEqual(str(found), str(self.search(self.fresh())))

    # Costs, and a line for each method; the advice is not among them.
    self.assertEqual(said[:2], said[2:4])
    self.assertIn('successive halving with the first seed: 2 for 1/2', said[0])
    self.assertIn('the best rate with 3 seeds', said[0])
    self.assertIn('adam with no warm-up, schedule constant', said[0])
    self.assertLen(said, 5)
    self.assertStartsWith(said[-1], 'one_shot: accuracy')

    rows = tables.read_csv(workdir / 'comparison.csv')
    self.assertEqual([r['steps'] for r in rows], ['20', '20'])
    self.assertEqual(
      {(r['method'], float(r['learning rate'])) for r in found.trials},
      {(name, rate) for name in ('supervised', 'one_shot') for rate in RATES},
    )
    text = (workdir / 'comparison.md').read_text()
    self.assertEndsWith(text, f'{found.advice}\n')
    self.assertTrue((workdir / 'comparison.png').exists())
    # Runs without a search have these names.
    self.assertFalse((workdir / 'one_shot').exists())

  def test_another_budget_and_other_rates_are_searches_of_their_own(self):
    workdir = self.fresh()
    self.search(workdir, rates=(0.01,))
    found = self.search(workdir, rates=(0.003,), budget=0.5)
    self.assertEqual([one.steps for one in found.contenders], [10, 10])
    self.assertStartsWith(found.advice, 'A prediction for 20 steps of one_shot')
    self.assertCountEqual(
      [path.name for path in (workdir / 'search').iterdir()],
      ['steps_20_0.01', 'steps_10_0.003'],
    )

  def test_names_of_folders_are_short(self):
    rates = [0.001 * (1 + i) for i in range(200)]
    names = [contest._folder('flops', 4_000, r) for r in (rates, rates[1:])]
    self.assertLess(max(map(len, names)), 60)
    self.assertNotEqual(*names)
    same = contest._folder('flops', 4_000, rates[::-1])
    self.assertEqual(same, names[0])

  def test_what_a_search_cannot_do_is_refused_before_the_teacher(self):
    for fields, message in (
      ({'patience': 3}, 'patience=3 .* whole budget. Leave it at 0'),
      ({'stop_at': 0.9}, 'stop_at=0.9 .* Leave it at None'),
      ({'cache.folder': '/x'}, 'cache.folder=/x .* the teacher is run'),
      ({'optimizer.restart_schedule': False}, 'restart_schedule=False .* own'),
      (
        {'optimizer.carry_state': True},
        'carry_state=True .* Leave it at False',
      ),
      ({'num_steps': 3}, "too small.*'one_shot', of 1 stage, 3 steps, and 0"),
      ({'extracted.layers': (('h', 'hidden0'),)}, "activation 'h'"),
    ):
      workdir = self.folder()
      with self.assertRaisesRegex(errors.UserError, message):
        contest.search(
          config_of(**fields),
          ('one_shot', 'extracted'),
          workdir,
          rates=(1e-3, 3e-3, 1e-2),
        )
      self.assertEmpty(list(workdir.iterdir()))

  def test_too_few_steps_of_any_method_at_equal_steps(self):
    with self.assertRaisesRegex(errors.UserError, "'extracted', of 2 stages"):
      contest.search(
        config_of(num_steps=4),
        ('one_shot', 'extracted'),
        self.folder(),
        rates=(1e-3, 3e-3, 1e-2),
        equal='examples',
      )

  def test_several_processes_are_refused(self):
    count = mock.patch.object(multihost, 'count', return_value=2)
    with count, self.assertRaisesRegex(errors.UserError, 'there are 2: start'):
      self.search(self.folder())


class PlansTest(FinishedTest):
  def test_methods_are_the_curricula_of_the_config(self):
    config = config_of(**{'top_k': 2, 'alpha': 0.25, 'progressive.share': 0.4})
    config.progressive.scores = (0.5,)
    config, teacher = experiment.load(config, self.workdir)
    one = open_(config, self.workdir)
    experiments = {name: one.with_method(name) for name in METHODS}
    found = contest._with_plans(experiments, teacher)
    self.assertCountEqual(found.methods, METHODS)
    for name, plan in found.methods.items():
      spec = builders.student_spec(experiments[name], teacher)
      self.assertEqual(flat(plan.stages), flat(spec.stages))
    chosen = found.methods['progressive'].stages[0].checkpoint
    self.assertEqual(list(found.teacher.checkpoints), [chosen])
    chex.assert_trees_all_equal(
      found.teacher.checkpoints[chosen], teacher.at(chosen)
    )

  def test_fields_of_another_optimizer_are_left_out(self):
    config = config_of(**{'optimizer.name': 'sgd', 'optimizer.b2': 0.95})
    config, teacher = experiment.load(config, self.workdir)
    found = contest.of_experiment(open_(config, self.workdir), teacher)
    self.assertNotIn('b2', found.optimizer)
    self.assertEqual(optimizers.named(found.optimizer).name, 'sgd')

  def test_batches_begin_anew_and_are_those_of_the_seed(self):
    first = lambda batches: next(iter(batches))['x']
    one = open_(config_of(), self.workdir)
    batches = contest.TaskBatches(one)
    np.testing.assert_array_equal(first(batches), first(batches))
    other = dataclasses.replace(one, config=config_of(seed=1))
    self.assertFalse(
      np.array_equal(first(batches), first(contest.TaskBatches(other)))
    )


class CutTest(TestCase):
  def test_students_are_cut_as_those_of_a_run(self):
    folder = self.folder()
    source = folder / 'text.txt'
    source.write_text('\n\n'.join(documents.DOCUMENTS))
    config = causal_text.tiny('one_shot')
    config.data.source = f'files:{source}'
    config.teacher.num_steps = 10
    config.student.update(start='teacher', heads=1)
    one = builders.open_experiment(config, folder / 'run')
    teacher = teachers.train_teacher(one, folder / 'run')
    found = contest.of_experiment(one, teacher)
    wanted = builders.start(one, teacher)()
    for seed, params in enumerate(wanted):
      chex.assert_trees_all_equal(found.student(seed).params, params)
    self.assertEqual(found.options['metrics'][0], 'perplexity')
    again = dataclasses.replace(
      one, config=config.copy_and_resolve_references()
    )
    again.config.seed = 1  # Of the order of the text too.
    tokens = [
      next(iter(contest.TaskBatches(each)))['x']['tokens']
      for each in (one, again)
    ]
    self.assertFalse(np.array_equal(*tokens))
    self.assertEqual(found.optimizer['name'], 'adamw')
    self.assertNotIn('learning_rate', found.optimizer)


if __name__ == '__main__':
  absltest.main()
