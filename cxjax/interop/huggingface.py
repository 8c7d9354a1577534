"""Models in the layout of Hugging Face: BERT's and GPT-2's parameters, folders.

A folder holds `config.json`, `model.safetensors` and, perhaps, a tokenizer, as
`save_pretrained` of the library transformers writes them; that library is not
needed here. BERT only: RoBERTa, DistilBERT and others are laid out otherwise.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import os
import pathlib
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
import tokenizers

from cxjax import errors
from cxjax import files
from cxjax.data import tokenizer as tokenizer_lib
from cxjax.models import sentence
from cxjax.models import transformer

Tensors = Mapping[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]
Path = pathlib.Path | str

_WORDS = 'embeddings.word_embeddings.weight'
_PLACES = 'embeddings.position_embeddings.weight'
_TYPES = 'embeddings.token_type_embeddings.weight'
_HEAD = 'cls.predictions'
_DECODER = f'{_HEAD}.decoder'
_BERT_BLOCK = {
  'query': 'attention.self.query',
  'key': 'attention.self.key',
  'value': 'attention.self.value',
  'attention_out': 'attention.output.dense',
  'attention_norm': 'attention.output.LayerNorm',
  'mlp_in': 'intermediate.dense',
  'mlp_out': 'output.dense',
  'mlp_norm': 'output.LayerNorm',
}
_GPT2_BLOCK = {
  'attention_norm': 'ln_1',
  'attention_out': 'attn.c_proj',
  'mlp_norm': 'ln_2',
  'mlp_in': 'mlp.c_fc',
  'mlp_out': 'mlp.c_proj',
}
# In a file, but no parameters: a count from 0, and zeros.
_BUFFERS = ('embeddings.position_ids', 'embeddings.token_type_ids')
# Fields of a `Transformer` and of a config. Each must be there.
_SIZES = {
  'vocab_size': 'vocab_size',
  'max_length': 'max_position_embeddings',
  'width': 'hidden_size',
  'heads': 'num_attention_heads',
  'depth': 'num_hidden_layers',
  'mlp_width': 'intermediate_size',
}
# What a config must say where it says anything: the rest is another model.
_FIXED = {
  'hidden_act': 'gelu',
  'position_embedding_type': 'absolute',
  'is_decoder': False,
}
# Sentences of one type here; two rows, so that tokens of a second one, which
# tokenizers make of a pair, are read as the first.
_NUM_TYPES = 2
_EPS = 1e-12
_SPECIAL = {
  **tokenizer_lib.SPECIAL,
  'sep': ('[SEP]', '</s>', '[EOS]'),
  'unk': ('[UNK]', '<unk>'),
}


def from_bert(tensors: Tensors, depth: int) -> dict[str, Any]:
  """Variables of an encoder `Transformer`, its head untied.

  The embedding of the first sentence type is added to the positions: the model
  here has no types. The pooler is left out.

  Args:
    tensors: of a `BertModel`, which has no head, or of a `BertForMaskedLM`,
      where the word embedding is the head's kernel if that is not there.
    depth: number of blocks.

  Returns:
    `{'params': ...}`, float32; without a head those of `num_classes=0`.

  Raises:
    UserError: a tensor that is missing.
  """
  tensors = _plain(tensors)
  words = _get(tensors, _WORDS)
  flat = {
    'tokens/embedding': words,
    'target_positions': _get(tensors, _PLACES) + _get(tensors, _TYPES)[:1],
  }
  head = _has_head(tensors)
  for ours, theirs in _bert_layers(depth, head).items():
    flat.update(_layer(tensors, ours, theirs, transposed=True))
  if head:
    flat['logits_bias'] = _get(tensors, f'{_HEAD}.bias')
    name = f'{_DECODER}.weight'
    kernel = _get(tensors, name) if name in tensors else words
    flat['logits/kernel'] = kernel.T
  return _nested(flat)


def from_gpt2(tensors: Tensors, depth: int) -> dict[str, Any]:
  """Variables of a decoder `Transformer` with an untied head.

  Args:
    tensors: of a `GPT2LMHeadModel`.
    depth: number of blocks.

  Returns:
    `{'params': ...}`, float32.

  Raises:
    UserError: a tensor that is missing.
  """
  flat = {
    'tokens/embedding': _get(tensors, 'transformer.wte.weight'),
    'target_positions': _get(tensors, 'transformer.wpe.weight'),
    'logits/kernel': _get(tensors, 'lm_head.weight').T,
  }
  pairs = {'final_norm': 'transformer.ln_f'}
  for i in range(depth):
    theirs = f'transformer.h.{i}'
    for part in ('weight', 'bias'):
      # One product for all three there, three here.
      three = np.split(_get(tensors, f'{theirs}.attn.c_attn.{part}'), 3, -1)
      name = 'kernel' if part == 'weight' else 'bias'
      for ours, tensor in zip(('query', 'key', 'value'), three, strict=True):
        flat[f'block{i}/{ours}/{name}'] = tensor
    for ours, their in _GPT2_BLOCK.items():
      pairs[f'block{i}/{ours}'] = f'{theirs}.{their}'
  for ours, their in pairs.items():
    flat.update(_layer(tensors, ours, their, transposed=False))
  return _nested(flat)


def read(folder: Path) -> tuple[transformer.Transformer, dict[str, Any]]:
  """A pretrained BERT encoder.

  Args:
    folder: `config.json` and `model.safetensors`, or the shards that
      `model.safetensors.index.json` lists, in any floating-point type.

  Returns:
    The module and its variables, in float32. It has a head if the file has one,
    of a masked language model, tied if that is there. Its dropout is the
    config's of hidden activations. Poolers and other heads are left out.

  Raises:
    UserError: a file that is missing or damaged; a config of another model;
      tensors that are missing, in the way, or of other shapes than the
      config's: the first three are named.
  """
  folder = pathlib.Path(folder)
  config = _read_config(folder)
  tensors = _plain(_read_tensors(folder))
  head = _has_head(tensors)
  tied = head and _is_tied(config, tensors)
  if tied:
    tensors.pop(f'{_DECODER}.weight', None)
  module = _module(config, head, tied)
  want = {k: v.shape for k, v in _to_bert(module, _empty(module)).items()}
  want[_TYPES] = (config['type_vocab_size'], module.width)
  _require_same(
    f'The tensors of {folder} do not fit its config.json',
    {k: v.shape for k, v in tensors.items() if _is_read(k)},
    want,
    ('in the file', 'by the config'),
    'Take both from one model.',
  )
  variables = from_bert(tensors, module.depth)
  if tied:
    del variables['params']['logits']
  return module, variables


def tokenizer(folder: Path) -> tokenizers.Tokenizer:
  """The tokenizer of a pretrained model.

  It neither cuts nor fills, whatever the file says, and reads a '[MASK]' in a
  text as six characters.

  Args:
    folder: `config.json`, and `tokenizer.json` or else `vocab.txt`, the words
      of BERT's WordPiece, for which `tokenizer_config.json` says whether the
      text is lowercased (it is, if there is no such file).

  Returns:
    The tokenizer.

  Raises:
    UserError: neither file is there, or is one; a vocabulary of another size
      than the model's.
  """
  folder = pathlib.Path(folder)
  config = _read_config(folder)
  found, words = folder / 'tokenizer.json', folder / 'vocab.txt'
  errors.require(
    found.exists() or words.exists(),
    f'{folder} has no tokenizer.json and no vocab.txt. Copy one there from the '
    'model.',
  )
  result = tokenizer_lib.load(found) if found.exists() else _wordpiece(words)
  _require_vocabulary(result, config['vocab_size'])
  return result


def write(
  folder: Path,
  module: transformer.Transformer | sentence.SentenceEncoder,
  variables: Mapping[str, Any],
  tokenizer: tokenizers.Tokenizer | None = None,
) -> None:
  """Writes an encoder as transformers' `from_pretrained` reads it.

  Without a head it is a `BertModel`, with one a `BertForMaskedLM`. A type table
  of zeros goes with both, a pooler of zeros with the first: the model here has
  neither, and `pooler_output` means nothing. A `SentenceEncoder` is written as
  its encoder and, beside that, what sentence-transformers reads: the mean and
  the linear layer. `read` gives its encoder back.

  Args:
    folder: made if it is not there; what is there under the same names is
      replaced. `config.json` is written last: a folder without is not whole.
    module: an encoder without a head or with one of `vocab_size` classes.
    variables: its `{'params': ...}`.
    tokenizer: written as `tokenizer.json` with a `tokenizer_config.json`.

  Raises:
    UserError: a decoder or another head; variables that do not fit the module;
      a tokenizer of another size; the folder cannot be written.
  """
  folder = pathlib.Path(folder)
  is_sentence = isinstance(module, sentence.SentenceEncoder)
  encoder = (
    module.encoder if isinstance(module, sentence.SentenceEncoder) else module
  )
  _require_bert(encoder)
  _require_same(
    'The variables do not fit the module',
    _flat_shapes(variables),
    _flat_shapes(_shapes(module)),
    ('given', 'in the module'),
    'Give the variables of this module.',
  )
  if tokenizer is not None:
    _require_vocabulary(tokenizer, encoder.vocab_size)
  with files.written(folder):
    for name in ('config.json', 'modules.json'):  # Of a model before.
      (folder / name).unlink(missing_ok=True)
  params = variables['params']
  tensors = _to_bert(encoder, params['encoder'] if is_sentence else params)
  if encoder.num_classes:
    # The name of the model inside theirs.
    tensors = {
      k if k.startswith(_HEAD) else f'bert.{k}': v for k, v in tensors.items()
    }
    if not encoder.tied:
      tensors[f'{_DECODER}.bias'] = tensors[f'{_HEAD}.bias']
  else:
    width = encoder.width
    tensors['pooler.dense.weight'] = np.zeros((width, width), np.float32)
    tensors['pooler.dense.bias'] = np.zeros(width, np.float32)
  _write_tensors(folder / 'model.safetensors', tensors)
  special = {} if tokenizer is None else _special(tokenizer)
  if tokenizer is not None:
    _write_tokenizer(folder, tokenizer, special, encoder.max_length)
  if is_sentence:
    _write_pooling(folder, module, params)
  config = _config(encoder)
  if tokenizer is not None and 'pad' in special:
    config['pad_token_id'] = tokenizer.token_to_id(special['pad'])
  files.write_json(folder / 'config.json', config)


def _get(tensors: Tensors, name: str) -> np.ndarray:
  return np.asarray(errors.lookup('tensor', name, tensors), np.float32)


def _layer(
  tensors: Tensors, ours: str, theirs: str, transposed: bool
) -> Iterator[tuple[str, np.ndarray]]:
  """The two arrays of a linear layer or of a layer norm."""
  weight = _get(tensors, f'{theirs}.weight')
  if weight.ndim == 1:
    yield f'{ours}/scale', weight
  else:
    yield f'{ours}/kernel', weight.T if transposed else weight
  yield f'{ours}/bias', _get(tensors, f'{theirs}.bias')


def _nested(flat: dict[str, np.ndarray]) -> dict[str, Any]:
  return {'params': traverse_util.unflatten_dict(flat, sep='/')}


def _bert_layers(depth: int, head: bool) -> dict[str, str]:
  """Linear layers and norms, by our name; the last of the head is not here."""
  layers = {'embeddings_norm': 'embeddings.LayerNorm'}
  for i in range(depth):
    for ours, theirs in _BERT_BLOCK.items():
      layers[f'block{i}/{ours}'] = f'encoder.layer.{i}.{theirs}'
  if head:
    layers['transform'] = f'{_HEAD}.transform.dense'
    layers['transform_norm'] = f'{_HEAD}.transform.LayerNorm'
  return layers


def _plain(tensors: Tensors) -> dict[str, np.ndarray]:
  """The tensors under the names that a `BertModel` of today gives them."""
  plain = {}
  for name, tensor in tensors.items():
    name = name.removeprefix('bert.')
    # BERT's own names, in files from before 2019.
    name = name.replace('LayerNorm.gamma', 'LayerNorm.weight')
    name = name.replace('LayerNorm.beta', 'LayerNorm.bias')
    plain[name] = tensor
  # Of two biases, one tensor unless the head is untied, they add this one.
  if f'{_DECODER}.bias' in plain:
    plain[f'{_HEAD}.bias'] = plain.pop(f'{_DECODER}.bias')
  return plain


def _has_head(tensors: Tensors) -> bool:
  return any(name.startswith(f'{_HEAD}.') for name in tensors)


def _is_tied(config: dict[str, Any], tensors: Tensors) -> bool:
  """Whether the head's kernel is the word embedding, said and true."""
  decoder, words = tensors.get(f'{_DECODER}.weight'), tensors.get(_WORDS)
  same = lambda a, b: b is not None and np.array_equal(a, b)
  return config['tie_word_embeddings'] and (
    decoder is None or same(decoder, words)
  )


