"""Parameters in the layout of Hugging Face's BERT and GPT-2.

Arrays by name, as a safetensors file or `{name: tensor.numpy()}` gives them.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

from flax import traverse_util
import numpy as np

from cxjax import errors

Tensors = Mapping[str, np.ndarray]

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


def from_bert(tensors: Tensors, depth: int) -> dict[str, Any]:
  """Variables of an encoder `Transformer` with an untied head.

  The embedding of the first sentence type is added to the positions: the model
  here has no types.

  Args:
    tensors: of a `BertForMaskedLM`.
    depth: number of blocks.

  Returns:
    `{'params': ...}`.

  Raises:
    UserError: a tensor that is missing.
  """
  embeddings = 'bert.embeddings'
  types = _get(tensors, f'{embeddings}.token_type_embeddings.weight')
  places = _get(tensors, f'{embeddings}.position_embeddings.weight')
  head = 'cls.predictions'
  flat = {
    'tokens/embedding': _get(tensors, f'{embeddings}.word_embeddings.weight'),
    'positions': places + types[:1],
    'logits_bias': _get(tensors, f'{head}.bias'),
  }
  pairs = {
    'embeddings_norm': f'{embeddings}.LayerNorm',
    'transform': f'{head}.transform.dense',
    'transform_norm': f'{head}.transform.LayerNorm',
    'logits': f'{head}.decoder',
  }
  for i in range(depth):
    for ours, theirs in _BERT_BLOCK.items():
      pairs[f'block{i}/{ours}'] = f'bert.encoder.layer.{i}.{theirs}'
  for ours, theirs in pairs.items():
    flat.update(_layer(tensors, ours, theirs, transposed=True))
  del flat['logits/bias']
  return _nested(flat)


def from_gpt2(tensors: Tensors, depth: int) -> dict[str, Any]:
  """Variables of a decoder `Transformer` with an untied head.

  Args:
    tensors: of a `GPT2LMHeadModel`.
    depth: number of blocks.

  Returns:
    `{'params': ...}`.

  Raises:
    UserError: a tensor that is missing.
  """
  flat = {
    'tokens/embedding': _get(tensors, 'transformer.wte.weight'),
    'positions': _get(tensors, 'transformer.wpe.weight'),
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


def _get(tensors: Tensors, name: str) -> np.ndarray:
  return errors.lookup('tensor', name, tensors)


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
