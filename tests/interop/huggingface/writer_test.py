"""Encoders that are written: read back here, and read by transformers."""

import functools
import json

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from cxjax import errors
from cxjax.data import tokenizer as tokenizer_lib
from cxjax.interop import huggingface
from cxjax.models import sentence
from cxjax.parallel import multihost
from cxjax.tasks import causal_text
from tests.interop.huggingface import fixtures
from tests.interop.huggingface import torch_models

VOCAB = fixtures.VOCAB


class WriteTest(fixtures.TestCase):
  @parameterized.parameters((0, False), (VOCAB, True), (VOCAB, False))
  def test_a_model_is_read_back_bit_by_bit(self, num_classes, tied):
    module, variables = fixtures.make(num_classes=num_classes, tied=tied)
    folder = self.folder()
    huggingface.write(folder, module, variables)
    found, there = huggingface.read(folder)
    self.assertEqual(found, module)
    self.assert_same_tree(there, variables)

  def test_an_untied_head_that_equals_the_embedding_stays_untied(self):
    module, variables = fixtures.make(num_classes=VOCAB)
    embedding = variables['params']['tokens']['embedding']
    variables['params']['logits']['kernel'] = embedding.T
    folder = self.folder()
    huggingface.write(folder, module, variables)
    found, there = huggingface.read(folder)
    self.assertEqual(found, module)
    self.assert_same_tree(there, variables)

  @pytest.mark.slow
  def test_shards_and_their_index(self):
    module, variables = fixtures.make(num_classes=VOCAB)
    folder = self.folder()
    huggingface.write(folder, module, variables, max_shard_bytes=10_000)
    index = json.loads((folder / 'model.safetensors.index.json').read_text())
    names = sorted(path.name for path in folder.glob('*.safetensors'))
    self.assertEqual(sorted(set(index['weight_map'].values())), names)
    self.assertEqual(names[0], f'model-00001-of-{len(names):05}.safetensors')
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
    types = 2 * fixtures.WIDTH * 4  # Sentence types, which are written too.
    copied = 4 * VOCAB  # The second name of a bias.
    total = index['metadata']['total_size']
    self.assertEqual(total, size + types + copied)
    self.assertGreaterEqual(len(names), total // 10_000)
    found, there = huggingface.read(folder)
    self.assertEqual(found, module)
    self.assert_same_tree(there, variables)
    # One file takes their place, and they take its.
    small, less = fixtures.make()
    huggingface.write(folder, small, less, max_shard_bytes=10**9)
    kept = {path.name for path in folder.iterdir()}
    self.assertEqual(kept, {'config.json', 'model.safetensors'})
    huggingface.write(folder, module, variables, max_shard_bytes=1)
    self.assertFalse((folder / 'model.safetensors').exists())
    self.assert_same_tree(huggingface.read(folder)[1], variables)
    with self.assertRaisesRegex(errors.UserError, 'max_shard_bytes=0 must be'):
      huggingface.write(folder, module, variables, max_shard_bytes=0)

  def test_a_decoder_knows_where_a_text_ends(self):
    # Gemma's words include tags of HTML.
    words = ('<pad>', '<eos>', '<bos>', '<s>', '</s>', 'a')
    vocab = {word: i for i, word in enumerate(words)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab))
    made.add_special_tokens(list(words[:3]))
    folder = self.folder()
    for causal, want in ((True, (0, 2, 1)), (False, (0, None, None))):
      module, variables = fixtures.make(causal=causal)
      huggingface.write(folder, module, variables, made)
      config = json.loads((folder / 'config.json').read_text())
      names = ('pad_token_id', 'bos_token_id', 'eos_token_id')
      self.assertEqual(tuple(map(config.get, names)), want)
      path = folder / 'tokenizer_config.json'
      ends = '<eos>' if causal else None
      self.assertEqual(json.loads(path.read_text()).get('eos_token'), ends)
    known = (*causal_text.OWN, *tokenizer_lib.BEGINS)
    self.assertEqual(tokenizer_lib.token_id(made, '', 'x', known), 2)

  def test_an_incomplete_folder_is_no_model(self):
    folder = self.folder()
    tokenizer = huggingface.tokenizer(fixtures.wordpiece(folder))
    module, variables = fixtures.make(vocab_size=len(fixtures.WORDS))
    model = sentence.SentenceEncoder(module)
    inner = {'params': {'encoder': variables['params']}}
    huggingface.write(folder, model, inner)
    self.assertTrue((folder / 'modules.json').exists())
    (folder / 'tokenizer.json').mkdir()  # It cannot be replaced by a file.
    with self.assertRaisesRegex(errors.UserError, 'tokenizer.json'):
      huggingface.write(folder, module, variables, tokenizer)
    self.assertFalse((folder / 'config.json').exists())
    self.assertFalse((folder / 'modules.json').exists())

  def test_of_several_processes_the_first_writes(self):
    module, variables = fixtures.make()
    folder = self.folder() / 'none'
    self.enter_context(pytest.MonkeyPatch.context()).setattr(
      multihost, 'is_first', lambda: False
    )
    huggingface.write(folder, module, variables)
    self.assertFalse(folder.exists())