def _is_read(name: str) -> bool:
  """Whether a tensor belongs to the encoder or to its head."""
  parts = ('embeddings.', 'encoder.', f'{_HEAD}.')
  return name.startswith(parts) and name not in _BUFFERS


def _to_bert(
  module: transformer.Transformer, params: Mapping[str, Any]
) -> dict[str, np.ndarray]:
  """The tensors of an encoder, by their names, without 'bert.'."""
  flat = traverse_util.flatten_dict(params, sep='/')
  get = lambda name: np.asarray(flat[name], np.float32)
  tensors = {
    _WORDS: get('tokens/embedding'),
    _PLACES: get('positions'),
    _TYPES: np.zeros((_NUM_TYPES, module.width), np.float32),
  }
  head = bool(module.num_classes)
  for ours, theirs in _bert_layers(module.depth, head).items():
    is_norm = f'{ours}/scale' in flat
    weight = get(f'{ours}/scale') if is_norm else get(f'{ours}/kernel').T
    tensors[f'{theirs}.weight'] = weight
    tensors[f'{theirs}.bias'] = get(f'{ours}/bias')
  if head:
    tensors[f'{_HEAD}.bias'] = get('logits_bias')
  if head and not module.tied:
    tensors[f'{_DECODER}.weight'] = get('logits/kernel').T
  return tensors


