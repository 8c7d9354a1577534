"""Tests of fitted projections, against what their names say."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

import cxjax
from cxjax import errors
from cxjax.methods import fitted
from cxjax.methods import projections

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(200, 6)) * [5, 4, 3, 2, 1, 0.1] + 7.0
S = RANDOM.normal(size=(200, 3)) + X[:, :3]
W = RANDOM.normal(size=(6, 4)) * [9, 3, 1, 0.1]


def moments(x=X, start=S):
  center = x - x.mean(0)
  return fitted.Moments(
    x.mean(0),
    center.T @ center / len(x),
    center.T @ (start - start.mean(0)) / len(x),
    W,
  )


def fit(name, width=3, scale=1.0, **kwargs):
  key = jax.random.key(0)
  return fitted.fit('It', name, key, moments(**kwargs), width, scale)


class FittedTest(parameterized.TestCase):
  @parameterized.parameters(*fitted.FITTED)
  def test_mean_0_and_mean_square_1(self, name):
    matrix = fit(name)
    self.assertEqual(matrix.shape, fitted.matrix_shape(name, (6, 3)))
    got = np.asarray(fitted.project(X, matrix))
    np.testing.assert_allclose(got.mean(0), 0, atol=1e-4)
    self.assertAlmostEqual(np.mean(got**2), 1.0, places=4)
    np.testing.assert_array_equal(matrix, fit(name))
    # `scale` of a term multiplies the target before, and is not undone.
    twice = np.asarray(fitted.project(2 * X, fit(name, scale=2.0)))
    np.testing.assert_allclose(twice, 2 * got, rtol=1e-4, atol=1e-4)

  def test_pca_has_the_leading_directions(self):
    got = np.asarray(fitted.project(X, fit('pca')))
    covariance = got.T @ got / len(got)
    np.testing.assert_allclose(
      covariance, np.diag(np.diag(covariance)), atol=1e-4
    )
    _, values, right = np.linalg.svd(X - X.mean(0), full_matrices=False)
    found = fit('pca')[:-1]
    unit = found / np.linalg.norm(found, axis=0)
    np.testing.assert_allclose(np.abs(right[:3] @ unit), np.eye(3), atol=1e-4)
    largest = np.abs(found).argmax(axis=0)  # Libraries differ in the sign.
    self.assertTrue((found[largest, range(3)] > 0).all())
    ratios = np.diag(covariance) / np.diag(covariance)[0]
    np.testing.assert_allclose(ratios, (values[:3] / values[0]) ** 2, atol=1e-4)

  def test_targets_that_share_count_alike(self):
    """The axes are those of both, each divided by its root mean square."""
    sizes = lambda x: np.sqrt(np.mean(np.sum((x - x.mean(0)) ** 2, axis=-1)))
    other = 1e3 * X[:, ::-1]
    pool = fitted.pooled([moments(), moments(other)])
    key = jax.random.key(0)
    one, two = (
      fitted.fit('It', 'pca', key, moments(x), 3, shared=pool)
      for x in (X, other)
    )
    unit = lambda matrix: matrix[:-1] / np.linalg.norm(matrix[:-1])
    np.testing.assert_allclose(unit(one), unit(two), atol=1e-5)
    rows = [(x - x.mean(0)) / sizes(x) for x in (X, other)]
    _, _, right = np.linalg.svd(np.concatenate(rows), full_matrices=False)
    same = np.abs(right[:3] @ unit(one)) * np.sqrt(3)
    np.testing.assert_allclose(same, np.eye(3), atol=1e-4)
    own = fitted.fit('It', 'pca', key, moments(), 3)
    self.assertGreater(np.abs(unit(own) - unit(one)).max(), 0.1)

  @parameterized.parameters('pca', 'centered')
  def test_no_rotation_is_nearer_to_the_start(self, name):
    """Rotations that are drawn are all farther away: Procrustes."""
    start = S - S.mean(0)
    got = np.asarray(fitted.project(X, fit(f'{name}_rotated')))
    best = np.linalg.norm(got - start)
    for _ in range(50):
      turn, _ = np.linalg.qr(RANDOM.normal(size=(3, 3)))
      self.assertLess(best, np.linalg.norm(got @ turn - start))
    plain = np.asarray(fitted.project(X, fit(name)))
    np.testing.assert_allclose(got @ got.T, plain @ plain.T, atol=1e-3)

  def test_procrustes_is_nearest_of_all_orthonormal_directions(self):
    """Directions that are drawn, those of the PCA and turned ones are not."""
    x, start = X - X.mean(0), S - S.mean(0)
    found = fit('procrustes')[:-1]
    unit = found / np.linalg.norm(found, axis=0)
    np.testing.assert_allclose(unit.T @ unit, np.eye(3), atol=1e-4)
    best = np.sum(x @ unit * start)
    others = [np.linalg.qr(RANDOM.normal(size=(6, 3)))[0] for _ in range(50)]
    rotated = fit('pca_rotated')[:-1]
    others.append(rotated / np.linalg.norm(rotated, axis=0))
    for other in others:
      self.assertGreater(best, np.sum(x @ other * start))

  def test_output_directions_are_those_of_the_matrix(self):
    found = fit('output_directions', 2)[:-1]
    left, *_ = np.linalg.svd(W, full_matrices=False)
    unit = found / np.linalg.norm(found, axis=0)
    np.testing.assert_allclose(
      np.abs(left[:, :2].T @ unit), np.eye(2), atol=1e-4
    )

  def test_a_constant_target_is_refused(self):
    with self.assertRaisesRegex(errors.UserError, "^It fits .* 'pca' .* const"):
      fit('pca', x=np.full((50, 6), 3.0), start=S[:50])
    with self.assertRaisesRegex(errors.UserError, 'not finite: look for NaN'):
      fit('pca', x=np.where(X > 20, np.nan, X))

  def test_from_activations(self):
    """Activations and their moments give the same, whatever the axes."""
    key = jax.random.key(0)
    x, s = X.reshape(20, 10, 6), S.reshape(20, 10, 3)
    for name, options in (
      ('centered', {'key': key}),
      ('pca', {}),
      ('pca_rotated', {'start': s}),
      ('centered_rotated', {'key': key, 'start': s}),
      ('procrustes', {'start': s}),
      ('output_directions', {'output': W}),
    ):
      found = cxjax.fit_projection(name, x, 3, **options)
      np.testing.assert_allclose(found, fit(name), atol=1e-6)
      term = cxjax.Term('a', 'b', projection=name)
      model = lambda params, x: (x, {'b': x})
      target = cxjax.make_targets(
        model, (), {'a': found}, {'x': X}, cxjax.Stage('a', 1, term)
      )
      np.testing.assert_allclose(target['a'].mean(0), 0, atol=1e-4)

  @parameterized.parameters(
    (('pac', X, 3), {}, "'pac'. Did you mean 'pca'"),
    (('pca', X, 0), {}, 'width=0'),
    (('pca', X, 7), {}, '6 directions'),
    (('pca', X[:3], 3), {}, 'width 3 on 3 examples'),
    (('pca', X, 3), {'start': S}, "'pca' does not read start"),
    (('centered', X, 3), {}, "'centered' needs key"),
    (('centered_rotated', X, 3), {'start': S}, "_rotated' needs key"),
    (('procrustes', X, 3), {}, "'procrustes' needs start"),
    (('pca_rotated', X, 3), {'start': S[:5]}, 'start has 5 rows of 3'),
    (('output_directions', X, 3), {'output': W[:5]}, 'a row for each of the 6'),
  )
  def test_activations_that_cannot_be(self, args, options, message):
    with self.assertRaisesRegex(errors.UserError, message):
      cxjax.fit_projection(*args, **options)

  def test_names_are_of_one_kind(self):
    self.assertEqual(tuple(fitted.FITTED), projections.FITTED)
    self.assertNoCommonElements(fitted.FITTED, projections.PROJECTIONS)
    with self.assertRaisesRegex(errors.UserError, 'fitted on batches'):
      projections.register('pca', lambda key, d_in, d_out: None)
    with self.assertRaisesRegex(errors.UserError, 'cxjax.fit_projection does'):
      cxjax.random_projection(jax.random.key(0), 'pca', (6, 3))

  def test_a_random_matrix_is_no_fitted_one(self):
    with self.assertRaisesRegex(errors.UserError, 'one row more'):
      fitted.project(X, np.ones((6, 3)))

  @parameterized.parameters(
    ('pca', (4, 5), False, '4 directions'),
    ('output_directions', (9, 4), True, '3 directions'),
    ('pca_rotated', (9, 4), True, 'leave regressor out'),
    ('centered_rotated', (9, 4), True, 'leave regressor out'),
    ('procrustes', (4, 5), False, '4 directions'),
    ('pca', (50_000, 4), False, 'covariance takes 10.0 GB'),
  )
  def test_widths_that_cannot_be(self, name, shape, regressor, message):
    with self.assertRaisesRegex(errors.UserError, message):
      fitted.check_width('It', name, shape, 3, regressor)
    fitted.check_width('It', 'centered', (9, 16), 3, regressor)

  def test_a_rank_above_the_examples_is_refused(self):
    with self.assertRaisesRegex(errors.UserError, 'width 8 on 8 examples'):
      fitted.check_examples('It', 'pca', 8, 8)
    fitted.check_examples('It', 'pca', 8, 9)
    fitted.check_examples('It', 'output_directions', 8, 8)


if __name__ == '__main__':
  absltest.main()
