"""GPT-2: a decoder with learned positions."""

from typing import Any

from cxjax import arguments
from cxjax.interop.huggingface import base
from cxjax.interop.huggingface import config as config_lib
from cxjax.interop.huggingface import decoders
from cxjax.interop.huggingface import encoders
from cxjax.models import transformer

LINEAR = {
  'attention_out': 'attn.c_proj',
  'mlp_in': 'mlp.c_fc',
  'mlp_out': 'mlp.c_proj',
}
NORMS = {'attention_norm': 'ln_1', 'mlp_norm': 'ln_2'}
PREFIX = 'transformer.'
WORDS = 'wte.weight'
HEAD = 'lm_head.weight'
# In some files, but no parameters: the causal mask.
BUFFERS = ('.attn.bias', '.attn.masked_bias')
SIZES = {
  'vocab_size': 'vocab_size',
  'max_length': 'n_positions',
  'width': 'n_embd',
  'heads': 'n_head',
  'depth': 'n_layer',
}
FIXED = {'scale_attn_weights': True, 'scale_attn_by_inverse_layer_idx': False}
# Names of GELU's tanh approximation.
ACTIVATIONS = {'gelu_new': 'tanh', 'gelu_pytorch_tanh': 'tanh'}
EPS = 1e-5
OPTIONAL: dict[str, tuple[type, Any]] = {
  'n_inner': (int, None),
  'activation_function': (str, 'gelu_new'),
  'layer_norm_epsilon': (base.Positive, EPS),
  'initializer_range': (base.Positive, 0.02),
  'resid_pdrop': (float, 0.1),
  'tie_word_embeddings': (bool, True),
}
# Dropout, heads of other tasks, and the order of a product.
KNOWN = (
  'attn_pdrop',
  'embd_pdrop',
  'n_ctx',
  'reorder_and_upcast_attn',
  'summary_activation',
  'summary_first_dropout',
  'summary_proj_to_labels',
  'summary_type',
  'summary_use_proj',
  'task_specific_params',
)


def from_gpt2(tensors: base.Tensors, depth: int) -> dict[str, Any]:
  """Variables of a decoder `Transformer` with an untied head.

  Args:
    tensors: state of a `GPT2LMHeadModel`.
    depth: number of blocks.

  Returns:
    `{'params': ...}`, float32.

  Raises:
    UserError: a tensor is missing; names it.
  """
  tensors = arguments.mapping('tensors', tensors, 'model.state_dict()')
  depth = arguments.integer('depth', depth, 1, base.MOST_BLOCKS)
  return base.to_variables(_table(depth, PREFIX, head=True), tensors)


def _table(depth: int, prefix: str, head: bool) -> list[base.Parameter]:
  """The parameters of a decoder and, with `head`, of an untied head."""
  table = [
    base.Parameter('tokens/embedding', prefix + WORDS),
    base.Parameter('position_embedding', f'{prefix}wpe.weight'),
    *base.norm('final_norm', f'{prefix}ln_f'),
  ]
  if head:
    table.append(base.Parameter('logits/kernel', HEAD, transposed=True))
  for i in range(depth):
    layer = f'{prefix}h.{i}'
    # GPT-2 computes query, key and value by one product.
    for part, ours in enumerate(('query', 'key', 'value')):
      for array, theirs in (('kernel', 'weight'), ('bias', 'bias')):
        path, tensor = f'block{i}/{ours}/{array}', f'{layer}.attn.c_attn'
        table.append(base.Parameter(path, f'{tensor}.{theirs}', part=(part, 3)))
    for ours, theirs in LINEAR.items():
      # Its kernels are stored as the module has them, input by output.
      table += base.linear(
        f'block{i}/{ours}', f'{layer}.{theirs}', transposed=False
      )
    for ours, theirs in NORMS.items():
      table += base.norm(f'block{i}/{ours}', f'{layer}.{theirs}')
  return table


def _parameters(module: transformer.Transformer) -> list[base.Parameter]:
  """The parameters of a module."""
  head = bool(module.num_classes)
  return _table(
    module.depth, PREFIX if head else '', head=head and not module.tied
  )


def _module(
  config: base.Config, tensors: base.Tensors
) -> transformer.Transformer:
  """The decoder that a config and the selected tensors describe."""
  name = 'activation_function'
  config_lib.lookup('config.json', name, config[name], ACTIVATIONS)
  head = any(name.startswith(PREFIX) for name in tensors)
  return transformer.Transformer(
    **{ours: config[theirs] for ours, theirs in SIZES.items()},
    num_classes=config['vocab_size'] if head else 0,
    causal=True,
    mlp_width=config['n_inner'] or 0,
    tied=head and bool(config['tie_word_embeddings']) and HEAD not in tensors,
    init_std=config['initializer_range'] or 0.02,
    dropout=config['resid_pdrop'] or 0.0,
    norm_eps=config['layer_norm_epsilon'] or EPS,
  )


def _refusal(module: transformer.Transformer) -> str:
  """The reason why a module is no GPT-2; '' if it is one."""
  if not module.causal:
    return 'causal=False is an encoder.'
  reason = base.head_refusal(module)
  if reason:
    return reason
  return encoders.unwritten(module)


def _config(module: transformer.Transformer) -> base.Config:
  """The `config.json` of a module."""
  head = bool(module.num_classes)
  return {
    'architectures': ['GPT2LMHeadModel' if head else 'GPT2Model'],
    'model_type': 'gpt2',
    **{theirs: getattr(module, ours) for ours, theirs in SIZES.items()},
    **FIXED,
    'n_inner': module.mlp_width or None,
    'activation_function': 'gelu_new',
    'layer_norm_epsilon': module.norm_eps or EPS,
    'initializer_range': module.init_std,
    'resid_pdrop': module.dropout,
    'embd_pdrop': module.dropout,
    'attn_pdrop': 0.0,
    'tie_word_embeddings': module.tied,
    'bos_token_id': None,
    'eos_token_id': None,
    'pad_token_id': None,
  }


base.register(
  base.Family(
    model_type='gpt2',
    module_type=transformer.Transformer,
    sizes=SIZES,
    fixed={**FIXED, **decoders.CAUSAL},
    defaults={},
    select=lambda tensors, config: base.select_decoder(
      tensors, config, (PREFIX, HEAD, WORDS), BUFFERS
    ),
    module=_module,
    parameters=_parameters,
    constants=lambda config: {},
    refusal=_refusal,
    config=_config,
    complete=lambda tensors, module: tensors,
    optional=OPTIONAL,
    known=KNOWN,
    architectures=('GPT2LMHeadModel', 'GPT2Model'),
  )
)
