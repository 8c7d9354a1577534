"""Encoders with learned positions: what the families after BERT have in common.

A family is a `Spec`: the names of its config's fields, and of its tensors.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from cxjax import errors
from cxjax.interop.huggingface import base
from cxjax.models import transformer

WORDS = 'embeddings.word_embeddings.weight'
POSITIONS = 'embeddings.position_embeddings.weight'
TYPES = 'embeddings.token_type_embeddings.weight'
# The module has no sentence types: they are added to the positions. A table of
# two equal rows reads a pair of sentences as one.
NUM_TYPES = 2
EPS = 1e-12
LINEAR = {
  'query': 'attention.self.query',
  'key': 'attention.self.key',
  'value': 'attention.self.value',
  'attention_out': 'attention.output.dense',
  'mlp_in': 'intermediate.dense',
  'mlp_out': 'output.dense',
}
NORMS = {
  'attention_norm': 'attention.output.LayerNorm',
  'mlp_norm': 'output.LayerNorm',
}
# In some files, but no parameters: a count from 0, and zeros.
BUFFERS = ('embeddings.position_ids', 'embeddings.token_type_ids')
LEFT_OUT = (*BUFFERS, 'pooler.dense.weight', 'pooler.dense.bias')
ATTENTION_DROPOUT = 'attention_probs_dropout_prob'
# Fields of the config of BERT and of the families that keep its names.
FIELDS = {
  'vocab_size': 'vocab_size',
  'max_length': 'max_position_embeddings',
  'width': 'hidden_size',
  'heads': 'num_attention_heads',
  'depth': 'num_hidden_layers',
  'mlp_width': 'intermediate_size',
  'dropout': 'hidden_dropout_prob',
  'norm_eps': 'layer_norm_eps',
}
FIXED = {
  'hidden_act': 'gelu',
  'position_embedding_type': 'absolute',
  'is_decoder': False,
}


@dataclasses.dataclass(frozen=True)
class Names:
  """Names of the tensors of an encoder.

  Attributes:
    trunk: begin of the names of all but the head's, in a file with a head.
    layer: name of the list of blocks.
    linear: dense layers of a block, by the module's names.
    norms: norms of a block, by the module's names.
    transform: dense layer of the head.
    transform_norm: norm of the head.
    bias: bias of the head.
    kernel: kernel of the head.
    copied_bias: a second name of the bias; '' if there is none. In a file of an
      untied head it alone counts.
    types: whether there are sentence types.
    relative: biases of relative positions; '' if there are none.
    pooler: whether a model without a head has a pooler.
  """

  trunk: str = ''
  layer: str = 'encoder.layer'
  linear: Mapping[str, str] = dataclasses.field(default_factory=LINEAR.copy)
  norms: Mapping[str, str] = dataclasses.field(default_factory=NORMS.copy)
  transform: str = 'lm_head.dense'
  transform_norm: str = 'lm_head.layer_norm'
  bias: str = 'lm_head.bias'
  kernel: str = 'lm_head.decoder.weight'
  copied_bias: str = 'lm_head.decoder.bias'
  types: bool = True
  relative: str = ''
  pooler: bool = True

  @property
  def head(self) -> tuple[str, ...]:
    """Begins of the names of the head's tensors."""
    names = self.transform, self.transform_norm, self.bias, self.kernel
    return (*names, self.copied_bias) if self.copied_bias else names


@dataclasses.dataclass(frozen=True)
class Spec:
  """A family of encoders.

  Attributes:
    model_type: `model_type` of its `config.json`.
    prefix: begin of its classes' names, as in 'Roberta'.
    names: names of its tensors.
    fields: names of the fields of its config by those of the module: the
      sizes, 'dropout' and, unless it is always 1e-12, 'norm_eps'.
    fixed: only supported values of fields.
    known: further fields, which change no output.
    counts_padding: whether padding takes positions, as in BERT; otherwise
      positions begin after the id of the padding token.
    padding: id of the padding token if the file has none.
    fixed_padding: whether positions begin after `padding`, whatever the file
      says.
    buckets: number of buckets of relative positions.
    asked: whether a module is written as this family only if it is asked for.
    clean: `tensors -> tensors` that are read, under their names of today.
    any_class: whether models of other classes are read too, without their own
      heads, and the tensors alone say whether there is one.
  """

  model_type: str
  prefix: str
  names: Names
  fields: Mapping[str, str]
  fixed: Mapping[str, Any]
  known: Sequence[str]
  counts_padding: bool = False
  padding: int = 1
  fixed_padding: bool = False
  buckets: int = 0
  asked: bool = False
  clean: Callable[[base.Tensors], base.Tensors] = dict
  any_class: bool = False

  @property
  def sizes(self) -> dict[str, str]:
    """Names of the required sizes."""
    rates = ('dropout', 'norm_eps')
    return {k: v for k, v in self.fields.items() if k not in rates}


