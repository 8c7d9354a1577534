"""Full rows of random tokens: tasks whose sizes are free."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cxjax import types
from cxjax.tasks import base

MASK = 0


@dataclasses.dataclass(frozen=True)
class FullRows(base.SyntheticTask):
  """Prediction of tokens among uniformly random ones, all rows full.

  Attributes:
    vocab_size: number of token ids, each a class.
    length: `L`.
    predicted: `P`, masked positions of a row; `L` is the next token everywhere,
      with no token masked.
  """

  vocab_size: int
  length: int
  predicted: int

  @property
  def inputs(self) -> tuple[str, ...]:
    """Inputs of the models."""
    masked = ('target_positions',) if self.predicted < self.length else ()
    return ('tokens', *masked)

  @property
  def num_classes(self) -> int:
    """One class for every token id."""
    return self.vocab_size

  def batch(self, key: jax.Array, step: Any, batch_size: int) -> types.Batch:
    """Makes the batch of `(key, step)`, see `cxjax.tasks.base.Task`."""
    keys = jax.random.split(jax.random.fold_in(key, step))
    shape = (batch_size, self.length + 1)
    tokens = jax.random.randint(keys[0], shape, MASK + 1, self.vocab_size)
    if self.predicted == self.length:
      return {'x': {'tokens': tokens[:, :-1]}, 'y': tokens[:, 1:]}
    tokens = tokens[:, :-1]
    scores = jax.random.uniform(keys[1], tokens.shape)
    _, positions = jax.lax.top_k(scores, self.predicted)
    positions = positions.astype(jnp.int32)
    rows = jnp.arange(batch_size)[:, None]
    return {
      'x': {
        'tokens': tokens.at[rows, positions].set(MASK),
        'target_positions': positions,
      },
      'y': tokens[rows, positions],
    }


def _make(data: Any, key: jax.Array) -> FullRows:
  del key
  return FullRows(data.vocab_size, data.length, data.predicted)


base.register('full_rows', _make)
