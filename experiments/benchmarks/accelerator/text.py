"""Random tokens, some of them masked: a task whose sizes are free.

Steps cost what they cost on text, without a corpus and a tokenizer.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cxjax import types
from cxjax.data import masking
from cxjax.tasks import base

MASK = 1  # Token 0 is padding.


@dataclasses.dataclass(frozen=True)
class RandomText(base.SyntheticTask):
  """Prediction of masked tokens among uniformly random ones.

  Attributes:
    vocab_size: number of token ids, each a class.
    length: `L`; a row has between `L / 2` and `L` real tokens.
    mask_rate: probability that a token is masked.
  """

  vocab_size: int
  length: int
  mask_rate: float = 0.15
  inputs = ('tokens', 'mask', 'target_positions')

  @property
  def num_classes(self) -> int:
    """One class for every token id."""
    return self.vocab_size

  def batch(self, key: jax.Array, step: Any, batch_size: int) -> types.Batch:
    """Makes the batch of `(key, step)`, see `cxjax.tasks.base.Task`."""
    keys = jax.random.split(jax.random.fold_in(key, step), 3)
    shape = (batch_size, self.length)
    tokens = jax.random.randint(keys[0], shape, MASK + 1, self.vocab_size)
    ends = jax.random.randint(
      keys[1], (batch_size, 1), self.length // 2, self.length + 1
    )
    real = jnp.arange(self.length)[None] < ends
    masked = masking.mask_tokens(
      keys[2],
      jnp.where(real, tokens, 0),
      real,
      rate=self.mask_rate,
      slots=masking.num_masked(self.length, self.mask_rate),
      mask_id=MASK,
      random_ids=(MASK + 1, self.vocab_size),
    )
    return {
      'x': {
        'tokens': masked['tokens'],
        'mask': real,
        'target_positions': masked['target_positions'],
      },
      'y': masked['labels'],
      'weights': masked['weights'],
    }


def _make(data: Any, key: jax.Array) -> RandomText:
  del key
  return RandomText(data.vocab_size, data.length, data.mask_rate)


base.register('random_text', _make)
