"""Channels and positions that the layers of a model hardly tell apart."""

import functools

from absl import logging
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cxjax
from cxjax.models import channels
import drawn
from tests.models.convolutions import compared
from tests.models.convolutions import conv

pytestmark = pytest.mark.slow

B, C, T = 4, 6, 8
X = np.random.default_rng(0).normal(size=(B, C, T)).astype(np.float32)


def matrix(*shape):
  return 0.1 * drawn.normal(*shape)


def made(run, **shapes):
  params = {name: matrix(*shape) for name, shape in shapes.items()}
  return cxjax.from_fn(run, params)


def mixer(first, pick=lambda y: y, head=5):
  """Mixes both axes of `[B, C, T]`, as TSMixer, or an MLP-Mixer.

  Args:
    first: number of channels that a first convolution makes; 0 is none.
    pick: what is returned of the output.
    head: length of the last axis of the output.
  """
  width = first or C

  def run(p, x):
    found = {}
    x = conv(x, p['first']) if first else x
    for i in range(2):
      x = x + jnp.tanh(x @ p['dense'])
      x = x + conv(jnp.tanh(conv(x, p['up'])), p['down'])
      found[f'blocks/{i}'] = x
    return pick(x @ p['head']), found

  return made(
    run,
    first=(width, C, 1),
    dense=(T, T),
    up=(2 * width, width, 1),
    down=(width, 2 * width, 1),
    head=(T, head),
  )


def pooled(width, classes=5, hidden=T, end=lambda y: y[..., 0]):
  """Convolutions of one position, pooled by learned weights."""

  def run(p, x):
    a = jnp.tanh(conv(x, p['a']))
    b = jnp.tanh(conv(a, p['b']))
    y = conv(b, p['classes']) @ p['positions']
    return end(y), {'blocks/0': a, 'blocks/1': b}

  return made(
    run,
    a=(width, C, 1),
    b=(width, width, 1),
    classes=(classes, width, 1),
    positions=(T, 1 if hidden == T else hidden),
  )


def embedded(width, end, expand=1):
  """Features of `[B, tokens, width]`; the convolution mixes the tokens."""

  def run(p, x):
    found = {}
    x = x @ p['embedding']
    for i in range(2):
      x = x + conv(jnp.tanh(conv(x, p['up'])), p['down'])
      x = x + jnp.tanh(x @ p['dense'])
      found[f'blocks/{i}'] = x
    return end(p, x), found

  return made(
    run,
    embedding=(T, width),
    up=(expand * C, C, 1),
    down=(C, expand * C, 1),
    dense=(width, width),
    head=(width, 5),
    flat=(C * width, 5),
    tokens=(C,),
  )


ENDS = {
  'mean': lambda p, x: x.mean(1) @ p['head'],
  'flat': lambda p, x: x.reshape(B, -1) @ p['flat'],
  'first': lambda p, x: x[:, 0] @ p['head'],
  'tokens': lambda p, x: x @ p['head'],
  'weights': lambda p, x: jnp.einsum('btd,t->bd', x, p['tokens']) @ p['head'],
  'weights_last': lambda p, x: jnp.einsum(
    'btd,t->bd', x @ p['head'], p['tokens']
  ),
}
LAST = lambda y: y[:, -1]  # Of the channels, one is forecast.


