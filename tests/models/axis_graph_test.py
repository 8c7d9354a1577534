"""Channels of values with several axes that convolutions contract."""

import functools

from absl.testing import parameterized
import equinox as eqx
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cxjax
from cxjax.models import channels
import drawn

pytestmark = pytest.mark.slow

B, T, F = 4, 10, 12
KEY = jax.random.key(0)
SOUND = np.random.default_rng(0).normal(size=(B, T, F)).astype(np.float32)
NUMBERS = {
  'NCH': ('NCH', 'OIH', 'NCH'),
  'NHC': ('NHC', 'HIO', 'NHC'),
  'NCHW': ('NCHW', 'OIHW', 'NCHW'),
  'NHWC': ('NHWC', 'HWIO', 'NHWC'),
  'NCDHW': ('NCDHW', 'OIDHW', 'NCDHW'),
}


def conv(x, layout, *shape):
  """A convolution with a kernel of that shape."""
  return jax.lax.conv_general_dilated(
    x,
    jnp.ones(shape),
    (1,) * (x.ndim - 2),
    'SAME',
    dimension_numbers=NUMBERS[layout],
  )


class Spectrum(nn.Module):
  """A convolution over images, then some whose channels are the pitches."""

  width: int

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(self.width, (3, 3), name='image')(x[..., None]))
    x = nn.Conv(1, (1, 1))(x)[..., 0]
    for _ in range(3):
      x = nn.relu(nn.Conv(16, (3,))(x))
    return nn.Dense(5)(x.mean(1))


class Scaled(eqx.Module):
  """Channels that a dense layer over the positions scales."""

  convs: list
  scale: eqx.nn.Linear
  head: eqx.nn.Linear

  def __init__(self, width):
    make = lambda n: eqx.nn.Conv1d(n, width, 3, padding=1, key=KEY)
    self.convs = [make(1), make(width)]
    self.scale = eqx.nn.Linear(T, width, key=KEY)
    self.head = eqx.nn.Linear(width, 5, key=KEY)

  def __call__(self, x):
    h = x[None]
    for each in self.convs:
      h = jax.nn.relu(each(h))
    return self.head((h * self.scale(x)[:, None]).mean(1))


def spectrum(width):
  net = Spectrum(width)
  return cxjax.from_linen(net, drawn.parameters(net.init, SOUND))


def scaled(width):
  return cxjax.from_equinox(drawn.arrays(eqx.filter_eval_shape(Scaled, width)))


def stereo(x, window=3):
  """Costs by disparity, which are the channels of the last convolutions."""
  x = jnp.broadcast_to(x[:, None, None], (B, 3, 5, T, F))
  h = conv(x, 'NCDHW', 8, 3, *[window] * 3)
  y = conv(h, 'NCDHW', 1, 8, *[window] * 3)[:, 0]
  z = conv(y, 'NCHW', 5, 5, 3, 3)
  return {'h': h, 'y': y, 'z': conv(z, 'NCHW', 5, 5, 3, 3)}


def pitches(x):
  """The channels of images, then the pitches of sounds, as in `Spectrum`."""
  h = conv(x[:, None], 'NCHW', 8, 1, 3, 3)
  y = conv(h.mean(1), 'NCH', T, T, 3)
  return {'h': h, 'y': conv(y, 'NCH', T, T, 3)}


def images(x, window=3):
  """Images of what convolutions over the pitches make."""
  a = conv(conv(x, 'NHC', 3, F, F), 'NHC', 3, F, F)
  b = conv(a[..., None], 'NHWC', window, window, 1, 8)
  return {'a': a, 'b': b, 'c': jnp.tanh(b @ jnp.ones((8, 5)))}


def tokens(x):
  """Tokens that a convolution mixes, between wider ones over the features."""
  a = conv(x, 'NHC', 3, F, 8)
  b = a + conv(a, 'NCH', T, T, 1)
  return {'a': a, 'b': b, 'c': conv(b, 'NHC', 3, 8, 8)}


def filtered(x):
  """A filter over the channels themselves, by whose sums it scales them."""
  h = conv(x, 'NCH', 8, T, 3)
  gate = conv(h.mean(2)[:, None], 'NCH', 1, 1, 3)
  return {'h': h, 'gate': gate, 'y': h * gate[:, 0, :, None]}


def pooled(x):
  """Channels and positions, each scaled by means over the other."""
  x = jnp.tanh(x)
  h = conv(x, 'NCH', 8, T, 3)
  y = h * (x.mean(1) @ jnp.ones((F, 8)))[:, :, None]
  y = conv(y, 'NCH', 8, 8, 3)
  z = y * (y.mean(2) @ jnp.ones((8, F)))[:, None]
  return {'h': h, 'x': x, 'y': y, 'z': z}


class NearestTest(parameterized.TestCase):
  @parameterized.parameters((spectrum, 'image'), (scaled, 'convs/1'))
  def test_a_plan_compares_the_channels(self, model, layer):
    x = SOUND if model is spectrum else SOUND[..., 0]
    plan = cxjax.plan(model(8), model(6), x, num_steps=8, layers=[(layer,) * 2])
    term = plan.stage_plans[0].terms[layer]
    self.assertEqual((term.teacher_width, term.student_width), (8, 6))

  @parameterized.parameters(
    (stereo, {'h': 1, 'y': 1, 'z': 1}),
    (pitches, {'h': 1, 'y': 1}),
    (images, {}),
    # The same, whose images are convolved by single positions.
    (functools.partial(stereo, window=1), {'h': 1, 'y': 1, 'z': 1}),
    (functools.partial(images, window=1), {}),
    (tokens, {}),
    (filtered, {'h': 1, 'y': 1}),
    (pooled, {'h': 1, 'x': 1, 'y': 1, 'z': 1}),
  )
  def test_the_nearest_convolution_says(self, fun, wanted):
    run = lambda _, x: (x[:, 0], fun(x))
    self.assertEqual(channels.axes(run, {}, SOUND), wanted)
