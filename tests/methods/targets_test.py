"""Tests of what the student is compared with."""

import functools

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax import errors
from cxjax.methods import flops
from cxjax.methods import losses
from cxjax.methods import projections
from cxjax.methods import stage as stage_lib
from cxjax.methods import targets
from cxjax.models import mlp
from tests.methods import networks

Stage, Term = stage_lib.Stage, stage_lib.Term


def term(**fields):
  return Term(**{'student': 'low', 'target': 'low', **fields})


def random(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class ActivationTest(parameterized.TestCase):
  @pytest.mark.slow
  def test_logits_are_the_output(self):
    batch, params = networks.batch(), networks.params(networks.TEACHER)
    logits, activations = networks.TEACHER.apply(params, batch['x'])
    found = targets.forward(networks.TEACHER.apply, params, batch['x'])
    self.assertEqual(list(found), ['hidden0', 'hidden1', 'logits'])
    np.testing.assert_array_equal(found['logits'], logits)
    for name in ('hidden0', 'hidden1'):
      one = targets.activation(networks.TEACHER.apply, params, batch['x'], name)
      np.testing.assert_array_equal(one, activations[name])

  def test_one_that_is_not_there_lists_those_that_are(self):
    message = "'hiden0'.*mean 'hidden0'.*hidden0, hidden1, logits"
    with self.assertRaisesRegex(errors.UserError, message):
      targets.activation(
        networks.TEACHER.apply,
        networks.params(networks.TEACHER),
        networks.batch()['x'],
        'hiden0',
      )

  def test_without_dropout(self):
    x = {'tokens': 1, 'dropout': 2, 'mask': 3}
    self.assertEqual(targets.without_dropout(x), {'tokens': 1, 'mask': 3})
    self.assertEqual(targets.without_dropout(5), 5)

  @pytest.mark.slow
  def test_every_example_drops_by_a_key_of_its_own(self):
    keys = jax.random.split(jax.random.key(0), 4)
    found = targets.with_dropout({'x': {'dropout': keys}}, jax.random.key(1))
    data = jax.random.key_data(found['x']['dropout'])
    self.assertLen(np.unique(data, axis=0), 4)


class ComparedTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.x = networks.sequence_batch()['x']
    self.low = random(0, networks.B, networks.LENGTH, 5)

  def compared(self, value, name='low', x=None, **fields):
    x = self.x if x is None else x
    return targets.compared({name: value}, x, name, term(**fields))

  def test_all_tokens(self):
    np.testing.assert_array_equal(self.compared(self.low), self.low)

  def test_those_whose_logits_are_computed(self):
    found = self.compared(self.low, tokens='predicted')
    for i, positions in enumerate(self.x['target_positions']):
      np.testing.assert_array_equal(found[i], self.low[i, positions])

  def test_labels_are_there_alone(self):
    found = self.compared(self.low, target='labels')
    self.assertEqual(found.shape, (networks.B, networks.POSITIONS, 5))

  def test_logits_are_there_already(self):
    logits = random(1, networks.B, networks.POSITIONS, 7)
    for name in ('logits', 'head_input'):
      found = self.compared(logits, name, student=name, target=name)
      np.testing.assert_array_equal(found, logits)

  @pytest.mark.slow
  def test_mean_of_the_real_tokens(self):
    found = self.compared(self.low, pool='mean')
    for i, length in enumerate((6, 3, 5, 1)):
      np.testing.assert_allclose(
        found[i], self.low[i, :length].mean(0), rtol=1e-5, atol=1e-6
      )

  def test_mean_of_a_grid(self):
    image = random(0, 3, 4, 5, 2)
    found = self.compared(image, x=jnp.zeros(()), pool='mean')
    np.testing.assert_allclose(found, image.mean((1, 2)), rtol=1e-5, atol=1e-6)

  def test_flatten(self):
    image = random(0, 3, 4, 5, 2)
    found = self.compared(image, x=jnp.zeros(()), pool='flatten')
    np.testing.assert_array_equal(found, image.reshape(3, 40))

  @parameterized.parameters('mean', 'flatten')
  def test_a_vector_is_not_pooled(self, pool):
    value = random(0, 3, 4)
    found = self.compared(value, x=jnp.zeros(()), pool=pool)
    np.testing.assert_array_equal(found, value)


class TransformTest(parameterized.TestCase):
  def test_nothing_by_default(self):
    want = random(0, 3, 4)
    self.assertIs(targets.transform(want, None, term()), want)

  @parameterized.parameters(1.0, 1e20)
  def test_layer_norm(self, scale):
    want = random(0, 3, 5, 4) * np.float32(scale)
    found = targets.transform(want, None, term(norm='layer'))
    want = want.astype(np.float64)
    mean = want.mean(-1, keepdims=True)
    var = want.var(-1, keepdims=True)
    np.testing.assert_allclose(
      found, (want - mean) / np.sqrt(var + 1e-5), rtol=1e-4, atol=1e-5
    )

  def test_scale(self):
    want = random(0, 3, 4)
    found = targets.transform(want, None, term(scale=0.5))
    np.testing.assert_array_equal(found, want / 2)

  @pytest.mark.slow
  def test_centered_subtracts_the_mean_over_what_counts(self):
    want = random(0, 2, 3, 4)
    mask = np.array([[1, 1, 0], [1, 0, 0]], np.float32)
    found = targets.transform(want, jnp.asarray(mask), term(centered=True))
    middle = (want[0, 0] + want[0, 1] + want[1, 0]) / 3
    np.testing.assert_allclose(found, want - middle, rtol=1e-5, atol=1e-6)
    found = targets.transform(want, None, term(centered=True))
    np.testing.assert_allclose(
      found, want - want.mean((0, 1)), rtol=1e-5, atol=1e-6
    )


class ProjectionShapeTest(parameterized.TestCase):
  @parameterized.parameters(
    (dict(projection='gaussian'), (16, 6)),
    (dict(projection='gaussian', regressor=True), (16, 6)),
    (dict(projection='gaussian', regressor=True, width=9), (16, 9)),
    (dict(projection='identity', regressor=True), (16, 16)),
  )
  def test_shape(self, fields, shape):
    found = targets.projection_shape(term(**fields), 16, 6)
    self.assertEqual(found, shape)

  @parameterized.parameters(('pca', 4), ('output_directions', 3))
  def test_a_fitted_one_has_no_more_columns_than_directions(self, name, width):
    one = term(projection=name, regressor=True)
    found = targets.projection_shape(one, 4, 6, outputs=3)
    self.assertEqual(found, (4, width))


# A stage with every kind of target.
JOINT = Stage(
  'joint',
  1,
  (
    Term(target='labels'),
    Term(top_k=2),
    term(projection='gaussian', norm='layer', centered=True, scale=2.0),
    term(target='high', tokens='predicted', loss='cosine'),
    term(student='high', target='high', pool='mean', name='pooled'),
  ),
)


class MakeTargetsTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.params = networks.sequence_params(5, 0)
    cls.batch = networks.sequence_batch()
    cls.matrices = {'low': random(0, 5, 3)}

  def make(self, apply=networks.sequence_apply):
    fun = functools.partial(targets.make_targets, apply, stage=JOINT)
    return fun(self.params, self.matrices, self.batch)

  @pytest.mark.slow
  def test_every_term_by_hand(self):
    found = jax.device_get(jax.jit(self.make)())
    x = self.batch['x']
    _, seen = networks.sequence_apply(self.params, x)
    low, high = np.asarray(seen['low']), np.asarray(seen['high'])
    self.assertCountEqual(found, ['labels', 'output', 'low', 'low#2', 'pooled'])
    np.testing.assert_array_equal(found['labels'], self.batch['y'])
    rows = np.arange(networks.B)[:, None]
    chosen = high[rows, x['target_positions']]
    np.testing.assert_allclose(found['low#2'], chosen, rtol=1e-5)
    logits = chosen @ np.asarray(self.params['head'])
    largest = np.argsort(-logits, -1)[..., :2]
    np.testing.assert_array_equal(found['output']['classes'], largest)
    mask = np.asarray(x['mask'], np.float32)[..., None]
    np.testing.assert_allclose(
      found['pooled'], (high * mask).sum(1) / mask.sum(1), rtol=1e-4, atol=1e-6
    )
    normal = low - low.mean(-1, keepdims=True)
    normal /= np.sqrt(low.var(-1, keepdims=True) + 1e-5)
    normal -= (normal * mask).sum((0, 1)) / mask.sum()
    np.testing.assert_allclose(
      found['low'], 2 * normal @ self.matrices['low'], rtol=1e-4, atol=1e-4
    )

  @pytest.mark.slow
  def test_one_forward_pass_serves_all_terms_without_dropout(self):
    seen = []

    def apply(params, x):
      seen.append(x)
      return networks.sequence_apply(params, x)

    self.batch = {
      **self.batch,
      'x': {**self.batch['x'], 'dropout': np.zeros(3)},
    }
    self.make(apply)
    self.assertLen(seen, 1)
    self.assertNotIn('dropout', seen[0])

  @pytest.mark.slow
  def test_constant_to_the_gradient(self):
    def total(params):
      found = targets.make_targets(
        networks.sequence_apply, params, self.matrices, self.batch, JOINT
      )
      found.pop('labels')
      found['output'].pop('classes')
      return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(found))

    grads = jax.jit(jax.grad(total))(self.params)
    self.assertTrue(all((g == 0).all() for g in jax.tree.leaves(grads)))

  def test_labels_need_no_teacher(self):
    stage = Stage('s', 1, Term(target='labels'))
    found = targets.make_targets(None, None, None, self.batch, stage)
    self.assertEqual(list(found), ['labels'])
    self.assertIs(found['labels'], self.batch['y'])


