"""Test of 0 in every number of `config.json`, of every family."""

import pathlib

from absl.testing import parameterized

from cxjax import errors
from cxjax.interop.huggingface import base
from cxjax.interop.huggingface import config as config_lib

# Fields of which 0 is a value, by those of the module that hold it.
RATES = ('hidden_dropout_prob', 'dropout', 'resid_pdrop', 'mlp_dropout')
ZEROS = {**dict.fromkeys(RATES, 'dropout'), 'max_window_layers': 'windows'}
PATH = pathlib.Path('config.json')


def read(family, fields):
  config = {**family.fixed, **dict.fromkeys(family.sizes.values(), 8)}
  config[family.sizes['width']] = 16
  if 'num_key_value_heads' in family.optional:
    config['num_key_value_heads'] = 8
  config = config_lib.checked(PATH, family, {**config, **fields})
  return family.module(config, {})


class ZeroTest(parameterized.TestCase):
  @parameterized.parameters(*base.FAMILIES)
  def test_0_is_taken_or_refused_by_the_field(self, name):
    family = base.FAMILIES[name]
    read(family, {})
    for field, (kind, _) in family.optional.items():
      if not issubclass(kind, int | float) or kind is bool:
        continue
      if field in ZEROS:
        window = {'use_sliding_window': True, 'sliding_window': 4}
        window = window if field == 'max_window_layers' else {}
        found = getattr(read(family, {field: 0, **window}), ZEROS[field])
        self.assertEqual(found, (4,) * 8 if window else 0)
      else:
        with self.assertRaisesRegex(errors.UserError, f'{field}=0'):
          read(family, {field: 0})