class DoubtsTest(parameterized.TestCase):
  def found(self, model, x=X):
    both = channels.find(model.apply, model.params, x)
    for each in both:
      each.pop('logits', None)
    return both

  def plan(self, teacher, student, **kwargs):
    pair = [('blocks/1', 'blocks/1')]
    options = {'num_steps': 4, 'layers': pair, 'loss': 'mse', 'pool': 'mean'}
    return cxjax.plan(teacher, student, X, **{**options, **kwargs})

  def warned(self, *args, **kwargs):
    with self.assertLogs('absl', 'WARNING') as logs:
      self.plan(*args, **kwargs)
      logging.warning('planned')
    lines = [r.getMessage() for r in logs.records if r.levelname == 'WARNING']
    return [line for line in lines if 'feature_axis' in line]

  @parameterized.parameters(
    lambda: mixer(0),
    # The output has one of the axes, but only as the other one was picked.
    lambda: mixer(0, pick=LAST),
    lambda: mixer(0, pick=lambda y: y.reshape(B, -1)),
  )
  def test_either_may_be_the_features(self, model):
    found, doubts = self.found(model())
    self.assertEqual(found, {})
    self.assertEqual(doubts, dict.fromkeys(('blocks/0', 'blocks/1'), (1, 2)))

  def test_evidence_for_both(self):
    def run(p, x):
      h = conv(x, p['channels']) @ p['positions']
      return h @ p['head'], {'h': h}

    model = made(run, channels=(9, C, 1), positions=(T, 7), head=(7, 5))
    self.assertEqual(self.found(model)[1], {'h': (1, 2)})

  @parameterized.parameters(
    lambda: mixer(9),
    lambda: mixer(9, pick=LAST),
    lambda: pooled(9),
    lambda: pooled(C),  # Only the output tells them.
    lambda: pooled(9, hidden=3, end=lambda y: y.reshape(B, -1)),
  )
  def test_channels_that_are_told(self, model):
    found, doubts = self.found(model())
    self.assertEqual(found, {'blocks/0': 1, 'blocks/1': 1})
    self.assertEqual(doubts, {})

  @parameterized.product(end=list(ENDS), expand=(1, 2))
  def test_tokens_that_are_told(self, end, expand):
    model = embedded(9, ENDS[end], expand)
    self.assertEqual(self.found(model), ({}, {}))

  def test_a_wider_convolution_tells(self):
    def run(p, x):
      x = conv(x, p['wide'])
      h = conv(x @ p['positions'], p['narrow'])
      return h @ p['head'], {'h': h}

    model = made(
      run, wide=(C, C, 3), positions=(T, T), narrow=(C, C, 1), head=(T, 5)
    )
    self.assertEqual(self.found(model), ({'h': 1}, {}))

  def test_of_a_vector_nothing_is_in_doubt(self):
    model = mixer(0)
    run = lambda p, x: (model.apply(p, x)[0], {'h': model.apply(p, x)[0][:, 0]})
    self.assertEqual(channels.find(run, model.params, X), ({}, {}))

  def test_a_plan_warns_in_one_line(self):
    (theirs, ours) = self.warned(mixer(0), mixer(0))
    self.assertIn("'blocks/1' of the teacher", theirs)
    self.assertIn("'blocks/1' of the student", ours)
    self.assertNotIn('blocks/0', theirs)
    for part in (
      'axis 1 or axis 2',
      'The last axis is',
      'feature_axis=(1, None)',
    ):
      self.assertIn(part, theirs)
    self.assertIn('feature_axis=(None, 1)', ours)
    self.assertNotIn('\n', theirs)

  @parameterized.parameters(1, 2, -1, ({'blocks/1': 1},))
  def test_a_user_who_says_it_is_not_warned(self, axis):
    self.assertEqual(self.warned(mixer(0), mixer(0), feature_axis=axis), [])

  def test_of_one_side(self):
    (line,) = self.warned(mixer(0), mixer(0), feature_axis=(1, None))
    self.assertIn('of the student', line)

  def test_what_is_not_compared_is_not_warned_of(self):
    self.assertEqual(self.warned(mixer(0), mixer(0), layers=()), [])

  def test_others_are_not_warned_of(self):
    both = [embedded(width, ENDS['flat'], 2) for width in (9, 7)]
    self.assertEqual(self.warned(*both), [])
    self.assertEqual(self.warned(pooled(9), pooled(7)), [])

  def test_a_comparison_warns_once(self):
    with self.assertLogs('absl', 'WARNING') as logs:
      methods = ('fitnets', 'joint')
      compared(mixer(0), mixer(0), X, methods, loss='mse')
    lines = [r.getMessage() for r in logs.records]
    lines = [line for line in lines if 'feature_axis' in line]
    self.assertLen(lines, 2)


def shuffled(x, groups=2):
  """Mixes the groups of channels of `[B, C, ...]`, as in ShuffleNet."""
  batch, width, *grid = x.shape
  x = x.reshape(batch, groups, width // groups, *grid)
  return jnp.swapaxes(x, 1, 2).reshape(batch, width, *grid)


def of_one(x):
  """The same of one example, as in equinox."""
  return jax.vmap(lambda one: shuffled(one[None])[0])(x)


class ShuffledTest(parameterized.TestCase):
  @parameterized.parameters(
    shuffled,
    functools.partial(shuffled, groups=4),  # Of as many groups as channels.
    functools.partial(shuffled, groups=16),
    of_one,
    lambda x: jax.nn.relu(shuffled(shuffled(x))),
    lambda x: jax.lax.fori_loop(0, 2, lambda _, x: shuffled(x), x),
  )
  def test_the_channels_stay(self, shuffle):
    kernel = matrix(16, C, 3)

    def run(p, x):
      x = jnp.tanh(x)
      y = shuffle(conv(x, kernel))
      return y[:, 0], {'x': x, 'y': y, 'z': jnp.tanh(y + y.mean(2)[..., None])}

    self.assertEqual(channels.axes(run, {}, X), {'x': 1, 'y': 1, 'z': 1})

  def test_before_the_convolution(self):
    def run(p, x):
      x = jnp.tanh(x)
      y = shuffled(x)
      return conv(y, matrix(5, C, 3))[:, 0], {'x': x, 'y': y}

    self.assertEqual(channels.axes(run, {}, X), {'x': 1, 'y': 1})

  def test_a_part_beside_another_axis_is_no_channel_axis(self):
    def run(p, x):
      y = conv(x, matrix(16, C, 3)).reshape(B, 4, 4, T)
      y = jnp.swapaxes(y, 2, 3).reshape(B, 4 * T, 4)
      return y[:, 0], {'y': y}

    self.assertEqual(channels.axes(run, {}, X), {})
