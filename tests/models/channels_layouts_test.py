"""Channels told apart from tokens, and followed through loops and branches."""

from absl.testing import parameterized
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cxjax
from cxjax.models import channels
from cxjax.models import scanned
import drawn
from tests.models.convolutions import compared
from tests.models.convolutions import conv
from tests.models.convolutions import widths

pytestmark = pytest.mark.slow

B, C, H, W = 4, 3, 5, 6
IMAGES = np.random.default_rng(0).normal(size=(B, C, H, W)).astype(np.float32)
T, F = 9, 4
TOKENS = np.random.default_rng(1).normal(size=(B, T, F)).astype(np.float32)
KEY = jax.random.key(0)


class Block(eqx.Module):
  """A block of an MLP-Mixer, or of a gMLP with a gate."""

  norm: eqx.nn.LayerNorm
  tokens: eqx.nn.Conv1d
  up: eqx.nn.Linear
  down: eqx.nn.Linear
  gated: bool
  tokens_first: bool

  def __init__(self, width, gated, tokens_first):
    self.norm = eqx.nn.LayerNorm(width)
    self.tokens = eqx.nn.Conv1d(T, T, 1, key=KEY)
    self.up = eqx.nn.Linear(width, 2 * width, key=KEY)
    self.down = eqx.nn.Linear(width * (1 if gated else 2), width, key=KEY)
    self.gated, self.tokens_first = gated, tokens_first

  def __call__(self, x):
    if self.gated:
      x, gate = jnp.split(jax.nn.gelu(jax.vmap(self.up)(x)), 2, axis=-1)
      return jax.vmap(self.down)(x * self.tokens(jax.vmap(self.norm)(gate)))
    if self.tokens_first:
      x = x + self.tokens(jax.vmap(self.norm)(x))
    x = x + jax.vmap(lambda one: self.down(jax.nn.gelu(self.up(one))))(x)
    return x if self.tokens_first else x + self.tokens(x)


class Mixer(eqx.Module):
  embedding: eqx.Module
  blocks: list
  head: eqx.nn.Linear
  flat: bool

  def __init__(
    self, width, gated=False, tokens_first=True, flat=False, embedded=True
  ):
    linear = eqx.nn.Linear(F, width, key=KEY)
    self.embedding = linear if embedded else eqx.nn.Identity()
    self.blocks = [Block(width, gated, tokens_first) for _ in range(2)]
    self.head = eqx.nn.Linear(width * (T if flat else 1), 7, key=KEY)
    self.flat = flat

  def __call__(self, x):
    x = jax.vmap(self.embedding)(x)
    for each in self.blocks:
      x = x + each(x)
    return self.head(x.ravel() if self.flat else x.mean(0))


def equinox(*args, **kwargs):
  return cxjax.from_equinox(
    drawn.arrays(eqx.filter_eval_shape(Mixer, *args, **kwargs))
  )


def moved(fun, params, x=IMAGES):
  """Axes of channels of the activations of a function, `{name: ...}`."""
  run = lambda params, x: (x[:, 0], fun(params, x))
  return channels.axes(run, params, x)


KERNEL = jnp.ones((8, C, 3, 3))


class TokensTest(parameterized.TestCase):
  @parameterized.parameters(
    {},
    {'gated': True},
    {'flat': True},
    {'tokens_first': False},
    {'tokens_first': False, 'flat': True},
  )
  def test_a_mixer_is_matched_by_its_features(self, **kwargs):
    plan = cxjax.plan(
      equinox(8, **kwargs), equinox(6, **kwargs), TOKENS, num_steps=8
    )
    widths = [
      (term.teacher_width, term.student_width)
      for stage in plan.stage_plans[:2]
      for term in stage.terms.values()
    ]
    self.assertEqual(widths, [(8, 6), (8, 6)])

  def test_a_mixer_trains(self):
    teacher, student = equinox(8), equinox(6)
    plan = cxjax.plan(
      teacher, student, TOKENS, num_steps=60, share=0.5, loss='mse'
    )
    found, _ = cxjax.distill(plan, [TOKENS], optimizer=optax.adam(1e-2))
    after = jax.jit(jax.vmap(found))(TOKENS)
    wanted, before = (
      jax.jit(m.apply)(m.params, TOKENS)[0] for m in (teacher, student)
    )
    error = lambda got: np.square(np.asarray(got) - wanted).mean()
    self.assertLess(error(after), 0.2 * error(before))

  @parameterized.product(
    gated=[False, True], tokens_first=[False, True], flat=[False, True]
  )
  def test_of_features_without_an_embedding(self, **kwargs):
    model = equinox(F, embedded=False, **kwargs)
    self.assertEqual(channels.axes(model.apply, model.params, TOKENS), {})

  @parameterized.parameters(1, 3)
  def test_patches_of_a_wider_convolution(self, size):
    params = jnp.ones((8, C, size, size)), jnp.ones((30, 30, 1))

    def fun(params, x):
      x = jnp.moveaxis(conv(x, params[0]).reshape(B, 8, -1), 1, -1)
      if size == 1:  # Of which a dense layer says what the features are.
        x = x @ jnp.ones((8, 8))
      return {'h': x + conv(x, params[1]), 'first': jnp.moveaxis(x, -1, 1)}

    self.assertEqual(moved(fun, params), {'first': 1})

  def test_a_network_of_single_positions(self):
    def fun(params, x):
      x = conv(x, params[0])
      return {'h': jax.nn.relu(x), 'y': x.mean((2, 3)) @ params[1]}

    params = jnp.ones((8, C, 1, 1)), jnp.ones((8, 5))
    self.assertEqual(moved(fun, params), {'h': 1})


class FollowedTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('norm', lambda x: (x - x.mean((2, 3), keepdims=True)) * 2),
    ('branch', lambda x: jax.lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x)),
    ('einsum', lambda x: jnp.einsum('bchw,cd->bdhw', x, jnp.ones((C, C)))),
  )
  def test_before_the_first_convolution(self, before):
    def fun(kernel, x):
      x = before(x)
      return {'h': x, 'y': conv(x, kernel).mean((2, 3))}

    self.assertEqual(moved(fun, KERNEL), {'h': 1})

  @parameterized.named_parameters(
    ('scan', lambda x: jax.lax.scan(lambda c, _: (c * 2, 0), x, length=2)[0]),
    ('loop', lambda x: jax.lax.fori_loop(0, x.argmax(), lambda i, c: c * 2, x)),
    ('branch', lambda x: jax.lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x)),
    ('map', lambda x: jax.lax.map(jnp.sin, x)),
    ('second_half', lambda x: jnp.split(x, 2, axis=1)[1]),
    ('columns', lambda x: x[:, :, jnp.array([0, 2])]),
    ('dense_over_the_columns', lambda x: x @ jnp.ones((W, 7))),
    ('attention', lambda x: jnp.einsum('bchw,bhvw->bchv', x, x[:, 0, :, None])),
    ('remat', jax.checkpoint(jnp.sin)),
    (
      'shards',
      lambda x: jax.shard_map(
        jnp.sin,
        mesh=jax.make_mesh(
          (2,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
        ),
        in_specs=jax.P('data'),
        out_specs=jax.P('data'),
      )(x),
    ),
  )
  def test_after_it(self, after):
    fun = lambda kernel, x: {'h': after(conv(x, kernel))}
    self.assertEqual(moved(fun, KERNEL), {'h': 1})

  def test_the_sums_of_a_gate_over_the_channels_stay(self):
    """Efficient channel attention convolves over the channels themselves."""

    def fun(params, x):
      x = conv(conv(x, params[0]), params[1])
      gate = jax.lax.conv_general_dilated(
        x.mean((2, 3))[:, None], params[2], (1,), 'SAME'
      )
      return {'gate': gate, 'h': x * gate[:, 0, :, None, None]}

    params = KERNEL, jnp.ones((8, 8, 3, 3)), jnp.ones((1, 1, 3))
    self.assertEqual(moved(fun, params), {'h': 1})


class ScannedTest(parameterized.TestCase):
  def model(self, width):
    def apply(params, x):
      x = conv(x, params['stem'])
      step = lambda x, kernel: (x + jnp.tanh(conv(x, kernel)), None)
      x, _ = jax.lax.scan(step, x, params['blocks'])
      return x.mean((2, 3)) @ params['head'], {}

    keys = jax.random.split(KEY, 3)
    shapes = {
      'stem': (width, C, 3, 3),
      'blocks': (2, width, width, 3, 3),
      'head': (width, 7),
    }
    params = {
      name: 0.1 * jax.random.normal(key, shapes[name])
      for name, key in zip(shapes, keys, strict=True)
    }
    return cxjax.from_fn(apply, params)

  def test_the_layers_of_a_scan(self):
    model = scanned.with_layers(self.model(8))
    found = channels.axes(model.apply, model.params, IMAGES)
    self.assertEqual(found, {'blocks/0': 1, 'blocks/1': 1})

  def test_plan(self):
    plan = cxjax.plan(self.model(8), self.model(4), IMAGES, num_steps=8)
    (term,) = plan.stage_plans[0].terms.values()
    self.assertEqual((term.teacher_width, term.student_width), (8, 4))
    _, history = cxjax.distill(plan, [IMAGES])
    self.assertTrue(np.isfinite(history[-1]['loss']).all())

  def test_compare(self):
    found = compared(self.model(8), self.model(4), IMAGES)
    self.assertEqual(widths(found), {(8, 4)})
