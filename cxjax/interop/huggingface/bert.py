"""BERT: an encoder with learned positions, and its masked-language-model head.

RoBERTa, DistilBERT and other encoders name and shape their tensors otherwise.
"""

from collections.abc import Mapping
from typing import Any

from absl import logging
import numpy as np

from cxjax import arguments
from cxjax import errors
from cxjax.interop.huggingface import base
from cxjax.interop.huggingface import encoders
from cxjax.models import transformer

WORDS, TYPES = encoders.WORDS, encoders.TYPES
POSITIONS = encoders.POSITIONS
HEAD = 'cls.predictions'
HEAD_BIAS = f'{HEAD}.bias'
DECODER = f'{HEAD}.decoder.weight'
# The same bias by a second name. In a file of an untied head only this one
# counts; in any other file both are one tensor.
DECODER_BIAS = f'{HEAD}.decoder.bias'
# In some files, but no parameters: a count from 0, and zeros.
BUFFERS = ('embeddings.position_ids', 'embeddings.token_type_ids')
# Read by no output of an encoder or a masked language model.
UNUSED = ('pooler.', 'cls.seq_relationship.', *BUFFERS)
SIZES = {
  'vocab_size': 'vocab_size',
  'max_length': 'max_position_embeddings',
  'width': 'hidden_size',
  'heads': 'num_attention_heads',
  'depth': 'num_hidden_layers',
  'mlp_width': 'intermediate_size',
}
FIXED = {
  'hidden_act': 'gelu',
  'position_embedding_type': 'absolute',
  'is_decoder': False,
}
NUM_TYPES, EPS = encoders.NUM_TYPES, encoders.EPS
DEFAULTS: dict[str, int | float | bool] = {
  'type_vocab_size': NUM_TYPES,
  'layer_norm_eps': EPS,
  'hidden_dropout_prob': 0.1,
  'initializer_range': 0.02,
  'tie_word_embeddings': True,
}

# Dropout, a pooler of other shapes, and notes of how a model was trained.
KNOWN = (
  'attention_probs_dropout_prob',
  'classifier_dropout',
  'directionality',
  'pooler_fc_size',
  'pooler_num_attention_heads',
  'pooler_num_fc_layers',
  'pooler_size_per_head',
  'pooler_type',
)


def from_bert(tensors: base.Tensors, depth: int) -> dict[str, Any]:
  """Variables of an encoder `Transformer` with an untied head.

  The module has no sentence types: the embedding of the first type is added to
  the position embedding. The pooler is left out.

  Args:
    tensors: state of a `BertModel`, which has no head, or of a
      `BertForMaskedLM`, whose head's kernel is the word embedding if the file
      has no other.
    depth: number of blocks.

  Returns:
    `{'params': ...}`, float32; without a head those of `num_classes=0`.

  Raises:
    UserError: a tensor is missing; names it.
  """
  tensors = arguments.mapping('tensors', tensors, 'model.state_dict()')
  depth = arguments.whole('depth', depth, 1, base.MOST_BLOCKS)
  tensors = _renamed(tensors)
  head = _has_head(tensors)
  if head and DECODER not in tensors:
    tensors[DECODER] = errors.lookup('tensor', WORDS, tensors)
  return base.to_variables(_table(depth, head, tied=False), tensors)


def _table(depth: int, head: bool, tied: bool) -> list[base.Parameter]:
  """The parameters of an encoder and, with `head`, of its head."""
  table = [
    base.Parameter('tokens/embedding', WORDS),
    base.Parameter('position_embedding', POSITIONS, added=TYPES),
    *base.norm('embeddings_norm', 'embeddings.LayerNorm'),
  ]
  for i in range(depth):
    layer = f'encoder.layer.{i}'
    for ours, theirs in encoders.LINEAR.items():
      table += base.linear(f'block{i}/{ours}', f'{layer}.{theirs}')
    for ours, theirs in encoders.NORMS.items():
      table += base.norm(f'block{i}/{ours}', f'{layer}.{theirs}')
  if head:
    table += base.linear('transform', f'{HEAD}.transform.dense')
    table += base.norm('transform_norm', f'{HEAD}.transform.LayerNorm')
    table.append(base.Parameter('logits_bias', HEAD_BIAS))
  if head and not tied:
    table.append(base.Parameter('logits/kernel', DECODER, transposed=True))
  return table


def _parameters(module: transformer.Transformer) -> list[base.Parameter]:
  """The parameters of a module."""
  return _table(module.depth, bool(module.num_classes), module.tied)


def _renamed(tensors: base.Tensors) -> dict[str, np.ndarray]:
  """The tensors under the names that a `BertModel` of today gives them."""
  renamed = {}
  for name, tensor in tensors.items():
    name = name.removeprefix('bert.')
    # Names of files from before 2019.
    name = name.replace('LayerNorm.gamma', 'LayerNorm.weight')
    name = name.replace('LayerNorm.beta', 'LayerNorm.bias')
    renamed[name] = tensor
  if DECODER_BIAS in renamed:
    renamed[HEAD_BIAS] = renamed.pop(DECODER_BIAS)
  return renamed


