"""Tests of the random projections."""

import functools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax import errors
from cxjax.methods import projections

RANDOM = ('gaussian', 'rademacher', 'sparse', 'orthogonal')
SHAPES = ((4, 3), (3, 5))
NUM = 4096
KEYS = jax.random.split(jax.random.key(0), NUM)

draw = jax.jit(projections.random_projection, static_argnums=(1, 2))


@functools.cache
def sample(projection, shape):
  """`[NUM, *shape]`, a draw of a projection for each key."""
  return np.asarray(jax.vmap(lambda key: draw(key, projection, shape))(KEYS))


class ProjectionTest(parameterized.TestCase):
  # An entry of P P^T has the variance 2/d_out at most (on the diagonal, of the
  # gaussian and the sparse): its mean is within 5 standard errors.
  @parameterized.product(projection=RANDOM, shape=SHAPES)
  def test_p_pt_is_the_identity_on_average(self, projection, shape):
    p = sample(projection, shape)
    mean = (p @ p.transpose(0, 2, 1)).mean(0)
    atol = 5 * np.sqrt(2 / shape[1] / NUM)
    np.testing.assert_allclose(mean, np.eye(shape[0]), atol=atol)

  # |x P|^2 has the variance 2 |x|^4 / d_out at most.
  @parameterized.product(projection=RANDOM, shape=SHAPES)
  def test_keeps_the_squared_length_on_average(self, projection, shape):
    x = np.arange(1.0, shape[0] + 1)
    mean = np.square(x @ sample(projection, shape)).sum(-1).mean()
    rtol = 5 * np.sqrt(2 / shape[1] / NUM)
    np.testing.assert_allclose(mean, np.square(x).sum(), rtol=rtol)

  @parameterized.product(projection=RANDOM, shape=SHAPES[:1])
  @pytest.mark.slow
  def test_a_key_is_a_matrix(self, projection, shape):
    first, second = KEYS[:2]
    p = draw(first, projection, shape)
    self.assertEqual(p.shape, shape)
    self.assertEqual(p.dtype, jnp.float32)
    np.testing.assert_array_equal(p, draw(first, projection, shape))
    np.testing.assert_array_equal(p, sample(projection, shape)[0])
    self.assertFalse(np.array_equal(p, draw(second, projection, shape)))

  # The variance of N entries has the standard error sqrt(2/N), their fourth
  # moment sqrt(96/N), in units of their true variance.
  @parameterized.parameters(*SHAPES)
  def test_gaussian(self, *shape):
    z = sample('gaussian', shape) * np.sqrt(shape[1])
    self.assertAlmostEqual(z.var(), 1, delta=5 * np.sqrt(2 / z.size))
    self.assertAlmostEqual((z**4).mean(), 3, delta=5 * np.sqrt(96 / z.size))

  @parameterized.parameters(*SHAPES)
  def test_rademacher(self, *shape):
    p = sample('rademacher', shape)
    np.testing.assert_allclose(np.abs(p), shape[1] ** -0.5, rtol=1e-6)
    self.assertAlmostEqual((p > 0).mean(), 0.5, delta=2.5 / np.sqrt(p.size))

  @parameterized.parameters(*SHAPES)
  def test_sparse(self, *shape):
    p = sample('sparse', shape)
    size = np.sqrt(3 / shape[1])
    np.testing.assert_allclose(np.unique(p), [-size, 0, size], rtol=1e-6)
    for value, share in ((0, 2 / 3), (size, 1 / 6), (-size, 1 / 6)):
      found = np.isclose(p, value).mean()
      delta = 5 * np.sqrt(share * (1 - share) / p.size)
      self.assertAlmostEqual(found, share, delta=delta)

  def test_orthogonal_columns_when_narrowing(self):
    p = sample('orthogonal', (4, 3))
    gram = p.transpose(0, 2, 1) @ p
    expected = np.broadcast_to(4 / 3 * np.eye(3), gram.shape)
    np.testing.assert_allclose(gram, expected, atol=1e-5)

  def test_orthogonal_rows_when_widening(self):
    p = sample('orthogonal', (3, 5))
    gram = p @ p.transpose(0, 2, 1)
    expected = np.broadcast_to(np.eye(3), gram.shape)
    np.testing.assert_allclose(gram, expected, atol=1e-5)

  def test_identity(self):
    p = projections.random_projection(jax.random.key(0), 'identity', (3, 3))
    np.testing.assert_array_equal(p, np.eye(3))

  def test_unknown_projection_lists_the_projections(self):
    names = ', '.join((*RANDOM, 'identity'))
    with self.assertRaisesRegex(errors.UserError, f"'fourier'.*{names}"):
      projections.random_projection(jax.random.key(0), 'fourier', (3, 3))

  def test_identity_needs_equal_widths(self):
    with self.assertRaisesRegex(errors.UserError, 'got 3 and 4'):
      projections.random_projection(jax.random.key(0), 'identity', (3, 4))

  @parameterized.parameters(*RANDOM, 'identity')
  def test_one_of_more_than_a_gibibyte_is_not_drawn(self, name):
    """The output of a language model as a hidden layer would take 92 GB."""
    draw = functools.partial(projections.random_projection, projection=name)
    key, width = jax.random.key(0), 2**14
    with self.assertRaisesRegex(errors.UserError, r'92\.3 GB; at most 1\.1 GB'):
      draw(key, shape=(151_936, 151_936))
    with self.assertRaisesRegex(errors.UserError, '1.1 GB are drawn'):
      draw(key, shape=(width + 1, width))
    shape = (width, width)
    found = jax.eval_shape(functools.partial(draw, shape=shape), key)
    self.assertEqual(found.shape, shape)

  @pytest.mark.slow
  def test_a_draw_that_names_no_dtype_is_float32(self):
    own = lambda key, d_in, d_out: jax.random.uniform(key, (d_in, d_out))
    with mock.patch.dict(projections.PROJECTIONS, {'own': own}):
      want = projections.random_projection(KEYS[0], 'own', (4, 3))
      with jax.enable_x64(True):
        found = projections.random_projection(KEYS[0], 'own', (4, 3))
    self.assertEqual(found.dtype, np.float32)
    np.testing.assert_array_equal(found, want)

  @parameterized.parameters((0, 3), (3, 0))
  def test_widths_must_be_positive(self, *shape):
    with self.assertRaisesRegex(errors.UserError, 'shape=.*at least 1'):
      projections.random_projection(jax.random.key(0), 'gaussian', shape)


class ProjectTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.x = jax.random.normal(jax.random.key(1), (2, 5, 4))
    self.p = projections.random_projection(
      jax.random.key(0), 'gaussian', (4, 3)
    )

  def test_is_the_product(self):
    y = projections.project(self.x, self.p)
    expected = np.asarray(self.x) @ np.asarray(self.p)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)

  def test_is_constant_to_the_gradient(self):
    total = lambda x, p: jnp.sum(projections.project(x, p) ** 2)
    for grad in jax.jit(jax.grad(total, argnums=(0, 1)))(self.x, self.p):
      np.testing.assert_array_equal(grad, 0)

  def test_is_one_dispatch(self):
    jaxpr = jax.make_jaxpr(projections.project)(self.x, self.p)
    self.assertLen(jaxpr.eqns, 1)
