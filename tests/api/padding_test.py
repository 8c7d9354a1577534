"""What does not count, in a whole run: padding, weights of 0, empty masks."""

import dataclasses
import functools

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cxjax
from cxjax import errors
from cxjax.api import padding

B, LENGTH, VOCABULARY, C = 4, 6, 9, 4
MASK = np.arange(LENGTH) < np.array([[6], [4], [2], [3]])
random = np.random.default_rng(0)
TOKENS = random.integers(1, VOCABULARY, (B, LENGTH))
CLASSES = np.arange(B * LENGTH).reshape(B, LENGTH) % C
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


def two_outputs(params, x):
  """Outputs of each token and of each sequence."""
  logits, found = sequences(params, x)
  real = (x['mask'] if x['mask'].ndim == 2 else x['mask'][:, 0, 0])[..., None]
  mean = (found['h'] * real).sum(1) / jnp.maximum(real.sum(1), 1)
  return {'logits': logits, 'pooled': mean @ params['head']}, found


@pytest.mark.slow
class OutputsTest(parameterized.TestCase):
  """One mask of tokens, for outputs of tokens and of examples."""

  def distill(self, x, **options):
    models = [cxjax.from_fn(two_outputs, m.params) for m in MODELS[sequences]]
    loss = {'logits': 'kl', 'pooled': 'mse'}
    plan = cxjax.plan(*models, x, num_steps=2, layers=(), loss=loss, **options)
    return cxjax.distill(plan, [x], log_every=1)[0]

  @parameterized.parameters(None, lambda batch: batch['x']['mask'])
  def test_tokens_of_padding_change_nothing(self, mask):
    found = [self.distill(batch(padding), mask=mask) for padding in (0, 7)]
    chex.assert_trees_all_equal(*found)

  def test_an_example_without_tokens_is_left_out(self):
    some = MASK.copy()
    some[1] = False
    x = batch(0, some)
    kept = jax.tree.map(lambda leaf: np.delete(leaf, 1, axis=0), x)
    found, want = self.distill(x), self.distill(kept)
    chex.assert_trees_all_close(found, want, rtol=1e-5, atol=1e-6)

  def test_a_mask_of_attention_and_the_advice_for_it(self):
    """The function makes the shape that the message asks for."""
    x = batch(0)
    attention = {**x, 'mask': np.tile(MASK[:, None, None], (1, 1, LENGTH, 1))}
    with self.assertRaisesRegex(errors.UserError, r'must be \[4\].*plan mask='):
      self.distill(attention)
    of_tokens = lambda batch: batch['x']['mask'][:, 0, 0]
    found = self.distill(attention, mask=of_tokens)
    chex.assert_trees_all_close(found, self.distill(x), rtol=1e-5)
    of_examples = lambda batch: jnp.ones(B, bool)
    found = self.distill(attention, mask=of_examples)
    want = self.distill(x, mask=of_examples)
    chex.assert_trees_all_close(found, want, rtol=1e-5)


def tokens_alone(params, x):
  """`sequences`, of an array; it knows of no mask."""
  assert not isinstance(x, dict)
  return sequences(params, {'tokens': x})


def pooled_alone(params, x):
  """One output for each sequence."""
  h = tokens_alone(params, x)[1]['h']
  return h.mean(1) @ params['head'], {'h': h}


