"""Probes of functions with known answers."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax import errors
from cxjax.analysis import probes
from cxjax.tasks import parity

D, N, BATCHES = 5, 512, 16
TASK = parity.Parity(D, ((0, 3),))
# Six standard errors: chance exceeds them once in a hundred million.
TOLERANCE = 6 / np.sqrt(N * BATCHES)


def batches(task):
  """The function `(key, step) -> batch` of a task."""
  return lambda key, step: task.batch(key, step, N)


@pytest.mark.slow
class DegreeOneTest(absltest.TestCase):
  def test_known_functions(self):
    def features(x):
      return jnp.stack(
        [
          x[:, 3],
          -2.0 * x[:, 1] + 7.0,  # Scale and offset do not matter.
          x[:, 0] * x[:, 3],  # A parity has no correlation.
          x[:, 0] + x[:, 4],
          jnp.zeros(x.shape[0]),  # A dead unit.
        ],
        axis=1,
      )

    batch_fn = batches(TASK)
    got = probes.degree_one(features, batch_fn, jax.random.key(0), BATCHES)
    half = 0.5**0.5
    want = np.zeros((5, D))
    want[0, 3], want[1, 1], want[3, 0], want[3, 4] = 1, -1, half, half
    np.testing.assert_allclose(got, want, atol=TOLERANCE)
    np.testing.assert_array_equal(got[4], 0)

  def test_a_nearly_constant_feature(self):
    batch_fn = batches(TASK)
    features = lambda x: 0.5 + 1e-5 * x[:, 2:3]
    got = probes.degree_one(features, batch_fn, jax.random.key(0), BATCHES)
    # Rounding to float32 near 0.5 moves 1e-5 by a few parts in a thousand.
    np.testing.assert_allclose(got[0], np.eye(D)[2], atol=TOLERANCE + 0.01)

  def test_coordinates_of_another_input(self):
    tokens = parity.TokenParity(TASK)
    batch_fn = batches(tokens)
    features = lambda x: 1.0 - 2.0 * x['tokens'][:, 2:3]
    got = probes.degree_one(
      features, batch_fn, jax.random.key(0), BATCHES, tokens.coordinates
    )
    np.testing.assert_allclose(got[0], np.eye(D)[2], atol=TOLERANCE)

  def test_the_old_name_of_batch_fn_warns(self):
    features = lambda x: x[:, :1]
    with self.assertWarnsRegex(DeprecationWarning, 'batch_fn='):
      got = probes.degree_one(
        features, draw=batches(TASK), key=jax.random.key(0), num_batches=1
      )
    self.assertEqual(got.shape, (1, D))


class NgramDistanceTest(absltest.TestCase):
  """Models that read one token, at a known distance."""

  mask_id = 9
  tokens = np.random.default_rng(0).integers(1, 4, (6, 12))
  real = np.ones((6, 12), bool)

  def distance(self, offset, n, real=real, position=5):
    def apply(params, x):
      del params
      # It predicts the token that it reads, with certainty.
      at = x['target_positions'] + offset
      seen = jnp.take_along_axis(x['tokens'], at, axis=1)
      logits = 50.0 * jax.nn.one_hot(seen, 4)  # Uniform for a mask.
      return logits, {}

    found = probes.ngram_distance(
      apply, None, self.tokens, real, position, n=n, mask_id=self.mask_id
    )
    return jax.device_get(found)

  def test_a_model_that_reads_a_near_token(self):
    found = self.distance(1, n=3)
    # From certain to uniform over four classes: 3/4 and three times 1/4.
    np.testing.assert_allclose(found['robust'], 1.5, atol=1e-5)
    np.testing.assert_allclose(found['close'], 0, atol=1e-5)

  @pytest.mark.slow
  def test_a_model_that_reads_a_far_token(self):
    found = self.distance(-3, n=3)
    np.testing.assert_allclose(found['robust'], 0, atol=1e-5)
    np.testing.assert_allclose(found['close'], 1.5, atol=1e-5)
    near = self.distance(-3, n=7)  # Within the n-gram now.
    np.testing.assert_allclose(near['robust'], 1.5, atol=1e-5)

  def test_the_first_token_is_never_masked(self):
    found = self.distance(-5, n=11)
    np.testing.assert_allclose(found['robust'], 0, atol=1e-5)
    np.testing.assert_allclose(found['close'], 0, atol=1e-5)

  def test_refuses_what_has_no_middle_or_is_not_there(self):
    with self.assertRaisesRegex(errors.UserError, 'n=4 must be odd'):
      self.distance(1, n=4)
    with self.assertRaisesRegex(errors.UserError, 'position=12'):
      self.distance(1, n=3, position=12)

  def test_padding_is_never_masked(self):
    padded = self.real.copy()
    padded[:, 6] = False
    found = self.distance(1, n=3, real=padded)
    np.testing.assert_allclose(found['robust'], 0, atol=1e-5)


class LinearProbeTest(absltest.TestCase):
  def test_finds_a_linear_function_and_no_product(self):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2_000, 6))
    linear = (features[:, 0] - features[:, 3] > 0).astype(int)
    product = (features[:, 0] * features[:, 3] > 0).astype(int)
    self.assertGreater(probes.linear_probe(features, linear, 2), 0.97)
    # 1,000 coin tosses, within 5 standard deviations.
    self.assertLess(probes.linear_probe(features, product, 2), 0.58)

  def test_is_evaluated_on_other_examples_than_it_is_fitted_to(self):
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(100, 80)), rng.integers(0, 2, 100)
    self.assertLess(probes.linear_probe(features, labels, 2), 0.85)

  def test_without_a_ridge_a_constant_feature_is_no_error(self):
    features = np.random.default_rng(0).normal(size=(200, 3))
    labels = (features[:, 0] > 0).astype(int)
    features[:, 2] = 1
    found = probes.linear_probe(features, labels, 2, ridge=0)
    self.assertGreater(found, 0.9)


class CkaTest(absltest.TestCase):
  def test_a_rotation_and_independent_features(self):
    x = np.random.default_rng(0).normal(size=(4_000, 3)).astype(np.float32)
    rotation, _ = np.linalg.qr(x[:3])
    self.assertAlmostEqual(
      float(probes.cka(x, 2 * x @ rotation + 5)), 1, places=5
    )
    other = np.random.default_rng(1).normal(size=(4_000, 4))
    self.assertLess(float(probes.cka(x, other.astype(np.float32))), 0.01)

  def test_by_hand(self):
    x = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]], np.float32)
    # x^T x = 2 I, and y is one of the two columns.
    self.assertAlmostEqual(
      float(probes.cka(x, x[:, :1])), 4 / (8**0.5 * 2), places=6
    )


if __name__ == '__main__':
  absltest.main()
