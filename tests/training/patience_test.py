"""Tests of when evaluations without improvement end a run."""

import json
import math

from absl.testing import parameterized

from cxjax.training import metrics as metrics_lib
from cxjax.training import patience

NAN = math.nan
METRICS = metrics_lib.resolve(('accuracy', 'loss'))


def exhausted(limit, evaluations, metric='accuracy'):
  """Values of `exhausted` after each of some evaluations."""
  run = patience.Patience(METRICS[metric], limit)
  found = []
  for values in evaluations:
    run.observe(values)
    found.append(run.exhausted)
  return found


def one(*scores):
  return [[score] for score in scores]


class PatienceTest(parameterized.TestCase):
  @parameterized.parameters(
    (1, 'accuracy', one(0.1, 0.2, 0.2), [False, False, True]),
    (1, 'loss', one(0.3, 0.2, 0.3), [False, False, True]),
    (2, 'accuracy', one(0.2, 0.1, 0.2), [False, False, True]),
    # Each improvement begins anew; it is one over the best, not the last.
    (2, 'accuracy', one(0.2, 0.1, 0.3, 0.2, 0.3), [False] * 4 + [True]),
    (2, 'accuracy', one(0.3, 0.1, 0.2), [False, False, True]),
    (0, 'accuracy', one(0.3, 0.1, 0.1, 0.1), [False] * 4),
  )
  def test_evaluations_without_improvement(self, limit, name, scores, want):
    self.assertEqual(exhausted(limit, scores, name), want)

  def test_one_student_that_improves_is_enough(self):
    scores = [[0.5, 0.1], [0.4, 0.2], [0.3, 0.3], [0.4, 0.3], [0.5, 0.3]]
    self.assertEqual(exhausted(2, scores), [False] * 4 + [True])

  def test_one_that_diverged_counts_as_no_improvement(self):
    """It does not stop the others, and they do not wait for it."""
    scores = [[0.1, 0.1], [NAN, 0.2], [NAN, 0.3], [NAN, 0.3]]
    self.assertEqual(exhausted(1, scores), [False] * 3 + [True])
    self.assertEqual(exhausted(1, one(NAN, NAN)), [False, True])
    self.assertEqual(exhausted(1, one(NAN, 0.1)), [False, False])

  def test_which_evaluation_may_be_the_last(self):
    run = patience.Patience(METRICS['loss'], 2)
    found = []
    for score in (0.3, 0.4, 0.2, 0.3):
      found.append(run.may_end)  # Before it is known.
      run.observe([score])
    self.assertEqual(found, [False, False, True, False])
    self.assertTrue(run.may_end)
    self.assertFalse(patience.Patience(METRICS['loss'], 0).may_end)

  def test_goes_on_as_if_nothing_had_happened(self):
    run, again = (patience.Patience(METRICS['loss'], 2) for _ in range(2))
    for scores in ([0.3, NAN], [0.4, NAN]):
      run.observe(scores)
    again.restore(json.loads(json.dumps(run.state())))
    for both in (run, again):
      both.observe([0.35, NAN])
      self.assertTrue(both.exhausted)

  def test_without_a_limit_there_is_no_state(self):
    run = patience.Patience(METRICS['loss'], 0)
    run.observe([0.3])
    self.assertEqual(run.state(), {})
    run.restore({})
