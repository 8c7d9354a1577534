"""Models of flax.nnx, in the layouts that are common."""

from typing import Any

from flax import nnx
import jax

import cxjax
from experiments.real_models import base

Array = jax.Array


class Block(nnx.Module):
  """A block of a language model; it returns a cache too."""

  def __init__(self, width: int, rngs: nnx.Rngs) -> None:
    """Makes the layers."""
    self.norm_1 = nnx.RMSNorm(width, rngs=rngs)
    self.attention = nnx.MultiHeadAttention(
      num_heads=2, in_features=width, decode=False, rngs=rngs
    )
    self.norm_2 = nnx.RMSNorm(width, rngs=rngs)
    self.up = nnx.Linear(width, 2 * width, rngs=rngs)
    self.down = nnx.Linear(2 * width, width, rngs=rngs)

  def __call__(self, x: Array) -> tuple[dict[str, Array], Array]:
    """Cache and residual stream."""
    h = self.attention(self.norm_1(x))
    x = x + h
    return {'cache': h}, x + self.down(nnx.silu(self.up(self.norm_2(x))))


class LanguageModel(nnx.Module):
  """Embedding, blocks, norm and head."""

  def __init__(self, depth: int, width: int, rngs: nnx.Rngs) -> None:
    """Makes the layers."""
    self.embed = nnx.Embed(base.VOCABULARY, width, rngs=rngs)
    self.blocks = nnx.List([Block(width, rngs) for _ in range(depth)])
    self.norm = nnx.RMSNorm(width, rngs=rngs)
    self.head = nnx.Linear(width, base.VOCABULARY, rngs=rngs)

  def __call__(self, ids: Array) -> Array:
    """Logits."""
    x = self.embed(ids)
    for block in self.blocks:
      _, x = block(x)
    return self.head(self.norm(x))


class Adapted(nnx.Module):
  """Linear layers with LoRA, of which only that is trained."""

  def __init__(self, depth: int, width: int, rngs: nnx.Rngs) -> None:
    """Makes the layers."""
    self.first = nnx.Linear(5, width, rngs=rngs)
    self.layers = nnx.List(
      [
        nnx.LoRALinear(width, width, lora_rank=2, rngs=rngs)
        for _ in range(depth)
      ]
    )
    self.head = nnx.Linear(width, base.CLASSES, rngs=rngs)

  def __call__(self, x: Array) -> Array:
    """Logits."""
    x = self.first(x)
    for layer in self.layers:
      x = x + nnx.tanh(layer(x))
    return self.head(x)


class Feedforward(nnx.Module):
  """A block of a stack."""

  def __init__(self, width: int, rngs: nnx.Rngs) -> None:
    """Makes the layers."""
    self.up = nnx.Linear(width, 2 * width, rngs=rngs)
    self.down = nnx.Linear(2 * width, width, rngs=rngs)

  def __call__(self, x: Array) -> Array:
    """The residual stream."""
    return x + self.down(nnx.tanh(self.up(x)))


class Scanned(nnx.Module):
  """Blocks in one scan."""

  def __init__(self, depth: int, width: int, rngs: nnx.Rngs) -> None:
    """Makes the layers."""
    self.embed = nnx.Embed(base.VOCABULARY, width, rngs=rngs)
    make = nnx.vmap(lambda rngs: Feedforward(width, rngs), in_axes=0)
    self.blocks = make(rngs.split(depth))
    self.head = nnx.Linear(width, base.VOCABULARY, rngs=rngs)

  def __call__(self, ids: Array) -> Array:
    """Logits."""
    step = nnx.scan(
      lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry
    )
    return self.head(step(self.embed(ids), self.blocks))


class Recurrent(nnx.Module):
  """Two recurrent layers over a sequence."""

  def __init__(self, depth: int, width: int, rngs: nnx.Rngs) -> None:
    """Makes the layers."""
    self.embed = nnx.Embed(base.VOCABULARY, width, rngs=rngs)
    self.layers = nnx.List(
      [nnx.RNN(nnx.LSTMCell(width, width, rngs=rngs)) for _ in range(depth)]
    )
    self.head = nnx.Linear(width, base.VOCABULARY, rngs=rngs)

  def __call__(self, ids: Array) -> Array:
    """Logits."""
    x = self.embed(ids)
    for layer in self.layers:
      x = x + layer(x)
    return self.head(x)


def made(kind: Any, depth: int, width: int) -> Any:
  """A module with random parameters."""
  make = lambda: kind(depth, width, nnx.Rngs(0))
  graph, state = nnx.split(nnx.eval_shape(make))
  return nnx.merge(graph, base.weights(state))


def language_model() -> base.Case:
  """A language model to a smaller one."""
  x = base.tokens(base.BATCH, base.LENGTH)
  teacher = cxjax.from_nnx(made(LanguageModel, 4, 16))
  student = cxjax.from_nnx(made(LanguageModel, 2, 8))
  return base.Case(teacher, student, x, base.pairs('blocks/*/1', 'blocks/*/1'))


def lora() -> base.Case:
  """A student of which only the LoRA parameters are trained."""
  x = base.floats(base.BATCH, 5)
  teacher = cxjax.from_nnx(made(Adapted, 4, 16))
  student = cxjax.from_nnx(made(Adapted, 2, 8))
  pairs = base.pairs('layers/*', 'layers/*')
  trained = {'trainable': nnx.LoRAParam}
  return base.Case(teacher, student, x, pairs, distill=trained)


def nnx_scan() -> base.Case:
  """A scan over blocks to a smaller one."""
  x = base.tokens(base.BATCH, base.LENGTH)
  teacher = cxjax.from_nnx(made(Scanned, 4, 16))
  student = cxjax.from_nnx(made(Scanned, 2, 8))
  return base.Case(teacher, student, x, base.pairs('blocks/*', 'blocks/*'))


def recurrent() -> base.Case:
  """Recurrent layers to fewer and smaller ones."""
  x = base.tokens(base.BATCH, base.LENGTH)
  teacher = cxjax.from_nnx(made(Recurrent, 4, 16))
  student = cxjax.from_nnx(made(Recurrent, 2, 8))
  return base.Case(teacher, student, x, base.pairs('layers/*', 'layers/*'))


CASES: base.Cases = {
  'nnx language model': language_model,
  'nnx LoRA': lora,
  'nnx.scan': nnx_scan,
  'nnx.RNN of LSTM': recurrent,
}
