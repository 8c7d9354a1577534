"""Tests of the rule by which methods differ."""

import itertools

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
    ([0.0, 1.0], [2.0, 3.0], False),  # Too few seeds: p is .1.
    ([0.5, 0.6], [0.5, float('nan')], True),  # One of them failed.
    ([0.5, float('nan')], [float('inf'), 0.4], False),
  )
  def test_differ(self, a, b, expected):
    self.assertEqual(spread.differ(a, b), expected)
    self.assertEqual(spread.differ(b, a), expected)

  @parameterized.parameters(
    # By scipy.stats.f.sf(var(a) / var(b), len(a) - 1, len(b) - 1).
    ([1.0, 2.0, 3.0], [2.0, 4.0, 9.0], 0.928571),
    ([2.0, 4.0, 9.0], [1.0, 2.0, 3.0], 0.0714286),
    ([0.1, 0.9], [0.90, 1.0, 0.95, 0.97], 0.000887),
    ([5.0, 5.0], [6.0, 6.0], 1.0),
    ([5.0, 6.0], [6.0, 6.0], 0.0),
  )
  def test_larger_variance(self, a, b, expected):
    self.assertAlmostEqual(spread.larger_variance(a, b), expected, places=5)

  @parameterized.parameters(
    ([0.495, 0.501, 1.0], [0.9997, 0.9999, 0.9998], True),
    ([0.9997, 0.9999, 0.9998], [0.495, 0.501, 1.0], False),
    ([0.99, 0.991, 1.0], [0.9997, 0.9999, 0.9998], False),  # Within 5%.
    ([0.495, 0.501, 1.0], [0.6, 0.601, 0.602], False),  # Among its bad seeds.
    ([0.375, 0.4, 0.469], 3 * [0.5625], True),  # No seed is as good.
    ([0.495, 0.501, 1.0], [0.9, 0.7, 0.8], False),  # These differ as well.
    ([0.5, 1.0], [0.99, 0.9], False),  # Two seeds say little of a variance.
    ([0.5, 0.5, 1.0], [1.0, 1.0, 1.0], True),
    ([0.5, 1.0], [1.0, 1.0], False),
    ([0.5], [1.0], False),
    ([0.5, float('nan')], [1.0, 1.0], False),
  )
  def test_less_reliable(self, a, b, expected):
    self.assertEqual(spread.less_reliable(a, b), expected)
    lower = [-x for x in a], [-x for x in b]
    self.assertEqual(spread.less_reliable(*lower, False), expected)

  def test_wide(self):
    self.assertTrue(spread.wide([0.5, 1.0]))
    self.assertFalse(spread.wide([0.96, 1.0]))
    self.assertTrue(spread.wide([0.5, float('nan')]))
    self.assertFalse(spread.wide([float('nan')]))

  def test_groups(self):
    near = lambda mean: [mean - 0.05, mean, mean + 0.05]
    scores = {
      'b': near(0.06), 'a': near(0.0), 'd': near(0.5), 'c': near(0.12),
      'e': near(0.5), 'f': near(0.9),
    }  # fmt: skip
    self.assertFalse(spread.differ(scores['a'], scores['b']))
    self.assertFalse(spread.differ(scores['b'], scores['c']))
    self.assertTrue(spread.differ(scores['a'], scores['c']))
    self.assertEqual(
      spread.groups(scores), [['b', 'a'], ['b', 'c'], ['d', 'e']]
    )
    pairs = {
      frozenset(pair)
      for some in spread.groups(scores)
      for pair in itertools.combinations(some, 2)
    }
    self.assertEqual(pairs, set(map(frozenset, spread.ties(scores))))

  def test_verdict(self):
    close = {'a': [0.5, 0.6], 'b': [0.5, 0.7], 'c': [0.9, 0.91]}
    self.assertIn('of one another: a and b.', spread.verdict(close))
    apart = {'a': [0.1, 0.11, 0.12], 'b': [0.5, 0.51, 0.52], 'c': [0.7]}
    found = spread.verdict(apart)
    self.assertIn('spread of one another: none. Unknown, because', found)
    self.assertEndsWith(found, 'seed: c.')
    self.assertEqual(spread.verdict({'a': [0.5, 0.6]}), '')
    uneven = {'a': [0.5, 0.5, 1.0], 'b': [0.999, 0.998, 0.999]}
    text = 'a (seeds from 0.5 to 1) than b.'
    self.assertEndsWith(spread.verdict(uneven), f'Less reliable: {text}')
    self.assertNotIn('Less reliable', spread.verdict(uneven, False))


if __name__ == '__main__':
  absltest.main()
