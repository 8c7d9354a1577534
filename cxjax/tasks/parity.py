"""Sparse parity and its hierarchical variant, drawn on the device.

References:
  Barak et al., 2022. https://arxiv.org/abs/2207.08799.
  Panigrahi et al., 2024. https://arxiv.org/abs/2410.05464 (hierarchical).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cxjax import errors


@dataclasses.dataclass(frozen=True)
class Parity:
  """Uniform x in {-1, +1}^d; the class follows from products of coordinates.

  Each of the `2^D - 1` inner nodes of a complete binary tree of depth `D` owns
  `k` coordinates of its own: a product of +1 goes left, of -1 right. The class
  is the leaf, counted from the left. Depth 1 is the plain sparse parity, class
  1 where the product is -1.

  Attributes:
    d: number of coordinates.
    supports: the `k` coordinates of each inner node, in breadth-first order.
  """

  d: int
  supports: tuple[tuple[int, ...], ...]

  @property
  def num_classes(self) -> int:
    """`2^D`."""
    return len(self.supports) + 1

  def draw(
    self, key: jax.Array, step: jax.Array, batch_size: int
  ) -> dict[str, jax.Array]:
    """The fresh batch of `(key, step)`.

    Args:
      key: the stream.
      step: non-negative integer; a step is a batch.
      batch_size: `B`.

    Returns:
      `{'x': [B, d] float32 of +-1, 'y': [B] int32 classes}`.
    """
    words = jax.random.bits(
      jax.random.fold_in(key, step), (batch_size, -(-self.d // 32))
    )
    # One random word is 32 coordinates: a 32nd of the generator's work.
    places = jnp.arange(32, dtype=words.dtype)[None, None]
    bits = (words[..., None] >> places) & 1
    bits = bits.reshape(batch_size, -1)[:, : self.d].astype(jnp.int32)
    return {'x': 1.0 - 2.0 * bits, 'y': self._classes(bits)}

  def coordinates(self, x: jax.Array) -> jax.Array:
    """`[B, d]` of +-1 from the input of a batch: the input itself."""
    return x

  def label(self, x: jax.Array) -> jax.Array:
    """Classes `[...]` of inputs `[..., d]` of +-1."""
    return self._classes((x < 0).astype(jnp.int32))

  def _classes(self, bits: jax.Array) -> jax.Array:
    turns = bits[..., jnp.array(self.supports)].sum(-1) % 2  # [..., 2^D - 1]
    node = jnp.zeros(turns.shape[:-1], jnp.int32)
    for _ in range(self.num_classes.bit_length() - 1):
      turn = jnp.take_along_axis(turns, node[..., None], axis=-1)[..., 0]
      node = 2 * node + 1 + turn
    return node - (self.num_classes - 1)


@dataclasses.dataclass(frozen=True)
class TokenParity:
  """A parity whose bits are the tokens of a sequence, read at its end.

  A coordinate of +1 is token 0, of -1 token 1.

  Attributes:
    parity: the task on vectors, with the same key the same examples.
  """

  parity: Parity
  vocab_size = 2

  @property
  def num_classes(self) -> int:
    """`2^D`."""
    return self.parity.num_classes

  @property
  def length(self) -> int:
    """`d` tokens."""
    return self.parity.d

  @property
  def supports(self) -> tuple[tuple[int, ...], ...]:
    """Of the parity."""
    return self.parity.supports

  def coordinates(self, x: dict[str, jax.Array]) -> jax.Array:
    """`[B, d]` of +-1 from the input of a batch."""
    return 1.0 - 2.0 * x['tokens']

  def draw(
    self, key: jax.Array, step: jax.Array, batch_size: int
  ) -> dict[str, Any]:
    """The fresh batch of `(key, step)`.

    Args:
      key: the stream.
      step: non-negative integer; a step is a batch.
      batch_size: `B`.

    Returns:
      `{'x': {'tokens': [B, d] int32, 'target_positions': [B, 1] int32: d - 1}, 'y':
      [B, 1] int32 classes}`.
    """
    batch = self.parity.draw(key, step, batch_size)
    tokens = (batch['x'] < 0).astype(jnp.int32)
    last = jnp.full((batch_size, 1), self.length - 1, jnp.int32)
    return {
      'x': {'tokens': tokens, 'target_positions': last},
      'y': batch['y'][:, None],
    }


def make(*, d: int, k: int, depth: int, support: str, key: jax.Array) -> Parity:
  """A parity task.

  Args:
    d: number of coordinates.
    k: coordinates of each product.
    depth: `D`; 1 is the plain parity, above it the hierarchical one.
    support: 'first', coordinates in order; 'random', drawn from `key`.
    key: typed PRNG key; consumed.

  Returns:
    The task.

  Raises:
    UserError: sizes that are not positive, `(2^D - 1) k > d`, or an unknown
      `support`.
  """
  for name, value in (('d', d), ('k', k), ('depth', depth)):
    errors.require(value >= 1, f'data.{name}={value} must be at least 1.')
  orders = {
    'first': lambda: list(range(d)),
    'random': lambda: jax.random.permutation(key, d).tolist(),
  }
  order = errors.lookup('support', support, orders)
  nodes = 2**depth - 1
  errors.require(
    nodes * k <= d,
    f'data.k={k} coordinates for each of {nodes} nodes do not fit in '
    f'data.d={d}: (2^depth - 1) k must be at most d.',
  )
  order = order()
  supports = (tuple(sorted(order[i * k : (i + 1) * k])) for i in range(nodes))
  return Parity(d, tuple(supports))
