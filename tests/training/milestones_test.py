"""Tests of what the held-out metrics decide, without a run."""

import json
import math
import types

from absl.testing import parameterized

from cxjax import errors
from cxjax.training import metrics as metrics_lib
from cxjax.training import milestones
from cxjax.training import run_spec

NAN = math.nan
METRICS = metrics_lib.resolve(('accuracy', 'loss'))


def make(primary='accuracy', ends=(30, 100), **loop):
  """Milestones of a run that evaluates every 20 steps and logs every 10."""
  loop = {'log_every': 10, 'eval_every': 20, 'save_every': 40, **loop}
  spec = types.SimpleNamespace(
    loop=run_spec.Loop(**loop),
    ends=ends,
    primary=primary,
    metrics=METRICS,
    primary_metric=METRICS[primary],
  )
  return milestones.Milestones(spec)


def values(*scores):
  return {'accuracy': list(scores), 'loss': list(scores)}


class ScheduleTest(parameterized.TestCase):
  def test_saves_at_multiples_and_at_the_end(self):
    run = make()
    saved = [step for step in range(1, 101) if run.is_saved(step)]
    self.assertEqual(saved, [40, 80, 100])

  def test_evaluates_at_multiples_and_at_the_end_of_a_stage(self):
    run = make()
    found = [step for step in range(1, 31) if run.is_evaluated(step, 30)]
    self.assertEqual(found, [20, 30])


class StopTest(parameterized.TestCase):
  @parameterized.parameters(
    (0.0, 40, 40),
    (0.5, 40, 60),
    (0.5, 60, 90),
    (0.1, 60, 66),
    (0.33, 40, 54),  # Rounded up.
    (2.0, 60, 100),  # Not beyond the last stage.
  )
  def test_goes_on_for_a_share_of_the_steps_so_far(self, overrun, step, end):
    run = make(stop_at=0.9, overrun=overrun)
    run.observe(values(0.95), step, final=True)
    self.assertEqual(run.end, end)
    self.assertTrue(run.is_saved(end))

  def test_of_the_worst_seed(self):
    run = make(stop_at=0.9)
    run.observe(values(0.95, 0.89), 40, final=True)
    self.assertEqual(run.end, 100)
    run.observe(values(0.9, 0.95), 60, final=True)
    self.assertEqual(run.end, 60)

  def test_of_a_metric_that_is_better_lower(self):
    run = make('loss', stop_at=0.5)
    run.observe(values(0.4, 0.6), 40, final=True)
    self.assertEqual(run.end, 100)
    run.observe(values(0.4, 0.5), 60, final=True)
    self.assertEqual(run.end, 60)

  def test_only_in_the_last_stage(self):
    run = make(stop_at=0.9)
    run.observe(values(1.0), 20, final=False)
    self.assertEqual(run.end, 100)

  def test_is_decided_once(self):
    run = make(stop_at=0.9, overrun=0.5)
    for step in (40, 60):
      run.observe(values(0.95), step, final=True)
    self.assertEqual(run.end, 60)

  @parameterized.parameters('accuracy', 'loss')
  def test_not_by_nan(self, primary):
    run = make(primary, stop_at=0.0)
    for scores in ((NAN, 0.0), (0.0, NAN)):
      run.observe(values(*scores), 40, final=True)
    self.assertEqual(run.end, 100)

  def test_without_stop_at(self):
    run = make()
    run.observe(values(1.0), 40, final=True)
    self.assertEqual(run.end, 100)


class SaveAtTest(parameterized.TestCase):
  def test_when_first_reached(self):
    run = make(save_at=(0.5, 0.9))
    scores = (0.4, 0.5, 0.6, 0.45, 0.55, 0.95, 0.4, 0.99)
    found = [run.observe(values(s), 20, final=True) for s in scores]
    self.assertEqual(
      found, [False, True, False, False, False, True] + [False] * 2
    )

  def test_two_at_once_are_one_checkpoint(self):
    run = make(save_at=(0.5, 0.9))
    self.assertTrue(run.observe(values(0.95), 20, final=False))
    self.assertFalse(run.observe(values(0.95), 40, final=False))

  def test_of_a_metric_that_is_better_lower(self):
    run = make('loss', save_at=(0.5,))
    scores = (0.6, 0.5, 0.4)
    found = [run.observe(values(s), 20, final=True) for s in scores]
    self.assertEqual(found, [False, True, False])

  def test_nan_hides_no_later_score(self):
    run = make(save_at=(0.5,))
    scores = (NAN, 0.4, NAN, 0.6, NAN, 0.7)
    found = [run.observe(values(s), 20, final=True) for s in scores]
    self.assertEqual(found, [False, False, False, True, False, False])


class BestTest(parameterized.TestCase):
  @parameterized.parameters(
    ('accuracy', (0.4, 0.5, 0.5, 0.3, 0.6), [True, True, False, False, True]),
    ('loss', (0.4, 0.5, 0.4, 0.3, 0.6), [True, False, False, True, False]),
    ('accuracy', (NAN, 0.1, NAN, 0.2), [True, True, False, True]),
    ('loss', (NAN, 0.2, NAN, 0.1), [True, True, False, True]),
  )
  def test_strictly_better_than_all_before(self, name, scores, expected):
    run = make(keep_best=name)
    self.assertEqual([run.is_best(values(s), 4) for s in scores], expected)

  def test_is_the_mean_over_the_seeds(self):
    run = make(keep_best='accuracy')
    self.assertTrue(run.is_best(values(0.5, 0.5), 4))
    self.assertFalse(run.is_best(values(0.9, 0.1), 8))
    self.assertTrue(run.is_best(values(0.3, 0.8), 12))

  def test_need_not_be_the_primary_metric(self):
    run = make('accuracy', keep_best='loss')
    self.assertTrue(run.is_best({'accuracy': [0.9], 'loss': [0.4]}, 4))
    self.assertTrue(run.is_best({'accuracy': [0.1], 'loss': [0.3]}, 8))

  def test_of_none(self):
    self.assertFalse(make().is_best(values(1.0), 4))


