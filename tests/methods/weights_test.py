"""Tests of the weights of the values that a loss compares."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax.methods import stage as stage_lib
from cxjax.methods import weights
from tests.methods import networks

Term = stage_lib.Term
B, LENGTH, POSITIONS = networks.B, networks.LENGTH, networks.POSITIONS
HALF = np.array([1.0, 0.5, 0.0, 2.0], np.float32)


def term(**fields):
  return Term(**{'student': 'low', 'target': 'low', **fields})


def random(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def loss_weights(batch, one, shape=(B, LENGTH, 5)):
  return weights.loss_weights(batch, one, one.student, shape)


class SeveralOutputsTest(parameterized.TestCase):
  @parameterized.product(
    (
      dict(shape=(4, 3, 5), want=[[1, 0, 2], [0, 0, 0], [0, 3, 0], [1, 1, 1]]),
      dict(shape=(4, 5), want=[1, 0, 1, 1]),
    ),
    (
      dict(x=np.zeros((4, 3), np.float32)),
      dict(x={'tokens': np.zeros((4, 3)), 'mask': np.ones((4, 3), bool)}),
    ),
  )
  def test_of_other_axes_count_by_their_examples(self, shape, want, x):
    """Tokens have weights, and an output of the example does not."""
    each = np.array([[1, 0, 2], [0, 0, 0], [0, 3, 0], [1, 1, 1]], np.float32)
    batch = {'x': x, 'weights': jnp.asarray(each)}
    one = Term('output:value', 'output:value', 'mse')
    found = loss_weights(batch, one, shape)
    np.testing.assert_array_equal(found, np.array(want, np.float32))
    metric = weights.output_weights(batch, shape, one.student)
    np.testing.assert_array_equal(metric, found)

  def test_examples_have_weights(self):
    batch = {'x': np.zeros((4, 3), np.float32), 'weights': jnp.asarray(HALF)}
    one = Term('output:value', 'output:value', 'mse')
    found = loss_weights(batch, one, (4, 3, 5))
    np.testing.assert_array_equal(found, np.repeat(HALF[:, None], 3, 1))

  def test_one_value_of_an_example_counts_where_a_token_does(self):
    mask = np.ones((B, LENGTH), bool)
    mask[2], mask[3, 1:] = False, False
    batch, name = {'x': {'mask': jnp.asarray(mask)}}, 'output:value'
    for found in (
      loss_weights(batch, Term(name, name, 'mse'), (B, 5)),
      weights.output_weights(batch, (B, 5), name),
    ):
      np.testing.assert_array_equal(found, [True, True, False, True])


class SequenceTest(parameterized.TestCase):
  @parameterized.parameters(
    (dict(), 'mask'),
    (dict(tokens='predicted'), 'weights'),
    (dict(student='logits', target='logits'), 'weights'),
    (dict(student='head_input', target='head_input'), 'weights'),
    (dict(student='logits', target='labels'), 'weights'),
    (dict(target='labels'), 'weights'),
  )
  def test_targets_count_by_weights_and_tokens_by_the_mask(
    self, fields, expected
  ):
    batch = networks.sequence_batch()
    found = loss_weights(batch, term(**fields))
    of = {'mask': batch['x']['mask'], 'weights': batch['weights']}
    self.assertIs(found, of[expected])

  @parameterized.parameters(
    (dict(student='logits', target='logits'), (B, POSITIONS, 7)),
    (dict(tokens='predicted'), (B, LENGTH, 5)),
  )
  def test_target_positions_without_weights_count_by_the_mask(
    self, fields, shape
  ):
    batch = networks.sequence_batch()
    del batch['weights']
    found = loss_weights(batch, term(**fields), shape)
    x = batch['x']
    rows = np.arange(B)[:, None]
    expected = np.asarray(x['mask'])[rows, x['target_positions']]
    np.testing.assert_array_equal(found, expected)

  def test_outputs_at_all_tokens_without_weights_count_by_the_mask(self):
    x = {'mask': networks.sequence_batch()['x']['mask']}
    for one in (Term(), Term(target='labels'), term(tokens='predicted')):
      found = loss_weights({'x': x}, one, (B, LENGTH, 7))
      np.testing.assert_array_equal(found, x['mask'])

  def test_the_mask_says_nothing_of_outputs_of_examples(self):
    """Nor would it, if the classes were as many as the tokens."""
    x = {'mask': jnp.zeros((B, LENGTH), bool)}
    for width in (3, LENGTH):
      self.assertIsNone(loss_weights({'x': x}, Term(), (B, width)))

  @parameterized.parameters('mean', 'flatten')
  def test_a_pooled_example_without_a_token_does_not_count(self, pool):
    mask = np.ones((B, LENGTH), bool)
    mask[2], mask[3, 1:] = False, False
    x = {'mask': jnp.asarray(mask)}
    found = loss_weights({'x': x}, term(pool=pool))
    np.testing.assert_array_equal(found, [True, True, False, True])
    found = loss_weights({'x': x, 'weights': HALF}, term(pool=pool))
    np.testing.assert_array_equal(found, [1, 0.5, 0, 2])
    # A vector, and a grid that is not that of the tokens.
    for shape in ((B, 5), (B, 2, 2, 5)):
      self.assertIsNone(loss_weights({'x': x}, term(pool=pool), shape))

  def test_the_weights_of_examples_are_those_of_their_tokens(self):
    x = networks.sequence_batch()['x']
    found = loss_weights({'x': x, 'weights': jnp.asarray(HALF)}, term())
    expected = np.asarray(x['mask']) * HALF[:, None]
    np.testing.assert_array_equal(found, expected)

  def test_the_weights_of_tokens_without_a_mask(self):
    """Those of the target positions are not those of all tokens."""
    each = jnp.asarray(np.abs(random(0, B, LENGTH)))
    batch = {'x': {'tokens': jnp.zeros((B, LENGTH), int)}, 'weights': each}
    self.assertIs(loss_weights(batch, term()), each)
    batch['x']['target_positions'] = jnp.zeros((B, LENGTH), int)
    self.assertIsNone(loss_weights(batch, term()))

  def test_an_example_whose_weights_are_0(self):
    """As the rows that fill a last batch."""
    each = np.ones((B, LENGTH), np.float32)
    each[1, 1:], each[3] = 0, 0
    batch = {'x': {'mask': jnp.ones((B, LENGTH), bool)}, 'weights': each}
    found = loss_weights(batch, term())
    expected = np.ones((B, LENGTH))
    expected[3] = 0
    np.testing.assert_array_equal(found, expected)
    for pool in ('mean', 'flatten'):
      found = loss_weights(batch, term(pool=pool))
      np.testing.assert_array_equal(found, [1, 1, 1, 0])

  def test_outputs_share_the_weight_of_their_example_and_padding_has_none(self):
    x = {'target_positions': jnp.asarray([[0, 2]] * B)}
    batch = {'x': x, 'weights': jnp.asarray(HALF)}
    each = np.repeat(HALF[:, None], 2, 1)
    for one in (Term(), Term(target='labels')):
      np.testing.assert_array_equal(
        weights.loss_weights(batch, one, 'logits', (B, 2, 5)), each
      )
    mask = np.arange(LENGTH) < np.array([[LENGTH], [1], [2], [3]])
    found = weights.loss_weights(
      {**batch, 'x': {**x, 'mask': jnp.asarray(mask)}},
      Term(),
      'logits',
      (B, 2, 5),
    )
    real = np.array([[1, 1], [1, 0], [1, 0], [1, 1]])
    np.testing.assert_array_equal(found, each * real)


class VectorTest(parameterized.TestCase):
  def test_all_terms_count_by_the_weights(self):
    batch = {**networks.batch(), 'weights': jnp.ones(B)}
    for one in (Term(), Term(target='labels'), term(), term(pool='mean')):
      found = loss_weights(batch, one, (B, 5))
      self.assertIs(found, batch['weights'])
      self.assertIsNone(loss_weights(networks.batch(), one, (B, 5)))

  @parameterized.parameters(('none', (B, 2, 3)), ('mean', (B,)))
  def test_images(self, pool, shape):
    batch = {'x': jnp.zeros((B, 8, 12, 3)), 'weights': jnp.asarray(HALF)}
    found = loss_weights(batch, term(pool=pool), (B, 2, 3, 5))
    self.assertEqual(found.shape, shape)
    each = HALF.reshape(-1, *[1] * (len(shape) - 1))
    np.testing.assert_array_equal(found, np.broadcast_to(each, shape))


class ClearedTest(parameterized.TestCase):
  def test_zeros_at_weight_0(self):
    tree = {
      'values': random(0, B, 3),
      'classes': np.arange(B * 2).reshape(B, 2),
      'other': random(1, 3, B),
    }
    found = weights.cleared(tree, jnp.asarray(HALF))
    self.assertIs(found['other'], tree['other'])
    for name in ('values', 'classes'):
      expected = np.where(HALF[:, None] > 0, tree[name], 0)
      np.testing.assert_array_equal(found[name], expected)
      self.assertEqual(found[name].dtype, jnp.asarray(tree[name]).dtype)
    self.assertIs(weights.cleared(tree, None), tree)

  @pytest.mark.slow
  def test_nothing_comes_back_through_them(self):
    """Not even a NaN."""
    values = jnp.asarray(random(0, B, 3))
    each = jnp.asarray(HALF)
    root = lambda v: jnp.sqrt(weights.cleared(v, each) * 0).sum()
    grad = jax.grad(root)(values)
    np.testing.assert_array_equal(np.isnan(grad).any(-1), HALF > 0)

  def test_a_gradient_alone(self):
    value, counts = jnp.array([1.0, jnp.nan]), jnp.array([1.0, 0.0])

    def total(value):
      rows = jnp.square(weights.cleared_gradient(value, counts))
      return jnp.sum(weights.cleared(rows, counts))

    found = jax.value_and_grad(total)(value)
    np.testing.assert_array_equal(found[0], 1)
    np.testing.assert_array_equal(found[1], [2, 0])

  def test_inputs_of_examples_that_count_and_finite_ones_stay(self):
    x = random(0, B, 3)
    x[0, 0], x[2, 0], x[2, 1] = np.inf, np.inf, np.nan
    found = weights.cleared_input(
      {'x': {'a': x, 'n': jnp.arange(B)}, 'weights': jnp.asarray(HALF)}
    )
    expected = x.copy()
    expected[2, :2] = 0
    np.testing.assert_array_equal(found['x']['a'], expected)
    alone = {'x': x}
    self.assertIs(weights.cleared_input(alone), alone)

  @parameterized.parameters(np, jnp)
  @pytest.mark.slow
  def test_nan_in_tokens_of_padding_becomes_0_and_a_bias_stays(self, library):
    mask = library.asarray(np.arange(3) < np.array([[3], [1], [2], [1]]))
    x = random(0, B, 3, 2)
    x[1, 1], x[3, 2], x[0, 0], x[2, 0] = np.nan, -np.inf, np.nan, np.inf
    expected = x.copy()
    expected[1, 1] = 0
    x = library.asarray(x)
    for batch in (
      {'x': {'x': x, 'mask': mask}},
      {'x': {'x': x}, 'weights': mask.astype(np.float32)},
    ):
      found = weights.cleared_input(batch)['x']['x']
      np.testing.assert_array_equal(found, expected)
    positions = {'x': x, 'target_positions': mask}
    batch = {'x': positions, 'weights': mask.astype(np.float32)}
    np.testing.assert_array_equal(weights.cleared_input(batch)['x']['x'], x)


class MeanTest(parameterized.TestCase):
  @pytest.mark.slow
  def test_weighted_mean(self):
    values, each = random(0, 3, 4), jnp.array([1.0, 0.0, 2.0])[:, None]
    values[1] = np.nan
    found = weights.weighted_mean(values, each, axis=0)
    np.testing.assert_allclose(
      found, (values[0] + 2 * values[2]) / 3, rtol=1e-6
    )
    np.testing.assert_allclose(
      weights.weighted_mean(values[0], None), values[0].mean(), rtol=1e-6
    )
    self.assertTrue(jnp.isnan(weights.weighted_mean(values, 0 * each)).all())

  @parameterized.parameters('mean', 'flatten')
  @pytest.mark.slow
  def test_padding_is_not_pooled(self, pool):
    """Nor does its NaN come back; an example of padding alone is zeros."""
    mask = np.arange(LENGTH) < np.array([[6], [3], [0], [1]])
    value = random(0, B, LENGTH, 2)
    bad = np.where(mask[..., None], value, np.nan)
    fun = lambda v: weights.pooled(v, jnp.asarray(mask), pool)
    found = fun(bad)
    zeroed = np.where(mask[..., None], value, 0)
    if pool == 'mean':
      expected = zeroed.sum(1) / np.maximum(mask.sum(1), 1)[:, None]
    else:
      expected = zeroed.reshape(B, -1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    grad = jax.grad(lambda v: jnp.square(fun(v)).sum())(bad)
    self.assertTrue(np.isfinite(grad).all())
    np.testing.assert_array_equal(grad[~mask], 0)