def register(spec: Spec) -> None:
  """Adds a family of encoders."""
  optional: dict[str, tuple[type, Any]] = {
    spec.fields['dropout']: (float, 0.1),
    'initializer_range': (base.Positive, 0.02),
    'tie_word_embeddings': (bool, True),
  }
  if 'norm_eps' in spec.fields:
    optional[spec.fields['norm_eps']] = (base.Positive, EPS)
  classes = f'{spec.prefix}ForMaskedLM', f'{spec.prefix}Model'
  base.register(
    base.Family(
      model_type=spec.model_type,
      module_type=transformer.Transformer,
      sizes=spec.sizes,
      fixed={**spec.fixed, 'is_causal': False},
      # Compared with the tensors before memory is taken for it.
      defaults={'type_vocab_size': NUM_TYPES} if spec.names.types else {},
      select=lambda tensors, config: select(spec, spec.clean(tensors), config),
      module=lambda config, tensors: _module(spec, config, tensors),
      parameters=lambda module: table(spec.names, module),
      constants=lambda config: _constants(spec.names, config),
      refusal=lambda module: _refusal(spec, module),
      config=lambda module: _config(spec, module),
      complete=lambda tensors, module: _complete(spec.names, tensors, module),
      optional=optional,
      known=('classifier_dropout', *spec.known),
      architectures=() if spec.any_class else classes,
      asked=spec.asked,
    )
  )


def table(
  names: Names, module: transformer.Transformer
) -> list[base.Parameter]:
  """The parameters of an encoder and, if it has one, of its head."""
  head, dropped = bool(module.num_classes), max(module.pad_token, 0)
  return rows(names, module.depth, head, module.tied, dropped)


def rows(
  names: Names, depth: int, head: bool, tied: bool = False, dropped: int = 0
) -> list[base.Parameter]:
  """The parameters of an encoder.

  Args:
    names: names of the tensors.
    depth: number of blocks.
    head: whether there is a head.
    tied: whether the kernel of the head is the token embedding.
    dropped: number of first positions that the module lacks.

  Returns:
    A row for each parameter.
  """
  trunk = names.trunk if head else ''
  found = [
    base.Parameter('tokens/embedding', trunk + WORDS),
    base.Parameter(
      'position_embedding',
      trunk + POSITIONS,
      added=TYPES if names.types else '',
      dropped=dropped,
    ),
    *base.norm('embeddings_norm', f'{trunk}embeddings.LayerNorm'),
  ]
  if names.relative:
    found.append(base.Parameter('relative_bias', trunk + names.relative))
  for i in range(depth):
    layer = f'{trunk}{names.layer}.{i}'
    for ours, theirs in names.linear.items():
      found += base.linear(f'block{i}/{ours}', f'{layer}.{theirs}')
    for ours, theirs in names.norms.items():
      found += base.norm(f'block{i}/{ours}', f'{layer}.{theirs}')
  if head:
    found += base.linear('transform', names.transform)
    found += base.norm('transform_norm', names.transform_norm)
    found.append(base.Parameter('logits_bias', names.bias))
  if head and not tied:
    found.append(base.Parameter('logits/kernel', names.kernel, transposed=True))
  return found


def select(
  spec: Spec, tensors: base.Tensors, config: base.Config
) -> dict[str, Any]:
  """The tensors of an encoder; with a head, most begin with the trunk's name.

  Poolers and buffers are left out, and so is a kernel of the head that equals
  the word embedding, if the config ties them.
  """
  names, named = spec.names, config.get('architectures')
  # A sentence encoder may name the class with a head that it came from.
  bare = not has_head(names, tensors)
  if named and not spec.any_class:
    bare = bare or named[0].endswith('Model')
  trunk = '' if bare else names.trunk
  selected = {}
  for name, tensor in tensors.items():
    inner = name.removeprefix(names.trunk)
    if inner.endswith(LEFT_OUT):
      continue
    if not inner.startswith(names.head):
      selected[inner if inner == TYPES else trunk + inner] = tensor
    elif not bare:
      selected[inner] = tensor
  if names.copied_bias in selected:
    selected[names.bias] = selected.pop(names.copied_bias)
  if config.get('tie_word_embeddings'):
    base.drop_copy(selected, names.kernel, trunk + WORDS)
  return selected


def has_head(names: Names, tensors: base.Tensors) -> bool:
  """Returns whether the tensors include those of a head."""
  return any(name.startswith(names.head) for name in tensors)


