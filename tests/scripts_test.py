"""Flags of scripts, of which each module of tests sees its own."""

import types

from absl import flags
from absl.testing import absltest
import pytest

import scripts

pytestmark = pytest.mark.slow


def importing(*names):
  """A module that imports scripts."""
  module = types.ModuleType('of_tests')
  for name in names:
    setattr(module, name.rpartition('.')[2], scripts.load(name))
  return module


class FlagsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.addCleanup(scripts.take_out)

  def test_in_any_order(self):
    tune = importing('experiments.tune', 'experiments.masked_tune')
    map_lib = importing('experiments.map')
    for _ in range(2):
      scripts.use(map_lib)
      self.assertEqual(flags.FLAGS.experiment, ['parity_mlp'])
      self.assertEqual(flags.FLAGS.workdir, '')  # Of `experiments.paths`.
      scripts.take_out()
      self.assertNotIn('experiment', flags.FLAGS)
      scripts.use(tune)
      self.assertIn(flags.FLAGS.experiment, ('parity_mlp', 'pcfg_bert'))
      self.assertNotIn('budget', flags.FLAGS)
      scripts.take_out()

  def test_a_script_that_was_loaded_before(self):
    first = importing('experiments.sample_complexity')
    flag = flags.FLAGS['methods']
    importing('experiments.map')
    self.assertIsNot(flags.FLAGS['methods'], flag)
    scripts.load('experiments.sample_complexity')
    self.assertIs(flags.FLAGS['methods'], flag)
    scripts.use(first)
    self.assertIs(flags.FLAGS['methods'], flag)

  def test_those_of_packages_that_are_imported_meanwhile_stay(self):
    self.addCleanup(delattr, flags.FLAGS, 'of_a_package')
    with scripts.in_force(types.ModuleType('of_tests')):
      flags.DEFINE_bool('of_a_package', True, '', module_name='package')
      flags.DEFINE_bool('config.field', True, '', module_name='package')
      importing('experiments.map')
    self.assertIn('of_a_package', flags.FLAGS)
    self.assertNotIn('config.field', flags.FLAGS)
    self.assertNotIn('budget', flags.FLAGS)  # Of the script.


if __name__ == '__main__':
  absltest.main()
