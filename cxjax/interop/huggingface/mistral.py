"""Mistral: Llama with a sliding window in every block."""

from typing import Any

from cxjax.interop.huggingface import base
from cxjax.interop.huggingface import decoders
from cxjax.models import decoder


def _fields(config: base.Config) -> dict[str, Any]:
  window = config['sliding_window'] or 0
  return {'windows': (window,) * config['num_hidden_layers']}


def _config(module: decoder.Decoder) -> base.Config:
  return {'sliding_window': max(module.block_windows) or None}


decoders.register(
  decoders.Spec(
    model_type='mistral',
    prefix='Mistral',
    divides=False,
    optional={
      'sliding_window': (int, 4096),
      'num_key_value_heads': (int, 8),
      'max_position_embeddings': (int, 131_072),
    },
    fields=_fields,
    config=_config,
  )
)
