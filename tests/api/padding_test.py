"""What does not count, in a whole run: padding, weights of 0, empty masks."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cxjax
from cxjax import errors

B, LENGTH, VOCABULARY, C = 4, 6, 9, 4
MASK = np.arange(LENGTH) < np.array([[6], [4], [2], [3]])
random = np.random.default_rng(0)
TOKENS = random.integers(1, VOCABULARY, (B, LENGTH))
IMAGES = random.normal(size=(B, 3, 3, 2)).astype(np.float32)


def draw(*shape):
  return random.normal(size=shape).astype(np.float32) * 0.4


def sequences(params, x):
  h = jnp.tanh(params['embedding'][x['tokens']] @ params['mix'])
  return h @ params['head'], {'h': h}


def images(params, x):
  h = jnp.tanh(x @ params['mix'])
  return h.mean((1, 2)) @ params['head'], {'h': h}


def model(apply, width):
  params = {
    'embedding': draw(VOCABULARY, 5),
    'mix': draw(5 if apply is sequences else 2, width),
    'head': draw(width, C),
  }
  return cxjax.from_fn(apply, params)


MODELS = {
  apply: (model(apply, 8), model(apply, 3)) for apply in (sequences, images)
}


def batch(padding, mask=MASK):
  return {'tokens': np.where(mask, TOKENS, padding), 'mask': mask}


def distill(batch, apply=sequences, held_out=None, **options):
  plan = cxjax.plan(*MODELS[apply], batch, num_steps=4, **options)
  return cxjax.distill(plan, [batch], held_out=held_out, log_every=2)


@pytest.mark.slow
class PaddingTest(parameterized.TestCase):
  @parameterized.parameters(
    (dict(layers=()),),
    (dict(layers=[('h', 'h')]),),
    (dict(layers=[('h', 'h')], pool='mean'),),
    (dict(layers=[('h', 'h')], pool='flatten'),),
  )
  def test_tokens_of_padding_change_nothing(self, options):
    """Neither the student nor the metrics of the held-out set."""
    found = [distill({'x': batch(padding)}, **options) for padding in (0, 7)]
    chex.assert_trees_all_equal(*found)

  def test_an_example_without_tokens_is_left_out_of_a_pooled_mean(self):
    mask = MASK.copy()
    mask[1] = False
    options = dict(layers=[('h', 'h')], pool='mean')
    empty = {'x': batch(0, mask), 'weights': np.ones(MASK.shape, np.float32)}
    empty['weights'][1] = 0
    without = jax.tree.map(lambda leaf: np.delete(leaf, 1, axis=0), empty)
    chex.assert_trees_all_close(
      distill(empty, held_out=without, **options)[0],
      distill(without, held_out=without, **options)[0],
      rtol=1e-5,
      atol=1e-6,
    )

  @parameterized.parameters('none', 'mean')
  def test_images_of_weight_0_change_nothing_in_hidden_stages(self, pool):
    """Not even if they are NaN, with a loss that knows nothing of weights."""
    far = lambda a, b: jnp.sqrt(jnp.sum(jnp.square(a - b) + 1e-3, -1))
    found = []
    for value in (0.0, np.nan):
      x = IMAGES.copy()
      x[2] = value
      full = {'x': x, 'weights': np.array([1, 2, 0, 1], np.float32)}
      options = dict(layers=[('h', 'h')], pool=pool, hidden_loss=far)
      found.append(distill(full, images, **options))
    chex.assert_trees_all_equal(*found)


class CauseTest(parameterized.TestCase):
  def test_a_teacher_with_nan(self):
    teacher, student = MODELS[images]
    params = {**teacher.params, 'mix': teacher.params['mix'] * np.nan}
    plan = cxjax.plan(
      cxjax.from_fn(images, params), student, IMAGES, num_steps=2, layers=()
    )
    with self.assertRaisesRegex(
      errors.UserError, "'mix' of the teacher is NaN"
    ):
      cxjax.distill(plan, [IMAGES])

  def test_one_class(self):
    one = {**MODELS[images][1].params, 'head': draw(3, 1)}
    both = (cxjax.from_fn(images, one),) * 2
    with self.assertRaisesRegex(errors.UserError, 'is constant.*of one class'):
      cxjax.plan(*both, IMAGES, num_steps=2, layers=())
    cxjax.plan(*both, IMAGES, num_steps=2, layers=(), loss='mse')
