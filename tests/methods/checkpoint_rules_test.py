"""Tests of the checkpoints that progressive distillation learns from."""

from absl.testing import absltest
from absl.testing import parameterized

from cxjax import errors
from cxjax.methods import checkpoint_rules

# The last 50 steps are the final teacher's.
AVAILABLE = ((10, 0.5), (20, 0.6), (30, 0.8), (40, 0.95), (50, 1.0))


def choose(rule, available=AVAILABLE, **kwargs):
  return checkpoint_rules.choose_checkpoints(available, rule, **kwargs)


class ChooseCheckpointsTest(parameterized.TestCase):
  @parameterized.parameters(
    ((0.61,), (20,)),
    ((0.9, 0.54), (10, 40)),  # Oldest first; the nearer of two.
    ((0.0, 0.5), (10,)),  # Once.
    ((1.0,), (40,)),  # Never the final teacher.
  )
  def test_transition(self, scores, expected):
    self.assertEqual(choose('transition', scores=scores), expected)

  @parameterized.parameters(
    (1, (20,)),  # 25 is as far from 30: the older.
    (2, (20, 30)),  # 16.7 and 33.3.
    (4, (10, 20, 30, 40)),
    (9, (10, 20, 30, 40)),
  )
  def test_even(self, count, expected):
    self.assertEqual(choose('even', count=count), expected)

  def test_even_is_in_steps(self):
    available = ((1, 0.1), (2, 0.2), (3, 0.3), (90, 0.9), (100, 1.0))
    chosen = choose('even', available, count=1)
    self.assertEqual(chosen, (90,))

  def test_list(self):
    self.assertEqual(choose('list', listed=(40, 10, 40)), (10, 40))

  def test_list_of_a_step_that_was_not_kept(self):
    message = 'no intermediate checkpoint 25.*10, 20, 30, 40.$'
    with self.assertRaisesRegex(errors.UserError, message):
      choose('list', listed=(10, 25))

  def test_list_of_the_final_teacher(self):
    with self.assertRaisesRegex(errors.UserError, 'checkpoint 50'):
      choose('list', listed=(50,))

  @parameterized.parameters('transition', 'even', 'list')
  def test_nothing_chosen(self, rule):
    with self.assertRaisesRegex(errors.UserError, f"'{rule}' chooses no"):
      choose(rule)

  @parameterized.parameters([()], [AVAILABLE[-1:]])
  def test_nothing_to_choose_from(self, available):
    with self.assertRaisesRegex(errors.UserError, 'teacher.save_every'):
      choose('even', available, count=1)

  def test_unknown_rule_lists_the_rules(self):
    message = "'evn'.*transition, even, list"
    with self.assertRaisesRegex(errors.UserError, message):
      choose('evn', count=1)


if __name__ == '__main__':
  absltest.main()
