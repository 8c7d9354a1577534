"""Qwen2, Qwen2.5 and Qwen3: a window in the upper blocks, if any.

Qwen2 has biases of queries, keys and values; Qwen3 normalizes queries and keys.
"""

from typing import Any

from cxjax import errors
from cxjax.interop.huggingface import base
from cxjax.interop.huggingface import decoders
from cxjax.models import decoder

OPTIONAL: dict[str, tuple[type, Any]] = {
  'use_sliding_window': (bool, False),
  'sliding_window': (int, 4096),
  'max_window_layers': (float, 28),  # 0 is a number of layers too.
  'layer_types': (list, None),
  'num_key_value_heads': (int, 32),
  'max_position_embeddings': (int, 32_768),
}


def _windows(config: base.Config) -> dict[str, Any]:
  """The field `windows` of the module."""
  used = config['use_sliding_window']
  if not used:
    errors.require(
      'sliding_attention' not in (config['layer_types'] or ()),
      f'config.json has use_sliding_window={used!r} and layer_types with '
      'sliding_attention, which transformers does not run either. Set the '
      'first to true, or the others to full_attention.',
    )
    config = {**config, 'sliding_window': None}
  window, below = config['sliding_window'], config['max_window_layers']
  sliding = lambda i: window is not None and i >= (below or 0)
  return {'windows': decoders.read_windows(config, sliding)}


def _window_config(module: decoder.Decoder) -> base.Config:
  found = decoders.write_windows(module)
  return {
    **found,
    'use_sliding_window': found['sliding_window'] is not None,
    'max_window_layers': module.depth,
  }


def _qwen3(config: base.Config) -> dict[str, Any]:
  bias = bool(config['attention_bias'])
  biases = {'qkv_bias': bias, 'out_bias': bias}
  return {**_windows(config), **biases, 'qk_norm': True}


decoders.register(
  decoders.Spec(
    model_type='qwen2',
    prefix='Qwen2',
    divides=False,
    optional=OPTIONAL,
    fields=lambda config: {**_windows(config), 'qkv_bias': True},
    config=_window_config,
  )
)
decoders.register(
  decoders.Spec(
    model_type='qwen3',
    prefix='Qwen3',
    divides=False,
    optional={
      **OPTIONAL,
      'head_dim': (int, 128),
      'attention_bias': (bool, False),
    },
    fields=_qwen3,
    config=lambda module: {
      **_window_config(module),
      'attention_bias': module.out_bias,
    },
  )
)
