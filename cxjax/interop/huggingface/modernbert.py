"""ModernBERT: an encoder of the blocks of a decoder, with layer norms.

One block in three sees the whole text, the others a window.
"""

import dataclasses
from typing import Any

from cxjax.interop.huggingface import base
from cxjax.interop.huggingface import decoders
from cxjax.interop.huggingface import rope
from cxjax.models import decoder

MODEL_TYPE = 'modernbert'
CLASSES = ('ModernBertForMaskedLM', 'ModernBertModel')
TRUNK = 'model.'
KERNEL = 'decoder.weight'
HEAD = ('head.', 'decoder.')
FIXED = {
  'norm_bias': False,
  'decoder_bias': True,
  'classifier_bias': False,
  'classifier_activation': 'gelu',
  'hidden_activation': 'gelu',
}
OPTIONAL: dict[str, tuple[type, Any]] = {
  **rope.OPTIONAL,
  'global_rope_theta': (base.Positive, 160_000.0),
  'local_rope_theta': (base.Positive, 10_000.0),
  'max_position_embeddings': (int, 8192),
  'norm_eps': (base.Positive, 1e-5),
  'initializer_range': (base.Positive, 0.02),
  'tie_word_embeddings': (bool, True),
  'attention_bias': (bool, False),
  'mlp_bias': (bool, False),
  'mlp_dropout': (float, 0.0),
  'local_attention': (int, 128),
  'layer_types': (list, None),
  'global_attn_every_n_layers': (int, 3),
}
# Training, other tasks, how attention is computed, and names of norms and
# positions that transformers does not read.
KNOWN = (
  'classifier_dropout',
  'classifier_pooling',
  'cls_token_id',
  'deterministic_flash_attn',
  'embedding_dropout',
  'gradient_checkpointing',
  'initializer_cutoff_factor',
  'layer_norm_eps',
  'position_embedding_type',
  'reference_compile',
  'repad_logits_with_grad',
  'sep_token_id',
  'sparse_pred_ignore_index',
  'sparse_prediction',
)


def _select(tensors: base.Tensors, config: base.Config) -> base.Tensors:
  """The tensors of an encoder; with a head, all but its begin with `TRUNK`."""
  named = config.get('architectures')
  bare = not any(name.startswith(HEAD) for name in tensors)
  bare = bare or bool(named and named[0] == CLASSES[1])
  trunk = '' if bare else TRUNK
  selected = {}
  for name, tensor in tensors.items():
    if not name.startswith(HEAD):
      selected[trunk + name.removeprefix(TRUNK)] = tensor
    elif not bare:
      selected[name] = tensor
  words = f'{trunk}embeddings.tok_embeddings.weight'
  if config['tie_word_embeddings']:
    base.drop_copy(selected, KERNEL, words)
  return selected


def _module(config: base.Config, tensors: base.Tensors) -> decoder.Decoder:
  """The encoder that a config and the selected tensors describe."""
  head = any(name.startswith(HEAD) for name in tensors)
  every = config['global_attn_every_n_layers'] or 3
  # transformers counts the tokens on one side, without the token itself.
  window = (config['local_attention'] or 0) // 2 + 1
  windows = decoders.read_windows(
    {**config, 'sliding_window': window}, lambda i: i % every > 0
  )
  thetas = {
    'full_attention': config['global_rope_theta'],
    'sliding_attention': config['local_rope_theta'],
  }
  found = rope.read_pair(config, thetas, tuple(thetas))
  bias = bool(config['attention_bias'])
  return decoder.Decoder(
    **{ours: config[theirs] for ours, theirs in decoders.SIZES.items()},
    max_length=config['max_position_embeddings'],
    num_classes=config['vocab_size'] if head else 0,
    kv_heads=config['num_attention_heads'],
    activation='gelu',
    norm='layer',
    norm_eps=config['norm_eps'],
    rotary=found['full_attention'],
    local_rotary=found['sliding_attention'],
    windows=windows,
    tied=head and bool(config['tie_word_embeddings']) and KERNEL not in tensors,
    causal=False,
    embeddings_norm=True,
    qkv_bias=bias,
    out_bias=bias,
    mlp_bias=bool(config['mlp_bias']),
    init_std=config['initializer_range'] or 0.02,
    dropout=config['mlp_dropout'] or 0.0,
  )


