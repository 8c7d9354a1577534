"""The teacher of an experiment: where it is, and what is said of it."""

import pathlib
from unittest import mock

from absl import logging
from absl.testing import parameterized
import chex
import jax
import numpy as np
import pytest

from cxjax import errors
from cxjax import files
from cxjax.configs import builders
from cxjax.configs import identity
from cxjax.configs import pretrained
from cxjax.configs import teachers
from cxjax.training import summary
from cxjax.training import trainer
from experiments import parity_mlp
import own_config


class TestCase(parameterized.TestCase):
  def folder(self):
    return pathlib.Path(self.create_tempdir().full_path)

  def opened(self, config=None, **fields):
    config = parity_mlp.tiny() if config is None else config
    config.update_from_flattened_dict(fields)
    return builders.open_experiment(config, self.folder())


class FolderTest(TestCase):
  def test_of_the_workdir_or_given(self):
    config, workdir = parity_mlp.tiny(), pathlib.Path('run')
    self.assertEqual(
      teachers.teacher_folder(config, workdir), workdir / 'teacher'
    )
    config.teacher.folder = 'other/teacher'
    self.assertEqual(
      teachers.teacher_folder(config, workdir), pathlib.Path('other/teacher')
    )

  def test_of_another_teacher_is_refused(self):
    workdir = self.folder()
    config = parity_mlp.tiny()
    there = identity.teacher_config(config)
    files.claim_workdir(workdir / 'teacher', there)
    with (
      mock.patch.object(trainer, 'fit') as fit,
      self.assertRaisesRegex(
        errors.UserError, r'teacher.width \(16 there, 12 here\)'
      ),
    ):
      opened = self.opened(**{'teacher.width': 12})
      teachers.train_teacher(opened, workdir)
    fit.assert_not_called()

  def test_of_another_teacher_is_refused_by_a_plan_in_the_same_line(self):
    opened, folder = self.opened(), self.folder() / 'teacher'
    teachers.claim_teacher(opened, builders.teacher_spec(opened), folder)
    config = parity_mlp.tiny()
    config.teacher.folder = str(folder)
    teachers.check_folder(config)
    before = sorted(folder.iterdir())
    config.teacher.width, config.data.d = 12, 7
    opened = self.opened(config)
    with self.assertRaises(errors.UserError) as real:
      teachers.train_teacher(opened, self.folder())
    with self.assertRaises(errors.UserError) as planned:
      teachers.check_folder(config)
    self.assertEqual(str(planned.exception), str(real.exception))
    self.assertIn('teacher.width (16 there, 12 here)', str(real.exception))
    self.assertEqual(sorted(folder.iterdir()), before)

  def test_a_plan_reads_no_data(self):
    config, folder = parity_mlp.tiny(), self.folder()
    there = identity.teacher_config(config)
    there['data']['fingerprints'] = {'held_out': '0123456789abcdef'}
    files.claim_workdir(folder, there)
    config.teacher.folder = str(folder)
    teachers.check_folder(config)

  def test_damaged_is_refused_by_a_plan(self):
    config = parity_mlp.tiny()
    for text in ('[]', '{}', '{"seed": 1}', '{"data": 3, "seed": 0}'):
      folder = self.folder()
      (folder / 'config.json').write_text(text)
      config.teacher.folder = str(folder)
      if pretrained.find(config.teacher.folder) is None:
        with self.assertRaises(errors.UserError) as caught:
          teachers.check_folder(config)
        self.assertNotIn('\n', str(caught.exception))


class FinishTest(TestCase):
  def test_a_finished_run_is_not_trained(self):
    folder = self.folder()
    summary.write(folder / 'summary.json', {'steps': 7})
    with mock.patch.object(trainer, 'fit') as fit:
      found = teachers.finish('teacher', None, folder)
    self.assertEqual(found, {'steps': 7})
    fit.assert_not_called()


class UntrainedTest(TestCase):
  """A teacher that did not learn enough is told of, by any score."""

  def said(self, opened, ended):
    with (
      mock.patch.object(teachers, 'finish', lambda *_: ended),
      mock.patch.object(teachers, 'load_teacher'),
      mock.patch.object(logging, 'warning') as warning,
    ):
      teachers.train_teacher(opened, self.folder())
    return [args[0] % args[1:] for args, _ in warning.call_args_list]

  @parameterized.parameters(
    (0.5, 60, 0.99, True),
    (0.5, 40, 0.99, False),  # It ended before its steps were used up.
    (0.99, 60, 0.99, False),
    (0.5, 60, None, False),
    (0.5, 60, 2.0, False),  # It cannot be reached: it means never.
  )
  def test_accuracy(self, score, steps, stop_at, told):
    opened = self.opened(**{'teacher.stop_at': stop_at})
    ended = {'steps': steps, 'checkpoints': []}
    ended['final'] = {'accuracy': [score]}
    said = self.said(opened, ended)
    self.assertLen(said, int(told))
    for line in said:
      self.assertIn('ended with accuracy 0.5; teacher.stop_at=0.99 was', line)

  @parameterized.parameters(
    (50.0, 3.0, True),
    (2.0, 3.0, False),
    (50.0, -1.0, False),  # It cannot be reached: it means never.
  )
  def test_lower_is_better(self, score, stop_at, told):
    config = own_config.get_config()
    opened = self.opened(config, **{'teacher.stop_at': stop_at})
    ended = {'steps': 200, 'checkpoints': []}
    ended['final'] = {'error': [score]}
    said = self.said(opened, ended)
    self.assertLen(said, int(told))
    for line in said:
      self.assertIn('ended with error 50; teacher.stop_at=3 was not', line)


class TemplateTest(TestCase):
  @pytest.mark.slow
  def test_has_the_shapes_of_every_seed(self):
    opened = self.opened()
    spec = builders.teacher_spec(opened)
    found = teachers.template(spec, opened.model('student'), 3)
    model = opened.model('student')
    one = model.init(jax.random.key(0), opened.held_out['x'][:1])
    three = jax.tree.map(lambda leaf: np.stack([leaf] * 3), one)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, three)
    for leaf in jax.tree.leaves(found):
      self.assertIsNotNone(leaf.sharding)


class SaveTest(TestCase):
  def test_a_task_that_reads_files_keeps_what_it_needs(self):
    opened = self.opened()
    saved = []
    task = mock.Mock(save=saved.append)
    with mock.patch.object(builders.Experiment, 'task', task, create=True):
      object.__setattr__(opened, 'task', task)
      teachers.save_task(opened)  # Its data have no folder.
      self.assertEqual(saved, [])
      with opened.config.data.unlocked():
        opened.config.data.folder = 'kept'
      teachers.save_task(opened)
    self.assertEqual(saved, [pathlib.Path('kept')])
