"""Llama 2 and 3, and models of the same layout, as SmolLM2."""

from typing import Any

from cxjax.interop.huggingface import base
from cxjax.interop.huggingface import decoders
from cxjax.models import decoder


def _fields(config: base.Config) -> dict[str, Any]:
  bias = bool(config['attention_bias'])
  return {
    'qkv_bias': bias,
    'out_bias': bias,
    'mlp_bias': bool(config['mlp_bias']),
  }


def _config(module: decoder.Decoder) -> base.Config:
  return {'attention_bias': module.out_bias, 'mlp_bias': module.mlp_bias}


decoders.register(
  decoders.Spec(
    model_type='llama',
    prefix='Llama',
    optional={'attention_bias': (bool, False), 'mlp_bias': (bool, False)},
    # How a checkpoint of several slices was trained.
    known=('pretraining_tp', 'is_llama_config'),
    fields=_fields,
    config=_config,
  )
)
