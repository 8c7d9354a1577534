"""Ranges of the numeric fields of a config, by name.

Relations between fields are checked where the fields are used together.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import json
import math
from typing import Any

from cxjax import arguments
from cxjax import errors

COUNT = arguments.Range(1, 2**31 - 1, whole=True)
COUNT_OR_0 = arguments.Range(0, 2**31 - 1, whole=True)
POSITIVE = arguments.Range(0, ends=(False, False))
NOT_NEGATIVE = arguments.Range(0)
SHARE = arguments.Range(0, 1, ends=(False, False))
RATE = arguments.Range(0, 1, ends=(True, False))
FRACTION = arguments.Range(0, 1)
FINITE = arguments.Range(-math.inf)  # A value of any metric.
# By the full name of a field, or else by its last word. The elements of a
# sequence have the range of its field.
RANGES = {
  'seed': arguments.Range(0, 2**32 - 1, whole=True),
  'cpu_devices': COUNT,
  'num_seeds': COUNT,
  'batch_size': COUNT,
  'microbatches': COUNT,
  'num_steps': COUNT,
  'eval_size': COUNT,
  'log_every': COUNT,
  'eval_every': COUNT,
  'save_every': COUNT,
  'save_minutes': NOT_NEGATIVE,
  'save_at': FINITE,
  'stop_at': arguments.Range(-math.inf, infinite=True, optional=True),
  'overrun': NOT_NEGATIVE,
  'keep': COUNT_OR_0,
  'lookahead': COUNT_OR_0,
  'learning_rate': POSITIVE,
  'rate_factor': POSITIVE,
  'warmup': RATE,
  'momentum': RATE,
  'b1': RATE,
  'b2': RATE,
  'weight_decay': NOT_NEGATIVE,
  'temperature': NOT_NEGATIVE,
  'alpha': FRACTION,
  'top_k': COUNT_OR_0,
  'share': SHARE,
  'steps': COUNT,
  'scores': FINITE,
  'count': COUNT_OR_0,
  'checkpoints': COUNT_OR_0,
  'extracted.width': COUNT_OR_0,
  'extracted.scale': POSITIVE,
  'extracted.checkpoint': arguments.Range(-1, 2**31 - 1, whole=True),
  'cache.batches': COUNT_OR_0,
  'width': COUNT,
  'depth': COUNT,
  'heads': COUNT,
  'mlp_width': COUNT_OR_0,
  'max_length': COUNT_OR_0,
  'init_std': POSITIVE,
  'dropout': RATE,
  'd': COUNT,
  'k': COUNT,
  'mask_rate': SHARE,
  'held_out': SHARE,
  'vocab_size': COUNT,
  'length': COUNT,
  'shards': COUNT,
}
# Fields that the code which reads them checks, because it also serves callers
# without a config.
FREE = frozenset(
  {
    # `mesh.make`.
    'mesh.data',
    'mesh.fsdp',
    'mesh.model',
    'mesh.seed',
    # `grammar.Grammar`: one of its symbols.
    'data.start',
    # `Stage` and `Term`.
    'custom.stages',
  }
)


def check(config: Mapping[str, Any], prefix: str = '') -> None:
  """Checks every field of a config, in all its blocks.

  Args:
    config: values by field; a block is a mapping.
    prefix: full name of the block, with a dot.

  Raises:
    UserError: a number is out of its range or NaN, or a value cannot be written
      as JSON.
  """
  for name, value in config.items():
    full = f'{prefix}{name}'
    if isinstance(value, Mapping):
      check(value, f'{full}.')
    elif full not in FREE:
      _check_field(full, value, RANGES.get(full, RANGES.get(name)))


def _check_field(
  full: str, value: Any, allowed: arguments.Range | None
) -> None:
  """Raises UserError for a value, or an element of one, that is not allowed."""
  listed = isinstance(value, Sequence) and not isinstance(value, str)
  for one in value if listed else (value,):
    wrong = f': {one!r} is not' if listed else ' must be'
    if allowed is not None:
      errors.require(one in allowed, f'{full}={value!r}{wrong} {allowed}.')
    # A run whose config has NaN would never be found to be the same run.
    errors.require(
      not isinstance(one, float) or not math.isnan(one),
      f'{full}={value!r}{wrong} a number.',
    )
  try:
    json.dumps(value)
  except (TypeError, ValueError) as error:
    raise errors.UserError(
      f'{full}={value!r} cannot be written as JSON. Give numbers, strings, '
      'True, False, None, or lists of them.'
    ) from error
