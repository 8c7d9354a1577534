"""Channels of convolutional activations, moved to the last axis."""

import os

from absl.testing import parameterized
import equinox as eqx
from flax import linen as nn
from flax import nnx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

os.environ.setdefault('KERAS_BACKEND', 'jax')
import keras  # noqa: E402

import cxjax  # noqa: E402
from cxjax import errors  # noqa: E402
from cxjax.models import channels  # noqa: E402
import drawn
from tests.models.convolutions import compared  # noqa: E402
from tests.models.convolutions import conv  # noqa: E402
from tests.models.convolutions import widths  # noqa: E402

pytestmark = pytest.mark.slow

B, C, H, W = 4, 3, 5, 6
FIRST = np.random.default_rng(0).normal(size=(B, C, H, W)).astype(np.float32)
LAST = np.moveaxis(FIRST, 1, -1)
KEY = jax.random.key(0)


class Equinox(eqx.Module):
  convs: list
  norm: eqx.nn.GroupNorm
  head: eqx.nn.Linear

  def __init__(self, width, key=KEY):
    make = lambda n: eqx.nn.Conv2d(n, width, 3, padding=1, key=key)
    self.convs = [make(C), make(width)]
    self.norm = eqx.nn.GroupNorm(2, width)
    self.head = eqx.nn.Linear(width, 7, key=key)

  def __call__(self, x):
    for each in self.convs:
      x = jax.nn.relu(each(x))
    return self.head(self.norm(x).mean((1, 2)))


class Linen(nn.Module):
  """Convolutions with the channels last, as usual in flax."""

  width: int

  @nn.compact
  def __call__(self, x):
    for i in range(2):
      x = nn.relu(nn.Conv(self.width, (3, 3), name=f'convs_{i}')(x))
    return nn.Dense(7)(x.mean((1, 2)))


class Own(nn.Module):
  """A convolution of one's own, with the channels first."""

  width: int = 4

  @nn.compact
  def __call__(self, x):
    shape = (self.width, x.shape[1], 3, 3)
    return conv(x, self.param('kernel', nn.initializers.lecun_normal(), shape))


class Nnx(nnx.Module):
  def __init__(self):
    self.conv = nnx.Conv(C, 4, (3, 3), rngs=nnx.Rngs(0))
    self.turn = nnx.BatchNorm(4, axis=1, rngs=nnx.Rngs(0))

  def __call__(self, x):
    x = self.conv(jnp.moveaxis(x, 1, -1))
    x = self.turn(jnp.moveaxis(x, -1, 1), use_running_average=True)
    return x.mean((2, 3))


def equinox(width):
  net = drawn.arrays(eqx.filter_eval_shape(Equinox, width))
  return cxjax.from_equinox(net)


def linen(width):
  net = Linen(width)
  return cxjax.from_linen(net, drawn.parameters(net.init, LAST))


def of_linen():
  net = nn.Sequential([Own(), lambda x: x.mean((2, 3))])
  return cxjax.from_linen(net, drawn.parameters(net.init, FIRST))


def of_haiku():
  def run(x):
    return hk.Conv2D(4, 3, data_format='NCHW')(x).mean((2, 3))

  net = hk.without_apply_rng(hk.transform(run))
  return cxjax.from_haiku(net, drawn.parameters(net.init, FIRST))


def of_keras():
  keras.utils.clear_session(free_memory=False)
  layer = keras.layers.Conv2D(4, 3, data_format='channels_first', name='conv')
  pool = keras.layers.GlobalAveragePooling2D(data_format='channels_first')
  return cxjax.from_keras(
    keras.Sequential([keras.Input((C, H, W)), layer, pool])
  )


MADE = {
  'linen': of_linen,
  'nnx': lambda: cxjax.from_nnx(Nnx()),
  'haiku': of_haiku,
  'keras': of_keras,
}


def of_fn(fun):
  kernel = jnp.ones((8, C, 3, 3))
  run = lambda params, x: (x[:, 0, 0], {'h': fun(conv(x, params))})
  return cxjax.from_fn(run, kernel)


def group_norm(x):
  groups = x.reshape(len(x), 2, -1)
  groups = groups - groups.mean(-1, keepdims=True)
  return groups.reshape(x.shape)


class LastTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()  # Keras promotes ranks.
    self.enterContext(jax.numpy_rank_promotion('allow'))

  def shapes(self, model, x=FIRST):
    found = jax.eval_shape(model.apply, model.one, x)[1]
    return {name: leaf.shape for name, leaf in found.items()}

  def test_equinox(self):
    plain = equinox(4)
    model = channels.last(plain, FIRST)
    shapes = self.shapes(model)
    for name in ('convs/0', 'convs/1', 'norm'):
      self.assertEqual(shapes[name], (B, H, W, 4))
    output, found = model.apply(model.params, FIRST)
    same, before = plain.apply(plain.params, FIRST)
    np.testing.assert_array_equal(output, same)
    np.testing.assert_array_equal(
      found['norm'], np.moveaxis(before['norm'], 1, -1)
    )

  @parameterized.parameters(*MADE)
  def test_of_other_libraries(self, library):
    model = MADE[library]()
    moved = channels.last(model, FIRST)
    before, shapes = self.shapes(model), self.shapes(moved)
    first = [n for n, shape in before.items() if len(shape) == 4]
    first = [n for n in first if before[n][1] == 4]
    self.assertNotEmpty(first)
    for name in first:
      self.assertEqual(shapes[name][-1], 4)

  def test_channels_that_are_last_stay(self):
    model = linen(4)
    self.assertIs(channels.last(model, LAST), model)

  @parameterized.parameters(
    jax.nn.gelu,
    group_norm,
    lambda x: x + x.mean((2, 3), keepdims=True),
    lambda x: x * jnp.ones((1, 8, 1, 1)) + x[:, :1],
    lambda x: jnp.concatenate([x, x], axis=1)[:, :8],
    lambda x: jax.lax.reduce_window(
      x, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), 'SAME'
    ),
    lambda x: x.max(2),
    lambda x: x.reshape(B, 8, -1),
    lambda x: jnp.moveaxis(jnp.moveaxis(x, 1, -1), -1, 2),
    lambda x: jax.vmap(lambda one: one[None])(x)[:, 0],
    jax.jit(jnp.tanh),
  )
  def test_are_followed(self, fun):
    shape = self.shapes(channels.last(of_fn(fun), FIRST))['h']
    self.assertEqual(shape[-1], 8)

  @parameterized.parameters(
    lambda x: jnp.moveaxis(x, 1, -1),
    lambda x: x.mean((2, 3)),
    lambda x: x.reshape(B, -1),
    lambda x: jnp.einsum('bchw,cd->bhwd', x, jnp.ones((8, 9))),
    lambda x: x.reshape(B, 4, 2, -1),
  )
  def test_others_stay(self, fun):
    model = of_fn(fun)
    self.assertEqual(
      self.shapes(channels.last(model, FIRST)), self.shapes(model)
    )


class PlanTest(parameterized.TestCase):
  def widths(self, plan):
    (terms,) = [p.terms for p in plan.stage_plans if 'convs/0' in p.terms]
    return terms['convs/0'].teacher_width, terms['convs/0'].student_width

  def test_the_width_is_that_of_the_channels(self):
    plan = cxjax.plan(equinox(8), equinox(4), FIRST, num_steps=8)
    self.assertEqual(self.widths(plan), (8, 4))
    model, history = cxjax.distill(plan, [FIRST])
    self.assertIsInstance(model, Equinox)
    self.assertTrue(np.isfinite(history[-1]['loss']).all())

  def test_first_against_last(self):
    # One batch has one layout: the module of equinox turns it itself.
    turned = cxjax.from_equinox(
      Equinox(8), call=lambda module, x: module(jnp.moveaxis(x, -1, 0))
    )
    plan = cxjax.plan(
      turned, linen(4), LAST, num_steps=8, layers={'convs/0': 'convs_0'}
    )
    (term,) = plan.stage_plans[0].terms.values()
    self.assertEqual((term.teacher_width, term.student_width), (8, 4))
    self.assertEqual(plan.stages[0].terms[0].pool, 'none')  # Of equal grids.

  def test_compare(self):
    found = compared(equinox(8), equinox(4), FIRST)
    self.assertEqual(widths(found), {(8, 4)})


class OutputTest(parameterized.TestCase):
  def plan(self, loss, **kwargs):
    net = Own()
    params = drawn.parameters(net.init, FIRST)
    model = cxjax.from_linen(net, params, **kwargs)
    return cxjax.plan(model, model, FIRST, num_steps=1, layers=(), loss=loss)

  @parameterized.parameters('kl', 'cosine')
  def test_a_loss_over_the_columns_is_refused(self, loss):
    with self.assertRaisesRegex(errors.UserError, 'channels in axis 1.*move'):
      self.plan(loss)
    self.plan(loss, output=lambda y: jnp.moveaxis(y, 1, -1))

  @parameterized.parameters('mse', lambda p, q: jnp.abs(p - q).mean(-1))
  def test_a_loss_of_every_value_is_not(self, loss):
    self.plan(loss)
