"""Tests of the search of endings, with runs that are made up."""

import pathlib
from unittest import mock

from absl.testing import absltest

import scripts

endings = scripts.load('experiments.endings')


class SearchTest(absltest.TestCase):
  def test_the_other_lengths_are_tried_at_the_better_rate(self):
    ran = []

    def attempt(method, overrides, workdir):
      del method, workdir
      rate, hidden = (
        overrides['optimizer.learning_rate'],
        overrides['extracted.steps'][0],
      )
      ran.append((hidden, rate))
      return {'final': {'accuracy': [rate + hidden / 1e5]}}

    budget = mock.Mock(steps=lambda ending, hidden: (hidden, 1_000))
    with mock.patch.object(endings.masked_tune, 'attempt', attempt):
      found = endings.search(budget, 'pcfg_bert', 'labels', pathlib.Path('x'))
    self.assertEqual(ran, [(450, 3e-3), (450, 1e-2), (225, 1e-2), (900, 1e-2)])
    best, score = found[0]
    self.assertEqual(best['extracted.steps'], (900, 1_000))
    self.assertEqual(best['num_steps'], 1_900)
    self.assertAlmostEqual(score, 1e-2 + 900 / 1e5)
    lengths = [one['extracted.steps'][0] for one, _ in found]
    self.assertEqual(lengths, [900, 450, 225, 450])


if __name__ == '__main__':
  absltest.main()
