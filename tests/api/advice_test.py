"""Tests of the conclusions of a comparison."""

import dataclasses
import math

from absl.testing import parameterized

from cxjax.api import comparison
from cxjax.training import metrics as metrics_lib
from small_networks import PLAN


def contender(method, scores, rate=1e-2, flops=1.0):
  return comparison.Contender(
    method=method,
    plan=PLAN,
    rate=rate,
    params=None,
    students=[],
    scores=scores,
    history=[],
    steps=20,
    stage_flops=(flops, flops),
  )


def conclude(*contenders, **kwargs):
  kind = metrics_lib.METRICS['accuracy']
  return comparison.Comparison(contenders, (), 'accuracy', kind, 8, **kwargs)


class ConclusionTest(parameterized.TestCase):
  GOOD = contender('good', (0.90, 0.91, 0.92))
  NEAR = contender('near', (0.89, 0.90, 0.93), flops=0.5)
  BAD = contender('bad', (0.50, 0.51, 0.52))

  def test_a_winner(self):
    found = conclude(self.BAD, self.GOOD)
    self.assertEqual(found.best.method, 'good')
    self.assertEqual(
      found.advice,
      'Take good at a learning rate of 0.01: accuracy 0.91 +- 0.01, better '
      'than every other method by more than the spread.',
    )
    verdicts = [row['against the best'] for row in found.rows]
    self.assertEqual(verdicts, ['worse', 'best'])
    self.assertEqual(found.within_spread, [])

  def test_a_tie(self):
    found = conclude(self.GOOD, self.NEAR, self.BAD)
    self.assertIn('but near is within the spread', found.advice)
    self.assertIn('near takes the fewest FLOPs', found.advice)
    self.assertEqual(found.within_spread, [('good', 'near')])
    third = contender('third', self.NEAR.scores, flops=0.5)
    self.assertNotIn('fewest', conclude(self.GOOD, self.NEAR, third).advice)
    alike = contender('alike', self.NEAR.scores)
    self.assertEndsWith(
      conclude(self.GOOD, alike).advice, 'or take more seeds.'
    )

  def test_two_seeds_that_cannot_decide(self):
    one, two = (
      contender('one', (0.704, 0.714)),
      contender('two', (0.368, 0.426)),
    )
    found = conclude(one, two)
    self.assertNotIn('other reasons', found.advice)
    self.assertEqual(
      found.rows[1]['against the best'], 'unknown: too few seeds'
    )
    self.assertEqual(found.within_spread, [])
    self.assertEndsWith(
      found.advice,
      '; two (seeds from 0.368 to 0.426) is apart from it by more than the '
      'spread, but 2 seeds are too few for the test: take more.',
    )
    self.assertRegex(
      conclude(one, two, contender('near', (0.69, 0.71))).advice,
      'but near is within .* take more seeds; two .* is apart',
    )

  def test_what_learns_with_every_seed_comes_first(self):
    steady = contender('steady', (0.9997, 0.9999, 0.9998))
    some = contender('some', (0.495, 0.501, 1.0))
    found = conclude(some, steady)
    self.assertEqual(
      found.advice,
      'Take steady at a learning rate of 0.01: accuracy 0.9998 +- 0.0001, '
      'every seed at least 0.9997; some is less reliable, with seeds from '
      '0.495 to 1.',
    )
    verdicts = [row['against the best'] for row in found.rows]
    self.assertEqual(verdicts, ['less reliable', 'best'])
    self.assertIn(
      'Less reliable: some (seeds from 0.495 to 1) than', found.markdown()
    )
    other = contender('other', (0.9996, 0.9999, 0.9998), flops=0.5)
    self.assertRegex(
      conclude(some, other, steady).advice,
      'steady .* has the best mean of those that are reliable.* but other is '
      'within .*; other takes the fewest FLOPs; some is less reliable',
    )

  def test_who_ties_with_the_best_may_not_tie_with_the_chosen(self):
    wild = contender('wild', (0.80, 0.95, 0.96))
    calm = contender('calm', (0.885, 0.886, 0.887))
    third = contender('third', (0.881, 0.882, 0.883))
    found = conclude(wild, calm, third)
    self.assertEqual(found.preferred.method, 'calm')
    self.assertIn('third', [one.method for one in found.candidates])
    self.assertNotIn('third', found.advice)

  def test_the_best_mean_may_be_less_reliable(self):
    some = contender('some', (1.0, 1.0, 0.4))
    steady = contender('steady', (0.75, 0.751, 0.752))
    found = conclude(some, steady)
    self.assertEqual(found.best.method, 'some')
    self.assertEqual(found.preferred.method, 'steady')
    self.assertRegex(
      found.advice, 'Take steady .* some has a better mean but is less'
    )
    self.assertEqual(
      found.rows[0]['against the best'], 'best mean, less reliable'
    )
    # All seeds of this one are among the bad ones of the other.
    weak = contender('weak', (0.60, 0.601, 0.602))
    found = conclude(some, weak)
    self.assertEqual(found.preferred.method, 'some')
    self.assertIn('0.8 +- 0.35 (seeds from 0.4 to 1), but weak', found.advice)

  def test_one_seed_says_nothing_of_the_spread(self):
    found = conclude(contender('a', (0.5,)), contender('b', (0.9,)))
    self.assertIn('one seed says nothing of the spread', found.advice)
    self.assertEqual(found.rows[0]['against the best'], 'unknown: one seed')
    self.assertIsNone(found.rows[0]['sd'])

  def test_a_method_of_one_seed_is_not_called_worse(self):
    single = contender('single', (0.905,))
    found = conclude(self.GOOD, single, self.BAD)
    self.assertEqual(
      found.advice,
      'Take good at a learning rate of 0.01: accuracy 0.91 +- 0.01, better '
      'than every other method of several seeds by more than the spread; '
      'single has one seed (0.905), so it may be as good.',
    )
    self.assertEqual(found.rows[1]['against the best'], 'unknown: one seed')
    tied = conclude(self.GOOD, self.NEAR, single)
    self.assertEndsWith(
      tied.advice, '; single has one seed (0.905), so it may be as good.'
    )

  def test_what_diverged_is_never_the_best(self):
    broken = contender('broken', (0.99, math.nan, 0.99))
    found = conclude(broken, self.BAD)
    self.assertEqual(found.best.method, 'bad')
    self.assertEqual(found.rows[0]['diverged'], 1)
    self.assertEqual(found.rows[0]['against the best'], 'diverged')
    self.assertEndsWith(found.advice, '; broken: 1 of 3 seeds diverged.')
    worse = contender('worse', (math.nan, math.nan, 0.99))
    found = conclude(worse, broken)
    self.assertEqual(found.best.method, 'broken')
    for row in found.rows:
      self.assertEqual(row['against the best'], 'diverged')
    self.assertEqual(found.within_spread, [])
    self.assertEqual(
      found.advice,
      'No method trained all of its students (broken, 1 of 3 seeds diverged; '
      'worse, 2 of 3 seeds diverged): try lower learning rates.',
    )
    none = contender('none', (math.nan, math.nan))
    self.assertStartsWith(conclude(none).advice, 'Every method diverged')

  def test_lower_may_be_better(self):
    found = conclude(self.GOOD, self.BAD)
    kind = dataclasses.replace(found.kind, higher_is_better=False)
    found = dataclasses.replace(found, kind=kind)
    self.assertEqual(found.best.method, 'bad')
    steady = contender('steady', (0.01, 0.011, 0.012))
    some = contender('some', (0.01, 0.011, 0.9))
    found = dataclasses.replace(conclude(some, steady), kind=kind)
    self.assertRegex(found.advice, 'Take steady.*at most 0.012; some is less')

  def test_a_prediction_says_so(self):
    share = {'predicted_steps': 200, 'share': 0.25, 'reference': 'bad'}
    found = conclude(self.GOOD, self.BAD, **share)
    self.assertStartsWith(
      found.advice, 'A prediction for 200 steps of bad, from 25% of their '
    )
    self.assertIn('Made at 25% of the budget', found.markdown())

  def test_a_rate_at_the_edge_is_noted(self):
    edge = dataclasses.replace(self.BAD, at_edge=True)
    self.assertIn('tried for bad', str(conclude(self.GOOD, edge)))

  def test_a_search_that_could_not_decide_is_noted(self):
    trials = [
      {'method': one.method, 'steps': steps, 'accuracy': score}
      for one, scores in ((self.GOOD, (0.2, 0.6)), (self.BAD, (0.5, 0.52)))
      for steps, some in ((5, scores), (10, scores[:1]))
      for score in some
    ]
    found = dataclasses.replace(
      conclude(self.GOOD, self.BAD), trials=tuple(trials)
    )
    (note,) = found.notes
    self.assertIn('In the search for bad all rates scored alike, from', note)
    self.assertEndsWith(note, 'its seeds: 0.01 is a guess.')
    self.assertIn(note, found.markdown())
    for scores in ((0.5, math.nan), (0.5, 0.53)):
      for row, score in zip(trials[3:5], scores, strict=True):
        row['accuracy'] = score
      self.assertEqual(found.notes, [])

  def test_flops_of_each_stage(self):
    one = dataclasses.replace(self.GOOD, stage_flops=(10.0, 1.0))
    # Stages of 8 and 12 steps.
    self.assertEqual(one.flops_until(8), 80)
    self.assertEqual((one.flops_until(10), one.flops), (82, 92))
