"""Tests of the curricula."""

import fractions

from absl.testing import absltest
from absl.testing import parameterized

from cxjax.methods import stage as stage_lib
from cxjax import errors
from cxjax.methods import losses

Stage = stage_lib.Stage
PAIRS = (('t0', 's0'), ('t2', 's1'))


class MethodTest(absltest.TestCase):
  def test_supervised(self):
    (stage,) = stage_lib.supervised(7)
    expected = Stage(
      'labels', 7, target=stage_lib.LABELS, loss=losses.cross_entropy
    )
    self.assertEqual(stage, expected)
    self.assertFalse(stage.needs_teacher)

  def test_one_shot(self):
    (stage,) = stage_lib.one_shot(7, losses.mse)
    self.assertEqual(stage, Stage('output', 7, loss=losses.mse))
    self.assertTrue(stage.needs_teacher)
    self.assertEqual(stage.student, stage_lib.LOGITS)
    self.assertEqual(stage.target, stage_lib.LOGITS)

  def test_progressive(self):
    stages = stage_lib.progressive((10, 20, None), (1, 2, 3), losses.hard_kl)
    expected = (
      Stage('checkpoint 10', 1, loss=losses.hard_kl, checkpoint=10),
      Stage('checkpoint 20', 2, loss=losses.hard_kl, checkpoint=20),
      Stage('final', 3, loss=losses.hard_kl, checkpoint=None),
    )
    self.assertEqual(stages, expected)

  def test_extracted(self):
    stages = stage_lib.extracted(PAIRS, (1, 2, 3), losses.hard_kl)
    hidden = dict(loss=losses.l2, projection='gaussian')
    expected = (
      Stage('s0', 1, student='s0', target='t0', **hidden),
      Stage('s1', 2, student='s1', target='t2', **hidden),
      Stage('output', 3, loss=losses.hard_kl),
    )
    self.assertEqual(stages, expected)

  def test_extracted_options_are_those_of_the_hidden_stages(self):
    options = dict(projection='sparse', regressor=True, width=5, checkpoint=40)
    *hidden, output = stage_lib.extracted(PAIRS, (1, 2, 3), **options)
    for stage in hidden:
      for name, value in options.items():
        self.assertEqual(getattr(stage, name), value)
    self.assertEqual(output, Stage('output', 3))

  def test_extracted_freezes_the_layers_whose_stage_is_over(self):
    stages = stage_lib.extracted(PAIRS, (1, 2, 3), freeze=True)
    frozen = [stage.frozen for stage in stages]
    self.assertEqual(frozen, [(), ('s0',), ('s0', 's1')])

  def test_each_stage_needs_a_length(self):
    for build in (
      lambda: stage_lib.progressive((10, None), (1, 2, 3)),
      lambda: stage_lib.extracted(PAIRS, (1, 2)),
    ):
      with self.assertRaisesRegex(errors.UserError, 'one length for each'):
        build()


class StageTest(absltest.TestCase):
  def test_needs_a_step(self):
    with self.assertRaisesRegex(errors.UserError, "'a' has 0 steps"):
      Stage('a', 0)

  def test_width_needs_a_readout(self):
    with self.assertRaisesRegex(errors.UserError, "'a' .*regressor=True"):
      Stage('a', 1, width=3)
    self.assertEqual(Stage('a', 1, width=3, regressor=True).width, 3)

  def test_objective_is_shared_by_stages_that_compile_alike(self):
    stage = Stage('a', 1, checkpoint=10)
    other = Stage('b', 2, checkpoint=None)
    self.assertEqual(stage.objective, other.objective)
    self.assertEqual(hash(stage.objective), hash(other.objective))

  def test_objective_keeps_everything_else(self):
    options = dict(
      student='s0',
      target='t0',
      loss=losses.l2,
      projection='sparse',
      regressor=True,
      frozen=('s1',),
    )
    plain = Stage('a', 1, regressor=True, width=None)
    for name, value in options.items():
      stage = Stage('a', 1, **{name: value})
      self.assertEqual(getattr(stage.objective, name), value)
      self.assertNotEqual(stage.objective, Stage('a', 1).objective)
    wide = Stage('a', 1, regressor=True, width=3)
    self.assertNotEqual(wide.objective, plain.objective)


class MatchLayersTest(parameterized.TestCase):
  @parameterized.parameters(
    (1, 1, [1]),
    (3, 3, [1, 2, 3]),
    (4, 2, [2, 4]),
    (3, 2, [2, 3]),  # 1.5 goes up.
    (5, 2, [3, 5]),  # 2.5 too: not to the even number.
    (5, 1, [5]),
    (2, 4, [1, 1, 2, 2]),
    (1, 3, [1, 1, 1]),  # A third would be no layer.
    (12, 5, [2, 5, 7, 10, 12]),
  )
  def test_by_depth_fraction(self, num_teacher, num_student, expected):
    teacher = [f't{i}' for i in range(1, num_teacher + 1)]
    student = [f's{i}' for i in range(1, num_student + 1)]
    pairs = stage_lib.match_layers(teacher, student)
    want = tuple((f't{i}', s) for i, s in zip(expected, student, strict=True))
    self.assertEqual(pairs, want)

  def test_rounds_halves_up_at_any_depth(self):
    half = fractions.Fraction(1, 2)
    for num_teacher in range(1, 33):
      for num_student in range(1, 33):
        teacher = range(1, num_teacher + 1)
        student = range(1, num_student + 1)
        found = [t for t, _ in stage_lib.match_layers(teacher, student)]
        ratio = fractions.Fraction(num_teacher, num_student)
        want = [max((i * ratio + half).__floor__(), 1) for i in student]
        self.assertEqual(found, want, f'{num_teacher} to {num_student}')


class SplitStepsTest(parameterized.TestCase):
  @parameterized.parameters(
    (100, 1, 0.5, (50, 50)),
    (100, 4, 0.5, (12, 12, 12, 12, 52)),
    (10, 3, 0.25, (1, 1, 1, 7)),
    (10, 2, 0.01, (1, 1, 8)),  # No stage is empty.
    (3, 2, 0.99, (1, 1, 1)),
    (2, 1, 0.9, (1, 1)),
  )
  def test_by_share(self, num_steps, parts, share, expected):
    steps = stage_lib.split_steps(num_steps, parts, share)
    self.assertEqual(steps, expected)
    self.assertEqual(sum(steps), num_steps)

  def test_explicit_lengths_win(self):
    steps = stage_lib.split_steps(10, 2, 0.5, [1, 2, 7])
    self.assertEqual(steps, (1, 2, 7))

  @parameterized.parameters([[1, 2, 8]], [[3, 7]], [[1, 2, 3, 4]])
  def test_explicit_lengths_must_add_up(self, steps):
    with self.assertRaisesRegex(errors.UserError, '3 numbers .*num_steps=10'):
      stage_lib.split_steps(10, 2, 0.5, steps)

  @parameterized.parameters(0.0, 1.0, -0.5, 1.5)
  def test_share_is_inside_0_and_1(self, share):
    with self.assertRaisesRegex(errors.UserError, f'share={share}'):
      stage_lib.split_steps(10, 2, share)

  def test_too_few_steps(self):
    with self.assertRaisesRegex(errors.UserError, 'num_steps=2 .* 3 stages'):
      stage_lib.split_steps(2, 2, 0.5)


if __name__ == '__main__':
  absltest.main()
