"""Decoders of rotary positions: what the families have in common.

A family is a `Spec`: the fields of its config that others do not have, and the
names of its norms.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Any

import numpy as np

from cxjax import errors
from cxjax.interop.huggingface import base
from cxjax.interop.huggingface import config as config_lib
from cxjax.interop.huggingface import rope
from cxjax.models import decoder

SIZES = {
  'vocab_size': 'vocab_size',
  'width': 'hidden_size',
  'heads': 'num_attention_heads',
  'depth': 'num_hidden_layers',
  'mlp_width': 'intermediate_size',
}
OPTIONAL: dict[str, tuple[type, Any]] = {
  **rope.OPTIONAL,
  'num_key_value_heads': (int, None),
  'head_dim': (int, None),
  'max_position_embeddings': (int, 2048),
  'rms_norm_eps': (base.Positive, 1e-6),
  'initializer_range': (base.Positive, 0.02),
  'tie_word_embeddings': (bool, False),
}
ACTIVATIONS = {
  'silu': 'silu',
  'gelu': 'gelu',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'gelu_new': 'gelu_tanh',
}
# Read by the masks of transformers, beside the fields of a family's class.
CAUSAL = {'is_causal': True}
HEAD = 'lm_head.weight'
WORDS = 'embed_tokens.weight'
BUFFERS = 'rotary_emb.inv_freq'
# Dense layers of a block, by their names in a file.
LINEAR = {
  'query': 'self_attn.q_proj',
  'key': 'self_attn.k_proj',
  'value': 'self_attn.v_proj',
  'attention_out': 'self_attn.o_proj',
  'mlp_gate': 'mlp.gate_proj',
  'mlp_in': 'mlp.up_proj',
  'mlp_out': 'mlp.down_proj',
}
NORMS = {
  'attention_norm': 'input_layernorm',
  'mlp_norm': 'post_attention_layernorm',
}
QK_NORMS = {'query_norm': 'self_attn.q_norm', 'key_norm': 'self_attn.k_norm'}
# Fields of a module that no file holds, and their values in comparisons.
UNWRITTEN: dict[str, Any] = {
  'dtype': np.float32,
  'remat': False,
  'dropout': 0.0,
  'init_std': 0.02,
  'family': '',
  'name': None,
}


@dataclasses.dataclass(frozen=True)
class Spec:
  """A family of decoders.

  Attributes:
    model_type: `model_type` of its `config.json`.
    prefix: begin of its classes' names, as in 'Llama'.
    bare: end of the name of the class without a head.
    theta: `rope_theta` if the file has none.
    optional: fields beside the common ones, or with other values; see
      `base.Family`.
    known: further fields, which change no output.
    activation: name of the config's field of the activation.
    divides: whether transformers wants the heads to divide the width, even if
      the width of a head is given.
    norms: names of the norms of a block, by those of the module.
    fields: `config -> fields` of the module beside the common ones.
    config: `module -> config`, the inverse of `fields`.
  """

  model_type: str
  prefix: str
  optional: Mapping[str, tuple[type, Any]]
  fields: Callable[[base.Config], dict[str, Any]]
  config: Callable[[decoder.Decoder], base.Config]
  bare: str = 'Model'
  theta: float = 10_000.0
  known: Sequence[str] = ()
  activation: str = 'hidden_act'
  divides: bool = True
  norms: Mapping[str, str] = dataclasses.field(
    default_factory=lambda: {**NORMS, **QK_NORMS}
  )


def register(spec: Spec) -> None:
  """Adds a family of decoders."""
  base.register(
    base.Family(
      model_type=spec.model_type,
      module_type=decoder.Decoder,
      sizes=SIZES,
      fixed=CAUSAL,
      defaults={},
      select=lambda tensors, config: base.select_decoder(
        tensors, config, ('model.', HEAD, WORDS), BUFFERS
      ),
      module=lambda config, tensors: _module(spec, config, tensors),
      parameters=lambda module: table(module, spec.norms),
      constants=lambda config: {},
      refusal=lambda module: refusal(
        spec.model_type, module, table(module, spec.norms), spec.divides
      ),
      config=lambda module: _config(spec, module),
      complete=lambda tensors, module: tensors,
      optional={**OPTIONAL, spec.activation: (str, 'silu'), **spec.optional},
      known=spec.known,
      architectures=tuple(
        f'{spec.prefix}{end}'
        for end in dict.fromkeys(('ForCausalLM', spec.bare, 'Model'))
      ),
    )
  )


def _module(
  spec: Spec, config: base.Config, tensors: base.Tensors
) -> decoder.Decoder:
  """The decoder that a config and the selected tensors describe."""
  head = any(name.startswith('model.') for name in tensors)
  activation = config_lib.lookup(
    'config.json', spec.activation, config[spec.activation], ACTIVATIONS
  )
  fields = {ours: config[theirs] for ours, theirs in SIZES.items()}
  width, heads = fields['width'], fields['heads']
  fields |= {
    'num_classes': config['vocab_size'] if head else 0,
    'max_length': config['max_position_embeddings'],
    'kv_heads': config['num_key_value_heads'] or heads,
    'head_width': config['head_dim']
    or (0 if width % heads else width // heads),
    'activation': activation,
    'norm_eps': config['rms_norm_eps'],
    'tied': head
    and bool(config['tie_word_embeddings'])
    and HEAD not in tensors,
    'init_std': config['initializer_range'] or UNWRITTEN['init_std'],
  }
  more = spec.fields(config)
  if 'rotary' not in more:
    more['rotary'] = rope.read(config, spec.theta)
  return decoder.Decoder(**{**fields, **more})


def table(
  module: decoder.Decoder, norms: Mapping[str, str]
) -> list[base.Parameter]:
  """The parameters of a decoder; `norms` are the names of a block's norms."""
  prefix = 'model.' if module.num_classes else ''
  rows = [
    base.Parameter('tokens/embedding', prefix + WORDS),
    base.Parameter('final_norm/scale', f'{prefix}norm.weight'),
  ]
  if module.num_classes and not module.tied:
    rows.append(base.Parameter('logits/kernel', HEAD, transposed=True))
  biased = _biased(module)
  scales = ['attention_norm', 'mlp_norm']
  scales += ['attention_post_norm', 'mlp_post_norm'] * module.post_norms
  scales += ['query_norm', 'key_norm'] * module.qk_norm
  for i in range(module.depth):
    layer = f'{prefix}layers.{i}'
    for ours, theirs in LINEAR.items():
      kernel, bias = base.linear(f'block{i}/{ours}', f'{layer}.{theirs}')
      rows += [kernel, bias] if ours in biased else [kernel]
    for name in scales:
      path, tensor = f'block{i}/{name}/scale', norms.get(name, name)
      rows.append(base.Parameter(path, f'{layer}.{tensor}.weight'))
  return rows


