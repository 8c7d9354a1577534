"""Small models as people write them, from plan to student."""

import dataclasses
import importlib.util
import os
import pathlib
import subprocess
import sys
import types
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import pytest

import cxjax
from cxjax import errors
import scripts

os.environ.setdefault('KERAS_BACKEND', 'jax')
real_models = scripts.load('experiments.real_models.__main__')
from experiments.real_models import base  # noqa: E402
from experiments.real_models import cases  # noqa: E402
from experiments.real_models import earlier  # noqa: E402
from experiments.real_models import measure  # noqa: E402

STEPS = 10
# Packages that the tests do not install, and of the others the models that are
# trained here: those of which a step is not like that of another one.
OPTIONAL = ('tunix', 'recurrentgemma', 'jraph')
TRAINED = (
  'linen encoder-decoder',
  'linen UNet (x, t)',
  'linen graph network',
  'linen mixture of experts',
  'linen nn.scan',
  'linen ResNet',
  'linen detector, two outputs',
  'linen nn.with_partitioning',
  'nnx LoRA',
  'nnx.scan',
  'nnx.RNN of LSTM',
  'equinox',
  'haiku',
  'Keras',
)


@pytest.mark.slow
class RealModelsTest(parameterized.TestCase):
  @parameterized.parameters(*cases.CASES)
  def test_layers_match_and_the_student_learns(self, name):
    package = name.split(' ')[0]
    if package in OPTIONAL and importlib.util.find_spec(package) is None:
      self.skipTest(f'{package} is not installed')
    with jax.numpy_rank_promotion('allow'):
      case = cases.CASES[name]()
      plan = base.make_plan(case, STEPS)
      self.assertEqual(base.matched(plan), case.pairs)
      if name not in TRAINED:
        return
      # A hidden stage alone: the experiment trains them all.
      stage = dataclasses.replace(plan.stages[0], steps=STEPS)
      plan = cxjax.plan(case.teacher, case.student, case.x, stages=stage)
      _, records = cxjax.distill(
        plan, [case.x] * STEPS, learning_rate=0.01, **case.distill
      )
    self.assertLess(records[-1]['loss'], 0.9 * records[0]['loss'])


class RowTest(absltest.TestCase):
  def test_a_package_that_is_not_installed_has_a_row(self):
    with mock.patch.dict('sys.modules', {'haiku': None}):
      row = measure.measured('haiku', cases.CASES)
    self.assertRegex(row['verdict'], 'pip install dm-haiku')
    self.assertIsNone(row['plan CPU s'])

  def test_a_fault_has_a_row(self):
    def broken():
      raise ValueError('no\nsuch thing')

    row = measure.measured('one', {'one': broken})
    self.assertEqual(row['verdict'], 'fails: ValueError: no')

  def test_a_model_that_takes_too_long_has_a_row(self):
    late = subprocess.TimeoutExpired('python', 600)
    with mock.patch.object(real_models.subprocess, 'run', side_effect=late):
      row = real_models.separate('haiku')
    self.assertEqual(row['verdict'], 'fails: not done after 600 seconds')
    self.assertEqual(list(row), ['model', *measure.COLUMNS])

  def test_an_unknown_model_is_an_error(self):
    with self.assertRaisesRegex(errors.UserError, "Did you mean 'haiku'"):
      real_models.main(['real_models', 'haikus'])


class EarlierTest(absltest.TestCase):
  def test_the_first_version_gets_the_names_that_it_lacks(self):
    folder = pathlib.Path(self.create_tempdir().full_path) / 'cxjax'
    (folder / 'models').mkdir(parents=True)
    (folder / '__init__.py').write_text('import cxjax.models\nNetwork = int')
    (folder / 'models' / '__init__.py').touch()
    (folder / 'errors.py').touch()
    own = {k: v for k, v in sys.modules.items() if k.split('.')[0] == 'cxjax'}
    with (
      mock.patch.dict('sys.modules'),
      mock.patch.object(sys, 'path', list(sys.path)),
    ):
      for name in own:
        del sys.modules[name]
      found = earlier.load(str(folder.parent))
      self.assertTrue(found.__file__.startswith(str(folder)))
      self.assertIs(found.ModelAdapter, int)
      self.assertTrue(callable(found.models.optional.imported))

  def test_layers_of_its_plans(self):
    stage = lambda **fields: types.SimpleNamespace(**fields)
    plan = stage(
      stages=(stage(target='a', student='b'), stage(target='y', student='y'))
    )
    self.assertEqual(earlier.matched(plan), (('a', 'b'),))


if __name__ == '__main__':
  absltest.main()
