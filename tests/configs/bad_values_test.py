"""Bad values for every field of every config: each works or is one line."""

import ast
from collections.abc import Mapping
import contextlib
import functools
import importlib
import pathlib
import re

from absl.testing import parameterized
import pytest

import bad_values
from cxjax.configs import builders
import documents
import experiments

pytestmark = pytest.mark.slow

SOME = 1
# Methods that have blocks of their own, one for each config in turn.
METHODS = ('extracted', 'custom', 'progressive', 'joint_fading')


def configs():
  """Names of the config files of experiments/."""
  (folder,) = experiments.__path__
  for path in sorted(pathlib.Path(folder).glob('*.py')):
    if re.search(r'base\.choose\(\s*variant', path.read_text()):
      yield path.stem


# Fields that several have are tried with the first, which is the fastest.
CONFIGS = tuple(sorted(configs(), key=lambda name: name != 'parity_mlp'))


@functools.cache
def source():
  """A text for the configs that need one."""
  folder = bad_values.kept_folder()
  (folder / 'text.txt').write_text('\n\n'.join(documents.DOCUMENTS))
  return f'files:{folder}/text.txt'


def tiny(name):
  """The smallest config of an experiment."""
  module = importlib.import_module(f'experiments.{name}')
  config = module.tiny(METHODS[CONFIGS.index(name) % len(METHODS)])
  if config.method == 'custom':
    terms = (dict(student='logits', target='logits'), dict(target='labels'))
    config.custom.stages = (dict(name='joint', terms=terms),)
  if 'source' in config.data:
    config.data.source = source()
  return config


def fields(block, prefix=''):
  """Full names of all fields and blocks, and their values."""
  for name, value in block.items():
    yield f'{prefix}{name}', value
    if isinstance(value, Mapping):
      yield from fields(value, f'{prefix}{name}.')


@functools.cache
def places(name):
  """The fields of a config, their values, and whether they are new in it."""
  before = {
    field
    for other in CONFIGS[: CONFIGS.index(name)]
    for field in dict(fields(tiny(other).to_dict()))
  }
  return [
    (field, value, field not in before)
    for field, value in fields(tiny(name).to_dict())
  ]


def opened(config):
  """Checks a config, up to its training."""
  experiment = builders.open_experiment(config, pathlib.Path('w'))
  builders.check(experiment)


def cases(name):
  """Name and config of each trial."""
  for place, (field, default, new) in enumerate(places(name)):
    if not (new or bad_values.is_whole()):
      continue
    tried = bad_values.tried_at(place, SOME, default, whole=new)
    for kind, value in tried.items():
      config = tiny(name)
      *blocks, last = field.split('.')
      block = config
      for part in blocks:
        block = block[part]
      try:
        with config.ignore_type(), config.unlocked():
          block[last] = value
      except (TypeError, ValueError, KeyError):  # Of ml_collections.
        continue
      yield f'{field}={kind}', config


class ConfigTest(parameterized.TestCase):
  @parameterized.parameters(*CONFIGS)
  def test_every_field(self, name):
    folder = self.create_tempdir().full_path
    self.enter_context(contextlib.chdir(folder))
    if bad_values.is_whole() or any(new for _, _, new in places(name)):
      opened(tiny(name))
    for case, config in cases(name):
      with self.subTest(case), bad_values.works_or_one_line(self, folder):
        opened(config)

  def test_the_help_names_every_config(self):
    # Read, as its flags have the names of those of other scripts.
    script = pathlib.Path(experiments.__path__[0]).with_name('launch.py')
    text = ast.get_docstring(ast.parse(script.read_text()))
    listed = re.search(r'Experiments, .*?: (.*?)\.', text, re.DOTALL)
    self.assertSameElements(re.split(r',\s+', listed[1]), CONFIGS)
