"""Tests of the errors for people."""

from absl.testing import absltest
import numpy as np

from cxjax import errors

TABLE = {'gaussian': 1, 'sparse': 2}


class ErrorsTest(absltest.TestCase):
  def test_require(self):
    errors.require(True, 'all is well')
    with self.assertRaisesRegex(errors.UserError, '^rate=0 is too low.$'):
      errors.require(False, 'rate=0 is too low.')

  def test_whole(self):
    self.assertEqual(errors.whole('steps', np.int32(3)), 3)
    with self.assertRaisesRegex(errors.UserError, '^steps=3.0 must be a whole'):
      errors.whole('steps', 3.0)

  def test_is_a_value_error(self):
    self.assertTrue(issubclass(errors.UserError, ValueError))

  def test_lookup(self):
    self.assertEqual(errors.lookup('projection', 'sparse', TABLE), 2)

  def test_lookup_of_a_falsy_entry(self):
    self.assertEqual(errors.lookup('projection', 'none', {'none': None}), None)

  def test_lookup_suggests_and_lists(self):
    with self.assertRaises(errors.UserError) as caught:
      errors.lookup('projection', 'gausian', TABLE)
    expected = (
      "Unknown law 'gausian'. Did you mean 'gaussian'? Choose one of: "
      'gaussian, sparse.'
    )
    self.assertEqual(str(caught.exception), expected)

  def test_lookup_suggests_nothing_far_off(self):
    with self.assertRaises(errors.UserError) as caught:
      errors.lookup('projection', 'xyz', TABLE)
    expected = "Unknown law 'xyz'. Choose one of: gaussian, sparse."
    self.assertEqual(str(caught.exception), expected)

  def test_lookup_of_something_else_than_a_string(self):
    with self.assertRaisesRegex(errors.UserError, 'Unknown law None'):
      errors.lookup('projection', None, TABLE)


if __name__ == '__main__':
  absltest.main()
