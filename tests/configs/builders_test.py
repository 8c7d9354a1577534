"""Every config builds, and every public name is there."""

import importlib
import pathlib
from unittest import mock

from absl.testing import parameterized
import numpy as np
import tokenizers

import cxjax
from cxjax.configs import builders
from cxjax import errors
from cxjax.methods import curricula
from cxjax.data import corpus as corpus_lib
from cxjax.data import tokenized_corpus
from cxjax.data import tokenizer as tokenizer_lib
import experiments

FOLDER = pathlib.Path(experiments.__path__[0])
CONFIGS = tuple(
  path.stem
  for path in sorted(FOLDER.glob('*.py'))
  if 'def get_config' in path.read_text() and path.stem != 'base'
)
SIZES = ('cpu', 'paper', 'tiny')


def fake_text(source, *, vocab_size, **unused):
  """Stands for a text whose tokenizer has `vocab_size` ids."""
  del source, unused
  special = [names[0] for names in tokenizer_lib.SPECIAL.values()]
  words = [*special, *map(str, range(vocab_size - len(special)))]
  model = tokenizers.models.WordLevel({w: i for i, w in enumerate(words)})
  return tokenized_corpus.Text(
    corpus_lib.Corpus((), 'fake', ''),
    tokenizers.Tokenizer(model),
    train=[np.arange(9, dtype=np.int32)],
    held_out=[np.arange(9, dtype=np.int32)],
  )


class ConfigTest(parameterized.TestCase):
  # What the other methods do depends on the network, not on the task.
  @parameterized.parameters(
    *((name, 'extracted') for name in CONFIGS),
    *(
      (name, method)
      for name in ('parity_mlp', 'parity_transformer')
      for method in curricula.METHODS
      if method != 'extracted'
    ),
  )
  def test_builds(self, name, method):
    module = importlib.import_module(f'experiments.{name}')
    # What the other methods do depends on the size too little for the time.
    by_size = method == 'extracted'
    sizes = [name for name in SIZES if hasattr(module, name)]
    configs = [
      module.get_config(f'{method},{size}')
      for size in (sizes if by_size else ['tiny'])
    ]
    self.assertContainsSubset(['tiny'], sizes)
    if 'depth' in configs[0].data:
      deep = module.tiny(method)
      deep.data.depth = 2  # The hierarchical variant: four classes.
      configs.append(deep)
    for config in configs:
      self.assertEqual(config.method, method)
      with mock.patch.object(tokenized_corpus, 'load', fake_text):
        builders.check(config)

  def test_finds_the_configs(self):
    parity = ('parity_mlp', 'parity_transformer')
    masked = ('pcfg_bert', 'text_bert', 'wikipedia_bert')
    self.assertSameElements(parity + masked, CONFIGS)

  def test_words_after_the_colon(self):
    get_config = importlib.import_module('experiments.parity_mlp').get_config
    self.assertEqual(get_config().method, 'extracted')
    self.assertEqual(get_config('tiny').data.d, 8)
    self.assertEqual(get_config('one_shot').data.d, 50)
    for words in ('one_shot,tiny', 'tiny,one_shot'):
      config = get_config(words)
      self.assertEqual((config.method, config.data.d), ('one_shot', 8))
    with self.assertRaisesRegex(errors.UserError, "'tinny'.*'tiny'"):
      get_config('one_shot,tinny')

  def test_public_names_are_there_and_documented(self):
    for name in cxjax.__all__:
      value = getattr(cxjax, name)
      if callable(value):
        self.assertNotEmpty(value.__doc__, name)
