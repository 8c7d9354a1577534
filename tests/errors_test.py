"""One-line errors."""

from absl.testing import absltest
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


class UserErrorTest(absltest.TestCase):
  def test_is_one_line(self):
    error = errors.UserError(f'x={np.eye(2)} must\nbe 1.')
    self.assertEqual(str(error), 'x=[[1. 0.] [0. 1.]] must be 1.')

  def test_the_middle_of_a_long_message_is_left_out(self):
    text = str(errors.UserError(f'x={"y" * 9_000} is long. Give less.'))
    self.assertLess(len(text), 1_100)
    self.assertStartsWith(text, 'x=yyy')
    self.assertEndsWith(text, 'yyy is long. Give less.')

  def test_characters_that_cannot_be_printed_are_escaped(self):
    text = str(errors.UserError('no a\0b, \ud800, \x1b[2J or \u202e; é 中 🙂.'))
    want = 'no a\\x00b, \\ud800, \\x1b[2J or \\u202e; é 中 🙂.'
    self.assertEqual(text, want)
    text.encode()
    self.assertEqual(str(errors.UserError(text)), text)

  def test_the_middle_of_a_long_name_is_left_out(self):
    text = str(errors.UserError(f'There is no {"y" * 5_000}. Restore it.'))
    self.assertLess(len(text), 400)
    self.assertStartsWith(text, 'There is no yyy')
    self.assertEndsWith(text, 'yyy. Restore it.')
    self.assertEqual(str(errors.UserError(text)), text)
    path = f'/{"y" * 240}/{"z" * 100}'
    self.assertIn(path, str(errors.UserError(f'{path} is gone.')))


class LookupTest(absltest.TestCase):
  def test_refuses_what_is_no_key(self):
    for value in ([], {}, np.eye(2), ([],)):
      with self.assertRaisesRegex(errors.UserError, 'Unknown projection'):
        errors.lookup('projection', value, TABLE)

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

  def test_says_what_may_be_given_in_place_of_a_name(self):
    at = 'gaussian, sparse; or give a function.$'
    with self.assertRaisesRegex(errors.UserError, at):
      errors.lookup('projection', 'xyz', TABLE, 'a function')

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
