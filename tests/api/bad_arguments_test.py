"""Bad values for every argument: each works, or is one line."""

import inspect
import pathlib
import re
from unittest import mock

from absl.testing import parameterized
import pytest

import bad_values
import cxjax
from cxjax.interop import huggingface

pytestmark = pytest.mark.slow

# Cases in the tests of the adapters, which import other libraries.
ELSEWHERE = ('from_equinox', 'from_haiku', 'from_keras')
# What functions return: only cxjax makes one.
RETURNED = (
  'Comparison',
  'Contender',
  'Distilled',
  'Plan',
  'StagePlan',
  'State',
  'Tap',
  'Taps',
)
# Errors, protocols and types.
OTHERS = (
  'Curriculum',
  'Stopped',
  'UserError',
  'huggingface.Tensors',
  'metrics.Statistics',
  'models.base.Model',
  'models.base.ModelWithHead',
  'tasks.SyntheticTask',
  'tasks.Task',
)
REFERENCE = pathlib.Path(__file__).parents[2] / 'docs' / 'reference'


def public():
  """Names of all public callables: of the packages, and of the reference."""
  names = {f'cxjax.{name}' for name in cxjax.__all__}
  names |= {f'cxjax.huggingface.{name}' for name in huggingface.__all__}
  names |= {f'cxjax.tasks.{name}' for name in cxjax.tasks.__all__}
  for page in REFERENCE.glob('*.md'):
    found = re.findall(r'auto(?:class|function):: (\S+)', page.read_text())
    names.update(found)
  for name in sorted(names):
    value = cxjax
    for part in name.split('.')[1:]:
      value = getattr(value, part)
    if callable(value) and not inspect.ismodule(value):
      yield name.removeprefix('cxjax.')


NAMES = sorted({*public()} - {*ELSEWHERE, *RETURNED, *OTHERS})


def cases():
  """The calls that work, made when they are needed: that takes seconds."""
  import argument_cases  # noqa: PLC0415

  return argument_cases


class ArgumentsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    for table in cases().REGISTRIES:
      self.enter_context(mock.patch.dict(table))

  # A new callable without a case: write one in argument_cases.py.
  @parameterized.parameters(*NAMES)
  def test_every_argument(self, name):
    known = cases().CASES
    bad_values.try_case(self, known[name], 7 * list(known).index(name))

  def test_every_case_is_of_a_callable(self):
    self.assertSameElements(cases().CASES, NAMES)
