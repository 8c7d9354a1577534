"""Small networks and batches, for tests of the API. Not a test."""

from flax import linen as nn
import jax.numpy as jnp
import numpy as np
import optax

import cxjax
import drawn

# Examples of a batch, width of the input, classes.
B, D, C = 8, 6, 3


class Net(nn.Module):
  """A network of `[B, D]` vectors with tanh between its layers."""

  widths: tuple[int, ...]
  features: int = C

  @nn.compact
  def __call__(self, x):
    for width in self.widths:
      x = jnp.tanh(nn.Dense(width)(x))
    return nn.Dense(self.features)(x)


class Image(nn.Module):
  """A convolution and two linear layers."""

  strides: int
  features: int = 4

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(self.features, (3, 3), self.strides)(x))
    x = nn.relu(nn.Dense(5)(x.mean((1, 2))))
    return nn.Dense(C)(x)


class Sequence(nn.Module):
  """Two linear layers over `[B, L, D]`; the second sees every `every`-th."""

  every: int = 1

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(5, name='first')(x)[:, :: self.every]
    x = nn.Dense(5, name='second')(nn.relu(x))
    return nn.Dense(C)(x.mean(1))


def network(module, x, *seeds):
  """An adapter with one set of parameters, or with one for each seed."""
  params = [drawn.parameters(module.init, x, seed=s) for s in seeds or (0,)]
  return cxjax.from_linen(module, params if seeds else params[0])


def batches(seed=0, number=12, shape=(B, D)):
  """Batches of random numbers."""
  rng = np.random.default_rng(seed)
  return [rng.normal(size=shape).astype(np.float32) for _ in range(number)]


def two_layers(params, x):
  """A network of two hidden layers without flax: it is traced in no time."""
  low = jnp.tanh(x @ params['low'])
  high = jnp.tanh(low @ params['high'])
  return high @ params['out'], {'low': low, 'high': high}


def parameters(seed, low=5, high=4):
  """Parameters of `two_layers`."""
  rng = np.random.default_rng(seed)
  shapes = {'low': (D, low), 'high': (low, high), 'out': (high, C)}
  return {
    name: (0.5 * rng.normal(size=shape)).astype(np.float32)
    for name, shape in shapes.items()
  }


X = batches()[0]
Y = np.arange(B) % C
# Of flax.
TEACHER = network(Net((16, 16)), X)
STUDENT = network(Net((4,)), X)
# Joint losses, one of which fades out.
JOINT_TERMS = (
  cxjax.Term('logits', 'logits'),
  cxjax.Term(
    'Dense_0',
    'Dense_1',
    projection='gaussian',
    weight=optax.linear_schedule(1.0, 0.0, 1.0),
  ),
  cxjax.Term('logits', 'labels', weight=0.5),
)
# Functions. One plan of one stage and one of two, for many tests, so that their
# programs are compiled once.
BIG = cxjax.from_fn(two_layers, parameters(0))
SMALL = cxjax.from_fn(two_layers, parameters(1))
ONE = cxjax.plan(BIG, SMALL, X, num_steps=20, layers=())
PLAN = cxjax.plan(BIG, SMALL, X, num_steps=20, layers=[('high', 'low')])
