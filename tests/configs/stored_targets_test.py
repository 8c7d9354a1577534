"""Runs from stored targets are the live runs, and no others are served."""

import pathlib
from unittest import mock

from absl.testing import parameterized
import chex
import jax
import numpy as np
import pytest

from cxjax import errors
from cxjax.configs import builders
from cxjax.configs import experiment
from cxjax.configs import identity
from cxjax.configs import stored_targets
from cxjax.configs import teachers
from cxjax.training import compiled_steps
from cxjax.training import metric_log
from cxjax.training import target_cache
from experiments import parity_mlp
import faults

# Stages end inside a chunk of 10 steps.
STEPS = (25, 35)


def config_of(method='extracted'):
  config = parity_mlp.tiny(method)
  config.extracted.steps = config.progressive.steps = STEPS
  config.share_batches = method != 'progressive'
  return config


def losses(folder):
  return [record['loss'] for record in metric_log.read(folder)]


@pytest.mark.slow
class StoredTargetsTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(cls('create_tempdir').create_tempdir().full_path)
    cls.live, cls.whole = cls.root / 'live', cls.root / 'whole'
    cls.opened = builders.open_experiment(config_of(), cls.live)
    cls.teacher = teachers.train_teacher(cls.opened, cls.live)
    cls.store(config_of(), 'extracted')

  @classmethod
  def store(cls, config, name):
    config.teacher.folder = str(cls.live / 'teacher')
    return stored_targets.cache_targets(
      config, cls.root / 'none', cls.root / name
    )

  def stored(self, name='extracted', **fields):
    """The config of a run from a cache, and a workdir without a teacher."""
    config = config_of(name)
    config.cache.folder = str(self.root / name)
    config.update_from_flattened_dict(fields)
    return config, self.fresh()

  def fresh(self):
    return pathlib.Path(self.create_tempdir().full_path)

  @parameterized.parameters('extracted', 'progressive')
  @pytest.mark.slow
  def test_is_the_live_run(self, method):
    live = experiment.run(config_of(method), self.live)
    if method != 'extracted':
      self.store(config_of(method), method)
    config, _ = self.stored(method)
    summary = experiment.run(config, self.whole)
    self.assertFalse((self.whole / 'teacher').exists())
    np.testing.assert_allclose(
      losses(self.whole / method), losses(self.live / method), rtol=1e-4
    )
    for name in ('accuracy', 'loss'):
      np.testing.assert_allclose(
        summary['final'][name], live['final'][name], rtol=1e-4
      )
    self.assertNotIn('agreement', summary['final'])
    self.assertTrue(summary['stored_targets'])
    for mine, theirs in zip(summary['stages'], live['stages'], strict=True):
      self.assertEqual(mine['teacher_flops'], 0)
      self.assertGreater(theirs['teacher_flops'], 0)
      self.assertEqual(mine['student_flops'], theirs['student_flops'])

  @pytest.mark.slow
  def test_an_interrupted_run_ends_where_a_whole_one_does(self):
    """Checkpoints at 20, in the hidden stage, and at 40, in the other."""
    config, other = self.stored()
    experiment.run(config, self.whole)
    for records in (3, 4):  # At 30; from 20 on, at 60.
      with faults.killed_after(records):
        experiment.run(config, other)
    experiment.run(config, other)
    folders = self.whole / 'extracted', other / 'extracted'
    self.assertEqual(*map(metric_log.read, folders))
    students = (
      experiment.load_students(config, workdir, 'extracted')[1]
      for workdir in (self.whole, other)
    )
    chex.assert_trees_all_equal(*students)

  def test_no_teacher_is_held(self):
    """Though one was there for the check."""
    config, workdir = self.stored()
    config.teacher.folder = str(self.live / 'teacher')
    before = {id(array) for array in jax.live_arrays()}
    held, args = [], []
    train = compiled_steps.CompiledSteps.train_many_steps

    def note(self, planned, schedule, span, states, start, stop, *rest):
      held.extend(a.shape for a in jax.live_arrays() if id(a) not in before)
      args.append((self._spec.teacher.available, self._teacher, *rest[:2]))
      return train(self, planned, schedule, span, states, start, stop, *rest)

    with mock.patch.object(
      compiled_steps.CompiledSteps, 'train_many_steps', note
    ):
      experiment.run(config, workdir)
    self.assertEqual(set(args), {(False, None, None, None)})
    self.assertIn((2, 8, 8), held)  # The students' kernels,
    self.assertNotIn((8, 16), held)  # not the teacher's.

  @parameterized.parameters(
    ({'seed': 1}, r'seed \(0 there, 1 here\)'),
    ({'data.k': 3}, r'data.k \(2 there, 3 here\)'),
    ({'teacher.num_steps': 50}, r'teacher.num_steps \(60 there'),
    ({'batch_size': 16}, r'batch_size \(8 there, 16 here\)'),
    ({'num_seeds': 3}, r'num_seeds \(2 there, 3 here\)'),
    ({'share_batches': False}, r'share_batches \(True there'),
    ({'extracted.projection': 'sparse'}, r'projection \(gaussian there'),
    ({'extracted.norm': 'layer'}, r'hidden0.norm \(none there'),
    ({'extracted.shared_projection': False}, r'shared_projection \(True there'),
    ({'top_k': 1}, r'output.*top_k \(0 there, 1 here\)'),
    ({'extracted.checkpoint': 20}, r'hidden0.checkpoint \(None there, 20'),
    ({'student.width': 9}, r'hidden0.*shape \(\[16, 8\] there, \[16, 9'),
    ({'method': 'one_shot'}, r'method \(extracted there, one_shot here\)'),
    ({'extracted.steps': (30, 30)}, "'hidden0' reads 5 batches .* number .25"),
    ({'cache.batches': 30}, "'hidden0' reads .*|'output' reads"),
    ({'cache.batches': 61}, 'cache.batches=61 must be from 1 to num_steps=60'),
    ({'cache.fingerprint': 'x'}, 'cache.fingerprint=x, but that of'),
    ({'method': 'supervised'}, 'supervised learns the labels'),
    ({'cache.folder': '/none'}, '/none holds no finished cache'),
  )
  def test_another_run_is_refused_by_field(self, fields, message):
    config, workdir = self.stored(**fields)
    with self.assertRaisesRegex(errors.UserError, message):
      experiment.run(config, workdir)
    self.assertEmpty(list(workdir.iterdir()))

  def test_what_changes_no_target_is_served(self):
    config, workdir = self.stored()
    config.optimizer.learning_rate, config.alpha = 0.1, 0.5
    config.extracted.loss, config.loss = 'cosine', 'reverse_kl'
    config.extracted.freeze = True
    opened = builders.open_experiment(config, workdir)
    spec = builders.student_spec(opened, self.teacher)
    here = identity.stored_config(config, spec)
    target_cache.load(self.root / 'extracted').require_same(here)

  def test_a_damaged_record_stops_the_run(self):
    folder = self.fresh() / 'cache'
    self.store(config_of(), folder)
    cache = target_cache.load(folder)
    record = cache.read(0, 3)[0]['targets']['hidden0'].tobytes()
    path = folder / 'stage0.array_record'
    content = bytearray(path.read_bytes())
    content[content.index(record[:4]) + 2] ^= 1
    path.write_bytes(content)
    config, workdir = self.stored(**{'cache.folder': str(folder)})
    with self.assertRaisesRegex(errors.UserError, 'Batch 3 in .*is damaged'):
      experiment.run(config, workdir)

  def test_both_folders_are_refused(self):
    config, workdir = self.stored()
    with self.assertRaisesRegex(errors.UserError, 'give one of the two'):
      stored_targets.cache_targets(config, workdir, workdir / 'cache')
    with self.assertRaisesRegex(errors.UserError, 'leave --compare out'):
      experiment.compare(config, ['extracted'], workdir)

  @parameterized.parameters('teacher', 'one_shot/x', 'extracted')
  def test_a_folder_of_a_run_is_refused(self, name):
    config, workdir = config_of(), self.fresh()
    with self.assertRaisesRegex(errors.UserError, 'the folder of a run'):
      stored_targets.cache_targets(config, workdir, workdir / name)
    self.assertEmpty(list(workdir.iterdir()))

  @parameterized.parameters('.', '..', '../other/..')
  def test_a_folder_with_the_runs_in_it_is_refused(self, name):
    config, workdir = config_of(), self.fresh()
    with self.assertRaisesRegex(errors.UserError, 'holds .* of their own, as'):
      stored_targets.cache_targets(config, workdir, workdir / name)
    self.assertEmpty(list(workdir.iterdir()))

  def test_a_live_run_has_no_batches_of_a_cache(self):
    config, workdir = self.stored(**{'cache.folder': '', 'cache.batches': 5})
    with self.assertRaisesRegex(errors.UserError, 'cache.batches=5 is for'):
      experiment.run(config, workdir)


class StoredConfigTest(parameterized.TestCase):
  @pytest.mark.slow
  def test_a_layer_of_the_student_may_come_twice(self):
    found = []
    for first in ('hidden0', 'hidden1'):
      config = parity_mlp.tiny('extracted')
      config.teacher.depth = 2
      config.extracted.layers = ((first, 'hidden0'), ('hidden1', 'hidden0'))
      opened = builders.open_experiment(config, pathlib.Path('/none'))
      teacher = builders.abstract_teacher(opened)
      spec = builders.student_spec(opened, teacher)
      found.append(identity.stored_config(config, spec))
    self.assertLen(found[0]['stages'], 3)
    self.assertNotEqual(*found)
