"""Small modules with random variables, inputs and folders for these tests."""

import json
import pathlib

from absl.testing import parameterized
import jax
import numpy as np

from cxjax.models import transformer

VOCAB, LENGTH, WIDTH, HEADS = 30, 12, 32, 4
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (3, LENGTH))
LENGTHS = np.array([LENGTH, 7, 2])
REAL = np.arange(LENGTH)[None] < LENGTHS[:, None]
X = {'tokens': TOKENS, 'mask': REAL}
WORDS = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'Hello', 'hello']
WORDS += ['##s', 'wor', '##ld', ',', '!', 'naive', 'naïve', '中', 'Naïve']
SENTENCES = ('Hello worlds, HELLO!', 'naïve Naïve\t NAÏVE 中hellos?', '')


def make(**kwargs):
  """A module, no size or rate at its default, and random variables."""
  sizes = dict(vocab_size=VOCAB, max_length=LENGTH + 2, num_classes=0)
  sizes |= dict(width=WIDTH, heads=HEADS, depth=2, mlp_width=48, causal=False)
  sizes |= dict(norm_eps=1e-2, init_std=0.03, dropout=0.25)
  return randomized(transformer.Transformer(**{**sizes, **kwargs}))


def randomized(module):
  """A module and random variables for it."""
  shapes = shapes_of(module)
  random = np.random.default_rng(0)
  draw = lambda leaf: 0.3 * random.normal(size=leaf.shape).astype(np.float32)
  return module, jax.tree.map(draw, shapes)


def shapes_of(module):
  """The variables of a module, as shapes."""
  return jax.eval_shape(module.init, jax.random.key(0), TOKENS)


def wordpiece(folder, words=WORDS, **settings):
  """Writes a `vocab.txt` and the config of a model; returns the folder."""
  config = dict(model_type='bert', vocab_size=len(words), hidden_size=WIDTH)
  config |= dict(num_hidden_layers=1, num_attention_heads=1)
  config |= dict(intermediate_size=8, max_position_embeddings=LENGTH)
  (folder / 'config.json').write_text(json.dumps(config))
  (folder / 'vocab.txt').write_text('\n'.join(words) + '\n')
  if settings:
    settings |= dict(tokenizer_class='BertTokenizer')
    (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
  return folder


def assert_real_close(got, want, at=''):
  """Compares up to rounding at real tokens; padding may differ."""
  got, want = np.asarray(got)[REAL], np.asarray(want)[REAL]
  np.testing.assert_allclose(
    got, want, atol=1e-5 * np.abs(want).max(), err_msg=at
  )


class TestCase(parameterized.TestCase):
  """Adds a temporary folder and comparisons of trees."""

  def folder(self):
    return pathlib.Path(self.create_tempdir().full_path)

  def assert_same_tree(self, got, want):
    self.assertEqual(jax.tree.structure(got), jax.tree.structure(want))
    jax.tree.map(np.testing.assert_array_equal, got, want)

  def assert_same_shapes(self, got, want):
    self.assertEqual(jax.tree.map(np.shape, got), jax.tree.map(np.shape, want))
