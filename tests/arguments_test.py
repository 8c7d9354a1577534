"""Checks of single arguments."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from cxjax import arguments
from cxjax import errors

SHARE = arguments.Range(0, 1, ends=(False, False))
# What no number, flag or function is.
OTHERS = [
  (value,)
  for value in (None, '', 'x', b'1', 1j, (), [], {}, {1}, object, np.ones(2))
]

NO_TEXTS = [(value,) for (value,) in OTHERS if not isinstance(value, str)]
NO_DICTS = [(value,) for (value,) in OTHERS if not isinstance(value, dict)]


class WholeTest(parameterized.TestCase):
  @parameterized.parameters(
    (3,), (np.int32(3),), (np.array(3),), (jnp.array(3),)
  )
  def test_converts_whole_numbers(self, value):
    self.assertIs(type(arguments.integer('steps', value)), int)
    self.assertEqual(arguments.integer('steps', value), 3)

  @parameterized.parameters((3.0,), ('3',), (None,), (True,), ([3],))
  def test_refuses_others(self, value):
    with self.assertRaises(errors.UserError) as caught:
      arguments.integer('steps', value)
    self.assertEqual(
      str(caught.exception), f'steps={value!r} must be a whole number.'
    )

  def test_has_bounds(self):
    self.assertEqual(arguments.integer('steps', 0, 0), 0)
    for value in (-1, 11, 2**70):
      with self.assertRaisesRegex(errors.UserError, 'at least 0 and at most'):
        arguments.integer('steps', value, 0, 10)


class NumberTest(parameterized.TestCase):
  @parameterized.parameters(
    (0.5,), (np.float32(0.5),), (np.array(0.5),), (jnp.array(0.5),)
  )
  def test_is_of_python(self, value):
    found = arguments.number('share', value, SHARE)
    self.assertIs(type(found), float)
    self.assertEqual(found, 0.5)

  @parameterized.parameters(
    *OTHERS, (0,), (1,), (-1,), (math.nan,), (math.inf,), (True,)
  )
  def test_refuses_others(self, value):
    with self.assertRaisesRegex(errors.UserError, r'^share=.* must be a num'):
      arguments.number('share', value, SHARE)

  def test_refuses_keys(self):
    with self.assertRaisesRegex(errors.UserError, r'^share=Array.* must be'):
      arguments.number('share', jax.random.key(0), SHARE)


class FlagTest(parameterized.TestCase):
  @parameterized.parameters((True,), (np.True_,), (jnp.array(True),))
  def test_is_of_python(self, value):
    self.assertIs(arguments.flag('freeze', value), True)

  @parameterized.parameters(*OTHERS, (0,), (1,), (('Dense_0',),))
  def test_refuses_others(self, value):
    with self.assertRaisesRegex(errors.UserError, 'must be True or False'):
      arguments.flag('freeze', value)


class FunctionTest(parameterized.TestCase):
  def test_is_any_callable(self):
    self.assertIs(arguments.function('on_record', print, 'print'), print)

  @parameterized.parameters(*OTHERS, (0,), (dict,))
  def test_refuses_others(self, value):
    with self.assertRaisesRegex(errors.UserError, 'must be a function, as p'):
      arguments.function('on_record', value, 'print')


class TextTest(parameterized.TestCase):
  @parameterized.parameters(*NO_TEXTS)
  def test_refuses_others(self, value):
    with self.assertRaisesRegex(errors.UserError, "must be a string, as 'b'"):
      arguments.text('trainable', value, "'b'")


class MappingTest(parameterized.TestCase):
  def test_is_a_dict(self):
    self.assertEqual(arguments.mapping('mesh', {'data': 2}, '{}'), {'data': 2})

  @parameterized.parameters(*NO_DICTS, ({1: 2},))
  def test_refuses_others(self, value):
    with self.assertRaisesRegex(errors.UserError, 'must be a dict by names'):
      arguments.mapping('mesh', value, '{}')


class DtypeTest(parameterized.TestCase):
  @parameterized.parameters(jnp.bfloat16, 'bfloat16', np.dtype('float32'))
  def test_is_one_of_numpy(self, value):
    self.assertIsInstance(arguments.dtype('dtype', value), np.dtype)

  @parameterized.parameters(
    *OTHERS, (jnp.int32,), ('float33',), (np.float32(1),), ({'a': 'b'},)
  )
  def test_refuses_others(self, value):
    with self.assertRaisesRegex(errors.UserError, 'is no floating-point dtype'):
      arguments.dtype('dtype', value)


class ArraysTest(parameterized.TestCase):
  def test_accepts_arrays_and_tracers(self):
    jax.jit(lambda x: arguments.arrays(x=x))(np.ones(2))
    arguments.arrays(x=np.ones(2, bool), y=jnp.ones((2, 3)))

  @parameterized.parameters(
    (None,), (1.0,), ('x',), ([1.0],), (np.array(['x']),), (jax.random.key(0),)
  )
  def test_refuses_others(self, value):
    with self.assertRaisesRegex(errors.UserError, 'x=.* must be an array of n'):
      arguments.arrays(x=value)

  def test_shapes_are_equal(self):
    arguments.equal_shapes(student=np.ones(2), teacher=np.zeros(2))
    message = r'student is \[2\], teacher is \[2, 1\]'
    with self.assertRaisesRegex(errors.UserError, message):
      arguments.equal_shapes(student=np.ones(2), teacher=np.ones((2, 1)))


class ShapesTest(parameterized.TestCase):
  def test_are_those_of_the_leaves(self):
    found = arguments.shapes('x', {'a': np.ones((2, 3)), 'b': 1.0})
    self.assertEqual(jax.tree.map(lambda leaf: leaf.shape, found)['a'], (2, 3))

  @parameterized.parameters(
    (np.ones(99, np.longdouble), "x has a ndarray of float128 at 'a/b', which"),
    ('word', "x has the str 'word' at 'a/b', which is no array"),
    (np.array(['word']), "x has the ndarray array.*at 'a/b'"),
    (np.array([None]), "x has the ndarray array.*at 'a/b'"),
    (2**70, "x has the int 1180591620717411303424 at 'a/b'"),
    (print, "x has the builtin_function_or_method .*at 'a/b'"),
  )
  def test_the_leaf_that_is_no_array_is_named(self, leaf, message):
    with self.assertRaisesRegex(errors.UserError, message):
      arguments.shapes('x', {'a': {'b': leaf}})


class ListedTest(parameterized.TestCase):
  @parameterized.parameters(
    ('a', 'a'),
    ('abcdefg', 'a, b, c, d, e, f, g'),
    ('', ''),
    ('abcdefgh', 'a, b, c, d, e, f and 2 more'),
  )
  def test_many_are_counted(self, parts, text):
    self.assertEqual(arguments.listed(parts), text)

  def test_advice_is_for_long_lists_of_one_shape(self):
    rows = [np.ones(3)] * 7
    advice = ' A list of 7 arrays '
    self.assertStartsWith(arguments.list_advice(rows), advice)
    self.assertStartsWith(arguments.list_advice({'x': ({'a': rows},)}), advice)
    for other in (rows[:6], [*rows, np.ones(2)], np.ones((7, 3)), {'x': None}):
      self.assertEqual(arguments.list_advice(other), '')


if __name__ == '__main__':
  absltest.main()
