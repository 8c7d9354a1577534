"""Decoders of tunix and recurrentgemma, if these are installed."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

from flax import nnx
import jax
import numpy as np

import cxjax
from cxjax.models import optional
from experiments.real_models import base
from experiments.real_models import flax_linen


def of_tunix(library: str, kind: str, pattern: str, **more: Any) -> base.Case:
  """A decoder of tunix: positions, a cache and a mask are its arguments.

  Args:
    library: name of its module.
    kind: name of its class.
    pattern: pattern of its layers.
    **more: fields of its config.
  """
  name = f'tunix.models.{library}.model'
  model = optional.imported(name, 'google-tunix', 'tunix')
  known = {field.name for field in dataclasses.fields(model.ModelConfig)}

  def make(depth: int, width: int) -> Any:
    fields = dict(
      num_layers=depth,
      vocab_size=base.VOCABULARY,
      num_embed=base.VOCABULARY,
      embed_dim=width,
      hidden_dim=2 * width,
      num_heads=2,
      head_dim=4,
      num_kv_heads=1,
      rope_theta=10_000,
      norm_eps=1e-6,
      sliding_window_size=4,
      **more,
    )
    own = {name: value for name, value in fields.items() if name in known}
    return getattr(model, kind)(model.ModelConfig(**own), rngs=nnx.Rngs(0))

  x = {
    'ids': base.tokens(base.BATCH, base.LENGTH),
    'at': np.tile(np.arange(base.LENGTH), (base.BATCH, 1)),
    'seen': np.tile(np.tri(base.LENGTH, dtype=bool), (base.BATCH, 1, 1)),
  }
  call = lambda module, x: module(x['ids'], x['at'], None, x['seen'])[0]
  with jax.set_mesh(jax.make_mesh((1, 1), ('fsdp', 'tp'))):
    teacher, student = (
      cxjax.from_nnx(make(depth, width), call=call)
      for depth, width in ((4, 16), (2, 8))
    )
  return base.Case(teacher, student, {'x': x}, base.pairs(pattern, pattern))


def griffin() -> base.Case:
  """Griffin of recurrentgemma: recurrent blocks and an attention block."""
  name = 'recurrentgemma'
  common = optional.imported(f'{name}.common', name, 'Griffin')
  jax_part = optional.imported(f'{name}.jax.griffin', name, 'Griffin')
  recurrent, attention = (
    common.TemporalBlockType.RECURRENT,
    common.TemporalBlockType.ATTENTION,
  )

  def make(blocks: tuple[Any, ...], width: int) -> Any:
    config = common.GriffinConfig(
      vocab_size=base.VOCABULARY,
      width=width,
      mlp_expanded_width=2 * width,
      num_heads=2,
      block_types=blocks,
      embeddings_scale_by_sqrt_dim=True,
      attention_window_size=4,
      logits_soft_cap=30.0,
      scan_type=common.ScanType.LINEAR_NATIVE,
    )
    return jax_part.Griffin(config, gradient_checkpointing=False)

  x = {
    'tokens': base.tokens(base.BATCH, base.LENGTH),
    'segment_pos': np.tile(np.arange(base.LENGTH), (base.BATCH, 1)),
  }
  first = lambda output: output[0]
  teacher, student = (
    flax_linen.adapt(make(blocks, width), x, output=first)
    for blocks, width in (
      ((recurrent, attention, recurrent, attention), 16),
      ((recurrent, attention), 8),
    )
  )
  return base.Case(teacher, student, x, base.pairs('blocks.*', 'blocks.*'))


def _tunix(*args: str, **more: Any) -> Callable[[], base.Case]:
  return functools.partial(of_tunix, *args, **more)


CASES: base.Cases = {
  'tunix Qwen3': _tunix('qwen3', 'Qwen3', 'layers/*/1'),
  'tunix Qwen3, mixture of experts': _tunix(
    'qwen3', 'Qwen3', 'layers/*/1', num_experts=4, num_experts_per_tok=2
  ),
  'tunix Llama 3': _tunix('llama3', 'Llama3', 'layers/*/1'),
  'tunix Gemma 3': _tunix('gemma3', 'Gemma3', 'layers/*/1'),
  'recurrentgemma Griffin': griffin,
}
