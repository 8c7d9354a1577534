"""The rotary decoder as a model of the configs."""

from typing import Any

from cxjax.models import base
from cxjax.models import decoder
from cxjax.models import rotary
from cxjax.models import transformer

MLP = 4  # Default width of the MLPs over the width, as in Llama 3.2.


def build(block: Any, task: Any) -> decoder.Decoder:
  """Builds a decoder like Llama for a task.

  Args:
    block: config block; its fields are attributes of `Decoder`, with `dtype` by
      name, `theta` of the rotary positions, `max_length=0` for the length of
      the task and `mlp_width=0` for four times the width.
    task: the task, with `num_classes`, `vocab_size` and `length`.

  Returns:
    The model.

  Raises:
    UserError: the task is not about sequences, or the sizes do not fit.
  """
  transformer.require_sequences(task)
  return decoder.Decoder(
    vocab_size=task.vocab_size,
    num_classes=task.num_classes,
    max_length=block.max_length or task.length,
    width=block.width,
    heads=block.heads,
    depth=block.depth,
    mlp_width=block.mlp_width or MLP * block.width,
    kv_heads=block.kv_heads,
    rotary=rotary.Rotary(theta=block.theta),
    tied=block.tied,
    init_std=block.init_std,
    dtype=transformer.named_dtype(block.dtype),
    remat=block.remat,
    dropout=block.dropout,
  )


base.register('rotary_decoder', build)
