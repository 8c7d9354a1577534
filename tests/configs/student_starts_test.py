"""Tests of students that are cut out of their teacher."""

import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax import errors
from cxjax.api import shrink
from cxjax.configs import builders
from cxjax.configs import experiment
from cxjax.configs import stored_targets
from cxjax.configs import student_starts
from cxjax.training import teacher as teacher_lib
from experiments import causal_text
from experiments import parity_mlp
from experiments import parity_transformer
from experiments import text_bert
import faults


def config_of(module, method='one_shot', **fields):
  """A tiny config whose students are cut out of the teacher."""
  found = module.tiny(method)
  found.student.start = 'teacher'
  found.update_from_flattened_dict(fields)
  return found


def outline(config):
  opened = builders.abstract_experiment(config, jax.devices()[:1])
  return opened.model('student'), student_starts.pairs(opened)


def same(one, other):
  equal = lambda a, b: np.array_equal(np.asarray(a), np.asarray(b))
  return jax.tree.all(jax.tree.map(equal, one, other))


class OutlineTest(parameterized.TestCase):
  def test_the_sizes_are_the_students_and_the_rest_the_teachers(self):
    known = config_of(causal_text)
    known.teacher.update(depth=4, tied=True, theta=500.0, kv_heads=1)
    known.student.update(depth=2, dtype='bfloat16', remat=True, dropout=0.1)
    module, pairs = outline(known)
    self.assertEqual(pairs, (('block0', 'block0'), ('block3', 'block1')))
    self.assertEqual((module.width, module.mlp_width, module.depth), (8, 32, 2))
    self.assertEqual((module.heads, module.kv_heads), (2, 1))
    self.assertEqual((module.head_size, module.rotary.theta), (8, 500.0))
    self.assertEqual((module.tied, module.remat, module.dropout), (1, 1, 0.1))
    self.assertEqual(module.dtype, jnp.bfloat16)

  def test_key_and_value_heads(self):
    known = config_of(causal_text)
    known.teacher.update(heads=8, kv_heads=4, width=32)
    found = []
    for kv_heads in (0, 2, 4):
      known.student.update(heads=4, kv_heads=kv_heads)
      found.append(outline(known)[0].kv_heads)
    self.assertEqual(found, [2, 2, 4])

  def test_a_random_start_matches_by_depth(self):
    known = config_of(causal_text, **{'student.start': 'random'})
    module, pairs = outline(known)
    self.assertEqual((module.head_size, pairs), (4, ()))
    del known.student.start  # A config of one's own may lack it.
    self.assertEqual(outline(known), (module, ()))

  def test_seeds_that_would_be_one(self):
    known = config_of(causal_text, num_seeds=2, share_batches=True)
    known.teacher.update(depth=2)
    known.student.update(
      depth=1, width=16, heads=2, mlp_width=known.teacher.mlp_width or 64
    )
    with self.assertRaisesRegex(errors.UserError, 'its 2 seeds would begin'):
      outline(known)
    for fields in ({'num_seeds': 1}, {'share_batches': False}):
      other = known.copy_and_resolve_references()
      other.update(fields)
      outline(other)
    known.student.mlp_width = 24
    outline(known)

  @parameterized.parameters(
    (parity_mlp, {}, 'out of a transformer, and the teacher is a MLP'),
    (causal_text, {'student.depth': 2}, 'depth=2: the teacher has 1'),
    (causal_text, {'student.width': 32}, 'width=32: the teacher has 16'),
    (causal_text, {'student.heads': 3}, 'heads=3: the teacher has 2'),
    (causal_text, {'student.kv_heads': 2}, 'kv_heads=2: the teacher has 1'),
    (causal_text, {'student.mlp_width': 65}, 'mlp=65: the teacher has 64'),
    (causal_text, {'teacher.mlp_width': 20}, 'mlp_width=0 is four.* most 20'),
    (causal_text, {'student.theta': 5.0}, 'theta=5.0, and.* has 10000.0'),
    (causal_text, {'student.tied': True}, 'Set student.tied=False'),
    (text_bert, {'student.max_length': 9}, 'max_length=9, and .* has 16'),
    (text_bert, {}, 'heads=2 of 8 .* give width=16, or heads=1'),
    (causal_text, {'student.start': 'techer'}, "mean 'teacher'"),
    (causal_text, {'student.calibration': 65}, 'from 1 to 64'),
  )
  def test_refuses(self, module, fields, message):
    with self.assertRaisesRegex(errors.UserError, message):
      outline(config_of(module, **fields))


