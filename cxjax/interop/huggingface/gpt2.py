"""GPT-2: the table of its tensors; its configs are not read."""

from typing import Any

from cxjax.interop.huggingface import base

LINEAR = {
  'attention_out': 'attn.c_proj',
  'mlp_in': 'mlp.c_fc',
  'mlp_out': 'mlp.c_proj',
}
NORMS = {'attention_norm': 'ln_1', 'mlp_norm': 'ln_2'}


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
  return base.to_variables(_table(depth), tensors)


def _table(depth: int) -> list[base.Parameter]:
  """The parameters of a decoder and its head."""
  table = [
    base.Parameter('tokens/embedding', 'transformer.wte.weight'),
    base.Parameter('position_embedding', 'transformer.wpe.weight'),
    *base.norm('final_norm', 'transformer.ln_f'),
    base.Parameter('logits/kernel', 'lm_head.weight', transposed=True),
  ]
  for i in range(depth):
    layer = f'transformer.h.{i}'
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
