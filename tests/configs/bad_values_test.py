"""Bad values for every field of every config: each works or is one line."""

from collections.abc import Mapping
import contextlib
import os
import pathlib
import re

from absl.testing import parameterized
import pytest

import bad_values
from cxjax.configs import builders
from experiments import parity_mlp
from experiments import parity_transformer
from experiments import pcfg_bert

# Modules, methods, and the blocks whose fields are not those of the first.
CONFIGS = {
  'parity_mlp': (parity_mlp, 'extracted', ''),
  'parity_transformer': (parity_transformer, 'custom', r'(data|student)\.'),
  'pcfg_bert': (pcfg_bert, 'progressive', r'data\.'),
}
SOME = 3


def fields(block, prefix=''):
  """Full names of all fields and blocks."""
  for name, value in block.items():
    yield f'{prefix}{name}'
    if isinstance(value, Mapping):
      yield from fields(value, f'{prefix}{name}.')


@pytest.mark.slow
class ConfigTest(parameterized.TestCase):
  @parameterized.parameters(*CONFIGS)
  def test_every_field(self, name):
    module, method, pattern = CONFIGS[name]
    folder = self.create_tempdir().full_path
    self.enter_context(contextlib.chdir(folder))
    names = [
      field
      for field in fields(module.tiny(method).to_dict())
      if re.match(pattern, field)
    ]
    self.assertNotEmpty(names)
    for place, field in enumerate(names):
      for kind, value in bad_values.tried_at(place, SOME).items():
        config = module.tiny(method)
        *blocks, last = field.split('.')
        block = config
        for part in blocks:
          block = block[part]
        with self.subTest(f'{field}={kind}'):
          try:
            with config.ignore_type(), config.unlocked():
              block[last] = value
          except (TypeError, ValueError, KeyError):  # Of ml_collections.
            continue
          with bad_values.works_or_one_line(self, folder):
            opened = builders.open_experiment(config, pathlib.Path('w'))
            builders.check(opened)
        self.assertEmpty(os.listdir(folder))