class PatienceTest(parameterized.TestCase):
  def test_ends_at_the_last_evaluation_without_improvement(self):
    run = make(patience=2)
    with self.assertLogs('absl', level='INFO') as log:
      for step, score in ((40, 0.5), (60, 0.6), (80, 0.6), (90, 0.5)):
        self.assertEqual(run.end, 100)
        run.observe(values(score), step, final=True)
    self.assertEqual(run.end, 90)
    self.assertTrue(run.is_saved(90))
    self.assertIn("Step 90 is the last: 'accuracy' did not", log.output[0])

  def test_not_in_stages_before_the_last(self):
    """They do not count, and what they reached need not be reached again."""
    run = make(patience=1)
    for step in (10, 20, 30):
      run.observe(values(0.5), step, final=False)
    for step, score in ((40, 0.3), (60, 0.4)):
      run.observe(values(score), step, final=True)
    self.assertEqual(run.end, 100)

  def test_by_keep_best(self):
    run = make('accuracy', keep_best='loss', patience=1)
    for step, both in ((40, (0.5, 0.5)), (60, (0.4, 0.4)), (80, (0.6, 0.4))):
      self.assertEqual(run.end, 100)
      scores = {'accuracy': [both[0]], 'loss': [both[1]]}
      run.observe(scores, step, final=True)
    self.assertEqual(run.end, 80)

  def test_resumes_at_its_end_without_a_warning(self):
    run, again = make(patience=1), make(patience=1)
    for step in (40, 60):
      run.observe(values(0.5), step, final=True)
    with self.assertNoLogs(level='WARNING'):
      again.restore(json.loads(json.dumps(run.state())))
    self.assertEqual(again.end, 60)


class DependOnTest(parameterized.TestCase):
  """Whether the loop has to wait for the metrics of a step."""

  @parameterized.parameters(
    (dict(), True, False),
    (dict(keep_best='loss'), True, True),
    (dict(keep_best='loss'), False, True),
    (dict(save_at=(0.5,)), False, True),
    (dict(patience=1), True, True),
    (dict(patience=1), False, False),
    (dict(patience=2), True, False),  # It takes two evaluations.
    # 40 may be the last step, or 50, which is dispatched next.
    (dict(stop_at=0.9), True, True),
    (dict(stop_at=0.9, overrun=0.25), True, True),
    # It goes on beyond what is dispatched next.
    (dict(stop_at=0.9, overrun=0.5), True, False),
    (dict(stop_at=0.9), False, False),
  )
  def test_of_step_40(self, loop, final, expected):
    self.assertEqual(make(**loop).depend_on(40, final), expected)

  def test_not_once_every_score_was_reached(self):
    run = make(save_at=(0.5, 0.9))
    run.observe(values(0.6), 20, final=True)
    self.assertTrue(run.depend_on(40, True))
    run.observe(values(0.9), 40, final=True)
    self.assertFalse(run.depend_on(60, True))

  def test_not_once_the_end_is_decided(self):
    run = make(stop_at=0.9, overrun=0.5)
    run.observe(values(0.9), 60, final=True)
    self.assertEqual(run.end, 90)
    self.assertFalse(run.depend_on(80, True))

  @parameterized.parameters(
    ('accuracy', dict(stop_at=2.0), False),
    ('accuracy', dict(stop_at=1.0), True),
    ('accuracy', dict(save_at=(2.0,)), False),
    ('loss', dict(stop_at=-1.0), False),
    ('loss', dict(stop_at=2.0), True),
  )
  def test_not_on_a_score_that_cannot_be(self, primary, loop, expected):
    self.assertEqual(make(primary, **loop).depend_on(40, True), expected)


class EndTest(parameterized.TestCase):
  """A run that is told to end."""

  def test_ends_and_is_saved_there(self):
    run = make()
    run.stop(48)
    self.assertEqual(run.end, 48)
    self.assertTrue(run.is_saved(48))
    run.stop(60)  # Not later again.
    self.assertEqual(run.end, 48)

  def test_not_after_the_last_stage(self):
    run = make()
    run.stop(104)
    self.assertEqual(run.end, 100)


class StateTest(parameterized.TestCase):
  def test_goes_on_as_if_nothing_had_happened(self):
    loop = dict(stop_at=0.9, overrun=0.5, save_at=(0.5,), keep_best='loss')
    run, again = make(**loop), make(**loop)
    scores = values(0.6, 0.95)
    run.observe(scores, 20, final=True)
    run.is_best(scores, 20)
    again.restore(json.loads(json.dumps(run.state())))
    for one in (run, again):
      self.assertFalse(one.observe(values(0.7), 40, final=True))  # Not again.
      self.assertFalse(one.is_best(values(0.8), 40))
      self.assertEqual(one.best_step, 20)
      one.observe(values(0.9), 60, final=True)
      self.assertEqual(one.end, 90)
    again.restore(run.state())
    again.observe(values(0.9), 80, final=True)
    self.assertEqual(again.end, 90)

  def test_of_an_earlier_release(self):
    run = make(keep_best='loss')
    old = run.state()
    del old['best_step']
    with self.assertRaisesRegex(errors.UserError, 'An earlier release began'):
      run.restore(old)

  def test_of_nothing(self):
    run = make()
    run.restore(make().state())
    self.assertEqual(run.state(), make().state())
