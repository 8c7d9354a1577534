"""Models of flax.linen for sequences, in transforms and with metadata."""

from collections.abc import Callable
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

import cxjax
from experiments.real_models import base
from experiments.real_models import flax_linen

Array = jax.Array


class Tagger(nn.Module):
  """Recurrent layers over a sequence, and a class for each token."""

  depth: int
  width: int
  both: bool = False  # Directions.

  @nn.compact
  def __call__(self, ids: Array) -> Array:
    """Logits."""
    x = nn.Embed(base.VOCABULARY, self.width)(ids)
    for i in range(self.depth):
      x = self._layer(i)(x) if self.both else self._layer(i)(x)[1]
    return nn.Dense(base.CLASSES, name='head')(x)

  def _layer(self, number: int) -> nn.Module:
    cell = functools.partial(nn.LSTMCell, self.width)
    if not self.both:
      return nn.RNN(cell(), return_carry=True, name=f'layers_{number}')
    half = functools.partial(nn.LSTMCell, self.width // 2)
    forward, backward = nn.RNN(half()), nn.RNN(half())
    return nn.Bidirectional(forward, backward, name=f'layers_{number}')


class Rematerialized(nn.Module):
  """A language model whose blocks are computed again in the backward pass."""

  depth: int
  width: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, ids: Array) -> Array:
    """Logits."""
    embed = nn.Embed(base.VOCABULARY, self.width, dtype=self.dtype)
    x = embed(ids)
    block = nn.remat(Feedforward)
    for i in range(self.depth):
      x = block(self.width, self.dtype, name=f'block_{i}')(x)
    return embed.attend(nn.LayerNorm(dtype=self.dtype)(x))


class Feedforward(nn.Module):
  """A residual block."""

  width: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """The residual stream."""
    dense = functools.partial(nn.Dense, dtype=self.dtype)
    h = nn.gelu(dense(2 * self.width)(x))
    return x + dense(self.width)(h)


class Partitioned(nn.Module):
  """Layers whose parameters carry names of axes."""

  depth: int
  width: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Logits."""
    start = nn.with_partitioning(nn.initializers.lecun_normal(), (None, 'tp'))
    x = nn.Dense(self.width, kernel_init=start, name='first')(x)
    for i in range(self.depth):
      layer = nn.Dense(self.width, kernel_init=start, name=f'layers_{i}')
      x = x + nn.tanh(layer(x))
    return nn.Dense(base.CLASSES, name='head')(x)


def recurrent(both: bool) -> base.Case:
  """A recurrent network to a smaller one; the carry is no layer."""
  x = base.tokens(base.BATCH, base.LENGTH)
  teacher, student = (
    flax_linen.adapt(Tagger(depth, width, both), x)
    for depth, width in ((4, 16), (2, 8))
  )
  pattern = 'layers_*' if both else 'layers_*/1'
  return base.Case(teacher, student, x, base.pairs(pattern, pattern))


def remat(dtype: Any) -> base.Case:
  """A tied language model to a smaller one."""
  x = base.tokens(base.BATCH, base.LENGTH)
  teacher, student = (
    flax_linen.adapt(Rematerialized(depth, width, dtype), x)
    for depth, width in ((4, 16), (2, 8))
  )
  return base.Case(teacher, student, x, base.pairs('block_*', 'block_*'))


def partitioned() -> base.Case:
  """Boxed parameters, as `module.init` returns them."""
  x = base.floats(base.BATCH, 5)

  def make(depth: int, width: int) -> cxjax.ModelAdapter:
    module = Partitioned(depth, width)
    variables = jax.jit(module.init)(jax.random.key(0), x)
    return cxjax.from_linen(module, variables, mesh_axes={'tp': 'model'})

  pairs = base.pairs('layers_*', 'layers_*')
  return base.Case(make(4, 16), make(2, 8), x, pairs)


def _case(make: Callable[[Any], base.Case], of: Any) -> Callable[[], base.Case]:
  return functools.partial(make, of)


CASES: base.Cases = {
  'linen nn.remat, tied head': _case(remat, jnp.float32),
  'the same in bfloat16': _case(remat, jnp.bfloat16),
  'linen RNN with its carry': _case(recurrent, False),
  'linen Bidirectional': _case(recurrent, True),
  'linen nn.with_partitioning': partitioned,
}
