"""Tests of whole experiments: what a workdir holds, and what is refused."""

import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
from unittest import mock

from absl.testing import parameterized
import chex
import jax
import numpy as np
import pytest

from cxjax import errors
from cxjax import files
from cxjax.analysis import plots
from cxjax.configs import builders
from cxjax.configs import experiment
from cxjax.configs import teachers
from cxjax.training import checkpoints as checkpoints_lib
from cxjax.training import evaluation
from cxjax.training import metric_log
from cxjax.training import metrics as metrics_lib
from cxjax.training import trainer
from experiments import parity_mlp
import faults
import own_config
import processes

# Labels beside hidden activations that fade out, then the logits.
JOINT = (
  dict(
    name='joint',
    steps=30,
    terms=(
      dict(
        student='hidden0',
        target='hidden0',
        projection='gaussian',
        weight=dict(schedule='linear'),
      ),
      dict(target='labels', weight=0.5),
    ),
  ),
  dict(name='logits', terms=(dict(temperature=2.0, loss='kl'),)),
)


# Of each kind of curriculum one; builders_test.py plans all of them.
METHODS = ('supervised', 'one_shot', 'progressive', 'extracted', 'custom')


def config_of(method='extracted', **fields):
  config = parity_mlp.tiny(method)
  config.custom.stages = JOINT
  config.update_from_flattened_dict(fields)
  return config


def open_(config, workdir):
  return builders.open_experiment(config, workdir)


def files_of(folder):
  return {
    str(p.relative_to(folder)): p.read_bytes()
    for p in sorted(folder.rglob('*'))
    if p.is_file()
  }


class TestCase(parameterized.TestCase):
  def folder(self):
    return pathlib.Path(self.create_tempdir().full_path)

  @classmethod
  def shared_folder(cls):
    return pathlib.Path(cls('create_tempdir').create_tempdir().full_path)


