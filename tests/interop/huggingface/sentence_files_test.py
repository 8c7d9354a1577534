"""Sentence encoders that are written for sentence-transformers."""

import json

from absl.testing import parameterized
import jax
import numpy as np
import pytest
import safetensors.numpy

from cxjax.interop import huggingface
from cxjax.models import sentence
from tests.interop.huggingface import fixtures
from tests.interop.huggingface import torch_models


class SentenceFilesTest(fixtures.TestCase):
  @parameterized.parameters(0, 5)
  def test_the_files_say_what_the_module_computes(self, features):
    encoder, _ = fixtures.make()
    model, variables = fixtures.randomized(
      sentence.SentenceEncoder(encoder, features)
    )
    folder = self.folder()
    huggingface.write(folder, model, variables)
    inner = {'params': variables['params']['encoder']}
    self.assert_same_tree(huggingface.read(folder)[1], inner)
    types = ['Transformer', 'Pooling', *['Dense'] * bool(features)]
    modules = json.loads((folder / 'modules.json').read_text())
    self.assertEqual([m['type'].split('.')[-1] for m in modules], types)
    pooling = json.loads((folder / '1_Pooling/config.json').read_text())
    self.assertEqual(pooling['word_embedding_dimension'], fixtures.WIDTH)
    modes = [k for k, v in pooling.items() if v is True]
    self.assertEqual(modes, ['pooling_mode_mean_tokens'])
    dense = folder / '2_Dense'
    self.assertEqual(dense.exists(), bool(features))
    if features:
      config = json.loads((dense / 'config.json').read_text())
      self.assertEqual(config['in_features'], fixtures.WIDTH)
      self.assertEqual(config['out_features'], features)
      self.assertTrue(config['bias'])
      tensors = safetensors.numpy.load_file(dense / 'model.safetensors')
      linear = variables['params']['linear']
      np.testing.assert_array_equal(
        tensors['linear.weight'], linear['kernel'].T
      )
      np.testing.assert_array_equal(tensors['linear.bias'], linear['bias'])


@pytest.mark.slow
class TransformersTest(fixtures.TestCase):
  @parameterized.parameters(0, 5)
  def test_the_embedding_is_the_mean_of_transformers(self, features):
    encoder, _ = fixtures.make()
    model, variables = fixtures.randomized(
      sentence.SentenceEncoder(encoder, features)
    )
    embedding, found = jax.jit(model.apply)(variables, fixtures.X)
    folder = self.folder()
    huggingface.write(folder, model, variables)
    hidden = torch_models.run(torch_models.load('AutoModel', folder)).output
    # The mean as sentence-transformers computes it.
    mask = fixtures.REAL[..., None].astype(np.float32)
    want = (hidden * mask).sum(1) / np.maximum(mask.sum(1), 1e-9)
    np.testing.assert_allclose(found['pooled'], want, rtol=1e-4, atol=1e-5)
    if features:
      path = folder / '2_Dense/model.safetensors'
      with torch_models.libraries() as (torch, _):
        linear = torch.nn.Linear(fixtures.WIDTH, features)
        for name, tensor in safetensors.numpy.load_file(path).items():
          parameter = getattr(linear, name.removeprefix('linear.'))
          parameter.copy_(torch.tensor(tensor))
        want = linear(torch.tensor(want)).numpy()
    self.assertEqual(embedding.shape, (3, features or fixtures.WIDTH))
    np.testing.assert_allclose(embedding, want, rtol=1e-4, atol=1e-5)
