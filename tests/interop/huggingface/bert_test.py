"""BERT's tensors as variables, compared with transformers."""

import jax
import numpy as np
import pytest

from cxjax.interop import huggingface
from cxjax.models import transformer
from tests.interop.huggingface import fixtures
from tests.interop.huggingface import torch_models

DEPTH = torch_models.DEPTH
pytestmark = pytest.mark.slow


class BertTest(fixtures.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.model = torch_models.build('BertForMaskedLM')
    cls.tensors = torch_models.state(cls.model)

  def test_every_hidden_state_and_the_logits_are_equal(self):
    module = transformer.Transformer(
      vocab_size=fixtures.VOCAB,
      max_length=fixtures.LENGTH + 2,
      num_classes=fixtures.VOCAB,
      width=fixtures.WIDTH,
      heads=fixtures.HEADS,
      depth=DEPTH,
      causal=False,
    )
    variables = huggingface.from_bert(self.tensors, DEPTH)
    self.assert_same_shapes(fixtures.shapes_of(module), variables)
    logits, activations = jax.jit(module.apply)(variables, fixtures.X)
    want = torch_models.run(self.model)
    names = ['embeddings', *module.layers]
    for name, theirs in zip(names, want.hidden, strict=True):
      fixtures.assert_real_close(activations[name], theirs, name)
    fixtures.assert_real_close(logits, want.output)

  def test_a_tied_head_may_have_no_kernel(self):
    tied = {k: v for k, v in self.tensors.items() if 'decoder' not in k}
    self.assertLess(len(tied), len(self.tensors))
    self.assert_same_tree(
      huggingface.from_bert(tied, DEPTH),
      huggingface.from_bert(self.tensors, DEPTH),
    )

  def test_norms_may_have_the_names_of_before_2019(self):
    old = {
      k.replace('Norm.weight', 'Norm.gamma').replace(
        'Norm.bias', 'Norm.beta'
      ): v
      for k, v in self.tensors.items()
    }
    self.assertIn('bert.embeddings.LayerNorm.gamma', old)
    self.assert_same_tree(
      huggingface.from_bert(old, DEPTH),
      huggingface.from_bert(self.tensors, DEPTH),
    )

  def test_a_bert_model_has_no_head(self):
    bare = {
      k.removeprefix('bert.'): v
      for k, v in self.tensors.items()
      if k.startswith('bert.')
    }
    found = huggingface.from_bert(bare, DEPTH)['params']
    want = huggingface.from_bert(self.tensors, DEPTH)['params']
    head = {'logits', 'logits_bias', 'transform', 'transform_norm'}
    self.assertEqual(want.keys() - found.keys(), head)

  def test_half_precision_is_added_in_float32(self):
    half = {k: v.astype(np.float16) for k, v in self.tensors.items()}
    rounded = {k: v.astype(np.float32) for k, v in half.items()}
    found = huggingface.from_bert(half, DEPTH)
    self.assertEqual(found['params']['position_embedding'].dtype, np.float32)
    self.assert_same_tree(found, huggingface.from_bert(rounded, DEPTH))
