"""Tests of equal budgets."""

import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from cxjax import errors
from cxjax import settings
from cxjax.api import budgets
from small_networks import PLAN


class BudgetsTest(parameterized.TestCase):
  @parameterized.parameters(
    (20, (8, 12), (8, 12)),
    (10, (8, 12), (4, 6)),
    (2, (8, 12), (1, 1)),
    (5, (1, 1, 1_000), (1, 1, 3)),
    (1_000_000, (1, 2), (333_333, 666_667)),
  )
  def test_split(self, total, parts, expected):
    self.assertEqual(budgets.split(total, parts), expected)

  def test_a_plan_of_another_length_has_the_same_stages(self):
    plan = budgets.scaled(PLAN, 10)
    self.assertEqual([stage.steps for stage in plan.stages], [4, 6])
    for one, stage, old in zip(
      plan.stage_plans, plan.stages, PLAN.stage_plans, strict=True
    ):
      self.assertIs(one.stage, stage)
      self.assertEqual(stage.objective, old.stage.objective)
      self.assertEqual(one.mask, old.mask)

  def test_steps_of_equal_cost(self):
    price = lambda plan, index: (1.0, 5.0)[index]
    # The hidden stage has .4 of the steps: a step costs 3.4.
    found = budgets.steps_for(PLAN, 3_400.0, price)
    self.assertBetween(found, 999, 1_001)
    cost = budgets.total(budgets.scaled(PLAN, found), price)
    self.assertBetween(cost, 3_390, 3_400)
    self.assertEqual(budgets.steps_for(PLAN, 6.0, price), 2)
    self.assertEqual(budgets.steps_for(PLAN, 5.9, price), 0)

  def test_flops_are_found_once_for_an_objective(self):
    flops = budgets.Flops('counted')
    expected = [
      one.student_flops + one.teacher_flops
      for one in PLAN.stage_plans_with_costs
    ]
    self.assertEqual([flops(PLAN, i) for i in range(2)], expected)
    with mock.patch.object(budgets, '_alone', side_effect=AssertionError):
      flops(budgets.scaled(PLAN, 10), 1)

  def test_stored_targets_cost_the_teacher_nothing(self):
    flops = budgets.Flops('counted', charged=False)
    expected = [one.student_flops for one in PLAN.stage_plans_with_costs]
    self.assertEqual([flops(PLAN, i) for i in range(2)], expected)

  def test_what_is_frozen_is_not_charged(self):
    flops, whole = budgets.Flops('counted'), budgets.Flops('counted')
    some = budgets.trained(PLAN, 'low')
    self.assertLess(flops(some, 1), whole(PLAN, 1))
    with self.assertRaisesRegex(errors.UserError, "'low' trains no param"):
      budgets.trained(PLAN, '*high*')
    with self.assertRaisesRegex(errors.UserError, 'no parameter'):
      budgets.trained(PLAN, 'none')

  def test_steps_without_a_price_are_refused(self):
    with self.assertRaisesRegex(errors.UserError, "costs='counted'"):
      budgets.steps_for(PLAN, 1.0, lambda plan, index: 0.0)

  def test_steps_are_timed_as_they_run(self):
    """With the options of the runs, but for what fits nothing."""
    seconds = budgets.Seconds([], None, {'microbatches': 2, 'fit_on': []})
    trusted = mock.patch.object(budgets, 'trusted', return_value=40.0)
    distill = mock.patch.object(budgets.distill_lib, 'distill')
    with trusted, distill as distill:
      self.assertEqual(seconds(PLAN, 0), 2.0)
    self.assertEqual(distill.call_args.kwargs['microbatches'], 2)
    self.assertNotIn('fit_on', distill.call_args.kwargs)

  def timed(self, median, folder, plan=PLAN, **options):
    """Seconds of a step of a plan, and whether they were measured."""
    trusted = mock.patch.object(budgets, 'trusted', return_value=median)
    distill = mock.patch.object(budgets.distill_lib, 'distill')
    with trusted, distill as distill:
      found = budgets.Seconds([], None, options, folder)(plan, 0)
    return found, distill.called

  def test_a_workdir_keeps_the_timings(self):
    """Timed anew, the lengths would differ, and nothing would resume."""
    folder = pathlib.Path(self.create_tempdir().full_path) / 'new'
    self.assertEqual(self.timed(40.0, folder), (2.0, True))
    self.assertEqual(self.timed(41.0, folder), (2.0, False))
    longer = budgets.scaled(PLAN, 10)
    self.assertEqual(self.timed(41.0, folder, longer), (2.0, False))
    self.assertEqual(self.timed(60.0, folder, microbatches=2), (3.0, True))
    some = budgets.trained(PLAN, 'low')
    self.assertEqual(self.timed(80.0, folder, some), (2.0, False))
    self.assertEqual(self.timed(41.0, None), (2.05, True))
    # Of elsewhere: the runs that began there have the lengths of these.
    environment = {**settings.environment(), 'device': 'Other'}
    mocked = mock.patch.object(
      settings, 'environment', return_value=environment
    )
    with mocked, self.assertLogs('absl', 'WARNING') as logs:
      self.assertEqual(self.timed(41.0, folder), (2.0, False))
    self.assertRegex(logs.output[0], 'elsewhere, .* device .*Other here')

  def test_timings_that_were_edited_are_refused(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    self.timed(40.0, folder)
    path = folder / budgets.FILE
    path.write_text(path.read_text().replace('2.0', '2.5'))
    with self.assertRaisesRegex(errors.UserError, 'seconds.json is damaged'):
      self.timed(40.0, folder)
    path.write_text('')
    with self.assertRaisesRegex(errors.UserError, 'seconds.json cannot be re'):
      self.timed(40.0, folder)

  def test_a_clock_is_trusted_that_repeats_itself(self):
    self.assertAlmostEqual(budgets.trusted([0, 1.0, 2.05, 3.0]), 1.0)
    with self.assertRaisesRegex(errors.UserError, "20%.*equal='flops'"):
      budgets.trusted([0, 1.0, 2.2, 3.2])


if __name__ == '__main__':
  absltest.main()
