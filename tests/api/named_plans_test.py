"""Tests of the methods of a comparison, by their names."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from cxjax.api import named_plans
from small_networks import BIG
from small_networks import SMALL
from small_networks import X

LABELS = np.zeros(len(X), np.int32)


class PlannerTest(parameterized.TestCase):
  @parameterized.parameters(
    ({'method': 'extracted'}, 40),
    ({'method': 'extracted_centered'}, 40),
    ({'method': 'extracted_labels'}, 10),
    ({'method': 'extracted_centered_labels'}, 10),
    ({'method': 'extracted_labels', 'share': 0.3}, 30),
  )
  def test_share_of_the_hidden_stages(self, entry, hidden):
    pairs = [('high', 'low')]
    planner = named_plans.Planner(
      BIG, SMALL, (X, LABELS), pairs, named_plans.Output()
    )
    first, last = planner.plan('some', entry, 100).stages
    self.assertEqual((first.steps, last.steps), (hidden, 100 - hidden))


if __name__ == '__main__':
  absltest.main()
