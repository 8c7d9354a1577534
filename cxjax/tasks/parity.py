"""Sparse parity and its hierarchical variant, generated on the device.

References:
  Barak et al., 2022. https://arxiv.org/abs/2207.08799.
  Panigrahi et al., 2024. https://arxiv.org/abs/2410.05464 (hierarchical).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cxjax import errors
from cxjax import settings
from cxjax import types
from cxjax.tasks import base


@dataclasses.dataclass(frozen=True)
class Parity(base.SyntheticTask):
  """Uniform x in {-1, +1}^d, classified by products of its coordinates.

  Each of the `2^D - 1` inner nodes of a complete binary tree of depth `D` has
  `k` coordinates of its own: a product of +1 goes left, of -1 right. The class
  is the leaf, counted from the left. Depth 1 is the plain sparse parity, whose
  class is 1 if the product is -1.

  Attributes:
    d: number of coordinates.
    supports: the `k` coordinates of each inner node, in breadth-first order.
  """

  d: int
  supports: tuple[tuple[int, ...], ...]

  @property
  def num_classes(self) -> int:
    """`2^D`, the number of leaves."""
    return len(self.supports) + 1

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
      `{'x': [B, d] float32 of +-1, 'y': [B] int32 classes}`.
    """
    words = jax.random.bits(
      jax.random.fold_in(key, step),
      (batch_size, -(-self.d // 32)),
      jnp.uint32,
    )
    # A random word gives 32 coordinates, a 32nd of the generator's work.
    shifts = jnp.arange(32, dtype=words.dtype)[None, None]
    bits = (words[..., None] >> shifts) & 1
    bits = bits.reshape(batch_size, -1)[:, : self.d].astype(jnp.int32)
    return {'x': 1.0 - 2.0 * bits.astype(jnp.float32), 'y': self._classes(bits)}

  def coordinates(self, x: jax.Array) -> jax.Array:
    """Coordinates, `[B, d]` of +-1, of the input of a batch: the input."""
    return x

  def label(self, x: jax.Array) -> jax.Array:
    """Classes, `[...]` int32, of inputs, `[..., d]` of +-1."""
    return self._classes((x < 0).astype(jnp.int32))

  def _classes(self, bits: jax.Array) -> jax.Array:
    turns = bits[..., jnp.array(self.supports)].sum(-1, dtype=jnp.int32)
    turns %= 2  # [..., 2^D - 1]
    node = jnp.zeros(turns.shape[:-1], jnp.int32)
    for _ in range(self.num_classes.bit_length() - 1):
      turn = jnp.take_along_axis(turns, node[..., None], axis=-1)[..., 0]
      node = 2 * node + 1 + turn
    return node - (self.num_classes - 1)


@dataclasses.dataclass(frozen=True)
class TokenParity(base.SyntheticTask):
  """A parity on a sequence of bits, predicted at its last token.

  A coordinate of +1 is token 0, of -1 token 1.

  Attributes:
    parity: the parity on vectors; the same key gives the same examples.
  """

  parity: Parity
  inputs = ('tokens', 'target_positions')
  vocab_size = 2

  @property
  def num_classes(self) -> int:
    """`2^D`, the number of leaves."""
    return self.parity.num_classes

  @property
  def length(self) -> int:
    """`d`, the number of tokens."""
    return self.parity.d

  @property
  def supports(self) -> tuple[tuple[int, ...], ...]:
    """Coordinates of each inner node of the parity."""
    return self.parity.supports

  def coordinates(self, x: dict[str, jax.Array]) -> jax.Array:
    """Coordinates, `[B, d]` of +-1, of the input of a batch."""
    return 1.0 - 2.0 * x['tokens']

  def batch(
    self, key: jax.Array, step: jax.typing.ArrayLike, batch_size: int
  ) -> types.Batch:
    """Makes the batch of `(key, step)`.

    Args:
      key: typed PRNG key of the data stream.
      step: non-negative integer.
      batch_size: `B`.

    Returns:
      `{'x': {'tokens': [B, d] int32, 'target_positions': [B, 1] int32: d - 1},
      'y': [B, 1] int32 classes}`.
    """
    batch = self.parity.batch(key, step, batch_size)
    tokens = (batch['x'] < 0).astype(jnp.int32)
    last = jnp.full((batch_size, 1), self.length - 1, jnp.int32)
    return {
      'x': {'tokens': tokens, 'target_positions': last},
      'y': batch['y'][:, None],
    }


@settings.fixed()
def make(*, d: int, k: int, depth: int, support: str, key: jax.Array) -> Parity:
  """Makes a parity task.

  Args:
    d: number of coordinates.
    k: number of coordinates of each product.
    depth: `D`; 1 is the plain parity, above it the hierarchical one.
    support: 'first' takes the coordinates in order; 'random' draws them.
    key: typed PRNG key of a random support; consumed.

  Returns:
    The task.

  Raises:
    UserError: a size is not positive, `(2^D - 1) k > d`, or `support` is
      unknown.
  """
  for name, value in (('d', d), ('k', k), ('depth', depth)):
    errors.require(value >= 1, f'data.{name}={value} must be at least 1.')
  orders = {
    'first': lambda: list(range(d)),
    'random': lambda: jax.random.permutation(key, d).tolist(),
  }
  draw = errors.lookup('data.support', support, orders)
  nodes = 2**depth - 1
  errors.require(
    nodes * k <= d,
    f'data.k={k} coordinates for each of {nodes} nodes do not fit in '
    f'data.d={d}: (2^depth - 1) k must be at most d.',
  )
  order = draw()
  supports = (tuple(sorted(order[i * k : (i + 1) * k])) for i in range(nodes))
  return Parity(d, tuple(supports))


def _make(data: Any, key: jax.Array) -> Parity:
  return make(
    d=data.d, k=data.k, depth=data.depth, support=data.support, key=key
  )


def _make_tokens(data: Any, key: jax.Array) -> TokenParity:
  return TokenParity(_make(data, key))


base.register('parity', _make)
base.register('parity_tokens', _make_tokens)
