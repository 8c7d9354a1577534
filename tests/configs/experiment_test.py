"""Whole experiments: what a workdir holds, and how it goes on."""

import json
import pathlib
import shutil

from absl.testing import parameterized
import chex
import jax
import numpy as np
import pytest

from cxjax import errors
from cxjax.configs import builders
from cxjax.configs import experiment
from cxjax.configs import teachers
from cxjax.training import checkpoints as checkpoints_lib
from cxjax.training import evaluation
from cxjax.training import metric_log
import faults
from tests.configs.parity_runs import METHODS
from tests.configs.parity_runs import FinishedTest
from tests.configs.parity_runs import config_of
from tests.configs.parity_runs import open_

pytestmark = pytest.mark.slow


class RunTest(FinishedTest):
  @parameterized.parameters(*METHODS)
  def test_leaves_what_the_readme_lists(self, method):
    folder, config = self.workdir / method, config_of(method)
    summary = json.loads((folder / 'summary.json').read_text())
    self.assertIn('sha256', summary.pop('checksums'))
    self.assertEqual(summary, self.summaries[method])
    self.assertEqual(summary['method'], method)
    self.assertEqual(summary['steps'], 60)
    self.assertEqual(summary['examples'], 60 * 8)
    self.assertLen(summary['final']['accuracy'], config.num_seeds)
    self.assertEqual(sum(s['steps'] for s in summary['stages']), 60)
    records = metric_log.read(folder)
    self.assertEqual([r['step'] for r in records], list(range(10, 61, 10)))
    scores = dict(metric_log.evaluations(records, 'accuracy'))
    self.assertEqual(scores[60], summary['final']['accuracy'])
    self.assertEqual(checkpoints_lib.steps(folder), [20, 40, 60])
    self.assertNotEmpty(list((folder / 'tensorboard').glob('events*')))

  def test_a_curriculum_of_terms_in_a_config(self):
    records = metric_log.read(self.workdir / 'custom')
    for record in records:
      terms = {k for k in record if k.startswith('loss/')}
      joint = record['step'] <= 30
      self.assertEqual(record['stage'], 'joint' if joint else 'logits')
      self.assertEqual(
        terms, {'loss/hidden0', 'loss/labels'} if joint else set()
      )

  def test_a_finished_run_is_found_and_its_hook_is_not_called(self):
    seen = []
    found = experiment.run(config_of(), self.workdir, seen.append)
    self.assertEqual(found, self.summaries['extracted'])
    self.assertEqual(seen, [])

  def test_the_teacher_keeps_its_checkpoints(self):
    folder = self.workdir / 'teacher'
    steps = checkpoints_lib.steps(folder)
    self.assertContainsSubset([0, 20, 40, 60], steps)
    scores = dict(metric_log.evaluations(metric_log.read(folder), 'accuracy'))
    for step in steps[1:]:
      record = checkpoints_lib.read_record(folder, step)
      self.assertEqual(record['score'], scores[step])
    teacher = teachers.train_teacher(
      open_(config_of(), self.workdir), self.workdir
    )
    self.assertEqual(
      dict(teacher.checkpoints[1:]), {s: scores[s][0] for s in steps[1:]}
    )

  def test_all_methods_see_the_same_data_and_start_alike(self):
    opened = open_(config_of(), self.workdir)
    teacher = teachers.train_teacher(opened, self.workdir)
    specs = [
      builders.student_spec(opened.with_method(name), teacher)
      for name in METHODS
    ]
    for other in specs[1:]:
      chex.assert_trees_all_equal(
        *(
          jax.tree.map(jax.random.key_data, (s.keys.init, s.keys.data))
          for s in (specs[0], other)
        )
      )
    keys = jax.random.key_data(specs[0].keys.data)
    self.assertLen({tuple(k.tolist()) for k in keys}, 2)

  @parameterized.parameters(('progressive', 3), ('custom', 2))
  def test_an_interrupted_run_ends_where_a_whole_one_does(
    self, method, records
  ):
    """Stages end at 30; trainer_resume_test.py has the other cases."""
    workdir, config = self.fresh(), config_of(method)
    with faults.killed_after(records):
      experiment.run(config, workdir)
    self.assertFalse((workdir / method / 'summary.json').exists())
    experiment.run(config, workdir)
    self.assert_same_run(config, workdir / method)

  def test_an_interrupted_teacher_ends_where_a_whole_one_does(self):
    workdir, config = self.folder(), config_of()
    opened = open_(config, workdir)
    with faults.killed_after(3):
      teachers.train_teacher(opened, workdir)
    again = teachers.train_teacher(opened, workdir)
    whole = teachers.train_teacher(opened, self.workdir)
    chex.assert_trees_all_equal(whole.params, again.params)
    self.assertEqual(whole.checkpoints, again.checkpoints)

  @parameterized.parameters('gs://b/x', '~/x', 'a\0b', 'x' * 300, '/dev/null')
  def test_a_folder_that_cannot_be_is_not_loaded(self, folder):
    config, workdir = config_of(), pathlib.Path(folder)
    for call in (
      lambda: experiment.load(config, workdir),
      lambda: experiment.load_students(config, workdir, 'extracted'),
    ):
      with self.assertRaisesRegex(errors.UserError, '^The workdir '):
        call()

  def test_students_of_no_method_are_not_loaded(self):
    with self.assertRaisesRegex(errors.UserError, "Unknown method '../x'"):
      experiment.load_students(config_of(), self.workdir, '../x')

  def test_the_best_students_are_kept_and_loaded(self):
    workdir = self.fresh()
    config = config_of(keep_best='loss', keep=2, save_every=60)
    summary = experiment.run(config, workdir)
    folder = workdir / 'extracted'
    losses = dict(metric_log.evaluations(metric_log.read(folder), 'loss'))
    best = min(losses, key=lambda step: np.mean(losses[step]))
    self.assertEqual(summary['best_step'], best)
    self.assertContainsSubset([best, 60], checkpoints_lib.steps(folder))
    model, params = experiment.load_students(
      config, workdir, 'extracted', best=True
    )
    held_out = open_(config, workdir).held_out
    for seed, value in enumerate(losses[best]):
      one = jax.tree.map(lambda leaf, i=seed: leaf[i], params)
      found = evaluation.evaluate(one, held_out, apply=model.apply)
      self.assertAlmostEqual(float(found['loss']), value, places=5)
    with self.assertRaisesRegex(errors.UserError, 'kept no best checkpoint'):
      experiment.load_students(
        config_of('one_shot'), self.workdir, 'one_shot', best=True
      )

  def test_a_run_ends_when_no_student_improves(self):
    workdir = self.fresh()
    config = config_of('one_shot', patience=2, eval_every=10)
    config.optimizer.learning_rate = 1e-12
    summary = experiment.run(config, workdir)
    self.assertEqual(summary['steps'], 30)  # Of 60; the first is not improved.
    self.assertEqual(experiment.run(config, workdir), summary)
    config.patience = 3
    with self.assertRaisesRegex(errors.UserError, r'patience \(.*2.*3'):
      experiment.run(config, workdir)
    config.patience = 9
    with self.assertRaisesRegex(errors.UserError, '9 can never end this run'):
      experiment.run(config, self.fresh())

  def test_parameters_that_are_not_trainable_stay(self):
    workdir = self.fresh()
    config = config_of('one_shot', trainable='logits', keep=0)
    experiment.run(config, workdir)
    spec = builders.student_spec(
      open_(config, workdir),
      teachers.train_teacher(open_(config, workdir), workdir),
    )
    shapes = {'params': spec.state_shapes(spec.plan()[0]).params}
    first, last = (
      checkpoints_lib.restore(workdir / 'one_shot', step, shapes)['params'][
        'params'
      ]
      for step in (0, 60)
    )
    chex.assert_trees_all_equal(first['hidden0'], last['hidden0'])
    self.assertFalse(
      np.array_equal(first['logits']['kernel'], last['logits']['kernel'])
    )
    self.refuses_a_checkpoint_that_is_gone(config, workdir)

  def refuses_a_checkpoint_that_is_gone(self, config, workdir):
    """Students that keep all of theirs, finished or not."""
    folder = workdir / 'one_shot'
    gone = checkpoints_lib.steps(folder)[1]
    shutil.rmtree(checkpoints_lib.step_folder(folder, gone))
    for _ in range(2):
      with self.assertRaisesRegex(errors.UserError, f'{gone} is missing'):
        experiment.run(config, workdir)
      (folder / 'summary.json').unlink(missing_ok=True)

  def test_the_field_of_a_method_that_is_not_run_is_not_compared(self):
    config = config_of('one_shot', **{'extracted.share': 0.3})
    self.assertEqual(
      experiment.run(config, self.workdir), self.summaries['one_shot']
    )

  def test_compare_writes_a_table_a_picture_and_numbers(self):
    workdir = self.fresh()
    names = ['supervised', 'extracted']
    for name in names:
      shutil.copytree(self.workdir / name, workdir / name)
    experiment.compare(config_of(), names, workdir)
    table = (workdir / 'comparison.md').read_text()
    self.assertLen(table.splitlines(), 6)
    self.assertIn('Within the spread of one another: ', table.splitlines()[-1])
    lines = (workdir / 'comparison.csv').read_text().splitlines()
    self.assertLen(lines, 1 + 2 * 2)
    self.assertStartsWith(lines[0], 'method,seed,steps,examples')
    png = (workdir / 'comparison.png').read_bytes()
    self.assertStartsWith(png, b'\x89PNG')
