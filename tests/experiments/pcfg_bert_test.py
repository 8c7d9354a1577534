"""Tests of the grammar experiment at its smallest size."""

import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import pytest

from cxjax import errors
from cxjax.configs import builders
from cxjax.configs import teachers
from cxjax.training import metric_log
from experiments import pcfg_bert


def folder(test):
  return pathlib.Path(test.create_tempdir().full_path)


class PlanTest(absltest.TestCase):
  @pytest.mark.slow
  def test_hidden_stage_has_a_projection_and_a_regressor(self):
    config = pcfg_bert.tiny('extracted')
    opened = builders.open_experiment(config, folder(self))
    teacher = builders.abstract_teacher(opened)
    hidden, output = builders.student_spec(opened, teacher).plan()
    self.assertEqual(hidden.stage.name, 'block0')
    self.assertEqual(hidden.projections, {'block0': (16, 16)})
    self.assertEqual(hidden.regressors, {'block0': (8, 16)})
    self.assertEqual(output.stage.name, 'output')
    self.assertEmpty(output.projections)


class BadInputTest(parameterized.TestCase):
  @parameterized.parameters(
    ('student.heads', 3, 'heads=3 do not divide width=8'),
    ('student.max_length', 5, '19 tokens.*5 positions'),
    ('student.dtype', 'float8', "dtype 'float8'"),
    ('extracted.layers', (('block9', 'block0'),), "'block9'.*block0"),
    ('extracted.layers', (('block0', 'block1', 'block2'),), 'not a pair'),
    ('extracted.layers', ('block1',), "'block1' is not a pair"),
    ('extracted.norm', 'batch', "norm 'batch'.*none, layer"),
    ('extracted.tokens', 'some', "tokens 'some'.*all, predicted"),
    ('extracted.scale', 0.0, 'scale=0.0'),
    ('data.mask_rate', 1.2, r'data.mask_rate=1.2 must be .*\(0, 1\)'),
    ('data.grammar', 'cfg9', "'cfg9'"),
    ('data.start', 99, '99'),
    ('microbatches', 3, 'microbatches=3'),
    ('method', 'extrakted', "mean 'extracted'"),
  )
  @pytest.mark.slow
  def test_is_an_error_of_one_line(self, field, value, message):
    config = pcfg_bert.tiny('extracted')
    config.data.start = 13
    config.update_from_flattened_dict({field: value})
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      builders.check(builders.open_experiment(config, folder(self)))
    self.assertNotIn('\n', str(caught.exception))


@pytest.mark.slow
class TeacherTest(absltest.TestCase):
  def test_learns_more_than_the_frequencies(self):
    workdir = folder(self)
    config = pcfg_bert.tiny('extracted')
    teachers.train_teacher(builders.open_experiment(config, workdir), workdir)
    records = metric_log.read(workdir / 'teacher')
    losses = [record['eval/loss'][0] for record in records]
    self.assertLess(losses[-1], losses[0])
    self.assertLess(losses[-1], 1.6)  # It is log 8 = 2.1 at the start.

  def test_batch_with_nothing_masked_is_an_error(self):
    workdir = folder(self)
    config = pcfg_bert.tiny('supervised')
    config.teacher.batch_size, config.data.mask_rate = 1, 0.02
    opened = builders.open_experiment(config, workdir)
    with self.assertRaisesRegex(errors.UserError, 'no position that counts'):
      teachers.train_teacher(opened, workdir)


if __name__ == '__main__':
  absltest.main()