@pytest.mark.slow
class MaskTest(parameterized.TestCase):
  """A function of the batch, in place of an entry of the input."""

  def models(self, apply):
    return [cxjax.from_fn(apply, m.params) for m in MODELS[sequences]]

  def distill(self, batch, mask, apply=tokens_alone, data=None, **options):
    plan = cxjax.plan(
      *self.models(apply), batch, num_steps=4, mask=mask, **options
    )
    data = [batch if data is None else data]
    return cxjax.distill(plan, data, log_every=2)

  @parameterized.parameters(
    ({},),
    ({'pool': 'mean'},),
    ({}, {'weights': np.array([1, 2, 0, 0.5], np.float32)}),
  )
  def test_as_the_mask_of_an_input(self, options, weights=()):
    """Bit for bit: students, records and the evaluation."""
    options = {'layers': [('h', 'h')], **options}
    want = distill({'x': batch(0), **dict(weights)}, **options)
    x = {'x': batch(0)['tokens'], **dict(weights)}
    found = self.distill(x, lambda b: b['x'] != 0, **options)
    chex.assert_trees_all_equal(found, want)

  def test_beside_an_input_that_has_one(self):
    """The model reads its own; the losses read that of the function."""

    def apply(params, x):
      output, found = sequences(params, x)
      return output + x['mask'].astype(float).mean(), found

    x = {'tokens': batch(0)['tokens'], 'mask': np.ones_like(MASK)}
    found = self.distill(x, lambda b: b['x']['tokens'] != 0, apply, layers=())
    plain = lambda params, x: apply(params, {'tokens': x, 'mask': jnp.ones(1)})
    want = self.distill(x['tokens'], lambda b: b['x'] != 0, plain, layers=())
    chex.assert_trees_all_close(found[0], want[0], rtol=1e-5)

  def test_of_examples_they_are_weights(self):
    weights = np.array([1, 0, 1, 1], np.float32)
    tokens = TOKENS.copy()
    tokens[:, 0] = [1, 2, 1, 1]
    chex.assert_trees_all_equal(
      self.distill(
        tokens, lambda b: b['x'][:, 0] != 2, pooled_alone, layers=()
      ),
      self.distill(
        {'x': tokens, 'weights': weights}, None, pooled_alone, layers=()
      ),
    )

  def test_of_examples_they_replace_the_mask_of_an_input(self):
    """The model reads its own mask; no token is left out of hidden losses."""
    x = batch(0)
    plain = lambda params, x: sequences(params, {'tokens': x})
    every = lambda batch: jnp.ones(B, bool)
    for pool in ('none', 'mean'):
      options = dict(layers=[('h', 'h')], pool=pool)
      found = self.distill(x, every, sequences, **options)
      want = self.distill(x['tokens'], None, plain, **options)
      chex.assert_trees_all_close(found[0], want[0], rtol=1e-5, atol=1e-6)

  def test_nan_where_nothing_counts_is_cleared(self):
    x = np.where(MASK[..., None], np.ones((B, LENGTH, 2)), np.nan)
    mask = lambda batch: ~jnp.isnan(batch['x']).any(-1)
    found = padding.Padding(mask, (B, LENGTH))({'x': x})['x']
    np.testing.assert_array_equal(found['mask'], MASK)
    self.assertFalse(np.isnan(found['tokens']).any())

  def test_ids_that_no_embedding_has(self):
    known = cxjax.Abilities(vocab_size=VOCABULARY)
    teacher, student = (
      dataclasses.replace(one, abilities=known)
      for one in self.models(pooled_alone)
    )
    found = []
    for number in (0, -1, VOCABULARY):
      x = batch(number)['tokens']
      mask = lambda b: (b['x'] > 0) & (b['x'] < VOCABULARY)
      plan = cxjax.plan(teacher, student, x, num_steps=2, layers=(), mask=mask)
      found.append(cxjax.distill(plan, [x], log_every=1))
    chex.assert_trees_all_equal(found[0], found[1])
    chex.assert_trees_all_equal(found[0], found[2])

  @parameterized.parameters(
    (np.where(MASK, CLASSES, -100), lambda y: y != -100),
    (np.where(MASK, CLASSES, 255).astype(np.uint8), lambda y: y != 255),
    (np.where(MASK[..., None], np.eye(C)[CLASSES], 0), lambda y: y.any(-1)),
  )
  def test_labels_that_no_class_has(self, labels, counts):
    """A mask may read them; they count nowhere."""
    found = self.distill(
      (TOKENS, labels), lambda b: counts(b['y']), layers=(), alpha=0.5
    )
    want = self.distill(
      (TOKENS, CLASSES), lambda b: jnp.asarray(MASK), layers=(), alpha=0.5
    )
    chex.assert_trees_all_close(found[0], want[0], rtol=1e-5)
    for name in ('loss', 'eval/loss', 'eval/accuracy', 'eval/agreement'):
      a, b = (records[-1][name] for _, records in (found, want))
      np.testing.assert_allclose(a, b, rtol=1e-5, err_msg=name)
    with self.assertRaisesRegex(errors.UserError, 'Labels '):
      self.distill((TOKENS, labels), lambda b: b['x'] > 0, layers=(), alpha=0.5)

  def test_labels_that_count_or_are_classes_stay(self):
    mask = lambda batch: batch['x'] > 0
    x, y = np.array([[1, 0, 0, 5]]), np.array([[-1, -1, 2, 9]])
    for axes, classes, want in (
      ((1, 4), 4, [[-1, 0, 2, 9]]),
      ((1, 3), 4, [[-1, -1, 2, 9]]),  # No class for each output.
    ):
      made = padding.Padding(mask, axes, None, classes)({'x': x, 'y': y})
      np.testing.assert_array_equal(made['y'], want)

  @parameterized.parameters('all', 'predicted')
  def test_examples_of_weight_0_in_a_square_batch(self, tokens):
    """Weights `[B]` are those of the examples, where tokens are as many."""
    models, x = self.models(pooled_alone), TOKENS[:, :B]
    other = x.copy()
    other[2] = 3
    stages = [
      cxjax.Stage(
        'hidden',
        2,
        (cxjax.Term('h', 'h', tokens=tokens, projection='gaussian'),),
      ),
      cxjax.Stage('output', 1, (cxjax.Term(),)),
    ]
    found = []
    for some in (x, other):
      rows = {'x': some, 'weights': np.array([1, 1, 0, 1], np.float32)}
      plan = cxjax.plan(*models, rows, stages=stages)
      found.append(cxjax.distill(plan, [rows], log_every=1))
    chex.assert_trees_all_equal(*found)

  def test_resumes_with_the_same_mask_alone(self):
    folder = self.create_tempdir().full_path
    make = functools.partial(
      cxjax.plan, *self.models(tokens_alone), TOKENS, num_steps=2, layers=()
    )
    train = functools.partial(
      cxjax.distill, batches=[TOKENS], held_out=TOKENS, workdir=folder
    )
    train(make(mask=lambda b: b['x'] != 0))
    with self.assertRaisesRegex(errors.UserError, r'differ.* mask \('):
      train(make(mask=lambda b: b['x'] > 3))

  @parameterized.parameters(
    (MASK, 'mask=.* must be a function'),
    (lambda b: b['y'], "mask does not run on a batch of x: KeyError: 'y'"),
    (lambda b: np.asarray(b['x']) != 0, 'TracerArrayConversion.*jax.numpy'),
    (lambda b: b['x'].sum(), r'mask makes int32\[\] of a batch of 4'),
    (lambda b: b['x'][:2] != 0, r'bool\[2, 6\] of a batch of 4: it must make'),
    (lambda b: b['x'][:, :3] != 0, "values of .* and the 'mask' is .4, 3."),
  )
  def test_refuses(self, mask, message):
    with self.assertRaisesRegex(errors.UserError, message):
      cxjax.plan(
        *self.models(tokens_alone),
        TOKENS,
        num_steps=4,
        layers=[('h', 'h')],
        mask=mask,
      )

  def test_an_attention_mask_is_not_overlooked(self):
    apply = lambda p, x: sequences(p, {'tokens': x['input_ids']})
    x = {'input_ids': TOKENS, 'attention_mask': MASK}
    with self.assertLogs('absl', 'WARNING') as logs:
      cxjax.plan(*self.models(apply), x, num_steps=4, layers=())
    self.assertRegex('\n'.join(logs.output), 'attention_mask.*no mask')


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

  @pytest.mark.slow
  def test_one_class(self):
    one = {**MODELS[images][1].params, 'head': draw(3, 1)}
    both = (cxjax.from_fn(images, one),) * 2
    with self.assertRaisesRegex(errors.UserError, 'is constant.*of one class'):
      cxjax.plan(*both, IMAGES, num_steps=2, layers=())
    cxjax.plan(*both, IMAGES, num_steps=2, layers=(), loss='mse')
