"""Folders of strangers: each is read, or is one line, at once."""

import json
import os
from unittest import mock

from absl import logging
from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import safetensors.numpy

from cxjax import errors
from cxjax.interop import huggingface
from tests.interop.huggingface import fixtures

CONFIG, TENSORS = 'config.json', 'model.safetensors'
INDEX = f'{TENSORS}.index.json'
KERNEL = 'encoder.layer.0.output.dense.weight'


def index(names):
  def change(folder):
    (folder / TENSORS).rename(folder.parent / 'outside')
    (folder / INDEX).write_text(json.dumps({'weight_map': names}))

  return change


def field(**fields):
  def change(folder):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **fields}))

  return change


def text(name, value):
  return lambda folder: (folder / name).write_text(value)


def tensor(convert):
  def change(folder):
    tensors = safetensors.numpy.load_file(folder / TENSORS)
    tensors[KERNEL] = convert(tensors[KERNEL])
    safetensors.numpy.save_file(tensors, folder / TENSORS)

  return change


def fifo(name):
  def change(folder):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)

  return change


def link(name, target):
  def change(folder):
    (folder / name).unlink()
    (folder / name).symlink_to(target)

  return change


def linked_out(folder):
  (folder / TENSORS).rename(folder.parent / 'outside')
  (folder / TENSORS).symlink_to(folder.parent / 'outside')


def in_two_shards(folder):
  huggingface.write(folder, *fixtures.make(), max_shard_bytes=20_000)
  first, *_, last = sorted(folder.glob('model-*.safetensors'))
  tensors = safetensors.numpy.load_file(first)
  tensors |= safetensors.numpy.load_file(last)
  safetensors.numpy.save_file(tensors, first)


CASES = {
  'a tensor in two shards': (in_two_shards, r'the tensor \S+ is in model-'),
  'a shard above': (index({'a': '../outside'}), 'names of files in its'),
  'an absolute shard': (index({'a': '/dev/zero'}), 'names of files in its'),
  'shards that are numbers': (index({'a': 3}), 'names of files in its'),
  'a shard that is the folder above': (index({'a': '..'}), 'names of files in'),
  'a shard without a name': (index({'a': ''}), 'names of files in its'),
  'a shard that is not there': (index({'a': 'b'}), 'lacks b, a part of the'),
  'a shard with NUL': (index({'a': 'b\0'}), r'lacks b\\x00, a part of'),
  'half a character': (index({'a': '\ud800'}), r'lacks \\ud800, a part of'),
  'a shard of a long name': (index({'a': 'b' * 5_000}), r'\[\.{3}\]b{99}, a'),
  'a field with NUL': (field(**{'a\0': 1}), r'has a\\x00=1'),
  'a family with NUL': (field(model_type='a\0'), r"model_type='a\\x00'"),
  'a list of shards': (index(['a']), 'names of files in its'),
  'a link out of the folder': (linked_out, 'out of its folder'),
  'a device': (link(CONFIG, '/dev/zero'), 'out of its folder'),
  'a link to nothing': (link(CONFIG, 'gone'), 'to gone, which is not there'),
  'a config that is a pipe': (fifo(CONFIG), 'no regular file'),
  'tensors that are a pipe': (fifo(TENSORS), 'no regular file'),
  'a deep config': (text(CONFIG, '[' * 100_000), 'cannot be read'),
  'a config that is null': (text(CONFIG, 'null'), 'must be a JSON object'),
  'a field twice': (text(CONFIG, '{"a": 1, "a": 2}'), "'a' comes twice"),
  'many layers': (field(num_hidden_layers=10**9), 'num_hidden_layers=10+:'),
  'a wide layer': (field(intermediate_size=10**12), 'intermediate_size=10+:'),
  'many types': (field(type_vocab_size=10**12), 'type_vocab_size=10+:'),
  'a size that is true': (field(num_hidden_layers=True), 'whole number'),
  'a size that is text': (field(hidden_size='32'), 'whole number'),
  'an infinite epsilon': (field(layer_norm_eps=np.inf), 'finite number'),
  'an epsilon of NaN': (field(layer_norm_eps=np.nan), 'finite number'),
  'a flag of text': (field(tie_word_embeddings='no'), 'true or false'),
  'integers': (tensor(lambda t: t.astype(np.int8)), f'{KERNEL} is of type I8'),
  'booleans': (tensor(lambda t: t > 0), f'{KERNEL} is of type BOOL'),
  'NaN': (tensor(lambda t: t * np.nan), 'not finite'),
}


