"""Masked-token prediction on sentences of a grammar, drawn on the device.

References:
  Allen-Zhu, Li, 2023. https://arxiv.org/abs/2305.13673 (the grammars).
  Panigrahi et al., 2024. https://arxiv.org/abs/2410.05464 (the task).
"""

import dataclasses

import jax
import jax.numpy as jnp

from cxjax import errors
from cxjax.data import grammar as grammars
from cxjax.data import masking

# The terminals are 1, 2 and 3. Nothing ends a sentence but its padding: EOS is
# an id of the vocabulary of Panigrahi et al. that does not occur.
PAD, BOS, EOS, MASK = 0, 4, 5, 6
TERMINALS = (1, 2, 3)


@dataclasses.dataclass(frozen=True)
class MaskedGrammar:
  """BOS and a sentence; the model predicts the terminals that were chosen.

  Of the chosen terminals 80% become MASK, 10% stay and 10% become a random
  terminal. Chosen positions stay visible to attention; Panigrahi et al. hide
  them as keys. This is our choice.

  Attributes:
    grammar: of the sentences, over the terminals 1, 2 and 3.
    mask_rate: probability of each terminal to be chosen, in (0, 1).
  """

  grammar: grammars.Grammar
  mask_rate: float

  def __post_init__(self):
    """Raises UserError for other terminals or a rate outside (0, 1)."""
    errors.require(
      self.grammar.terminals == TERMINALS,
      f'The terminals of the grammar are {self.grammar.terminals}; they must '
      f'be {TERMINALS}: the other ids of the vocabulary are taken.',
    )
    masking.num_masked(self.grammar.max_length, self.mask_rate)

  @property
  def vocab_size(self) -> int:
    """8 ids, one of them spare, as in Panigrahi et al."""
    return 8

  @property
  def num_classes(self) -> int:
    """Every id is a class."""
    return self.vocab_size

  @property
  def length(self) -> int:
    """`L`: BOS and the longest sentence."""
    return self.grammar.max_length + 1

  @property
  def slots(self) -> int:
    """`P`: room for the chosen positions of a sequence."""
    return masking.num_masked(self.grammar.max_length, self.mask_rate)

  def draw(
    self, key: jax.Array, step: jax.Array, batch_size: int
  ) -> dict[str, jax.Array | dict[str, jax.Array]]:
    """The fresh batch of `(key, step)`.

    Args:
      key: the stream.
      step: non-negative integer; a step is a batch.
      batch_size: `B`.

    Returns:
      `{'x': {'tokens': [B, L] int32, 'mask': [B, L] bool, 'target_positions': [B, P]
      int32}, 'y': [B, P] int32, 'weights': [B, P] float32}`. `mask` is true
      on BOS and the sentence; `positions` are the chosen ones in ascending
      order, `y` their terminals and `weights` 1; empty slots are 0 in all.
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


def make(*, grammar: str, start: int | None, mask_rate: float) -> MaskedGrammar:
  """A masked-grammar task.

  Args:
    grammar: a name of `grammar.GRAMMARS`.
    start: the symbol that sentences derive from; None or 0 is the grammar's.
    mask_rate: probability of each terminal to be chosen, in (0, 1).

  Returns:
    The task.

  Raises:
    UserError: an unknown grammar, a start that is no symbol of it, or a rate
      outside (0, 1).
  """
  return MaskedGrammar(grammars.make(grammar, start), mask_rate)
