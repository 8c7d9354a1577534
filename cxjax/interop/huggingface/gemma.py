"""Gemma 2 and the text models of Gemma 3: windows in some of the blocks.

Embeddings are scaled, norms multiply by `1 + scale`, and what attention and MLP
add is normalized. Gemma 2 caps scores and logits; Gemma 3 normalizes queries
and keys, and has other frequencies in blocks with a window.
"""

from typing import Any

from cxjax import errors
from cxjax.interop.huggingface import base
from cxjax.interop.huggingface import decoders
from cxjax.interop.huggingface import rope
from cxjax.models import decoder

WINDOW = 4096
OPTIONAL: dict[str, tuple[type, Any]] = {
  'hidden_activation': (str, 'gelu_pytorch_tanh'),
  'attention_bias': (bool, False),
  'query_pre_attn_scalar': (base.Positive, 256.0),
  'sliding_window': (int, WINDOW),
  'layer_types': (list, None),
  'final_logit_softcapping': (base.Positive, None),
  'num_key_value_heads': (int, 4),
  'head_dim': (int, 256),
  'tie_word_embeddings': (bool, True),
}
# Not read by transformers either: `hidden_activation` counts.
KNOWN = ('hidden_act',)
NORMS = {
  'attention_norm': 'input_layernorm',
  'attention_post_norm': 'post_attention_layernorm',
  'mlp_norm': 'pre_feedforward_layernorm',
  'mlp_post_norm': 'post_feedforward_layernorm',
  **decoders.QK_NORMS,
}


def _fields(config: base.Config) -> dict[str, Any]:
  bias = bool(config['attention_bias'])
  return {
    'norm': 'rms_offset',
    'post_norms': True,
    'scaled_embeddings': True,
    'qkv_bias': bias,
    'out_bias': bias,
    'scale_width': float(config['query_pre_attn_scalar'] or 0),
    'logit_cap': float(config['final_logit_softcapping'] or 0),
  }


def _config(module: decoder.Decoder) -> base.Config:
  found = decoders.write_windows(module)
  # transformers wants a number, even if no block has a window.
  found['sliding_window'] = found['sliding_window'] or WINDOW
  return {
    **found,
    'attention_bias': module.out_bias,
    'query_pre_attn_scalar': _plain(module.scale_width or module.head_size),
    'final_logit_softcapping': module.logit_cap or None,
  }


def _plain(scale_width: float) -> int:
  """A whole number as an int; raises UserError for others."""
  errors.require(
    float(scale_width).is_integer(),
    f'scale_width={scale_width!r} is not written; query_pre_attn_scalar is a '
    'whole number.',
  )
  return int(scale_width)


def _gemma2(config: base.Config) -> dict[str, Any]:
  windows = decoders.read_windows(config, lambda i: i % 2 == 0)
  cap = float(config['attn_logit_softcapping'] or 0)
  return {**_fields(config), 'windows': windows, 'score_cap': cap}


def _gemma3(config: base.Config) -> dict[str, Any]:
  pattern = config['sliding_window_pattern'] or 6
  windows = decoders.read_windows(config, lambda i: (i + 1) % pattern > 0)
  thetas = {
    'full_attention': config['rope_theta'],
    'sliding_attention': config['rope_local_base_freq'],
  }
  found = rope.read_pair(config, thetas, ('full_attention',))
  return {
    **_fields(config),
    'windows': windows,
    'qk_norm': True,
    'rotary': found['full_attention'],
    'local_rotary': found['sliding_attention'],
  }


def _gemma3_config(module: decoder.Decoder) -> base.Config:
  local = module.local_rotary or module.rotary
  return {
    **_config(module),
    'rope_local_base_freq': local.theta,
    **rope.write_pair(module.rotary, local, local.scaling == 'none'),
  }


decoders.register(
  decoders.Spec(
    model_type='gemma2',
    prefix='Gemma2',
    optional={
      **OPTIONAL,
      'attn_logit_softcapping': (base.Positive, 50.0),
      'final_logit_softcapping': (base.Positive, 30.0),
      'max_position_embeddings': (int, 8192),
    },
    known=KNOWN,
    activation='hidden_activation',
    norms=NORMS,
    fields=_gemma2,
    config=lambda module: {
      **_config(module),
      'attn_logit_softcapping': module.score_cap or None,
    },
  )
)
decoders.register(
  decoders.Spec(
    model_type='gemma3_text',
    prefix='Gemma3',
    bare='TextModel',
    optional={
      **OPTIONAL,
      'sliding_window_pattern': (int, None),
      'rope_theta': (base.Positive, 1e6),
      'rope_local_base_freq': (base.Positive, 1e4),
      'max_position_embeddings': (int, 131_072),
    },
    known=(*KNOWN, '_sliding_window_pattern'),
    activation='hidden_activation',
    norms=NORMS,
    fields=_gemma3,
    config=_gemma3_config,
  )
)