def _shapes(module: Any) -> dict[str, Any]:
  """Variables of a module, without their values."""
  tokens = jnp.zeros((1, 1), jnp.int32)
  return jax.eval_shape(module.init, jax.random.key(0), tokens)


def _empty(module: transformer.Transformer) -> dict[str, Any]:
  """Parameters of a module that take no memory."""
  return jax.tree.map(
    lambda leaf: np.broadcast_to(np.float32(0), leaf.shape),
    _shapes(module)['params'],
  )


def _flat_shapes(variables: Mapping[str, Any]) -> Shapes:
  flat = traverse_util.flatten_dict(variables, sep='/')
  return {name: np.shape(leaf) for name, leaf in flat.items()}


def _require_same(
  problem: str,
  found: Shapes,
  want: Shapes,
  sides: tuple[str, str],
  remedy: str,
) -> None:
  """Raises a UserError with the first three shapes that differ."""
  names = [n for n in {**want, **found} if want.get(n) != found.get(n)]
  here, there = sides
  listed = '; '.join(
    f'{n}: {found.get(n, "none")} {here}, {want.get(n, "none")} {there}'
    for n in names[:3]
  )
  more = f'; and {len(names) - 3} more' if len(names) > 3 else ''
  errors.require(not names, f'{problem}: {listed}{more}. {remedy}')


