"""Tests of the methods by name."""

from absl.testing import absltest
from absl.testing import parameterized

from cxjax.methods import stage as stage_lib
from cxjax import errors
from cxjax.methods import losses
from cxjax.methods import curricula
from experiments import parity_mlp

# Steps of the last 50 are the final teacher's.
AVAILABLE = ((10, 0.5), (20, 0.6), (30, 0.8), (40, 0.95), (50, 1.0))


def choose(rule, available=AVAILABLE, **kwargs):
  return curricula.choose_checkpoints(available, rule, **kwargs)


class ChooseCheckpointsTest(parameterized.TestCase):
  @parameterized.parameters(
    ((0.61,), (20,)),
    ((0.9, 0.54), (10, 40)),  # Oldest first; the nearer of two.
    ((0.0, 0.5), (10,)),  # Once.
    ((1.0,), (40,)),  # Never the final teacher.
  )
  def test_transition(self, accuracies, expected):
    self.assertEqual(choose('transition', accuracies=accuracies), expected)

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


class FromConfigTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.teacher = curricula.Teacher(
      apply=lambda params, x: (x, {}),
      params={},
      layers=('t0', 't1'),
      checkpoints=AVAILABLE,
    )

  def stages(self, config):
    return curricula.from_config(config, self.teacher, ('s0',))

  @parameterized.parameters(*curricula.METHODS)
  def test_lasts_num_steps(self, name):
    stages = self.stages(parity_mlp.tiny(name))
    self.assertEqual(sum(stage.steps for stage in stages), 60)

  def test_names_are_those_of_the_curricula(self):
    self.assertSameElements(curricula.METHODS, stage_lib.METHODS)

  def test_supervised_needs_no_teacher(self):
    config = parity_mlp.tiny('supervised')
    stages = curricula.from_config(config, None, ())
    self.assertEqual(stages, stage_lib.supervised(60))

  @parameterized.parameters('one_shot', 'progressive', 'extracted')
  def test_the_loss_is_that_of_the_config(self, name):
    config = parity_mlp.tiny(name)
    config.hard_labels = True
    self.assertIs(self.stages(config)[-1].loss, losses.hard_kl)

  def test_progressive_ends_with_the_final_teacher(self):
    config = parity_mlp.tiny('progressive')
    config.loss = 'mse'
    config.progressive.rule = 'list'
    config.progressive.checkpoints = (20, 40)
    config.progressive.share = 0.1
    stages = self.stages(config)
    expected = stage_lib.progressive((20, 40, None), (3, 3, 54), losses.mse)
    self.assertEqual(stages, expected)

  def test_extracted_matches_by_depth(self):
    config = parity_mlp.tiny('extracted')
    config.loss = 'mse'
    expected = stage_lib.extracted((('t1', 's0'),), (30, 30), losses.mse)
    self.assertEqual(self.stages(config), expected)

  def test_extracted_with_every_setting(self):
    config = parity_mlp.tiny('extracted')
    config.loss = 'mse'
    block = config.extracted
    block.layers = (('t0', 's0'),)
    block.law, block.readout, block.width = 'sparse', True, 5
    block.freeze, block.checkpoint, block.steps = True, 0, (20, 40)
    expected = stage_lib.extracted(
      (('t0', 's0'),),
      (20, 40),
      losses.mse,
      projection='sparse',
      regressor=True,
      width=5,
      freeze=True,
      checkpoint=0,
    )
    self.assertEqual(self.stages(config), expected)

  def test_unknown_method_lists_the_methods(self):
    config = parity_mlp.tiny('one_shoot')
    message = "Did you mean 'one_shot'.*supervised, one_shot"
    with self.assertRaisesRegex(errors.UserError, message):
      self.stages(config)


if __name__ == '__main__':
  absltest.main()