@pytest.mark.slow
class RunTest(TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = cls.shared_folder()
    cls.summaries = {
      name: experiment.run(config_of(name), cls.workdir) for name in METHODS
    }

  def fresh(self):
    """A workdir of its own, with the teacher that all tests share."""
    workdir = self.folder()
    shutil.copytree(self.workdir / 'teacher', workdir / 'teacher')
    return workdir

  def assert_same_run(self, config, folder):
    whole = self.workdir / config.method
    texts = [(f / 'metrics.jsonl').read_text() for f in (whole, folder)]
    self.assertEqual(*texts)
    chex.assert_trees_all_equal(
      faults.arrays(config, whole), faults.arrays(config, folder)
    )

  @parameterized.parameters(*METHODS)
  def test_leaves_what_the_readme_lists(self, method):
    folder, config = self.workdir / method, config_of(method)
    summary = json.loads((folder / 'summary.json').read_text())
    self.assertIn('sha256', summary.pop('seal'))
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
    """Stages end at 30; trainer_test.py has the other cases."""
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

  @parameterized.parameters('half', 'temporary', 'late')
  def test_a_teacher_does_not_keep_what_is_not_of_its_schedule(self, kind):
    """A save on a signal cut off; the next, or the last, before cleaning."""
    workdir = self.fresh()
    folder = workdir / 'teacher'
    (folder / 'summary.json').unlink()
    if kind != 'late':
      checkpoints_lib.remove(folder, 60)
    path = folder / 'checkpoints'
    shutil.copytree(path / '000000020', path / '000000030')
    if kind == 'half':
      (path / '000000030/record.json').unlink()
    else:
      record = checkpoints_lib.read_record(folder, 20)
      record |= {'step': 30, 'temporary': True}
      files.write_sealed(path / '000000030/record.json', record)
    opened = open_(config_of(), workdir)
    teacher = teachers.train_teacher(opened, workdir)
    whole = teachers.train_teacher(opened, self.workdir)
    self.assertEqual(teacher.checkpoints, whole.checkpoints)
    self.assertNotIn(30, checkpoints_lib.steps(folder))

  def test_a_folder_in_use_is_refused(self):
    """Once it is free, the hook has the records of the students."""
    workdir, seen = self.fresh(), []
    with (
      files.lock(workdir / 'extracted'),
      self.assertRaisesRegex(errors.UserError, 'extracted is in use'),
    ):
      experiment.run(config_of(), workdir, seen.append)
    self.assertEqual(seen, [])
    experiment.run(config_of(), workdir, seen.append)
    self.assertEqual(seen, metric_log.read(workdir / 'extracted'))

  def test_a_damaged_checkpoint_is_passed_over(self):
    workdir, config = self.fresh(), config_of()
    folder = workdir / 'extracted'
    shutil.copytree(self.workdir / 'extracted', folder)
    (folder / 'summary.json').unlink()
    newest = folder / 'checkpoints' / '000000060'
    found = [p for p in (newest / 'params').rglob('*') if p.is_file()]
    largest = max(found, key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    with self.assertLogs(level='WARNING') as log:
      experiment.run(config, workdir)
    self.assertRegex(log.output[0], 'Checkpoint 60 is passed over.*000000060')
    self.assert_same_run(config, folder)

  def test_a_damaged_teacher_is_an_error(self):
    workdir = self.fresh()
    for path in (workdir / 'teacher/checkpoints/000000060').rglob('*'):
      if path.is_file() and path.name != 'record.json':
        path.write_bytes(b'')
    with self.assertRaisesRegex(
      errors.UserError, '60.*cannot be used.*damaged'
    ):
      experiment.run(config_of('one_shot'), workdir)
    self.assertFalse((workdir / 'one_shot').exists())

  def test_the_record_of_any_checkpoint_of_a_teacher(self):
    workdir = self.fresh()
    path = workdir / 'teacher' / 'checkpoints' / '000000020' / 'record.json'
    path.write_text(path.read_text().replace('score', 'scores'))
    with self.assertRaisesRegex(errors.UserError, 'record.json is damaged'):
      experiment.run(config_of('progressive'), workdir)

  @parameterized.parameters(
    ('teacher', '"steps": 60', '"steps": 40'),
    ('teacher', '"checkpoints": [', '"checkpoints": [\n  30,'),
    ('extracted', '"accuracy": [', '"accuracy": [\n   1.0,'),
  )
  def test_an_edited_summary_is_refused(self, name, old, new):
    workdir = self.fresh()
    shutil.copytree(self.workdir / 'extracted', workdir / 'extracted')
    path = workdir / name / 'summary.json'
    text = path.read_text()
    self.assertIn(old, text)
    path.write_text(text.replace(old, new, 1))
    with self.assertRaisesRegex(
      errors.UserError, f'{name}/summary.json was edited.* remove'
    ):
      experiment.run(config_of(), workdir)
    path.unlink()  # The advice.
    found = experiment.run(config_of(), workdir)
    self.assertEqual(found['final'], self.summaries['extracted']['final'])

  @parameterized.parameters(True, False)
  def test_a_checkpoint_of_the_schedule_of_a_teacher_is_gone(self, finished):
    workdir = self.fresh()
    folder = workdir / 'teacher'
    if not finished:
      (folder / 'summary.json').unlink()
    shutil.rmtree(folder / 'checkpoints' / '000000020')
    with (
      mock.patch.object(trainer, 'fit') as fit,
      self.assertRaisesRegex(
        errors.UserError, '000000020 is missing.*Restore it, or remove'
      ),
    ):
      experiment.run(config_of(), workdir)
    fit.assert_not_called()

  @parameterized.parameters(True, False)
  def test_another_teacher_under_students_is_refused(self, finished):
    workdir = self.fresh()
    folder = workdir / 'extracted'
    shutil.copytree(self.workdir / 'extracted', folder)
    if not finished:
      (folder / 'summary.json').unlink()
    path = workdir / 'teacher' / 'checkpoints'
    shutil.rmtree(path / '000000060' / 'params')
    shutil.copytree(path / '000000040/params', path / '000000060/params')
    record = checkpoints_lib.read_record(workdir / 'teacher', 60)
    record['files'] = checkpoints_lib.file_digests(path / '000000060')
    files.write_sealed(path / '000000060/record.json', record)
    with self.assertRaisesRegex(
      errors.UserError, 'not the one.*began with.*parameters.final.* remove'
    ):
      experiment.run(config_of(), workdir)
    (folder / 'teacher.json').unlink()
    with self.assertRaisesRegex(errors.UserError, 'teacher.json is missing'):
      experiment.run(config_of(), workdir)

  def test_a_run_without_its_config_is_nobodys(self):
    workdir = self.fresh()
    (workdir / 'teacher' / 'config.json').unlink()
    with self.assertRaisesRegex(errors.UserError, 'config.json is missing'):
      experiment.run(config_of(), workdir)

  def test_a_teacher_of_another_width_is_an_error(self):
    opened = open_(config_of(**{'teacher.width': 12}), self.workdir)
    with self.assertRaisesRegex(
      errors.UserError, r'hidden0/bias.*16.*expected.*12'
    ):
      teachers.load_teacher(opened, self.workdir / 'teacher', last=60)

  def test_another_configuration_is_refused_by_field(self):
    before = files_of(self.workdir)
    config = config_of(**{'student.width': 9, 'optimizer.b1': 0.8})
    with self.assertRaisesRegex(
      errors.UserError,
      r'b1 \(0.9 there, 0.8 here\).*student.width \(8 there, 9 here\)',
    ):
      experiment.run(config, self.workdir)
    config = config_of(**{'teacher.width': 17})
    with self.assertRaisesRegex(errors.UserError, r'teacher.width \(16 there'):
      experiment.run(config, self.workdir)
    self.assertEqual(before, files_of(self.workdir))

  def test_the_field_of_a_method_that_is_not_run_is_not_compared(self):
    config = config_of('one_shot', **{'extracted.share': 0.3})
    self.assertEqual(
      experiment.run(config, self.workdir), self.summaries['one_shot']
    )

  @parameterized.parameters('damaged', 'missing', 'short')
  def test_records_that_are_gone_are_made_again(self, what):
    workdir = self.fresh()
    folder = workdir / 'progressive'
    shutil.copytree(self.workdir / 'progressive', folder)
    (folder / 'summary.json').unlink()
    path = folder / 'metrics.jsonl'
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    if what == 'missing':
      path.unlink()
    else:
      lines[2:3] = ['{"ste\n'] if what == 'damaged' else []
      path.write_text(''.join(lines))
    with self.assertLogs(level='WARNING') as log:
      experiment.run(config_of('progressive'), workdir)
    self.assertIn('metrics.jsonl lacks some of its', log.output[0])
    self.assertEqual(path.read_text(), whole)

  def test_compare_writes_a_table_a_picture_and_numbers(self):
    workdir = self.fresh()
    names = ['supervised', 'extracted']
    for name in names:
      shutil.copytree(self.workdir / name, workdir / name)
    experiment.compare(config_of(), names, workdir)
    table = (workdir / 'comparison.md').read_text()
    self.assertLen(table.splitlines(), 6)
    self.assertIn('Within the spread: ', table.splitlines()[-1])
    lines = (workdir / 'comparison.csv').read_text().splitlines()
    self.assertLen(lines, 1 + 2 * 2)
    self.assertStartsWith(lines[0], 'method,seed,steps,examples')
    png = (workdir / 'comparison.png').read_bytes()
    self.assertStartsWith(png, b'\x89PNG')


BAD = (
  ('method', {'method': 'extract'}, "method 'extract'.*mean 'extracted'"),
  (
    'projection',
    {'extracted.projection': 'gauss'},
    "projection 'gauss'.*gaussian, rademacher",
  ),
  (
    'identity',
    {'extracted.projection': 'identity'},
    'equal widths, got 16 and 8',
  ),
  ('k', {'data.k': 9}, 'data.k=9.*data.d=8'),
  ('tree', {'data.depth': 3}, '7 nodes do not fit in data.d=8'),
  ('support', {'data.support': 'last'}, "support 'last'.*first, random"),
  ('batch', {'batch_size': 0}, 'batch_size=0 must be a whole number from 1 '),
  ('seeds', {'num_seeds': 0}, 'num_seeds=0 must be'),
  ('steps', {'num_steps': 0}, 'num_steps=0 must be'),
  ('temperature', {'temperature': 0.0}, 'temperature=0.0.*hard_labels=True'),
  ('sum', {'extracted.steps': (10, 20)}, r'sum num_steps=60, not 30'),
  ('parts', {'extracted.steps': (10, 20, 30)}, 'must be 2 numbers'),
  ('share', {'extracted.share': 1.0}, 'share=1.0'),
  ('loss', {'loss': 'ce'}, "loss 'ce'.*kl, reverse_kl"),
  ('hidden', {'extracted.loss': 'l1'}, "extracted.loss 'l1'.*l2, cosine"),
  ('optimizer', {'optimizer.name': 'adm'}, "mean 'adam'"),
  ('schedule', {'optimizer.schedule': 'x'}, "schedule 'x'"),
  ('rate', {'optimizer.learning_rate': 0.0}, 'learning_rate=0.0'),
  ('width', {'student.width': 0}, 'width=0'),
  ('layer', {'extracted.layers': (('h', 'hidden0'),)}, "activation 'h'"),
  ('eval', {'eval_every': 15}, 'multiple of log_every=10'),
  ('keep', {'keep': 1}, 'keep=1'),
  ('best', {'keep_best': 'acuracy'}, "keep_best 'acuracy'.*mean 'accuracy'"),
  ('trainable', {'trainable': 'hiden'}, "trainable='hiden' matches no"),
  ('mesh', {'mesh.data': 64}, 'mesh.data=64'),
  ('seed', {'seed': -1}, 'seed=-1'),
  ('teacher', {'teacher.save_every': 15}, 'teacher: save_every=15 must be'),
  ('lookahead', {'lookahead': 10**6}, 'lookahead=1000000.*log_every=10'),
  ('unread', {'cache.dtype': 'int8'}, "cache.dtype 'int8'.*bfloat16"),
  ('nothing stored', {'cache.batches': 5}, 'cache.batches=5.*cache.folder'),
  ('task', {'task': 'parityy'}, "task 'parityy'.*mean 'parity'"),
  ('model', {'model': 'mpl'}, "model 'mpl'.*mean 'mlp'"),
  (
    'custom',
    {'method': 'custom', 'custom.stages': ()},
    'custom.stages=.. has no stage',
  ),
  (
    'custom term',
    {'method': 'custom', 'custom.stages': (dict(terms=(dict(weigth=1),)),)},
    "'weigth'.*mean 'weight'",
  ),
  (
    'custom widths',
    {
      'method': 'custom',
      'custom.stages': (
        dict(terms=(dict(student='hidden0', target='hidden0'),)),
      ),
    },
    "'hidden0', 8 wide, with 'hidden0', 16 wide",
  ),
)


@pytest.mark.slow
class BadInputTest(TestCase):
  @parameterized.named_parameters(*BAD)
  def test_one_line_before_anything_is_written(self, fields, message):
    workdir = self.folder()
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      experiment.run(config_of(**fields), workdir)
    self.assertNotIn('\n', str(caught.exception))
    self.assertEqual(files_of(workdir), {})

  def test_a_metric_that_reduces_wrongly(self):
    broken = metrics_lib.Metric(lambda logits, labels: logits.mean())
    config = config_of(seed=7)  # What other tests planned has no such metric.
    with (
      mock.patch.dict(metrics_lib.METRICS, accuracy=broken),
      self.assertRaisesRegex(errors.UserError, "'accuracy' makes") as caught,
    ):
      experiment.run(config, self.folder())
    self.assertNotIn('\n', str(caught.exception))

  def test_a_folder_that_cannot_be_written(self):
    blocked = self.folder() / 'file'
    blocked.write_text('')
    with self.assertRaisesRegex(errors.UserError, 'file is no folder. Choose'):
      experiment.run(config_of(), blocked / 'run')

  def test_a_file_in_place_of_the_folder_of_a_method(self):
    """No teacher is trained first."""
    workdir = self.folder()
    (workdir / 'extracted').write_text('')
    for call in (
      lambda: experiment.run(config_of(), workdir),
      lambda: experiment.compare(
        config_of(), ['one_shot', 'extracted'], workdir
      ),
    ):
      with self.assertRaisesRegex(errors.UserError, 'extracted is no folder'):
        call()
    self.assertEqual(os.listdir(workdir), ['extracted'])

  @parameterized.parameters(
    {'rule': 'transition', 'scores': (0.6, 0.9)},
    {'rule': 'even', 'count': 2},
    {'rule': 'list', 'checkpoints': (20, 40_000)},
  )
  def test_any_choice_of_checkpoints_may_have_its_steps(self, **block):
    config = config_of('progressive')
    config.progressive.update(block, steps=(10, 20, 30))
    builders.check(open_(config, self.folder()))

  def test_hard_labels_need_no_temperature(self):
    config = config_of('one_shot', temperature=0.0, hard_labels=True)
    builders.check(open_(config, self.folder()))


@pytest.mark.slow
class CheckpointsOfTheTeacherTest(TestCase):
  """A checkpoint that a teacher lacks is known once it is trained."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = cls.shared_folder()
    teachers.train_teacher(open_(config_of(), cls.workdir), cls.workdir)

  @parameterized.parameters(
    (
      'progressive',
      {'progressive.rule': 'list', 'progressive.checkpoints': (30,)},
      'no intermediate checkpoint 30. It has: 0, 20, 40',
    ),
    (
      'extracted',
      {'extracted.checkpoint': 7},
      'has no checkpoint 7. It has: 0, 20',
    ),
  )
  def test_is_one_line_that_lists_those_that_there_are(
    self, method, fields, message
  ):
    before = files_of(self.workdir)
    with self.assertRaisesRegex(errors.UserError, message):
      experiment.run(config_of(method, **fields), self.workdir)
    self.assertEqual(files_of(self.workdir), before)


@pytest.mark.slow
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
    root = pathlib.Path(own_config.__file__).parent.parent
    workdir = self.folder() / 'run'
    done = subprocess.run(
      [
        sys.executable,
        'launch.py',
        '--config=tests/own_config.py:one_shot',
        f'--workdir={workdir}',
        '--config.data.d=5',
        '--config.num_steps=20',
        '--config.save_every=20',
        '--config.teacher.num_steps=20',
        '--config.teacher.save_every=20',
      ],
      cwd=root,
      env=processes.environment(),
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn('final error: mean', done.stdout)
    summary = files.read_json(workdir / 'one_shot' / 'summary.json')
    self.assertEqual(summary['primary_metric'], 'error')
    saved = files.read_json(workdir / 'one_shot' / 'config.json')
    self.assertEqual((saved['task'], saved['data']['d']), ('own_majority', 5))
