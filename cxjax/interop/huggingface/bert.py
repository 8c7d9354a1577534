"""BERT: an encoder with learned positions, and its masked-language-model head.

RoBERTa, DistilBERT and other encoders name and shape their tensors otherwise.
"""

from typing import Any

from absl import logging
import numpy as np

from cxjax import arguments
from cxjax import errors
from cxjax.interop.huggingface import base
from cxjax.interop.huggingface import encoders

HEAD = 'cls.predictions'
NAMES = encoders.Names(
  trunk='bert.',
  transform=f'{HEAD}.transform.dense',
  transform_norm=f'{HEAD}.transform.LayerNorm',
  bias=f'{HEAD}.bias',
  kernel=f'{HEAD}.decoder.weight',
  copied_bias=f'{HEAD}.decoder.bias',
)
PARTS = ('embeddings.', 'encoder.', f'{HEAD}.')
# Read by no output of an encoder or a masked language model.
UNUSED = ('pooler.', 'cls.seq_relationship.', *encoders.BUFFERS)


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
  depth = arguments.integer('depth', depth, 1, base.MOST_BLOCKS)
  selected = encoders.select(SPEC, _renamed(tensors), {})
  head = encoders.has_head(NAMES, selected)
  if head and NAMES.kernel not in selected:
    words = NAMES.trunk + encoders.WORDS
    selected[NAMES.kernel] = errors.lookup('tensor', words, selected)
  return base.to_variables(encoders.rows(NAMES, depth, head), selected)


def _renamed(tensors: base.Tensors) -> base.Tensors:
  """The tensors under the names that a `BertModel` of today gives them."""
  renamed = {}
  for name, tensor in tensors.items():
    # Names of files from before 2019.
    name = name.replace('LayerNorm.gamma', 'LayerNorm.weight')
    renamed[name.replace('LayerNorm.beta', 'LayerNorm.bias')] = tensor
  return renamed


def _clean(tensors: base.Tensors) -> base.Tensors:
  """The tensors of the encoder and its head; warns of others."""
  tensors = _renamed(tensors)
  inner = {name: name.removeprefix(NAMES.trunk) for name in tensors}
  left = [n for n in inner.values() if not n.startswith((*PARTS, *UNUSED))]
  if left:
    logging.warning(
      'These tensors belong to no encoder or masked language model, and are '
      'left out: %s.',
      errors.shown(', '.join(left[:4]) + (', ...' if len(left) > 4 else '')),
    )
  kept = {n: t for n, t in tensors.items() if inner[n].startswith(PARTS)}
  _warn_of_types(
    kept.get(NAMES.trunk + encoders.TYPES, kept.get(encoders.TYPES))
  )
  return kept


def _warn_of_types(tensor: Any) -> None:
  """Warns of sentence types that differ, of which the first is read."""
  types = np.asarray(tensor)
  if types.ndim == 2 and (types != types[:1]).any():
    logging.warning(
      'The embeddings of sentence types differ, and all tokens are read as '
      'type 0: pairs of sentences give other outputs than in transformers.'
    )


SPEC = encoders.Spec(
  model_type='bert',
  prefix='Bert',
  names=NAMES,
  fields=encoders.FIELDS,
  fixed=encoders.FIXED,
  # Dropout, a pooler of other shapes, and notes of how a model was trained.
  known=(
    encoders.ATTENTION_DROPOUT,
    'cell',
    'directionality',
    'emb_size',
    'pooler_fc_size',
    'pooler_num_attention_heads',
    'pooler_num_fc_layers',
    'pooler_size_per_head',
    'pooler_type',
    'pre_trained',
    'structure',
    'training',
  ),
  counts_padding=True,
  clean=_clean,
  # A model of another class is read without its head.
  any_class=True,
)
encoders.register(SPEC)