class StrangerTest(fixtures.TestCase):
  def saved(self):
    folder = self.folder() / 'model'
    huggingface.write(folder, *fixtures.make())
    return folder

  @parameterized.named_parameters((k, *v) for k, v in CASES.items())
  def test_is_one_line(self, change, message):
    folder = self.saved()
    change(folder)
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      huggingface.read(folder)
    self.assertTrue(str(caught.exception).isprintable())
    self.assertNotIn('pytorch_model', str(caught.exception))

  def test_a_snapshot_of_the_hub_links_to_its_blobs(self):
    folder = self.saved()
    (folder.parent.parent / 'blobs').mkdir(exist_ok=True)
    blob = folder.parent.parent / 'blobs' / 'abc'
    (folder / TENSORS).rename(blob)
    (folder / TENSORS).symlink_to(blob)
    huggingface.read(folder)
    blob.unlink()

  def test_a_classifier_is_named(self):
    folder = self.saved()
    path = folder / TENSORS
    tensors = safetensors.numpy.load_file(path)
    tensors['classifier.weight'] = np.ones((2, 3), np.float32)
    tensors['a\x1b[2J'] = np.ones(1, np.float32)
    name = next(n for n in tensors if 'token_type' in n)
    tensors[name][1] += 1
    safetensors.numpy.save_file(tensors, path)
    with mock.patch.object(logging, 'warning') as warning:
      huggingface.read(folder)
    said = ' '.join(map(str, warning.call_args_list[0].args))
    self.assertIn('classifier.weight', said)
    self.assertTrue(said.isprintable())
    said = str(warning.call_args_list)
    self.assertIn('sentence types differ', said)

  @parameterized.parameters('do_lower_case', 'strip_accents')
  def test_settings_of_other_types(self, name):
    folder = fixtures.wordpiece(self.folder(), **{name: 'yes'})
    with self.assertRaisesRegex(errors.UserError, f"{name}='yes'"):
      huggingface.tokenizer(folder)

  def test_a_tokenizer_that_is_a_pipe(self):
    folder = fixtures.wordpiece(self.folder())
    fifo('tokenizer.json')(folder)
    with self.assertRaisesRegex(errors.UserError, 'no regular file'):
      huggingface.tokenizer(folder)

  @parameterized.parameters(
    ('(a+)+$', True),
    (r'((\w*)x)*', True),
    ('(a|a)*', True),
    (r"'(?:[sdmt]|ll)| ?\p{L}+|\s+(?!\S)|\s+", False),
    (r'[()*+,]+[A-Za-z]+(?i:s|t)?', False),
  )
  def test_expressions_that_may_never_end(self, pattern, refused):
    folder = fixtures.wordpiece(self.folder())
    made = json.loads(huggingface.tokenizer(folder).to_str())
    split = {'type': 'Split', 'pattern': {'Regex': pattern}}
    made['pre_tokenizer'] = {**split, 'behavior': 'Isolated', 'invert': False}
    (folder / 'tokenizer.json').write_text(json.dumps(made))
    if not refused:
      huggingface.tokenizer(folder)
      return
    with self.assertRaisesRegex(errors.UserError, 'repeats a repetition'):
      huggingface.tokenizer(folder)

  def test_a_padded_vocabulary(self):
    tokenizer = huggingface.tokenizer(fixtures.wordpiece(self.folder()))
    folder = self.folder() / 'padded'
    huggingface.write(folder, *fixtures.make(), tokenizer)
    size = huggingface.tokenizer(folder).get_vocab_size()
    self.assertEqual(size, tokenizer.get_vocab_size())


if __name__ == '__main__':
  absltest.main()