class FlopsTest(parameterized.TestCase):
  """The saving is in the compiled program, not in the wish."""

  rows, wide, narrow = 64, 256, 8

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.model = mlp.MLP((cls.wide,) * 4, 2)
    cls.x = jax.ShapeDtypeStruct((cls.rows, 32), jnp.float32)
    cls.params = jax.eval_shape(cls.model.init, jax.random.key(0), cls.x)
    cls.batch = {
      'x': cls.x,
      'y': jax.ShapeDtypeStruct((cls.rows,), jnp.int32),
    }

  def flops(self, *terms):
    stage = Stage('s', 1, terms)
    matrix = jax.ShapeDtypeStruct((self.wide, self.narrow), jnp.float32)
    matrices = {n: matrix for n, t in stage.named_terms.items() if t.projection}
    make = functools.partial(
      targets.make_targets, self.model.apply, stage=stage
    )
    return flops.compiled(make, self.params, matrices, self.batch)

  def product(self, *widths):
    pairs = zip(widths, widths[1:], strict=False)
    return sum(2 * self.rows * m * n for m, n in pairs)

  @parameterized.parameters(0, 1, 2, 3)
  @pytest.mark.cpu
  def test_a_target_costs_the_layers_up_to_its_tap(self, i):
    got = self.flops(Term('a', f'hidden{i}', projection='gaussian'))
    expected = self.product(32, *(self.wide,) * (i + 1), self.narrow)
    # Biases and ReLUs are the rest: at most 2 an activation.
    rest = 2 * (i + 1) * self.rows * self.wide
    self.assertBetween(got - expected, 0, rest)

  def test_several_cost_one_pass_to_the_deepest_tap_and_a_projection_each(self):
    """Block 1 of 4 does not pay for blocks 2 and 3."""
    project = dict(projection='gaussian')
    low = self.flops(Term('a', 'hidden0', **project))
    high = self.flops(Term('b', 'hidden1', **project))
    both = self.flops(
      Term('a', 'hidden0', **project), Term('b', 'hidden1', **project)
    )
    self.assertEqual(both, high + self.product(self.wide, self.narrow))
    self.assertLess(both, low + high)
    self.assertBetween(
      both / (self.product(32, self.wide, self.wide)), 1.0, 1.1
    )

  def test_labels_beside_a_target_cost_the_teacher_nothing(self):
    one = self.flops(Term('a', 'hidden1', projection='gaussian'))
    two = self.flops(
      Term('a', 'hidden1', projection='gaussian'), Term(target='labels')
    )
    self.assertEqual(one, two)
    self.assertEqual(self.flops(Term(target='labels')), 0)

  def test_the_same_target_twice_is_computed_once(self):
    one = self.flops(Term())
    self.assertEqual(self.flops(Term(), Term(loss=losses.mse)), one)


class ProjectedTest(parameterized.TestCase):
  @pytest.mark.slow
  def test_is_the_product_with_the_matrix(self):
    """The matrix of a term is found by its name."""
    batch, params = networks.batch(), networks.params(networks.TEACHER)
    stage = Stage(
      's',
      1,
      (
        Term('a', 'hidden0', projection='gaussian'),
        Term('a', 'hidden1', projection='gaussian'),
      ),
    )
    keys = jax.random.split(jax.random.key(0))
    draw = projections.random_projection
    matrices = {
      'a': draw(keys[0], 'gaussian', (16, 3)),
      'a#2': draw(keys[1], 'gaussian', (12, 3)),
    }
    found = targets.make_targets(
      networks.TEACHER.apply, params, matrices, batch, stage
    )
    _, seen = networks.TEACHER.apply(params, batch['x'])
    for name, layer in (('a', 'hidden0'), ('a#2', 'hidden1')):
      np.testing.assert_allclose(
        found[name], seen[layer] @ matrices[name], rtol=1e-5
      )
