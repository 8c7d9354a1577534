"""Masked-token prediction on sentences of a grammar, generated on the device.

References:
  Allen-Zhu, Li, 2023. https://arxiv.org/abs/2305.13673 (the grammars).
  Panigrahi et al., 2024. https://arxiv.org/abs/2410.05464 (the task).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from cxjax import errors
from cxjax import settings
from cxjax import types
from cxjax.data import grammar as grammars
from cxjax.data import masking
from cxjax.tasks import base

# The terminals are 1, 2 and 3. A sentence ends where its padding begins: EOS,
# an id of the vocabulary of Panigrahi et al., does not occur.
PAD, BOS, EOS, MASK = 0, 4, 5, 6
TERMINALS = (1, 2, 3)


@dataclasses.dataclass(frozen=True)
class MaskedGrammar(base.SyntheticTask):
  """Prediction of masked terminals in sequences of BOS and a sentence.

  Of the chosen terminals, 80% become MASK, 10% stay and 10% become a random
  terminal. Chosen positions stay visible to attention; Panigrahi et al. hide
  them as keys. This is our choice.

  Attributes:
    grammar: grammar of the sentences, over the terminals 1, 2 and 3.
    mask_rate: probability that a terminal is chosen, in (0, 1).
  """

  grammar: grammars.Grammar
  mask_rate: float
  inputs = ('tokens', 'mask', 'target_positions')
  # One id is spare, as in Panigrahi et al. Every id is a class.
  vocab_size = 8
  num_classes = 8

  def __post_init__(self) -> None:
    """Raises UserError for other terminals or a rate outside (0, 1)."""
    errors.require(
      self.grammar.terminals == TERMINALS,
      f'The terminals of the grammar are {self.grammar.terminals}; they must '
      f'be {TERMINALS}: the other ids of the vocabulary are taken.',
    )
    masking.num_masked(self.grammar.max_length, self.mask_rate)

  @property
  def length(self) -> int:
    """`L`, BOS and the longest sentence."""
    return self.grammar.max_length + 1

  @property
  def slots(self) -> int:
    """`P`, the number of slots for the target positions of a sequence."""
    return masking.num_masked(self.grammar.max_length, self.mask_rate)

  @settings.fixed()
  def batch(
    self, key: jax.Array, step: jax.typing.ArrayLike, batch_size: int
  ) -> types.Batch:
    """Makes the batch of `(key, step)`.

    Args:
      key: typed PRNG key of the data stream.
      step: non-negative integer.
      batch_size: `B`.

    Returns:
      `{'x': {'tokens': [B, L] int32, 'mask': [B, L] bool, 'target_positions':
      [B, P] int32}, 'y': [B, P] int32, 'weights': [B, P] float32}`. `mask` is
      true on BOS and the sentence. `target_positions` are the chosen positions
      in ascending order, `y` their terminals, and `weights` 1; empty slots are
      0 in all three.
    """
    keys = jax.random.split(jax.random.fold_in(key, step))
    sentence = self.grammar.sample(keys[0], batch_size)['tokens']
    bos = jnp.full((batch_size, 1), BOS, jnp.int32)
    tokens = jnp.concatenate([bos, sentence], axis=1)
    real = tokens != PAD
    masked = masking.mask_tokens(
      keys[1],
      tokens,
      real & (tokens != BOS),
      rate=self.mask_rate,
      slots=self.slots,
      mask_id=MASK,
      random_ids=(TERMINALS[0], TERMINALS[-1] + 1),
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

  def held_out(self, key: jax.Array, size: int) -> types.Batch:
    """Makes the held-out set, the batch of step 0 of its own key."""
    return _held_out(self, key, size)


# Compiled once for equal tasks: sampling sentences takes seconds to compile.
@functools.partial(jax.jit, static_argnums=(0, 2))
def _held_out(task: MaskedGrammar, key: jax.Array, size: int) -> types.Batch:
  return task.batch(key, 0, size)


def make(*, grammar: str, start: int | None, mask_rate: float) -> MaskedGrammar:
  """Makes a masked-grammar task.

  Args:
    grammar: a name of `grammar.GRAMMARS`.
    start: symbol that sentences are derived from; None or 0 is the grammar's.
    mask_rate: probability that a terminal is chosen, in (0, 1).

  Returns:
    The task.

  Raises:
    UserError: the grammar is unknown, the start is no symbol of it, or the rate
      is outside (0, 1).
  """
  return MaskedGrammar(grammars.make(grammar, start), mask_rate)


def _make(data: Any, key: jax.Array) -> MaskedGrammar:
  del key
  return make(grammar=data.grammar, start=data.start, mask_rate=data.mask_rate)


base.register('pcfg', _make)