def _module(
  spec: Spec, config: base.Config, tensors: base.Tensors
) -> transformer.Transformer:
  """The encoder that a config and the selected tensors describe."""
  head = has_head(spec.names, tensors)
  fields = {ours: config[theirs] for ours, theirs in spec.sizes.items()}
  pad = -1
  if not spec.counts_padding:
    pad = spec.padding
    if not spec.fixed_padding:
      pad = config.get('pad_token_id', pad)
    errors.require(
      type(pad) is int and 0 <= pad < fields['max_length'] - 1,
      f'config.json has pad_token_id={pad!r}; positions begin after it, so it '
      'must be a whole number, and below max_position_embeddings - 1. Restore '
      'the file.',
    )
    fields['max_length'] -= pad + 1
  eps = config[spec.fields['norm_eps']] if 'norm_eps' in spec.fields else EPS
  kernel = spec.names.kernel in tensors
  return transformer.Transformer(
    **fields,
    num_classes=config['vocab_size'] if head else 0,
    causal=False,
    tied=head and bool(config['tie_word_embeddings']) and not kernel,
    init_std=config['initializer_range'] or 0.02,
    dropout=config[spec.fields['dropout']] or 0.0,
    norm_eps=eps or EPS,
    pad_token=pad,
    relative_buckets=spec.buckets,
  )


def _constants(names: Names, config: base.Config) -> dict[str, np.ndarray]:
  """The table of sentence types, which the module does not have."""
  if not names.types:
    return {}
  shape = config['type_vocab_size'], config['hidden_size']
  return {TYPES: np.zeros(shape, np.float32)}


def unwritten(
  module: transformer.Transformer, offset: bool = False, buckets: int = 0
) -> str:
  """The reason why positions are not as in a family; '' if they are.

  Args:
    module: the module.
    offset: whether positions begin after the padding.
    buckets: number of buckets of relative positions.

  Returns:
    The reason.
  """
  if (module.pad_token >= 0) != offset:
    return f'pad_token={module.pad_token} is not written.'
  if module.relative_buckets != buckets:
    return f'relative_buckets={module.relative_buckets} are not written.'
  return ''


def _refusal(spec: Spec, module: transformer.Transformer) -> str:
  """The reason why a family cannot hold a module; '' if it can."""
  if module.causal:
    return 'causal=True is a decoder.'
  reason = base.head_refusal(module)
  reason = reason or unwritten(module, not spec.counts_padding, spec.buckets)
  if reason:
    return reason
  if spec.fixed_padding and module.pad_token != spec.padding:
    return (
      f'pad_token={module.pad_token} is not written; it is always '
      f'{spec.padding}.'
    )
  if 'norm_eps' not in spec.fields and module.norm_eps not in (0, EPS):
    return f'norm_eps={module.norm_eps} is not written; it is always {EPS}.'
  return ''


def _config(spec: Spec, module: transformer.Transformer) -> base.Config:
  """The `config.json` of a module."""
  head = bool(module.num_classes)
  sizes = {v: getattr(module, k) for k, v in spec.sizes.items()}
  config = {
    'architectures': [f'{spec.prefix}{"ForMaskedLM" if head else "Model"}'],
    'model_type': spec.model_type,
    **sizes,
    **spec.fixed,
    spec.fields['mlp_width']: module.mlp_width or 4 * module.width,
    spec.fields['dropout']: module.dropout,
    'initializer_range': module.init_std,
    'tie_word_embeddings': module.tied or not head,
    'pad_token_id': None,
  }
  if spec.names.types:
    config['type_vocab_size'] = NUM_TYPES
  if 'norm_eps' in spec.fields:
    config[spec.fields['norm_eps']] = module.norm_eps or EPS
  if ATTENTION_DROPOUT in spec.known:
    config[ATTENTION_DROPOUT] = 0.0
  if module.pad_token >= 0:
    config['pad_token_id'] = module.pad_token
    config[spec.fields['max_length']] += module.pad_token + 1
  return config


def _complete(
  names: Names, tensors: base.Tensors, module: transformer.Transformer
) -> base.Tensors:
  """All tensors that transformers reads; a pooler is zeros."""
  tensors = dict(tensors)
  if module.num_classes and names.types:
    tensors[names.trunk + TYPES] = tensors.pop(TYPES)
  if module.num_classes and not module.tied and names.copied_bias:
    tensors[names.copied_bias] = tensors[names.bias]
  if not module.num_classes and names.pooler:
    width = module.width
    tensors['pooler.dense.weight'] = np.zeros((width, width), np.float32)
    tensors['pooler.dense.bias'] = np.zeros(width, np.float32)
  return tensors
