import functools

from absl.testing import parameterized

import cxjax
from cxjax import errors
from cxjax import registration
from cxjax.methods import losses
from cxjax.methods import projections
from cxjax.methods import registry


def ours(student, target):
  return student - target


def other(student, target):
  return target - student


class AddTest(parameterized.TestCase):
  def test_the_same_source_may_come_again(self):
    table = {}
    registration.add('thing', table, 'ours', 1, ours)
    registration.add('thing', table, 'ours', 2, functools.partial(ours))
    self.assertEqual(table, {'ours': 2})

  def test_another_source_is_refused_and_the_first_is_named(self):
    table = {}
    registration.add('gadget', table, 'ours', 1, ours)
    with self.assertRaisesRegex(errors.UserError, "'ours' already, by .*ours"):
      registration.add('gadget', table, 'ours', 2, other)
    self.assertEqual(table, {'ours': 1})

  @parameterized.parameters(('', ours), (3, ours), ('name', 'no function'))
  def test_bad_input(self, name, source):
    with self.assertRaises(errors.UserError):
      registration.add('widget', {}, name, 1, source)

  @parameterized.named_parameters(
    ('loss', losses.register, 'kl', ours),
    ('projection', projections.register, 'gaussian', ours),
    ('method', registry.register, 'extracted', registry.Method(ours)),
    ('metric', cxjax.metrics.register, 'loss', cxjax.Metric(ours)),
  )
  def test_names_of_the_package_stay(self, register, name, value):
    with self.assertRaisesRegex(errors.UserError, f'{name!r} already'):
      register(name, value)

  def test_a_metric_may_be_registered_twice(self):
    # absl runs a config file twice.
    self.addCleanup(cxjax.metrics.METRICS.pop, 'ours')
    for _ in range(2):
      cxjax.metrics.register('ours', cxjax.Metric(ours))
