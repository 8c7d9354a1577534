"""Models of flax.linen for images."""

import functools

from flax import linen as nn
import jax

import cxjax
from experiments.real_models import base
from experiments.real_models import flax_linen

Array = jax.Array
SIZE = 8  # Of an image, in pixels.


class ResNetBlock(nn.Module):
  """Two convolutions with batch norm, and what goes round them."""

  filters: int
  strides: int
  train: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """The output."""
    norm = functools.partial(nn.BatchNorm, not self.train)
    conv = functools.partial(nn.Conv, self.filters, use_bias=False)
    h = nn.relu(norm()(conv((3, 3), self.strides)(x)))
    h = norm()(conv((3, 3))(h))
    if x.shape != h.shape:
      x = norm(name='norm_proj')(
        conv((1, 1), self.strides, name='conv_proj')(x)
      )
    return nn.relu(x + h)


class ResNet(nn.Module):
  """A residual network; each stage begins with a stride."""

  sizes: tuple[int, ...]
  filters: int

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """Logits."""
    x = nn.Conv(self.filters, (3, 3), use_bias=False, name='conv_init')(x)
    x = nn.relu(nn.BatchNorm(not train, name='bn_init')(x))
    for i, size in enumerate(self.sizes):
      for j in range(size):
        strides = 2 if i > 0 and j == 0 else 1
        x = ResNetBlock(self.filters * 2**i, strides, train)(x)
    return nn.Dense(base.CLASSES)(x.mean((1, 2)))


class Convolutional(nn.Module):
  """Two convolutions."""

  width: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Logits."""
    for i in range(2):
      x = nn.relu(nn.Conv(self.width, (3, 3), 2, name=f'conv_{i}')(x))
    return nn.Dense(base.CLASSES, name='head')(x.mean((1, 2)))


class Detector(nn.Module):
  """Classes and boxes of every position of an image."""

  depth: int
  width: int

  @nn.compact
  def __call__(self, x: Array) -> dict[str, Array]:
    """Logits and boxes."""
    x = nn.Conv(self.width, (2, 2), 2, name='embed')(x)
    for i in range(self.depth):
      x = x + nn.relu(nn.Conv(self.width, (3, 3), name=f'layers_{i}')(x))
    boxes = nn.Dense(4, name='boxes')(x)
    return {'logits': nn.Dense(base.CLASSES, name='head')(x), 'boxes': boxes}


def images() -> Array:
  """A batch of images."""
  return base.floats(base.BATCH, SIZE, SIZE, 3)


def resnet() -> base.Case:
  """A residual network to one of half the blocks; it has batch statistics."""
  x = images()

  def make(sizes: tuple[int, ...], filters: int) -> cxjax.ModelAdapter:
    module = ResNet(sizes, filters)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    return cxjax.from_linen(module, base.weights(shapes))

  teacher, student = make((2, 2), 8), make((1, 1), 4)
  return base.Case(
    teacher, student, x, base.pairs('ResNetBlock_*', 'ResNetBlock_*')
  )


def to_convolutions() -> base.Case:
  """A vision transformer to a convolutional network, of the mean tokens."""
  x = images()
  teacher = flax_linen.adapt(flax_linen.VisionTransformer(4, 16), x)
  student = flax_linen.adapt(Convolutional(8), x)
  pairs = base.pairs('Transformer/encoderblock_*', 'conv_*')
  options = {'layers': list(pairs), 'pool': 'mean'}
  return base.Case(teacher, student, x, pairs, options)


def detector() -> base.Case:
  """Several outputs, each with a loss."""
  x = images()
  teacher, student = (
    flax_linen.adapt(Detector(depth, width), x)
    for depth, width in ((4, 16), (2, 8))
  )
  options = {'loss': {'logits': 'kl', 'boxes': ('mse', 0.5)}}
  pairs = base.pairs('layers_*', 'layers_*')
  return base.Case(teacher, student, x, pairs, options)


CASES: base.Cases = {
  'linen ResNet': resnet,
  'linen ViT to convolutions': to_convolutions,
  'linen detector, two outputs': detector,
}
