"""Names of the axes of the parameters of `Transformer` and `Decoder`.

One table says how parameters are sharded and how a smaller model is cut out of
a larger one.
"""

from collections.abc import Iterable
import re
from typing import TypeAlias

from cxjax.models import base

# Regular expressions of the paths of parameters, and the names of their axes.
AxisNames: TypeAlias = tuple[tuple[str, tuple[str, ...]], ...]

WIDTH, MLP, HEADS = 'width', 'mlp', 'heads'
# Heads and their features, flattened.
QUERY, KEY_VALUE = 'query', 'key_value'
AXES: AxisNames = (
  (r'query/kernel$', (WIDTH, QUERY)),
  (r'query/bias$', (QUERY,)),
  (r'(key|value)/kernel$', (WIDTH, KEY_VALUE)),
  (r'(key|value)/bias$', (KEY_VALUE,)),
  (r'attention_out/kernel$', (QUERY, WIDTH)),
  (r'(mlp_gate|mlp_in)/kernel$', (WIDTH, MLP)),
  (r'(mlp_gate|mlp_in)/bias$', (MLP,)),
  (r'mlp_out/kernel$', (MLP, WIDTH)),
  (r'(attention_out|mlp_out)/bias$', (WIDTH,)),
  (r'(query|key)_norm/scale$', ('head_width',)),
  (r'norm/(scale|bias)$', (WIDTH,)),
  (r'tokens/embedding$', ('vocabulary', WIDTH)),
  (r'position_embedding$', ('positions', WIDTH)),
  (r'relative_bias$', ('buckets', HEADS)),
  (r'transform/kernel$', (WIDTH, WIDTH)),
  (r'transform/bias$', (WIDTH,)),
  (r'logits/kernel$', (WIDTH, 'classes')),
  (r'logits_bias$', ('classes',)),
)
# Megatron's rules (Shoeybi et al., 2019, section 3,
# https://arxiv.org/abs/1909.08053): a product is split by its output features
# and the next one by its input features, with no communication between them.
SHARDED = (QUERY, KEY_VALUE, MLP, 'vocabulary', 'classes')


def of(path: str) -> tuple[str, ...]:
  """Names of the axes of a parameter; KeyError for one of another model."""
  for pattern, names in AXES:
    if re.search(pattern, path):
      return names
  raise KeyError(path)


def partition_rules(sharded: Iterable[str] = SHARDED) -> base.PartitionRules:
  """Rules that shard the first axis of each parameter that has such a name."""
  names = frozenset(sharded)
  return tuple(
    (pattern, next((i for i, axis in enumerate(axes) if axis in names), None))
    for pattern, axes in AXES
  )
