"""Flax modules that the tests of this folder adapt."""

from flax import linen as nn

from cxjax.models import linen_adapter
import drawn


class Perceptron(nn.Module):
  widths: tuple[int, ...] = (16, 24)

  @nn.compact
  def __call__(self, x):
    for width in self.widths:
      x = nn.relu(nn.Dense(width)(x))
    return nn.Dense(3)(x)


class Convolutional(nn.Module):
  """Convolutions with batch norm and a flag for training."""

  @nn.compact
  def __call__(self, x, train=False):
    for features in (4, 8):
      x = nn.Conv(features, (3, 3))(x)
      x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
      x = nn.avg_pool(x, (2, 2), (2, 2))
    return nn.Dense(3)(x.reshape(len(x), -1))


def adapt(module, x, **kwargs):
  """A freshly initialized linen module as a model, and its variables."""
  variables = drawn.parameters(module.init, x)
  return linen_adapter.from_linen(module, variables, **kwargs), variables
