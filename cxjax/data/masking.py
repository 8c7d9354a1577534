"""Masked-token prediction: chooses the tokens to predict and hides them.

References:
  Devlin et al. "BERT", 2018. https://arxiv.org/abs/1810.04805.
"""

import math

import jax
import jax.numpy as jnp

from cxjax import errors
from cxjax import settings


def num_masked(length: int, rate: float) -> int:
  """Number of slots for the target positions of a sequence.

  It is the mean number of chosen positions plus 6 standard deviations. More
  positions than that are chosen with a probability under 1e-8 at rates from
  0.3, 2e-7 from 0.15 and 1e-6 from 0.1.

  Args:
    length: number of positions that may be chosen.
    rate: probability that a position is chosen, in (0, 1).

  Returns:
    `P`, from 1 to `length`.

  Raises:
    UserError: the rate is outside (0, 1).
  """
  errors.require(0 < rate < 1, f'data.mask_rate={rate} must be in (0, 1).')
  most = length * rate + 6 * math.sqrt(length * rate * (1 - rate))
  return max(min(length, math.ceil(most)), 1)


@settings.fixed()
def mask_tokens(
  key: jax.Array,
  tokens: jax.Array,
  maskable: jax.Array,
  *,
  rate: float,
  slots: int,
  mask_id: int,
  random_ids: tuple[int, int],
) -> dict[str, jax.Array]:
  """Hides tokens and lists their positions and labels for the loss.

  Each position is chosen independently. Of the chosen tokens, 80% become
  `mask_id`, 10% stay and 10% become a random id. If a sequence has more than
  `slots` chosen positions, the last ones are left alone, so that every hidden
  token counts in the loss.

  Args:
    key: typed PRNG key; consumed.
    tokens: `[B, L]` ids.
    maskable: `[B, L]` bool, the positions that may be chosen.
    rate: probability that a position is chosen.
    slots: `P`, from `num_masked`.
    mask_id: id that hides a token.
    random_ids: `(low, high)`; a random id is uniform over `low..high - 1`.

  Returns:
    `{'tokens': [B, L], 'target_positions': [B, P] int32, 'labels': [B, P],
    'weights': [B, P] float32}`: the tokens that the model sees, the chosen
    positions in ascending order, their true ids, and 1. Empty slots come last
    and are 0 in the last three.
  """
  choice_key, word_key = jax.random.split(key)
  draw = jax.random.uniform(choice_key, tokens.shape, jnp.float32)
  chosen = maskable & (draw < rate)
  count = jnp.cumsum(chosen, axis=1, dtype=jnp.int32)
  chosen &= count <= slots
  words = jax.random.bits(word_key, tokens.shape, jnp.uint32)
  changed = _corrupt(words, tokens, mask_id, random_ids)
  batch = jnp.arange(tokens.shape[0])[:, None]
  column = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
  # The slot past the last one does not exist: `mode='drop'` ignores it.
  slot = jnp.where(chosen, count - 1, slots)
  target_positions = jnp.zeros((tokens.shape[0], slots), jnp.int32)
  target_positions = target_positions.at[batch, slot].set(
    jnp.broadcast_to(column, tokens.shape), mode='drop'
  )
  full = jnp.arange(slots)[None] < count[:, -1:]
  labels = jnp.take_along_axis(tokens, target_positions, axis=1)
  return {
    'tokens': jnp.where(chosen, changed, tokens),
    'target_positions': target_positions,
    'labels': jnp.where(full, labels, 0),
    'weights': full.astype(jnp.float32),
  }


def _corrupt(
  words: jax.Array,
  tokens: jax.Array,
  mask_id: int,
  random_ids: tuple[int, int],
) -> jax.Array:
  """Replacements of tokens, `[B, L]`, if all of them were chosen."""
  # One random word serves both draws: its last digit decides what becomes of
  # the token, and the other digits, independent of that, give the random id.
  kind = words % 10
  low, high = random_ids
  random = low + (words // 10 % (high - low)).astype(tokens.dtype)
  return jnp.where(kind < 8, mask_id, jnp.where(kind < 9, tokens, random))