def _has_head(tensors: base.Tensors) -> bool:
  """Returns whether the tensors include a masked-language-model head."""
  return any(name.startswith(f'{HEAD}.') for name in tensors)


def _select(
  tensors: base.Tensors, config: base.Config
) -> dict[str, np.ndarray]:
  """The tensors of the encoder and its head; poolers and others are left out.

  A kernel of the head that equals the word embedding is left out too, if the
  config ties them: files from before 2020 hold it twice.
  """
  parts = ('embeddings.', 'encoder.', f'{HEAD}.')
  selected = {
    name: tensor
    for name, tensor in _renamed(tensors).items()
    if name.startswith(parts) and name not in BUFFERS
  }
  _warn_left_out(_renamed(tensors), parts)
  if config['tie_word_embeddings'] and base.equal(selected, DECODER, WORDS):
    del selected[DECODER]
  return selected


def _warn_left_out(tensors: base.Tensors, parts: tuple[str, ...]) -> None:
  """Warns of tensors that decide a model's output and are left out."""
  left = [n for n in tensors if not n.startswith((*parts, *UNUSED))]
  if left:
    logging.warning(
      'These tensors belong to no encoder or masked language model, and are '
      'left out: %s.',
      ', '.join(left[:4]) + (', ...' if len(left) > 4 else ''),
    )
  types = tensors.get(TYPES)
  types = None if types is None else np.asarray(types)
  if types is not None and types.ndim == 2 and (types != types[:1]).any():
    logging.warning(
      'The embeddings of sentence types differ, and all tokens are read as '
      'type 0: pairs of sentences give other outputs than in transformers.'
    )


def _module(
  config: base.Config, tensors: base.Tensors
) -> transformer.Transformer:
  """The encoder that a config and the selected tensors describe."""
  head = _has_head(tensors)
  return transformer.Transformer(
    **{ours: config[theirs] for ours, theirs in SIZES.items()},
    num_classes=config['vocab_size'] if head else 0,
    causal=False,
    tied=head and config['tie_word_embeddings'] and DECODER not in tensors,
    init_std=config['initializer_range'],
    dropout=config['hidden_dropout_prob'],
    norm_eps=config['layer_norm_eps'],
  )


def _constants(config: base.Config) -> dict[str, np.ndarray]:
  """The table of sentence types, which the module does not have."""
  shape = config['type_vocab_size'], config['hidden_size']
  return {TYPES: np.zeros(shape, np.float32)}


def _refusal(module: transformer.Transformer) -> str:
  """The reason why BERT's layout cannot hold a module; '' if it can."""
  if module.causal:
    return 'causal=True is a decoder.'
  if module.num_classes not in (0, module.vocab_size):
    return (
      f'num_classes={module.num_classes} is not a head of BERT: it must be '
      f'vocab_size={module.vocab_size}, or 0 with the head left out.'
    )
  return encoders.unwritten(module)


def _config(module: transformer.Transformer) -> base.Config:
  """The `config.json` of a module."""
  head = bool(module.num_classes)
  sizes = {theirs: getattr(module, ours) for ours, theirs in SIZES.items()}
  return {
    'architectures': ['BertForMaskedLM' if head else 'BertModel'],
    'model_type': 'bert',
    **sizes,
    'intermediate_size': module.mlp_width or 4 * module.width,
    'type_vocab_size': NUM_TYPES,
    **FIXED,
    'layer_norm_eps': module.norm_eps or EPS,
    'hidden_dropout_prob': module.dropout,
    'attention_probs_dropout_prob': 0.0,
    'initializer_range': module.init_std,
    'tie_word_embeddings': module.tied or not head,
    'pad_token_id': None,
  }


def _complete(
  tensors: Mapping[str, np.ndarray], module: transformer.Transformer
) -> dict[str, np.ndarray]:
  """The tensors of a `BertForMaskedLM` or, without a head, of a `BertModel`.

  The latter has a pooler, which the module does not have: it is zeros.
  """
  if not module.num_classes:
    width = module.width
    return {
      **tensors,
      'pooler.dense.weight': np.zeros((width, width), np.float32),
      'pooler.dense.bias': np.zeros(width, np.float32),
    }
  named = {
    name if name.startswith(HEAD) else f'bert.{name}': tensor
    for name, tensor in tensors.items()
  }
  if not module.tied:
    named[DECODER_BIAS] = named[HEAD_BIAS]
  return named


base.register(
  base.Family(
    model_type='bert',
    module_type=transformer.Transformer,
    sizes=SIZES,
    fixed=FIXED,
    defaults=DEFAULTS,
    select=_select,
    module=_module,
    parameters=_parameters,
    constants=_constants,
    refusal=_refusal,
    config=_config,
    complete=_complete,
    known=KNOWN,
  )
)
