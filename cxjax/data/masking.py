"""Masked-token prediction: which tokens are hidden, and what replaces them.

References:
  Devlin et al. "BERT", 2018. https://arxiv.org/abs/1810.04805.
"""

import math

import jax
import jax.numpy as jnp

from cxjax import errors


def num_masked(length: int, rate: float) -> int:
  """Slots for the masked positions of a sequence.

  The mean number of masked positions and 6 standard deviations. More are drawn
  with a probability under 1e-8 at rates from 0.3, 2e-7 from 0.15, 1e-6 from
  0.1.

  Args:
    length: number of positions that may be masked.
    rate: probability of each to be masked, in (0, 1).

  Returns:
    A number from 1 to `length`.

  Raises:
    UserError: a rate outside (0, 1).
  """
  errors.require(0 < rate < 1, f'data.mask_rate={rate} must be in (0, 1).')
  most = length * rate + 6 * math.sqrt(length * rate * (1 - rate))
  return max(min(length, math.ceil(most)), 1)


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
  """Hides tokens, and lists them for the loss.

  Each position is chosen independently. Of the chosen, 80% become `mask_id`,
  10% stay and 10% become a random id. Where more than `slots` are chosen in a
  row the last ones are left alone: nothing is hidden that the loss misses.

  Args:
    key: typed PRNG key; consumed.
    tokens: ids, `[B, L]`.
    maskable: which positions may be chosen, `[B, L]` bool.
    rate: probability of each to be chosen.
    slots: `P`, see `num_masked`.
    mask_id: the id that hides a token.
    random_ids: `(low, high)`; a random id is uniform over `low..high - 1`.

  Returns:
    `{'tokens': [B, L], 'target_positions': [B, P] int32, 'labels': [B, P], 'weights':
    [B, P] float32}`: what the model sees; the chosen positions in ascending
    order, their true ids, and 1. Empty slots, last, are 0 in all three.
  """
  key_choice, key_word = jax.random.split(key)
  chosen = maskable & (jax.random.uniform(key_choice, tokens.shape) < rate)
  count = jnp.cumsum(chosen, axis=1, dtype=jnp.int32)
  chosen &= count <= slots
  # One word is both draws: its last digit says what becomes of the token, and
  # the other digits, independent of that, which random id.
  words = jax.random.bits(key_word, tokens.shape)
  kind = words % 10
  low, high = random_ids
  random = low + (words // 10 % (high - low)).astype(tokens.dtype)
  changed = jnp.where(kind < 8, mask_id, jnp.where(kind < 9, tokens, random))
  rows = jnp.arange(tokens.shape[0])[:, None]
  column = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
  slot = jnp.where(chosen, count - 1, slots)  # One slot too many is nowhere.
  positions = jnp.zeros((tokens.shape[0], slots), jnp.int32)
  positions = positions.at[rows, slot].set(
    jnp.broadcast_to(column, tokens.shape), mode='drop'
  )
  full = jnp.arange(slots)[None] < count[:, -1:]
  labels = jnp.take_along_axis(tokens, positions, axis=1)
  return {
    'tokens': jnp.where(chosen, changed, tokens),
    'target_positions': positions,
    'labels': jnp.where(full, labels, 0),
    'weights': full.astype(jnp.float32),
  }
