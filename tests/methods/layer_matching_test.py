"""Tests of the matching of layers and of the lengths of stages."""

import fractions

from absl.testing import parameterized

from cxjax import errors
from cxjax.methods import layer_matching


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
    pairs = layer_matching.match_layers(teacher, student)
    want = tuple((f't{i}', s) for i, s in zip(expected, student, strict=True))
    self.assertEqual(pairs, want)

  def test_rounds_halves_up_at_any_depth(self):
    half = fractions.Fraction(1, 2)
    for num_teacher in range(1, 33):
      for num_student in range(1, 33):
        teacher = [f'{i}' for i in range(1, num_teacher + 1)]
        student = range(1, num_student + 1)
        pairs = layer_matching.match_layers(teacher, [f'{i}' for i in student])
        found = [int(t) for t, _ in pairs]
        ratio = fractions.Fraction(num_teacher, num_student)
        want = [max((i * ratio + half).__floor__(), 1) for i in student]
        self.assertEqual(found, want, f'{num_teacher} to {num_student}')

  @parameterized.parameters(None, 3, 'block0', [3], {'block0'}, [None])
  def test_needs_names(self, layers):
    for pair in ((layers, ['s']), (['t'], layers)):
      with self.assertRaisesRegex(errors.UserError, 'must be names of layers'):
        layer_matching.match_layers(*pair)

  @parameterized.parameters(([], ['s'], '0 .*1'), (['t'], [], '1 .*0'))
  def test_needs_layers(self, teacher, student, message):
    with self.assertRaisesRegex(errors.UserError, f'match {message}.*one-shot'):
      layer_matching.match_layers(teacher, student)


class CheckPairsTest(parameterized.TestCase):
  @parameterized.parameters(list, tuple, iter)
  def test_pairs_may_be_lists_or_come_one_by_one(self, kind):
    found = layer_matching.check_pairs(kind([['t0', 's0'], ('t2', 's1')]))
    self.assertEqual(found, (('t0', 's0'), ('t2', 's1')))

  @parameterized.parameters(
    ('hidden0', "layers='hidden0' must be pairs"),
    (('hidden0', 'hidden1'), "'hidden0' is not a pair"),
    ((('a', 'b', 'c'),), 'is not a pair'),
    (((1, 'b'),), r'\(1, .b.\) is not a pair'),
    ((3,), '3 is not a pair'),
    (3, 'layers=3 must be pairs'),
  )
  def test_refuses(self, layers, message):
    with self.assertRaisesRegex(errors.UserError, message):
      layer_matching.check_pairs(layers)


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
    steps = layer_matching.split_steps(num_steps, parts, share)
    self.assertEqual(steps, expected)
    self.assertEqual(sum(steps), num_steps)

  def test_explicit_lengths_win(self):
    steps = layer_matching.split_steps(10, 2, 0.5, [1, 2, 7])
    self.assertEqual(steps, (1, 2, 7))

  @parameterized.parameters([[1, 2, 8]], [[3, 7]], [[1, 2, 3, 4]])
  def test_explicit_lengths_must_add_up(self, steps):
    with self.assertRaisesRegex(errors.UserError, '3 numbers .*num_steps=10'):
      layer_matching.split_steps(10, 2, 0.5, steps)

  @parameterized.parameters([[1.5, 1.5, 7]], [['1', '2', '7']])
  def test_explicit_lengths_must_be_whole(self, steps):
    with self.assertRaisesRegex(errors.UserError, 'must be a whole number'):
      layer_matching.split_steps(10, 2, 0.5, steps)

  @parameterized.parameters(0.0, 1.0, -0.5, 1.5, float('nan'), '0.5')
  def test_share_is_inside_0_and_1(self, share):
    with self.assertRaisesRegex(errors.UserError, f'share={share!r} must'):
      layer_matching.split_steps(10, 2, share)

  def test_too_few_steps(self):
    with self.assertRaisesRegex(errors.UserError, 'num_steps=2 .* 3 stages'):
      layer_matching.split_steps(2, 2, 0.5)