class CutTest(absltest.TestCase):
  def folder(self):
    return pathlib.Path(self.create_tempdir().full_path)

  @pytest.mark.slow
  def test_each_seed_has_batches_of_its_own(self):
    sizes = {'student.heads': 1, 'student.calibration': 2, 'student.depth': 1}
    known = config_of(parity_transformer, **sizes)
    opened = builders.open_experiment(known, self.folder())
    teacher = opened.model('teacher')
    key = builders.key_for(known, 'student_start')
    draw = lambda at: opened.task.batch(key, at, known.batch_size)
    params = jax.jit(teacher.init)(key, draw(0)['x'])
    cut = lambda *seeds: student_starts.cut(opened, params, key, seeds)
    first, second = cut(0, 1)
    self.assertFalse(same(first, second))
    again = builders.start(
      builders.open_experiment(known, self.folder()),
      teacher_lib.Teacher(teacher.apply, params),
    )
    self.assertTrue(same(again()[:2], (first, second)))  # As a resumed run.
    self.assertTrue(same(cut(1), (second,)))
    _, want, _ = shrink.shrink(
      (teacher, params),
      depth=1,
      width=8,
      mlp=32,
      batches=[draw(at)['x'] for at in (2, 3)],
    )
    self.assertTrue(same(second, want))
    model = opened.model('student')
    shapes = jax.eval_shape(model.init, key, draw(0)['x'])
    chex.assert_trees_all_equal_shapes_and_dtypes(second, shapes)


@pytest.mark.slow
class RunTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(cls('create_tempdir').create_tempdir().full_path)
    cls.workdir = cls.root / 'run'
    with faults.killed_after(3):  # The second one of the students.
      experiment.run(cls.config(), cls.workdir)

  @classmethod
  def config(cls, **fields):
    fields = {'student.heads': 1, 'student.calibration': 1, **fields}
    fields |= {'num_steps': 20, 'save_every': 10, 'teacher.num_steps': 10}
    known = config_of(parity_transformer, 'one_shot', **fields)
    known.student.depth = known.teacher.depth = 1
    return known

  def test_a_resumed_run_cuts_nothing_and_its_students_load(self):
    known = self.config()
    with mock.patch.object(shrink, 'shrink', side_effect=AssertionError):
      experiment.run(known, self.workdir)
    model, params = experiment.load_students(
      parity_transformer.tiny(), self.workdir, known.method
    )
    self.assertEqual((model.width, model.heads), (8, 1))
    kernel = params['params']['block0']['query']['kernel']
    self.assertEqual(kernel.shape, (known.num_seeds, 8, 8))

  def test_another_start_on_the_same_workdir_is_refused(self):
    with self.assertRaisesRegex(
      errors.UserError, 'student.start .teacher there, random here'
    ):
      experiment.run(self.config(**{'student.start': 'random'}), self.workdir)

  def test_stored_targets_need_the_teacher_for_the_start(self):
    known, cache = self.config(), self.root / 'cache'
    stored_targets.cache_targets(known, self.workdir, cache)
    known.cache.folder = str(cache)
    with self.assertRaisesRegex(errors.UserError, 'there is none in .*teacher'):
      experiment.run(known, self.root / 'without')


if __name__ == '__main__':
  absltest.main()
