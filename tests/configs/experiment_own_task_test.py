"""An experiment on a task and a model of elsewhere."""

import math
from unittest import mock

import jax
import numpy as np
import pytest

from cxjax import files
from cxjax.analysis import plots
from cxjax.configs import experiment
from cxjax.training import checkpoints as checkpoints_lib
from cxjax.training import evaluation
from cxjax.training import metric_log
import own_config
import processes
from tests.configs.parity_runs import TestCase
from tests.configs.parity_runs import open_

pytestmark = pytest.mark.slow


class OwnTaskTest(TestCase):
  """A task whose score is better when it is lower, from outside the package.

  Whatever follows the score follows it downwards.
  """

  METHODS = ('one_shot', 'progressive', 'extracted')

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = cls.shared_folder()
    figures = []
    save = plots.save

    def keep(figure, path):
      figures.append(figure)
      save(figure, path)

    with mock.patch.object(plots, 'save', keep):
      cls.summaries = experiment.compare(
        own_config.get_config(), cls.METHODS, cls.workdir
      )
    (cls.figure,) = figures

  def errors_of(self, name):
    records = metric_log.read(self.workdir / name)
    return dict(metric_log.evaluations(records, 'error'))

  def test_the_teacher_stops_and_saves(self):
    scores = {
      step: error[0] for step, error in self.errors_of('teacher').items()
    }
    first = lambda at: min(
      step for step, error in scores.items() if error <= at
    )
    steps = checkpoints_lib.steps(self.workdir / 'teacher')
    for at in (40, 20, 10):
      self.assertIn(first(at), steps)
    # stop_at=3, and half as many steps again.
    self.assertEqual(max(steps), math.ceil(1.5 * first(3)))
    self.assertLess(max(steps), 200)

  def test_students_stop_once_all_are_there(self):
    for summary in self.summaries:
      scores = self.errors_of(summary['method'])
      reached = [step for step, errors in scores.items() if max(errors) <= 3]
      self.assertEqual(summary['steps'], min(reached, default=200))
      best = min(scores, key=lambda step: (np.mean(scores[step]), step))
      self.assertEqual(summary['best_step'], best)

  def test_progressive_chooses_by_it(self):
    (_, progressive, _) = self.summaries
    chosen = progressive['stages'][0]['checkpoint']
    scores = {
      step: checkpoints_lib.read_record(self.workdir / 'teacher', step)['score']
      for step in checkpoints_lib.steps(self.workdir / 'teacher')[:-1]
    }
    nearest = min(scores, key=lambda step: abs(scores[step][0] - 20))
    self.assertEqual(chosen, nearest)

  def test_the_comparison_names_it(self):
    table = (self.workdir / 'comparison.md').read_text()
    header = [cell.strip() for cell in table.splitlines()[0].split('|')]
    self.assertIn('final error: mean', header)
    self.assertNotIn('accuracy', table)
    self.assertNotIn('99%', table)  # Of an accuracy alone.
    head, *rows = (self.workdir / 'comparison.csv').read_text().splitlines()
    self.assertLen(rows, 3 * 2)
    columns = head.split(',')
    row = dict(zip(columns, rows[0].split(','), strict=True))
    final = self.summaries[0]['final']['error'][0]
    self.assertEqual(float(row['final_error']), final)
    self.assertEqual(row['steps_to_0.9'], '')

  def test_the_picture_shows_it(self):
    (panel,) = self.figure.axes
    self.assertEqual(panel.get_ylabel(), 'held-out error')
    # Below the name of a run are its stages.
    labels = [str(n.get_label()).split('\n')[0] for n in panel.get_lines()]
    self.assertContainsSubset(self.METHODS, labels)
    line = panel.get_lines()[labels.index('one_shot')]
    medians = [np.median(e) for e in self.errors_of('one_shot').values()]
    np.testing.assert_allclose(line.get_ydata(), medians)

  def test_its_model_comes_back(self):
    model, params = experiment.load_students(
      own_config.get_config(), self.workdir, 'extracted', best=True
    )
    self.assertEqual(type(model).__name__, 'Plain')
    held_out = open_(own_config.get_config(), self.workdir).held_out
    best = self.errors_of('extracted')[self.summaries[2]['best_step']]
    for seed in range(2):
      one = jax.tree.map(lambda leaf, i=seed: leaf[i], params)
      found = evaluation.evaluate(
        one, held_out, apply=model.apply, metrics='error'
      )
      self.assertAlmostEqual(float(found['error']), best[seed], places=4)

  def test_launch(self):
    workdir = self.folder() / 'run'
    code, table, said = processes.forked(
      'launch.py',
      '--config=tests/own_config.py:one_shot',
      f'--workdir={workdir}',
      '--config.data.d=5',
      '--config.num_steps=20',
      '--config.save_every=20',
      '--config.teacher.num_steps=20',
      '--config.teacher.save_every=20',
    )
    self.assertEqual(code, 0, said)
    self.assertIn('final error: mean', table)
    summary = files.read_json(workdir / 'one_shot' / 'summary.json')
    self.assertEqual(summary['primary_metric'], 'error')
    saved = files.read_json(workdir / 'one_shot' / 'config.json')
    self.assertEqual((saved['task'], saved['data']['d']), ('own_majority', 5))
