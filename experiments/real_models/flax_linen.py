"""Models of flax.linen, in the layouts that are common."""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

import cxjax
from experiments.real_models import base

Array = jax.Array


class Mlp(nn.Module):
  """The feed-forward part of a block."""

  width: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """The output."""
    h = nn.gelu(nn.Dense(2 * self.width)(x))
    return nn.Dense(self.width)(h)


class Encoder1DBlock(nn.Module):
  """A block of a transformer; with `memory`, of a decoder."""

  width: int

  @nn.compact
  def __call__(self, x: Array, memory: Array | None = None) -> Array:
    """The output."""
    h = nn.LayerNorm(name='LayerNorm_0')(x)
    x = x + nn.MultiHeadDotProductAttention(num_heads=2)(h, h)
    if memory is not None:
      h = nn.LayerNorm(name='LayerNorm_1')(x)
      x = x + nn.MultiHeadDotProductAttention(num_heads=2)(h, memory)
    return x + Mlp(self.width)(nn.LayerNorm(name='LayerNorm_2')(x))


class Stack(nn.Module):
  """Blocks, then a norm."""

  depth: int
  width: int
  pattern: str

  @nn.compact
  def __call__(self, x: Array, memory: Array | None = None) -> Array:
    """The output."""
    for i in range(self.depth):
      name = self.pattern.replace('*', str(i))
      x = Encoder1DBlock(self.width, name=name)(x, memory)
    return nn.LayerNorm(name='encoder_norm')(x)


class VisionTransformer(nn.Module):
  """A vision transformer in the layout of Google's."""

  depth: int
  width: int

  @nn.compact
  def __call__(self, images: Array) -> Array:
    """The output."""
    x = nn.Conv(self.width, (4, 4), (4, 4), name='embedding')(images)
    x = x.reshape(len(x), -1, self.width)
    token = self.param('cls', nn.initializers.zeros, (1, 1, self.width))
    x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], axis=1)
    x = Stack(self.depth, self.width, 'encoderblock_*', name='Transformer')(x)
    return nn.Dense(base.CLASSES, name='head')(x[:, 0])


class EncoderDecoder(nn.Module):
  """An encoder and a decoder with one vocabulary."""

  depth: int
  width: int

  @nn.compact
  def __call__(self, src: Array, tgt: Array) -> Array:
    """The output."""
    embed = nn.Embed(base.VOCABULARY, self.width, name='shared')
    stack = lambda name: Stack(self.depth, self.width, 'layer_*', name=name)
    memory = stack('encoder')(embed(src))
    return embed.attend(stack('decoder')(embed(tgt), memory))


class TwoTowers(nn.Module):
  """A tower of images and one of texts; similarities of all pairs."""

  depth: int
  width: int

  @nn.compact
  def __call__(self, image: Array, text: Array) -> Array:
    """The output."""
    stack = lambda name: Stack(self.depth, self.width, 'layers_*', name=name)
    patches = nn.Dense(self.width, name='patches')(image)
    words = nn.Embed(base.VOCABULARY, self.width, name='words')(text)
    a = stack('vision')(patches).mean(1)
    b = stack('text')(words).mean(1)
    return nn.Dense(4, name='a')(a) @ nn.Dense(4, name='b')(b).T


class UNet(nn.Module):
  """Convolutions down and up again, with time steps."""

  width: int

  @nn.compact
  def __call__(self, x: Array, t: Array) -> Array:
    """The output."""
    t = nn.Dense(self.width, name='time')(jnp.sin(t[:, None] * jnp.arange(4.0)))
    kept = []
    for i in range(2):
      h = nn.Conv(self.width, (3, 3), name=f'down_{i}')(x)
      x = nn.silu(h + t[:, None, None])
      kept.append(x)
      x = nn.avg_pool(x, (2, 2), (2, 2))
    for i in range(2):
      size = kept[-1].shape[:-1]
      x = jax.image.resize(x, (*size, x.shape[-1]), 'nearest')
      x = jnp.concatenate([x, kept.pop()], axis=-1)
      x = nn.silu(nn.Conv(self.width, (3, 3), name=f'up_{i}')(x))
    return nn.Conv(1, (1, 1), name='out')(x)


class MessagePassing(nn.Module):
  """Messages along the edges of a graph."""

  width: int

  @nn.compact
  def __call__(self, x: Array, senders: Array, receivers: Array) -> Array:
    """The output."""
    pairs = jnp.concatenate([x[senders], x[receivers]], axis=-1)
    sent = nn.relu(nn.Dense(self.width, name='edges')(pairs))
    got = jax.ops.segment_sum(sent, receivers, len(x))
    return x + nn.Dense(self.width, name='nodes')(got)


class GraphNetwork(nn.Module):
  """A class of one graph."""

  depth: int
  width: int

  @nn.compact
  def __call__(self, nodes: Array, senders: Array, receivers: Array) -> Array:
    """The output."""
    x = nn.Dense(self.width, name='embed')(nodes)
    for i in range(self.depth):
      layer = MessagePassing(self.width, name=f'layers_{i}')
      x = layer(x, senders, receivers)
    return nn.Dense(base.CLASSES, name='head')(x.mean(0))


class Experts(nn.Module):
  """A mixture of experts: each token goes to one of them."""

  width: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """The output."""
    gates = nn.softmax(nn.Dense(3, name='router')(x))
    self.sow('intermediates', 'balance', jnp.square(gates.mean((0, 1))).sum())
    found = jnp.stack(
      [Mlp(self.width, name=f'expert_{i}')(x) for i in range(3)], axis=-1
    )
    best = gates * (gates == gates.max(-1, keepdims=True))
    return x + (found * best[..., None, :]).sum(-1)