def _require_bert(encoder: transformer.Transformer) -> None:
  errors.require(
    isinstance(encoder, transformer.Transformer),
    f'{type(encoder).__name__} has no layout of Hugging Face here: give a '
    'cxjax.Transformer or a SentenceEncoder. Any model leaves by cxjax.export.',
  )
  errors.require(
    not encoder.causal,
    'causal=True is a decoder; only encoders are written, as BERT. Keep a '
    'decoder in a checkpoint.',
  )
  errors.require(
    encoder.num_classes in (0, encoder.vocab_size),
    f'num_classes={encoder.num_classes} is no head of BERT: it must be '
    f'vocab_size={encoder.vocab_size}, or 0 and the head left out.',
  )


def _require_vocabulary(found: tokenizers.Tokenizer, size: int) -> None:
  number = found.get_vocab_size()
  errors.require(
    number == size,
    f'The tokenizer has {number} tokens and the model {size}. Take the '
    'tokenizer that the model was trained with.',
  )


def _read_config(folder: pathlib.Path) -> dict[str, Any]:
  """A config that is BERT's, its optional fields filled in."""
  path = folder / 'config.json'
  errors.require(
    path.exists(),
    f'{folder} has no config.json. It must be the folder of one model, as '
    'save_pretrained of transformers writes it.',
  )
  config = files.read_json(path)
  kind = config.get('model_type') if isinstance(config, dict) else None
  errors.require(
    kind == 'bert',
    f"{path} has model_type={kind!r}; only 'bert' is read. Choose a model of "
    'that type.',
  )
  for name, only in _FIXED.items():
    value = config.get(name, only)
    errors.require(
      value == only,
      f'{path} has {name}={value!r}; only {only!r} is read. Choose another '
      'model.',
    )
  config = {
    'type_vocab_size': 2,
    'layer_norm_eps': _EPS,
    'hidden_dropout_prob': 0.1,
    'initializer_range': 0.02,
    'tie_word_embeddings': True,
    **config,
  }
  for name in (*_SIZES.values(), 'type_vocab_size'):
    value = config.get(name)
    errors.require(
      isinstance(value, int) and value >= 1,
      f'{path} has {name}={value!r}; it must be a whole number of at least 1. '
      'Restore the file.',
    )
  for name in ('layer_norm_eps', 'hidden_dropout_prob', 'initializer_range'):
    value = config[name]
    errors.require(
      isinstance(value, int | float) and value >= 0,
      f'{path} has {name}={value!r}; it must be a number of at least 0. '
      'Restore the file.',
    )
  return config


