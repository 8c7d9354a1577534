"""One-line errors."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from cxjax import errors

TABLE = {'gaussian': 1, 'sparse': 2}


class RequireTest(absltest.TestCase):
  def test_raises_unless_the_condition_holds(self):
    errors.require(True, 'all is well')
    with self.assertRaisesRegex(errors.UserError, '^rate=0 is too low.$'):
      errors.require(False, 'rate=0 is too low.')

  def test_is_a_value_error(self):
    self.assertTrue(issubclass(errors.UserError, ValueError))


class WholeTest(parameterized.TestCase):
  @parameterized.parameters((3,), (np.int32(3),), (np.array(3),))
  def test_converts_whole_numbers(self, value):
    self.assertIs(type(errors.whole('steps', value)), int)
    self.assertEqual(errors.whole('steps', value), 3)

  @parameterized.parameters(3.0, '3', None)
  def test_refuses_others(self, value):
    with self.assertRaises(errors.UserError) as caught:
      errors.whole('steps', value)
    self.assertEqual(
      str(caught.exception), f'steps={value!r} must be a whole number.'
    )


class LookupTest(absltest.TestCase):
  def test_returns_the_entry(self):
    self.assertEqual(errors.lookup('projection', 'sparse', TABLE), 2)
    self.assertIsNone(errors.lookup('projection', 'none', {'none': None}))

  def test_suggests_and_lists(self):
    with self.assertRaises(errors.UserError) as caught:
      errors.lookup('projection', 'gausian', TABLE)
    expected = (
      "Unknown projection 'gausian'. Did you mean 'gaussian'? Choose one of: "
      'gaussian, sparse.'
    )
    self.assertEqual(str(caught.exception), expected)

  def test_suggests_nothing_far_off(self):
    with self.assertRaises(errors.UserError) as caught:
      errors.lookup('projection', 'xyz', TABLE)
    expected = "Unknown projection 'xyz'. Choose one of: gaussian, sparse."
    self.assertEqual(str(caught.exception), expected)

  def test_name_that_is_no_string(self):
    with self.assertRaisesRegex(errors.UserError, 'Unknown projection None'):
      errors.lookup('projection', None, TABLE)


class AboutTest(absltest.TestCase):
  def test_prefixes_user_errors(self):
    with (
      self.assertRaisesRegex(errors.UserError, '^The teacher: width=0.$'),
      errors.about('The teacher'),
    ):
      raise errors.UserError('width=0.')

  def test_leaves_other_errors_alone(self):
    with self.assertRaisesRegex(KeyError, "^'x'$"), errors.about('it'):
      raise KeyError('x')


if __name__ == '__main__':
  absltest.main()