def _table(module: decoder.Decoder) -> list[base.Parameter]:
  """The parameters of an encoder and, if it has one, of its head."""
  trunk = TRUNK if module.num_classes else ''
  embeddings = f'{trunk}embeddings'
  rows = [
    base.Parameter('tokens/embedding', f'{embeddings}.tok_embeddings.weight'),
    base.Parameter('embeddings_norm/scale', f'{embeddings}.norm.weight'),
    base.Parameter('final_norm/scale', f'{trunk}final_norm.weight'),
  ]
  for i in range(module.depth):
    rows += _block(module, f'block{i}', f'{trunk}layers.{i}', norm=i > 0)
  if module.num_classes:
    rows += [
      base.Parameter('transform/kernel', 'head.dense.weight', transposed=True),
      base.Parameter('transform_norm/scale', 'head.norm.weight'),
      base.Parameter('logits_bias', 'decoder.bias'),
    ]
  if module.num_classes and not module.tied:
    rows.append(base.Parameter('logits/kernel', KERNEL, transposed=True))
  return rows


def _block(
  module: decoder.Decoder, path: str, layer: str, norm: bool
) -> list[base.Parameter]:
  """The parameters of a block; the first has no norm before its attention."""
  rows = [base.Parameter(f'{path}/mlp_norm/scale', f'{layer}.mlp_norm.weight')]
  if norm:
    name = f'{layer}.attn_norm.weight'
    rows.append(base.Parameter(f'{path}/attention_norm/scale', name))
  products = {
    'attn.Wqkv': (('query', 'key', 'value'), module.qkv_bias),
    'attn.Wo': (('attention_out',), module.out_bias),
    'mlp.Wi': (('mlp_gate', 'mlp_in'), module.mlp_bias),
    'mlp.Wo': (('mlp_out',), module.mlp_bias),
  }
  for theirs, (names, biased) in products.items():
    for i, ours in enumerate(names):
      part = i, len(names)
      rows.append(
        base.Parameter(
          f'{path}/{ours}/kernel',
          f'{layer}.{theirs}.weight',
          transposed=True,
          part=part,
        )
      )
      if biased:
        bias = f'{layer}.{theirs}.bias'
        rows.append(base.Parameter(f'{path}/{ours}/bias', bias, part=part))
  return rows


def _config(module: decoder.Decoder) -> base.Config:
  """The `config.json` of a module."""
  found = decoders.write_windows(module)
  window = found.pop('sliding_window') or 1
  local = module.local_rotary or module.rotary
  return {
    'architectures': [CLASSES[0 if module.num_classes else 1]],
    'model_type': MODEL_TYPE,
    **{v: getattr(module, k) for k, v in decoders.SIZES.items()},
    **FIXED,
    **found,
    'local_attention': max(2 * (window - 1), 1),
    'global_rope_theta': module.rotary.theta,
    'local_rope_theta': local.theta,
    **rope.write_pair(
      module.rotary,
      local,
      dataclasses.replace(local, theta=module.rotary.theta) == module.rotary,
    ),
    'max_position_embeddings': module.max_length,
    'norm_eps': module.norm_eps,
    'initializer_range': module.init_std,
    'tie_word_embeddings': module.tied or not module.num_classes,
    'attention_bias': module.out_bias,
    'mlp_bias': module.mlp_bias,
    'mlp_dropout': module.dropout,
    'bos_token_id': None,
    'eos_token_id': None,
    'pad_token_id': None,
    'cls_token_id': None,
    'sep_token_id': None,
  }


base.register(
  base.Family(
    model_type=MODEL_TYPE,
    module_type=decoder.Decoder,
    sizes=decoders.SIZES,
    fixed={**FIXED, 'is_causal': False, 'sliding_window': None},
    defaults={},
    select=_select,
    module=_module,
    parameters=_table,
    constants=lambda config: {},
    refusal=lambda module: decoders.refusal(MODEL_TYPE, module, _table(module)),
    config=_config,
    complete=lambda tensors, module: tensors,
    optional=OPTIONAL,
    known=KNOWN,
    architectures=CLASSES,
  )
)
