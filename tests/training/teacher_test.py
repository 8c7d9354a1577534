"""Tests of the teacher of a run."""

from absl.testing import absltest

from cxjax.training import teacher

SAVED = {10: 'at 10', 20: 'at 20'}


class TeacherTest(absltest.TestCase):
  def teacher(self, **fields):
    return teacher.Teacher(
      lambda params, x: (x, {}), 'last', load=SAVED.__getitem__, **fields
    )

  def test_none_is_the_final_teacher(self):
    self.assertEqual(self.teacher().at(None), 'last')

  def test_checkpoints_are_loaded(self):
    for step, params in SAVED.items():
      self.assertEqual(self.teacher().at(step), params)

  def test_one_that_is_not_available_has_the_same_shapes_at_every_step(self):
    one = self.teacher(available=False)
    self.assertEqual((one.at(None), one.at(10), one.at(99)), ('last',) * 3)
