"""Tests for losses between outputs that are never held whole."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cxjax.methods import losses
from cxjax.methods import output_pieces
from cxjax.methods import output_split
from cxjax.methods import stage as stage_lib
from cxjax.methods import train_step

CLASSES = 7
SHAPE = (3, 5)
X = np.arange(15).reshape(SHAPE) % CLASSES


def apply(params, x):
  out = jnp.tanh(params['embed'][x]) @ params['kernel']
  return out + jnp.broadcast_to(params['bias'], out.shape), {}


def make(seed, width, dtype):
  """Random parameters; of the largest kernels losses are steep."""
  random = np.random.default_rng(seed)
  normal = lambda *shape: jnp.asarray(random.normal(size=shape), dtype)
  return {
    'embed': normal(CLASSES, width),
    'kernel': 3 * normal(width, CLASSES),
    'bias': normal(CLASSES),
  }


def compare(loss, rows, weights=None, top=0, dtype=jnp.float32, labels=False):
  """Values and gradients, whole and in pieces."""
  student, teacher = make(0, 4, dtype), make(1, 6, dtype)
  ours = output_split.split(apply, rows, student, X)
  theirs = output_split.split(apply, rows, teacher, X)
  few = lambda logits: losses.top_k(logits, top) if top else logits

  def whole(params):
    want = X if labels else few(apply(teacher, X)[0])
    found = loss(apply(params, X)[0], want)
    return jnp.sum(found if weights is None else found * weights)

  def pieces(params):
    output = theirs(teacher, X)[0]
    want = output_pieces.each(few, output) if top else output
    want = X if labels else want
    return output_pieces.summed_loss(ours(params, X)[0], want, loss, weights)

  wanted = jax.jit(jax.value_and_grad(whole))(student)
  found = jax.jit(jax.value_and_grad(pieces))(student)
  chex.assert_trees_all_close(jax.jit(pieces)(student), found[0], rtol=1e-6)
  return found, wanted


class SummedLossTest(parameterized.TestCase):
  @parameterized.parameters(
    (losses.kl, 1),
    (losses.kl, 4),
    (losses.kl, 100),
    (losses.reverse_kl, 4),
    (losses.jensen_shannon, 4),
    (losses.hard_kl, 4),
    (losses.mse, 4),
    (functools.partial(losses.kl, temperature=3.0), 7),
  )
  @pytest.mark.slow
  def test_is_that_of_the_whole(self, loss, rows):
    """For any number of rows: one, parts of the tokens, more than all."""
    found, wanted = compare(loss, rows)
    chex.assert_trees_all_close(found, wanted, rtol=1e-5, atol=1e-5)

  @pytest.mark.slow
  def test_with_labels_and_with_the_largest_logits(self):
    for options in ({'labels': True}, {'top': 3}):
      loss = losses.cross_entropy if 'labels' in options else losses.top_k_kl
      found, wanted = compare(loss, 4, **options)
      chex.assert_trees_all_close(found, wanted, rtol=1e-5, atol=1e-5)

  @pytest.mark.slow
  def test_with_weights(self):
    weights = jnp.asarray(np.arange(15).reshape(SHAPE) % 3, jnp.float32)
    found, wanted = compare(losses.kl, 4, weights)
    chex.assert_trees_all_close(found, wanted, rtol=1e-5, atol=1e-5)

  @parameterized.parameters('kl', 'reverse_kl', 'jensen_shannon')
  @pytest.mark.slow
  def test_in_float64(self, name):
    with jax.enable_x64(True):
      found, wanted = compare(losses.LOSSES[name], 4, dtype=jnp.float64)
      self.assertEqual(found[0].dtype, jnp.float64)
      chex.assert_trees_all_close(found, wanted, rtol=1e-10, atol=1e-10)

  @pytest.mark.slow
  def test_rows_of_weight_0_may_be_nan(self):
    output = output_split.split(apply, 2, make(0, 4, jnp.float32), X)
    broken = make(0, 4, jnp.float32)
    broken['embed'] = broken['embed'].at[3].set(jnp.nan)
    weights = jnp.asarray(X != 3, jnp.float32)
    loss = output_pieces.summed_loss(
      output(broken, X)[0], X, losses.cross_entropy, weights
    )
    self.assertTrue(jnp.isfinite(loss))

  @pytest.mark.slow
  def test_of_bfloat16_kernels_is_summed_in_float32(self):
    """256 pieces of equal gradients: a sum in bfloat16 would stop early."""
    params = {
      'embed': jnp.ones((2, 1), jnp.bfloat16),
      'kernel': jnp.zeros((1, 2), jnp.bfloat16),
      'bias': jnp.zeros(2, jnp.bfloat16),
    }
    x = jnp.zeros((1024,), int)
    split = output_split.split(apply, 1, params, x)
    total = lambda params: output_pieces.summed_loss(
      split(params, x)[0], x, losses.cross_entropy, None
    )
    grads = jax.jit(jax.grad(total))(params)
    self.assertEqual(grads['bias'].dtype, jnp.bfloat16)
    self.assertEqual(grads['bias'].tolist(), [-512, 512])


class StepTest(parameterized.TestCase):
  @parameterized.product(microbatches=(1, 3), weighted=(False, True))
  @pytest.mark.slow
  def test_is_that_of_whole_outputs(self, microbatches, weighted):
    """However much examples, and with them the microbatches, weigh."""
    student, teacher = make(0, 4, jnp.float32), make(1, 6, jnp.float32)
    ours = output_split.split(apply, 2, student, X)
    theirs = output_split.split(apply, 2, teacher, X)
    terms = stage_lib.output_terms(alpha=0.3)
    batch = {'x': jnp.asarray(X), 'y': jnp.asarray(X)}
    if weighted:
      batch['weights'] = jnp.arange(15.0).reshape(SHAPE)
    tx = optax.sgd(1.0)

    def step(apply, want, microbatches, **options):
      return train_step.update(
        train_step.State(student, {}, tx.init((student, {}))),
        batch,
        {'output': want, 'labels': batch['y']},
        apply=apply,
        stage=stage_lib.Stage('s', 1, terms),
        tx=tx,
        mask=jax.tree.map(lambda _: True, student),
        microbatches=microbatches,
        **options,
      )

    want = jax.jit(lambda: step(apply, apply(teacher, X)[0], 1))()
    features = theirs(teacher, X)[0].features
    found = jax.jit(
      lambda: step(
        ours, features, microbatches, teacher_output=theirs.restorer(teacher)
      )
    )()
    chex.assert_trees_all_close(found, want, rtol=1e-5, atol=1e-5)


class RowsTest(parameterized.TestCase):
  @parameterized.parameters(
    ((64, 128, 2_048), {'platform': 'gpu'}, None),  # The bound itself.
    ((64, 128, 2_049), {'platform': 'gpu'}, 4_094),
    ((4, 128, 50_257), {'platform': 'gpu'}, 512),
    ((4, 128, 50_257), {'platform': 'gpu', 'parts': 2}, None),
    ((4, 128, 4_000), {'platform': 'gpu', 'copies': 9}, 512),
    ((64, 128, 128), {}, None),
    ((64, 128, 129), {}, 2_032),
    ((64, 128, 129), {'parts': 2}, None),
    ((64, 128, 129), {'copies': 4}, 508),
    ((8, 1_024, 151_936), {}, 128),
    ((10**9,), {}, None),
  )
  def test_only_of_large_outputs(self, shape, options, rows):
    self.assertEqual(output_pieces.rows_at_once(shape, **options), rows)


class FitsTest(parameterized.TestCase):
  @parameterized.parameters(
    ([stage_lib.Term()], True),
    (stage_lib.output_terms(alpha=0.3, top_k=2), True),
    ([stage_lib.Term('a', 'b'), stage_lib.Term(loss='mse')], True),
    ([stage_lib.Term('a', 'b')], False),
    ([stage_lib.Term(), stage_lib.Term('a', 'logits')], False),
    ([stage_lib.Term(loss='cosine')], False),
    ([stage_lib.Term(loss=lambda a, b: losses.mse(a, b))], False),
    ([stage_lib.Term(projection='gaussian', loss='mse')], False),
    ([stage_lib.Term(scale=2.0)], False),
    ([stage_lib.Term(centered=True)], False),
  )
  def test_of_losses_of_ours_row_by_row(self, terms, fits):
    stage = stage_lib.Stage('a', 1, tuple(terms))
    self.assertEqual(output_pieces.fits(stage), fits)


if __name__ == '__main__':
  absltest.main()
