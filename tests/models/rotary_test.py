"""Rotary positions; families_test.py compares them with transformers."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest

from cxjax import errors
from cxjax.models import rotary


class RotaryTest(parameterized.TestCase):
  def test_scaling_divides_the_low_frequencies_alone(self):
    plain = rotary.Rotary().frequencies(16)
    np.testing.assert_allclose(plain, 1e4 ** -(np.arange(8) / 8), rtol=1e-6)
    linear = rotary.Rotary(scaling='linear', factor=4.0).frequencies(16)
    np.testing.assert_allclose(linear, plain / 4, rtol=1e-6)
    for scaling in ('llama3', 'yarn'):
      scaled = rotary.Rotary(scaling=scaling, factor=4.0, original_length=64)
      ratio = plain / scaled.frequencies(16)
      self.assertAlmostEqual(ratio[0], 1, places=5)
      self.assertAlmostEqual(ratio[-1], 4, places=5)
      self.assertTrue((np.diff(ratio) > -1e-5).all())

  @pytest.mark.slow
  def test_a_turn_keeps_lengths_and_depends_on_the_distance(self):
    random = np.random.default_rng(0)
    query, key = random.normal(size=(2, 1, 1, 3, 8)).astype(np.float32)
    at = lambda x, i: rotary.rotate(
      x, rotary.Rotary().angles(np.array([[i]]), 8)
    )
    np.testing.assert_allclose(
      np.linalg.norm(at(query, 5), axis=-1),
      np.linalg.norm(query, axis=-1),
      rtol=1e-5,
    )
    scores = [
      np.sum(np.asarray(at(query, i + 3) * at(key, i)), axis=-1) for i in (0, 9)
    ]
    np.testing.assert_allclose(*scores, rtol=1e-4)

  @parameterized.parameters(
    (dict(scaling='other'), "Unknown scaling 'other'"),
    (dict(theta=1), 'theta=1 must be'),
    (dict(factor=0), 'factor=0 must be'),
    (dict(scaling='yarn'), "scaling='yarn' needs an original_length"),
    (
      dict(scaling='llama3', original_length=8, low_factor=4.0),
      'low_factor=4.0 must be below',
    ),
  )
  def test_values_that_give_no_frequencies(self, kwargs, message):
    with self.assertRaisesRegex(errors.UserError, message):
      rotary.Rotary(**kwargs)


if __name__ == '__main__':
  absltest.main()
