"""Tests of the rule by which methods differ."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from cxjax.analysis import spread


class SpreadTest(parameterized.TestCase):
  @parameterized.parameters(
    # By scipy.stats.ttest_ind(a, b, equal_var=False).
    ([1.0, 2.0, 3.0], [2.0, 4.0, 9.0], 0.283834),
    ([0.1, 0.2], [0.9, 1.0, 0.95, 0.97], 0.0176334),
    ([5.0, 5.0], [5.0, 5.0], 1.0),
    ([5.0, 5.0], [6.0, 6.0], 0.0),
  )
  def test_welch(self, a, b, expected):
    self.assertAlmostEqual(spread.welch(a, b), expected, places=5)
    self.assertAlmostEqual(spread.welch(b, a), expected, places=5)

  def test_one_score_has_no_spread(self):
    self.assertIsNone(spread.sd([1.0]))
    self.assertIsNone(spread.differ([1.0], [2.0, 3.0]))
    self.assertAlmostEqual(spread.sd([1.0, 3.0]), np.sqrt(2))

  @parameterized.parameters(
    ([0.871, 0.872, 0.870], [0.837, 0.838, 0.836], True),
    ([0.871, 0.872, 0.870], [0.837, 0.838, 0.90], False),  # Intervals overlap.
    ([0.0, 1.0], [2.0, 3.0], False),  # They do not, and p is .1.
    ([0.5, 0.6], [0.5, float('nan')], True),  # One of them failed.
    ([0.5, float('nan')], [float('inf'), 0.4], False),
  )
  def test_differ(self, a, b, expected):
    self.assertEqual(spread.differ(a, b), expected)
    self.assertEqual(spread.differ(b, a), expected)

  def test_verdict(self):
    close = {'a': [0.5, 0.6], 'b': [0.5, 0.7], 'c': [0.9, 0.91]}
    self.assertIn('spread: a and b; a and c; b and c.', spread.verdict(close))
    apart = {'a': [0.1, 0.11, 0.12], 'b': [0.5, 0.51, 0.52], 'c': [0.7]}
    found = spread.verdict(apart)
    self.assertIn('Within the spread: none. Unknown, because of one', found)
    self.assertEndsWith(found, 'seed: c.')
    self.assertEqual(spread.verdict({'a': [0.5, 0.6]}), '')


if __name__ == '__main__':
  absltest.main()
