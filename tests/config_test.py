"""Every config builds, and every public name is there."""

import importlib
import pathlib

from absl.testing import parameterized

import cxjax
from cxjax import experiment
from cxjax import methods
import experiments

FOLDER = pathlib.Path(experiments.__path__[0])
CONFIGS = tuple(
  path.stem
  for path in sorted(FOLDER.glob('*.py'))
  if 'def get_config' in path.read_text()
)


class ConfigTest(parameterized.TestCase):
  @parameterized.product(name=CONFIGS, method=tuple(methods.METHODS))
  def test_builds(self, name, method):
    module = importlib.import_module(f'experiments.{name}')
    deep = module.tiny(method)
    deep.data.depth = 2  # The hierarchical variant: four classes.
    for config in (module.get_config(method), module.tiny(method), deep):
      self.assertEqual(config.method, method)
      experiment.check(config)

  def test_finds_the_configs(self):
    self.assertContainsSubset(('parity_mlp', 'parity_mlp_paper'), CONFIGS)

  def test_public_names_are_there_and_documented(self):
    for name in cxjax.__all__:
      value = getattr(cxjax, name)
      if callable(value):
        self.assertNotEmpty(value.__doc__, name)