def _biased(module: decoder.Decoder) -> set[str]:
  """The dense layers of a block that have a bias."""
  names = ['query', 'key', 'value'] * module.qkv_bias
  names += ['attention_out'] * module.out_bias
  names += ['mlp_gate', 'mlp_in', 'mlp_out'] * module.mlp_bias
  return set(names)


def _config(spec: Spec, module: decoder.Decoder) -> base.Config:
  """The `config.json` of a module."""
  head = bool(module.num_classes)
  activations = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
  return {
    'architectures': [f'{spec.prefix}{"ForCausalLM" if head else spec.bare}'],
    'model_type': spec.model_type,
    **{theirs: getattr(module, ours) for ours, theirs in SIZES.items()},
    'num_key_value_heads': module.kv_heads or module.heads,
    'head_dim': module.head_size,
    'max_position_embeddings': module.max_length,
    'rms_norm_eps': module.norm_eps,
    spec.activation: activations[module.activation],
    'initializer_range': module.init_std,
    'tie_word_embeddings': module.tied,
    'attention_dropout': 0.0,
    'rope_theta': module.rotary.theta,
    'rope_scaling': rope.write(module.rotary),
    'bos_token_id': None,
    'eos_token_id': None,
    'pad_token_id': None,
    'use_cache': True,
    **spec.config(module),
  }


def refusal(
  model_type: str,
  module: decoder.Decoder,
  rows: Sequence[base.Parameter],
  divides: bool = True,
) -> str:
  """The reason why a family cannot hold a module.

  The config of the module is read again: what it cannot hold is then another.

  Args:
    model_type: name of the family.
    module: the module.
    rows: its parameters.
    divides: whether the heads must divide the width.

  Returns:
    The reason; '' if the family can hold the module.
  """
  reason = base.head_refusal(module)
  if reason:
    return reason
  if divides and module.width % module.heads:
    return f'heads={module.heads} do not divide width={module.width}.'
  family = base.FAMILIES[model_type]
  names = {row.tensor: None for row in rows}
  try:
    path = pathlib.Path('config.json')
    config = config_lib.checked(path, family, family.config(module))
    again = family.module(config, names)
  except errors.UserError as error:
    return str(error)
  first, second = resolved(module), resolved(again)
  for name, value in first.items():
    if value != second[name]:
      return f'{name}={value!r} is not written; it would be {second[name]!r}.'
  return ''


def resolved(module: decoder.Decoder) -> dict[str, Any]:
  """The fields of a module that decide its function, without defaults."""
  fields = {
    field.name: getattr(module, field.name)
    for field in dataclasses.fields(module)
    if field.name != 'parent'
  }
  fields |= UNWRITTEN
  fields['kv_heads'] = module.kv_heads or module.heads
  fields['head_width'] = module.head_size
  fields['windows'] = module.block_windows
  fields['scale_width'] = module.scale_width or module.head_size
  local = module.local_rotary or module.rotary
  fields['local_rotary'] = local if any(module.windows) else None
  return fields


def read_windows(
  config: base.Config, sliding: Callable[[int], bool]
) -> tuple[int, ...]:
  """The window of each block.

  Args:
    config: the config.
    sliding: `i -> whether` block `i` has a window, if the config has no
      `layer_types`.

  Returns:
    The windows, in tokens; 0 for none.

  Raises:
    UserError: `layer_types` or `sliding_window` do not fit.
  """
  depth, window = config['num_hidden_layers'], config['sliding_window']
  kinds = config['layer_types']
  names = ('full_attention', 'sliding_attention')
  if kinds is None:
    kinds = [names[sliding(i)] for i in range(depth)]
  errors.require(
    len(kinds) == depth and all(kind in names for kind in kinds),
    f'config.json has layer_types={kinds[:4]!r}...; they must be {depth} of '
    f'{" and ".join(names)}. Choose another model.',
  )
  errors.require(
    window is not None or names[1] not in kinds,
    f'config.json has sliding_window={window!r} and layers of {names[1]}. '
    'Restore the file.',
  )
  return tuple(window if kind == names[1] else 0 for kind in kinds)


def write_windows(module: decoder.Decoder) -> base.Config:
  """Fields of a config with the window of each block."""
  windows = module.block_windows
  names = ('full_attention', 'sliding_attention')
  return {
    'layer_types': [names[window > 0] for window in windows],
    'sliding_window': max(windows) or None,
  }