class MixtureOfExperts(nn.Module):
  """A language model whose blocks are mixtures of experts."""

  depth: int
  width: int

  @nn.compact
  def __call__(self, ids: Array) -> Array:
    """The output."""
    x = nn.Embed(base.VOCABULARY, self.width)(ids)
    for i in range(self.depth):
      x = Experts(self.width, name=f'moe_{i}')(x)
    return nn.Dense(base.VOCABULARY, name='lm_head')(nn.LayerNorm()(x))


class Scanned(nn.Module):
  """Blocks in one scan."""

  depth: int
  width: int

  @nn.compact
  def __call__(self, ids: Array) -> Array:
    """The output."""
    x = nn.Embed(base.VOCABULARY, self.width)(ids)
    step = lambda block, x, _: (block(x), None)
    stack = nn.scan(
      step,
      variable_axes={'params': 0, 'intermediates': 0},
      split_rngs={'params': True},
      length=self.depth,
    )
    x, _ = stack(Mlp(self.width, name='blocks'), x, None)
    return nn.Dense(base.VOCABULARY, name='lm_head')(x)


def adapt(module: nn.Module, x: Any, **kwargs: Any) -> cxjax.ModelAdapter:
  """A new module as a model; a dict holds its arguments."""
  call = lambda key, x: (
    module.init(key, **x) if isinstance(x, dict) else module.init(key, x)
  )
  variables = base.weights(jax.eval_shape(call, jax.random.key(0), x))
  return cxjax.from_linen(module, {'params': variables['params']}, **kwargs)


def vision_transformer() -> base.Case:
  """Images to classes."""
  x = base.floats(base.BATCH, 8, 8, 3)
  teacher, student = VisionTransformer(4, 16), VisionTransformer(2, 8)
  layers = 'Transformer/encoderblock_*'
  pairs = base.pairs(layers, layers)
  return base.Case(adapt(teacher, x), adapt(student, x), x, pairs)


def encoder_decoder() -> base.Case:
  """Encoder with encoder and decoder with decoder."""
  x = {name: base.tokens(base.BATCH, base.LENGTH) for name in ('src', 'tgt')}
  teacher, student = EncoderDecoder(4, 16), EncoderDecoder(2, 8)
  pairs = sum(
    (base.pairs(*[f'{part}/layer_*'] * 2) for part in ('encoder', 'decoder')),
    (),
  )
  return base.Case(adapt(teacher, x), adapt(student, x), x, pairs)


def two_towers() -> base.Case:
  """Tower with tower; the output is a matrix of similarities."""
  x = {
    'image': base.floats(base.BATCH, base.LENGTH, 5),
    'text': base.tokens(base.BATCH, base.LENGTH),
  }
  teacher, student = TwoTowers(4, 16), TwoTowers(2, 8)
  pairs = sum(
    (base.pairs(*[f'{part}/layers_*'] * 2) for part in ('vision', 'text')), ()
  )
  return base.Case(adapt(teacher, x), adapt(student, x), x, pairs)


def unet() -> base.Case:
  """Noise of an image at a time step."""
  x = {
    'x': base.floats(base.BATCH, 8, 8, 1),
    't': base.floats(base.BATCH),
  }
  names = ('down_0', 'down_1', 'up_0', 'up_1')
  pairs = tuple((name, name) for name in names)
  teacher, student = adapt(UNet(8), x), adapt(UNet(4), x)
  layers = {'down_*': 'down_*', 'up_*': 'up_*'}
  options = {'loss': 'mse', 'layers': layers}
  return base.Case(teacher, student, {'x': x}, pairs, options)


def graph_network(
  network: Any = GraphNetwork, pattern: str = 'layers_*'
) -> base.Case:
  """Graphs to classes; the network takes one graph.

  Args:
    network: module of a depth and a width.
    pattern: pattern of its layers.
  """
  edges = base.tokens(base.BATCH, 2, 8) % 5
  x = {
    'nodes': base.floats(base.BATCH, 5, 3),
    'senders': edges[:, 0],
    'receivers': edges[:, 1],
  }
  one = {name: leaf[0] for name, leaf in x.items()}
  teacher, student = (
    adapt(network(depth, width), one, batched=False)
    for depth, width in ((4, 16), (2, 8))
  )
  return base.Case(teacher, student, x, base.pairs(pattern, pattern))


def mixture_of_experts() -> base.Case:
  """A mixture of experts to a smaller one."""
  x = base.tokens(base.BATCH, base.LENGTH)
  teacher, student = MixtureOfExperts(4, 16), MixtureOfExperts(2, 8)
  pairs = base.pairs('moe_*', 'moe_*')
  return base.Case(adapt(teacher, x), adapt(student, x), x, pairs)


def linen_scan() -> base.Case:
  """A scan over blocks to a smaller one."""
  x = base.tokens(base.BATCH, base.LENGTH)
  teacher, student = Scanned(4, 16), Scanned(2, 8)
  pairs = base.pairs('blocks/*', 'blocks/*')
  return base.Case(adapt(teacher, x), adapt(student, x), x, pairs)


CASES: base.Cases = {
  'linen ViT': vision_transformer,
  'linen encoder-decoder': encoder_decoder,
  'linen two towers': two_towers,
  'linen UNet (x, t)': unet,
  'linen graph network': graph_network,
  'linen mixture of experts': mixture_of_experts,
  'linen nn.scan': linen_scan,
}