def _module(
  config: dict[str, Any], head: bool, tied: bool
) -> transformer.Transformer:
  return transformer.Transformer(
    **{ours: config[theirs] for ours, theirs in _SIZES.items()},
    num_classes=config['vocab_size'] if head else 0,
    causal=False,
    tied=tied,
    init_std=config['initializer_range'],
    dropout=config['hidden_dropout_prob'],
    norm_eps=config['layer_norm_eps'],
  )


def _config(module: transformer.Transformer) -> dict[str, Any]:
  head = bool(module.num_classes)
  sizes = {theirs: getattr(module, ours) for ours, theirs in _SIZES.items()}
  return {
    'architectures': ['BertForMaskedLM' if head else 'BertModel'],
    'model_type': 'bert',
    **sizes,
    'intermediate_size': module.mlp_width or 4 * module.width,
    'type_vocab_size': _NUM_TYPES,
    **_FIXED,
    'layer_norm_eps': module.norm_eps or _EPS,
    'hidden_dropout_prob': module.dropout,
    'attention_probs_dropout_prob': 0.0,
    'initializer_range': module.init_std,
    'tie_word_embeddings': module.tied or not head,
    'pad_token_id': None,
  }


def _read_tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
  index = folder / 'model.safetensors.index.json'
  names = ['model.safetensors']
  if index.exists() and not (folder / names[0]).exists():
    shards = errors.lookup('entry', 'weight_map', files.read_json(index))
    names = sorted(set(shards.values()))
  tensors = {}
  for name in names:
    path = folder / name
    errors.require(
      path.exists(),
      f'{folder} has no {name}; a pytorch_model.bin, which can run code, is '
      'not read. Save the model again with save_pretrained of transformers.',
    )
    try:
      tensors.update(safetensors.numpy.load_file(path))
    except (OSError, safetensors.SafetensorError) as error:
      raise errors.UserError(
        f'{path} cannot be read ({error}). Restore it, or save the model again.'
      ) from error
  return tensors


