"""Runs whose files are damaged, gone, or of another run."""

import json
import shutil
from unittest import mock

from absl.testing import parameterized
import pytest

from cxjax import errors
from cxjax import files
from cxjax import locks
from cxjax.configs import experiment
from cxjax.configs import teachers
from cxjax.training import checkpoints as checkpoints_lib
from cxjax.training import metric_log
from cxjax.training import trainer
from tests.configs.parity_runs import FinishedTest
from tests.configs.parity_runs import config_of
from tests.configs.parity_runs import files_of
from tests.configs.parity_runs import open_

pytestmark = pytest.mark.slow


class DamageTest(FinishedTest):
  """Files of a finished run that are gone, damaged, or of another run."""

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
      files.write_with_digest(path / '000000030/record.json', record)
    opened = open_(config_of(), workdir)
    teacher = teachers.train_teacher(opened, workdir)
    whole = teachers.train_teacher(opened, self.workdir)
    self.assertEqual(teacher.checkpoints, whole.checkpoints)
    self.assertNotIn(30, checkpoints_lib.steps(folder))

  def test_a_folder_in_use_is_refused(self):
    """Once it is free, the hook has the records of the students."""
    workdir, seen = self.fresh(), []
    with (
      locks.lock(workdir / 'extracted'),
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
    files.write_with_digest(path / '000000060/record.json', record)
    with self.assertRaisesRegex(
      errors.UserError, 'not the one.*began with.*parameters.final.* remove'
    ):
      experiment.run(config_of(), workdir)
    (folder / 'teacher.json').unlink()
    with self.assertRaisesRegex(errors.UserError, 'teacher.json is missing'):
      experiment.run(config_of(), workdir)

  @parameterized.product(
    name=('teacher/config.json', 'extracted/config.json'),
    change=('list', 'data', 'no data', 'empty data', 'no seed'),
  )
  def test_a_config_of_another_form(self, name, change):
    self.assert_damaged(name, change, 'remove its folder to start afresh.$')

  @parameterized.parameters(
    'list', 'text', 'stages', 'no parameters', 'parameters', 'empty parameters'
  )
  def test_a_teacher_of_students_of_another_form(self, change):
    self.assert_damaged(
      'extracted/teacher.json', change, 'remove .*extracted to train again.$'
    )

  def test_the_config_of_a_run_of_distill_is_not_damaged(self):
    workdir = self.fresh()
    path = workdir / 'extracted' / 'config.json'
    files.write_json(path, {'seed': 0, 'stages': [], 'batch': {}})
    with self.assertRaisesRegex(
      errors.UserError, 'extracted belongs to another configuration'
    ):
      experiment.run(config_of(), workdir)

  def assert_damaged(self, name, change, advice):
    """Changes a file to JSON of another form; the error says to restore it."""
    workdir = self.fresh()
    shutil.copytree(self.workdir / 'extracted', workdir / 'extracted')
    path = workdir / name
    kind, _, field = change.rpartition(' ')
    value = files.read_json(path)
    if change in ('list', 'text'):
      value = [1] if change == 'list' else 'text'
    elif kind == 'no':
      del value[field]
    else:
      value[field] = {} if kind == 'empty' else 3
    path.write_text(json.dumps(value))
    with self.assertRaisesRegex(
      errors.UserError, f'^{path} is damaged. Restore it, or {advice}'
    ) as caught:
      experiment.run(config_of(), workdir)
    self.assertNotIn('\n', str(caught.exception))

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