class ErrorTest(fixtures.TestCase):
  def setUp(self):
    super().setUp()
    self.path = self.folder() / 'none'
    self.write = functools.partial(huggingface.write, self.path)

  def test_modules_without_a_layout(self):
    with self.assertRaisesRegex(errors.UserError, 'As gpt2: num_classes=5'):
      self.write(*fixtures.make(num_classes=5, causal=True))
    with self.assertRaisesRegex(errors.UserError, 'num_classes=5.*_size=30'):
      self.write(*fixtures.make(num_classes=5))
    self.assertFalse(self.path.exists())

  def test_variables_of_another_module(self):
    module, variables = fixtures.make()
    deeper = module.clone(depth=3, width=64)
    message = (
      r'params/block0/attention_norm/bias: \(32,\) given, \(64,\) in the '
      'module; .*; and 47 more. Give'
    )
    with self.assertRaisesRegex(errors.UserError, message):
      self.write(deeper, variables)
    message = r'/block1/.*: \(32,\) given, none in the module'
    with self.assertRaisesRegex(errors.UserError, message):
      self.write(module.clone(depth=1), variables)
    with self.assertRaisesRegex(errors.UserError, 'do not fit the module'):
      self.write(module, variables['params'])
    self.assertFalse(self.path.exists())

  def test_a_tokenizer_of_another_size(self):
    folder = fixtures.wordpiece(self.folder())
    with self.assertRaisesRegex(errors.UserError, '16 tokens.*model 12.*is 15'):
      self.write(*fixtures.make(vocab_size=12), huggingface.tokenizer(folder))
    self.assertFalse(self.path.exists())

  @parameterized.parameters(
    (np.nan, jnp.asarray),
    (np.inf, np.asarray),
    (-np.inf, lambda leaf: jnp.asarray(leaf, jnp.bfloat16)),
  )
  def test_values_that_are_not_finite(self, value, convert):
    module, variables = fixtures.make()
    huggingface.write(self.path, module, variables)
    before = {p: p.read_bytes() for p in self.path.iterdir()}
    norm = variables['params']['block0']['attention_norm']
    norm['bias'] = convert(np.where(np.arange(32) == 3, value, norm['bias']))
    message = 'params/block0/attention_norm/bias has .* not finite'
    with self.assertRaisesRegex(errors.UserError, message):
      self.write(module, variables)
    self.assertEqual({p: p.read_bytes() for p in self.path.iterdir()}, before)

  def test_a_config_in_the_way(self):
    (self.path / 'config.json.tmp').mkdir(parents=True)
    with self.assertRaisesRegex(errors.UserError, 'another folder'):
      self.write(*fixtures.make())

  def test_a_file_in_the_way(self):
    self.path.write_text('a file')
    with self.assertRaisesRegex(errors.UserError, 'Cannot write'):
      self.write(*fixtures.make())


@pytest.mark.slow
class TransformersTest(fixtures.TestCase):
  @parameterized.parameters(
    dict(),
    dict(mlp_width=0, norm_eps=0.0),
    dict(heads=1, max_length=fixtures.LENGTH),
  )
  def test_transformers_reads_a_bert_model(self, **kwargs):
    module, variables = fixtures.make(**kwargs)
    folder = self.folder() / 'new' / 'folder'
    huggingface.write(folder, module, variables)
    model = torch_models.load('AutoModel', folder)
    self.assertEqual(type(model).__name__, 'BertModel')
    self.assertEqual(model.config.layer_norm_eps, module.norm_eps or 1e-12)
    hidden, activations = jax.jit(module.apply)(variables, fixtures.X)
    theirs = torch_models.run(model)
    fixtures.assert_real_close(theirs.output, hidden)
    for at, want in zip(
      ['embeddings', *module.layers], theirs.hidden, strict=True
    ):
      fixtures.assert_real_close(want, activations[at], at)
    # A sentence of the second type is read as the first.
    second = torch_models.run(model, token_type_ids=fixtures.TOKENS % 2)
    np.testing.assert_array_equal(second.output, theirs.output)

  @parameterized.parameters(True, False)
  def test_transformers_reads_a_masked_language_model(self, tied):
    module, variables = fixtures.make(num_classes=VOCAB, tied=tied)
    folder = self.folder()
    # With the tied head in one file, with the other in several.
    most = 10**9 if tied else 10_000
    huggingface.write(folder, module, variables, max_shard_bytes=most)
    model = torch_models.load('AutoModelForMaskedLM', folder)
    self.assertEqual(type(model).__name__, 'BertForMaskedLM')
    self.assertEqual(model.config.tie_word_embeddings, tied)
    logits, _ = jax.jit(module.apply)(variables, fixtures.X)
    fixtures.assert_real_close(torch_models.run(model).output, logits)

  @parameterized.parameters('wordpiece', 'bytes')
  def test_transformers_reads_the_tokenizer(self, kind):
    folder = self.folder()
    if kind == 'wordpiece':
      ours = huggingface.tokenizer(fixtures.wordpiece(folder))
    else:
      ours = tokenizer_lib.train(fixtures.SENTENCES, 262)
    module, variables = fixtures.make(vocab_size=ours.get_vocab_size())
    huggingface.write(folder / kind, module, variables, ours)
    theirs = torch_models.tokenizer('AutoTokenizer', folder / kind)
    self.assertEqual(theirs.model_max_length, fixtures.LENGTH + 2)
    self.assertEqual(theirs.pad_token, '[PAD]')
    self.assertEqual(theirs.mask_token, '[MASK]')
    config = json.loads((folder / kind / 'config.json').read_text())
    self.assertEqual(config['pad_token_id'], theirs.pad_token_id)
    torch_models.load('AutoModel', folder / kind)
    again = huggingface.tokenizer(folder / kind)
    for text in fixtures.SENTENCES:
      want = ours.encode(text).ids
      self.assertEqual(theirs(text)['input_ids'], want)
      self.assertEqual(again.encode(text).ids, want)