def _wordpiece(path: pathlib.Path) -> tokenizers.Tokenizer:
  """BERT's tokenizer of a `vocab.txt`."""
  try:
    vocab = tokenizers.models.WordPiece.read_file(str(path))
  except Exception as error:  # The library raises nothing narrower.
    raise errors.UserError(
      f'{path} cannot be read ({error}). It must have a token a line.'
    ) from error
  missing = [t for t in ('[UNK]', '[CLS]', '[SEP]') if t not in vocab]
  errors.require(
    not missing,
    f'{path} lacks {", ".join(missing)}. It must be the vocabulary of BERT.',
  )
  settings = path.with_name('tokenizer_config.json')
  settings = files.read_json(settings) if settings.exists() else {}
  made = tokenizers.BertWordPieceTokenizer(
    vocab,
    lowercase=settings.get('do_lower_case', True),
    strip_accents=settings.get('strip_accents'),
    handle_chinese_chars=settings.get('tokenize_chinese_chars', True),
  )
  made = tokenizers.Tokenizer.from_str(made.to_str())
  made.encode_special_tokens = True
  return made


def _write_tensors(path: pathlib.Path, tensors: Tensors) -> None:
  """Replaces a safetensors file in one move."""
  # It writes the memory of an array as it lies, that of a transposed one too.
  tensors = {k: np.ascontiguousarray(v) for k, v in tensors.items()}
  data = safetensors.numpy.save(tensors, metadata={'format': 'pt'})
  temporary = path.with_name(path.name + '.tmp')
  with files.written(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open('wb') as f:
      f.write(data)
      f.flush()
      os.fsync(f.fileno())
    temporary.replace(path)


def _special(found: tokenizers.Tokenizer) -> dict[str, str]:
  """What a tokenizer calls its special tokens, by role, those that it has."""
  return {
    role: name
    for role, names in _SPECIAL.items()
    for name in names[::-1]  # The first of several stays.
    if found.token_to_id(name) is not None
  }


def _write_tokenizer(folder, found, special, length):
  tokenizer_lib.save(found, folder / 'tokenizer.json')
  settings = {
    # Theirs of any `tokenizer.json`.
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'model_max_length': length,
    **{f'{role}_token': name for role, name in special.items()},
  }
  files.write_json(folder / 'tokenizer_config.json', settings)


def _write_pooling(folder, module, params):
  """What sentence-transformers reads beside the encoder."""
  width = module.encoder.width
  parts = {'Transformer': '', 'Pooling': '1_Pooling'}
  pooling = {
    'word_embedding_dimension': width,
    'pooling_mode_cls_token': False,
    'pooling_mode_mean_tokens': True,
    'pooling_mode_max_tokens': False,
    'pooling_mode_mean_sqrt_len_tokens': False,
  }
  files.write_json(folder / '1_Pooling' / 'config.json', pooling)
  if module.features:
    parts['Dense'] = '2_Dense'
    linear = {
      'in_features': width,
      'out_features': module.features,
      'bias': True,
      'activation_function': 'torch.nn.modules.linear.Identity',
    }
    tensors = {
      'linear.weight': np.asarray(params['linear']['kernel'], np.float32).T,
      'linear.bias': np.asarray(params['linear']['bias'], np.float32),
    }
    _write_tensors(folder / '2_Dense' / 'model.safetensors', tensors)
    files.write_json(folder / '2_Dense' / 'config.json', linear)
  modules = [
    {
      'idx': i,
      'name': str(i),
      'path': path,
      'type': f'sentence_transformers.models.{kind}',
    }
    for i, (kind, path) in enumerate(parts.items())
  ]
  files.write_json(folder / 'modules.json', modules)
