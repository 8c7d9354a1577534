"""Folders that `read` refuses: other configs, damaged files, other tensors."""

import json
import pathlib
import shutil

from absl.testing import parameterized
import numpy as np
import safetensors.numpy

from cxjax import errors
from cxjax.interop import huggingface
from tests.interop.huggingface import fixtures


class TestCase(fixtures.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    root = cls('create_tempdir').create_tempdir().full_path
    cls.saved = pathlib.Path(root)
    module, variables = fixtures.make(num_classes=fixtures.VOCAB)
    huggingface.write(cls.saved, module, variables)

  def copy(self):
    return pathlib.Path(
      shutil.copytree(self.saved, self.folder(), dirs_exist_ok=True)
    )

  def assert_refused(self, folder, message):
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      huggingface.read(folder)
    self.assertNotIn('\n', str(caught.exception))


class ConfigTest(TestCase):
  @parameterized.parameters(
    ('model_type', 'albert', "model_type='albert'; only .*'bert'"),
    ('model_type', None, "model_type=None; only .*'bert'"),
    ('model_type', ['bert'], r"model_type=\['bert'\]; only .*'bert'"),
    ('hidden_act', 'relu', "hidden_act='relu'; only 'gelu'"),
    (
      'position_embedding_type',
      'relative_key',
      "'relative_key'; only 'absolute'",
    ),
    ('is_decoder', True, 'is_decoder=True; only False'),
    ('hidden_size', None, 'hidden_size=None; .* whole number'),
    ('type_vocab_size', 0, 'type_vocab_size=0; .* whole number'),
    ('vocab_size', 30.5, 'vocab_size=30.5; .* whole number'),
    ('layer_norm_eps', '1', "layer_norm_eps='1'; .* number"),
    ('hidden_dropout_prob', -0.1, 'hidden_dropout_prob=-0.1; .* number'),
    ('num_attention_heads', 5, 'heads=5 .*width=32'),
  )
  def test_a_config_of_another_model(self, name, value, message):
    folder = self.copy()
    path = folder / 'config.json'
    config = json.loads(path.read_text())
    config[name] = value
    path.write_text(json.dumps(config))
    self.assert_refused(folder, message)

  def test_a_config_that_is_missing_or_no_dict(self):
    folder = self.copy()
    (folder / 'config.json').write_text('[]')
    self.assert_refused(folder, 'holds an array; it must be a JSON object')
    (folder / 'config.json').write_text('{}')
    self.assert_refused(folder, 'model_type=None')
    (folder / 'config.json').unlink()
    self.assert_refused(folder, f'{folder} has no config.json')

  @parameterized.parameters(
    'adapter_config.json', 'adapter_model.safetensors', 'adapter_model.bin'
  )
  def test_an_adapter(self, name):
    folder = self.copy()
    (folder / name).write_text('{}')
    message = f'an adapter beside a model .{name}.*Merge .*, or move it away'
    self.assert_refused(folder, message)
    (folder / 'model.safetensors').unlink()
    message = f'an adapter alone .{name}.*Merge it into its base model first'
    self.assert_refused(folder, message)
    (folder / 'config.json').unlink()
    self.assert_refused(folder, message)
    (folder / name).unlink()
    self.assert_refused(folder, 'has no config.json')


class TensorsTest(TestCase):
  def test_files_that_are_missing_or_damaged(self):
    folder = self.copy()
    path = folder / 'model.safetensors'
    path.write_bytes(b'\x10\0\0\0\0\0\0\0hello')
    self.assert_refused(folder, 'model.safetensors cannot be read.*Restore')
    path.unlink()
    (folder / 'pytorch_model.bin').write_text('')
    self.assert_refused(folder, 'no model.safetensors; a pytorch_model.bin')
    index = folder / 'model.safetensors.index.json'
    index.write_text(json.dumps({'weight_map': {'a': 'shard1'}}))
    self.assert_refused(folder, 'lacks shard1, a part of the model.*Restore')
    index.write_text('{}')
    self.assert_refused(folder, 'must have a weight_map')

  def test_an_index_that_does_not_list_what_is_in_its_files(self):
    folder = self.copy()
    (folder / 'model.safetensors').rename(folder / 'one')
    names = list(safetensors.numpy.load_file(folder / 'one'))
    index = folder / 'model.safetensors.index.json'

    def write(names, **more):
      found = {'weight_map': {**dict.fromkeys(names, 'one'), **more}}
      index.write_text(json.dumps(found))

    write(names)
    huggingface.read(folder)
    write(names[1:])
    self.assert_refused(
      folder, f'does not say that the tensor {names[0]} is in'
    )
    write([*names, 'more'])
    self.assert_refused(folder, 'the tensor more is not in one')
    safetensors.numpy.save_file({'a': np.zeros(2)}, folder / 'two')
    write(names[1:], a='two', **{names[0]: 'two'})
    self.assert_refused(folder, f'{names[0]} is in one')
    write(names)
    (folder / 'two').rename(folder / 'model-00002-of-00002.safetensors')
    self.assert_refused(folder, 'does not name model-00002-of-00002')

  def change(self, path, gone=(), **new):
    """Writes the saved tensors without some and with others."""
    tensors = safetensors.numpy.load_file(self.saved / path.name)
    new = {name.replace('__', '.'): leaf for name, leaf in new.items()}
    kept = {k: v for k, v in tensors.items() if k not in gone}
    safetensors.numpy.save_file({**kept, **new}, path)

  def test_tensors_that_do_not_fit_the_config(self):
    folder = self.copy()
    path = folder / 'model.safetensors'
    extra = {
      'bert__encoder__layer__2__output__dense__bias': np.zeros(7, np.float32)
    }
    self.change(
      path,
      [
        'bert.encoder.layer.0.output.dense.bias',
        'bert.encoder.layer.1.output.dense.bias',
      ],
      bert__embeddings__word_embeddings__weight=np.zeros((2, 3), np.float32),
      **extra,
    )
    self.assert_refused(
      folder,
      r'embeddings.word_embeddings.weight: \(2, 3\) in the file, \(30, 32\) by '
      r'the config; bert.encoder.layer.0.output.dense.bias: none in the file, '
      r'\(32,\) by the config; bert.encoder.layer.1.output.dense.bias: none in '
      r'the file, \(32,\) by the config; and 1 more\.',
    )
    self.change(path, **extra)
    self.assert_refused(
      folder,
      r'config.json: bert.encoder.layer.2.output.dense.bias: \(7,\) in the '
      r'file, none by the config\.',
    )
    self.change(path, cls__predictions__more=np.zeros(7, np.float32))
    self.assert_refused(folder, r'cls.predictions.more: \(7,\) in the file')

  def test_an_untied_head_needs_its_kernel(self):
    folder = self.copy()
    self.change(
      folder / 'model.safetensors', ['cls.predictions.decoder.weight']
    )
    self.assert_refused(folder, r'decoder.weight: none in the file, \(30, 32\)')

  def test_other_heads_are_ignored(self):
    folder = self.copy()
    path = folder / 'model.safetensors'
    self.change(path, classifier__weight=np.zeros(7, np.float32))
    huggingface.read(folder)
