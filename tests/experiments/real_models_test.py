"""Small models as people write them, from plan to student."""

import dataclasses
import importlib.util
import os
from unittest import mock

from absl.testing import parameterized
import jax
import pytest

import cxjax
from cxjax import errors

os.environ.setdefault('KERAS_BACKEND', 'jax')
from experiments.real_models import __main__ as real_models  # noqa: E402
from experiments.real_models import base  # noqa: E402

STEPS = 10


@pytest.mark.slow
class RealModelsTest(parameterized.TestCase):
  @parameterized.parameters(*real_models.CASES)
  def test_layers_match_and_the_student_learns(self, name):
    if 'tunix' in name and importlib.util.find_spec('tunix') is None:
      self.skipTest('tunix is not installed')
    with jax.numpy_rank_promotion('allow'):
      case = real_models.CASES[name]()
      plan = base.planned(case, STEPS)
      self.assertEqual(base.matched(plan), case.pairs)
      # A hidden stage alone: the experiment trains them all.
      stage = dataclasses.replace(plan.stages[0], steps=STEPS)
      plan = cxjax.plan(case.teacher, case.student, case.x, stages=stage)
      _, records = cxjax.distill(
        plan, [case.x] * STEPS, learning_rate=0.01, **case.distill
      )
    self.assertLess(records[-1]['loss'], 0.9 * records[0]['loss'])


class RowTest(parameterized.TestCase):
  def test_a_package_that_is_not_installed_has_a_row(self):
    with mock.patch.dict('sys.modules', {'haiku': None}):
      row = real_models.measured('haiku')
    self.assertRegex(row['verdict'], 'pip install dm-haiku')
    self.assertIsNone(row['plan CPU s'])

  def test_an_unknown_model_is_an_error(self):
    with self.assertRaisesRegex(errors.UserError, "Did you mean 'haiku'"):
      real_models.main(['haikus'])
