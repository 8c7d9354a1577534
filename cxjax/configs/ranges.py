"""What the numbers of a config may be, by the name of their field.

What one field asks of another is checked where the two meet.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
import numbers
import typing
from typing import Any

from cxjax import errors


@dataclasses.dataclass(frozen=True)
class Range:
  """Numbers from `low` to `high`.

  Attributes:
    low: the smallest, or the bound below all.
    high: the largest, or the bound above all.
    ends: whether `low` and `high` are among them.
    whole: integers only.
    never: infinity as well; else it is refused.
  """

  low: float
  high: float = math.inf
  ends: tuple[bool, bool] = (True, True)
  whole: bool = False
  never: bool = False

  def __contains__(self, value: Any) -> bool:
    kind = numbers.Integral if self.whole else numbers.Real
    if not isinstance(value, kind) or isinstance(value, bool):
      return False
    value = typing.cast(float, value)
    return (
      (abs(value) < math.inf or (self.never and value == math.inf))
      and (self.low < value or (self.ends[0] and value == self.low))
      and (value < self.high or (self.ends[1] and value == self.high))
    )

  def __str__(self) -> str:
    if self.whole:
      return f'a whole number from {self.low} to {self.high}'
    low, high = '(['[self.ends[0]], ')]'[self.ends[1]]
    if math.isinf(self.high):
      kind = 'a number' if self.never else 'a finite number'
      return f'{kind} {"not below" if self.ends[0] else "above"} {self.low}'
    return f'a number in {low}{self.low}, {self.high}{high}'


COUNT = Range(1, 2**31 - 1, whole=True)
COUNT_OR_0 = Range(0, 2**31 - 1, whole=True)
POSITIVE = Range(0, ends=(False, False))
NOT_NEGATIVE = Range(0)
SHARE = Range(0, 1, ends=(False, False))
RATE = Range(0, 1, ends=(True, False))
FRACTION = Range(0, 1)
# A field of a list holds such numbers. The full name, where the last word has
# several meanings.
RANGES = {
  'seed': Range(0, 2**32 - 1, whole=True),
  'mesh.seed': COUNT,
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
  'save_at': FRACTION,
  'stop_at': Range(0, never=True),
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
  'accuracies': FRACTION,
  'count': COUNT_OR_0,
  'checkpoints': COUNT_OR_0,
  'extracted.width': COUNT_OR_0,
  'extracted.scale': POSITIVE,
  'extracted.checkpoint': Range(-1, 2**31 - 1, whole=True),
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


def check(config: Mapping[str, Any], prefix: str = '') -> None:
  """Raises UserError for a number out of its range, in any block of a config.

  Args:
    config: by field; a block is a mapping.
    prefix: full name of the block, with a dot.
  """
  for name, value in config.items():
    full = f'{prefix}{name}'
    if isinstance(value, Mapping):
      check(value, f'{full}.')
      continue
    allowed = RANGES.get(full, RANGES.get(name))
    if allowed is None:
      continue
    listed = isinstance(value, Sequence) and not isinstance(value, str)
    for one in value if listed else (value,):
      errors.require(
        one in allowed,
        f'{full}={value!r}: {one!r} is not {allowed}.'
        if listed
        else f'{full}={value!r} must be {allowed}.',
      )
