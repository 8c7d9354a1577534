"""Tests of batches that users give."""

import collections
import types

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from cxjax import errors
from cxjax.data import user_batches

X = np.arange(12, dtype=np.float32).reshape(4, 3)
Y = np.array([0, 1, 2, 1])
SHAPES = jax.eval_shape(lambda: {'x': jnp.asarray(X), 'y': jnp.asarray(Y)})


class Foreign:
  """Stands for an array of another library."""

  def __array__(self, dtype=None, copy=None):
    del copy
    return np.asarray(X, dtype)


class ToBatchTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('x', X, ['x']),
    ('pair', (X, Y), ['x', 'y']),
    ('list', [X, Y], ['x', 'y']),
    ('dict', {'x': X, 'y': Y, 'weights': None}, ['x', 'y']),
    ('inputs', {'tokens': X}, ['x']),
    ('named', collections.namedtuple('Batch', 'x y')(X, Y), ['x', 'y']),
  )
  def test_forms(self, given, names):
    found = user_batches.to_batch(given)
    self.assertEqual(list(found), names)

  def test_a_named_tuple_is_read_by_its_names(self):
    swapped = collections.namedtuple('Swapped', 'y x')(Y, X)
    self.assertIs(user_batches.to_batch(swapped)['x'], X)
    others = collections.namedtuple('Others', 'labels inputs')(Y, X)
    self.assertIs(user_batches.to_batch(others)['x'], Y)

  @parameterized.parameters(collections.UserDict, types.MappingProxyType)
  def test_any_mapping_is_a_dict(self, kind):
    """JAX knows neither; a `BatchEncoding` of transformers is a UserDict."""
    tokens = kind({'ids': X, 'more': kind({'mask': Y})})
    want = {'ids': X, 'more': {'mask': Y}}
    for given in (
      tokens,
      {'x': tokens},
      kind({'x': tokens, 'y': Y}),
      (tokens, Y),
    ):
      found = user_batches.to_batch(given)
      self.assertIs(type(found['x']), dict)
      self.assertEqual(jax.tree.structure(found['x']), jax.tree.structure(want))
      self.assertIs(found['x']['more']['mask'], Y)

  def test_an_unknown_entry(self):
    with self.assertRaisesRegex(errors.UserError, 'A batch has mask beside x'):
      user_batches.to_batch({'x': X, 'mask': Y})

  @parameterized.parameters((None,), ((None, Y),), ({'x': None, 'y': Y},))
  def test_none(self, given):
    with self.assertRaisesRegex(errors.UserError, 'x of a batch is None'):
      user_batches.to_batch(given)

  def test_a_list_of_numbers_is_one_array(self):
    batch = user_batches.to_batch((X, [0, 1, 2, 1]))
    for found in (user_batches.arrays(batch), user_batches.checked(batch, 3)):
      np.testing.assert_array_equal(found['y'], Y)

  @parameterized.named_parameters(
    ('rows', X.tolist()),
    ('row', X[0].tolist()),
    ('tuples', tuple(map(tuple, X.tolist()))),
    ('two', [1.5, 2.5]),
    ('tuple', (1.5, 2.5)),
    ('number', 1.5),
    ('of_numpy', list(X[0])),
    ('pair', (X.tolist(), Y.tolist())),
    ('deep', [X.tolist(), X.tolist()]),
  )
  def test_a_batch_of_python_numbers_is_refused(self, given):
    for make in (user_batches.to_batch, lambda x: user_batches.checked(x, 3)):
      with self.assertRaisesRegex(
        errors.UserError, 'number.* of Python.* np.array'
      ):
        make(given)

  @parameterized.parameters([[X]], ((X,),))
  def test_a_list_of_one_array_is_that_array(self, given):
    for make in (user_batches.to_batch, lambda x: user_batches.checked(x, 3)):
      self.assertEqual([*make(given)], ['x'])
      np.testing.assert_array_equal(make(given)['x'], X)
    listed = user_batches.to_batch({'x': [X]})
    self.assertIsInstance(listed['x'], list)

  @parameterized.parameters(
    *(((x, y),) for x in ([0.1, 0.2], X.tolist()) for y in ([0, 1], 0)),
    ([[0.1, 0.2], [0, 1]],),
  )
  def test_the_advice_for_a_pair_of_lists_makes_no_rows_of_it(self, given):
    message = r'give \(np.array\(x\), np.array\(labels\)\), or np.array\(rows\)'
    for make in (user_batches.to_batch, lambda x: user_batches.checked(x, 3)):
      with self.assertRaisesRegex(errors.UserError, message):
        make(given)
    self.assertNotIn('labels', self.error([0.1, 0.2, 0.3]))

  def error(self, given):
    with self.assertRaises(errors.UserError) as caught:
      user_batches.to_batch(given)
    return str(caught.exception)

  @parameterized.named_parameters(
    ('x', {'x': X.tolist(), 'y': Y}, 'x'),
    ('tuple', {'x': tuple(X[:, 0].tolist())}, 'x'),
    ('y', (X, np.eye(3)[Y].tolist()), 'y'),
    ('weights', {'x': X, 'weights': X.tolist()}, 'weights'),
    ('input', {'ids': X, 'mask': X.tolist()}, 'x.mask'),
    ('inputs', (X, X.tolist()), 'y'),
  )
  def test_a_nested_list_in_a_batch_is_refused(self, given, name):
    for make in (user_batches.to_batch, lambda x: user_batches.checked(x, 3)):
      with self.assertRaisesRegex(
        errors.UserError, rf'^{name} of a batch is a .* np\.array\({name}\)'
      ):
        make(given)

  @parameterized.parameters(
    (jnp.int4, np.int8), (jnp.uint4, np.uint8), (jnp.float4_e2m1fn, np.float32)
  )
  def test_numbers_of_less_than_8_bits_get_more(self, given, dtype):
    found = user_batches.checked((X, np.array(Y, given)), None)
    self.assertEqual(found['y'].dtype, dtype)
    np.testing.assert_array_equal(found['y'], Y)

  def test_arrays_of_other_libraries(self):
    shape = jax.ShapeDtypeStruct((2,), jnp.float32)
    found = user_batches.arrays({'a': Foreign(), 'b': shape})
    np.testing.assert_array_equal(found['a'], X)
    self.assertIs(found['b'], shape)


class ExampleTest(parameterized.TestCase):
  def check(self, **example):
    batch = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, example))
    user_batches.check_example(batch)

  def test_all_parts_have_the_same_examples(self):
    self.check(x={'a': X, 'b': X[:, :1]}, y=Y)

  @parameterized.named_parameters(
    ('no_examples', dict(x=X[:0]), 'has 0 rows of x'),
    ('no_axis', dict(x={'a': X, 'b': np.float32(1)}), r'x\.b of .* no axis'),
    ('sizes', dict(x=X, y=Y[:3]), '4 rows of x, 3 rows of y'),
    (
      'a_list',
      dict(x=[*X, *X], y=Y),
      'x.5 and 3 more: .* A list of 8 arrays .* one array, as np.array',
    ),
    ('nothing', dict(x={}), 'no array'),
    ('empty', dict(x={'a': X, 'b': X[:, :0]}), r'x\.b .* has no numbers'),
    ('taken', dict(x={'a': X, 'dropout': X}), 'Rename the input'),
    ('int4', dict(x=X, y=jnp.ones(4, jnp.int4)), 'y .* int4: .* 8 bits.* int8'),
    (
      'float4',
      dict(x=np.ones(4, jnp.float4_e2m1fn)),
      'x .* float4_e2m1fn: .* bfloat16',
    ),
    ('a_tree', dict(x={'dropout': {'a': X}}), 'Rename the input'),
  )
  def test_refuses(self, example, message):
    with self.assertRaisesRegex(errors.UserError, message):
      self.check(**example)


class WeightsTest(parameterized.TestCase):
  @parameterized.parameters(
    ([1, -1, 1, 1],), ([1, np.nan, 1, 1],), ([np.inf] * 4,), ([1j] * 4,)
  )
  def test_refuses(self, weights):
    with self.assertRaisesRegex(errors.UserError, "'weights' must be finite"):
      user_batches.checked({'x': X, 'weights': np.array(weights)}, None)


class HeldOutTest(parameterized.TestCase):
  def held_out(self, batch, needed=('x', 'y')):
    return user_batches.held_out(batch, SHAPES, needed, 'held_out')

  def test_any_number_of_examples(self):
    found = self.held_out({'x': X[:3], 'y': Y[:3]})
    self.assertIsInstance(found['x'], np.ndarray)
    self.assertLen(found['y'], 3)

  def test_entries_that_are_not_needed_pass(self):
    found = self.held_out({'x': X, 'y': Y / 2}, needed=('x',))
    np.testing.assert_array_equal(found['y'], Y / 2)

  def test_nan_in_padding_becomes_0(self):
    x, mask = np.full((4, 3, 2), np.nan), np.eye(4, 3) < 1
    found = user_batches.checked({'x': {'x': x, 'mask': mask}}, None)
    np.testing.assert_array_equal(np.isnan(found['x']['x']).all(-1), mask)

  def test_examples_that_are_nan(self):
    x = np.where(np.arange(4)[:, None] >= 2, np.nan, X)
    batch = {'x': {'a': x, 'b': Y}, 'y': Y}
    found = user_batches.nan_examples(batch['x'], batch)
    np.testing.assert_array_equal(found, [0, 0, 1, 1])
    batch['weights'] = np.array([[1, 1], [1, 0], [0, 0], [0, 1]])
    found = user_batches.nan_examples(batch['x'], batch)
    np.testing.assert_array_equal(found, [0, 0, 0, 1])

  @parameterized.named_parameters(
    ('sizes', {'x': X, 'y': Y[:3]}, 'has parts of 3 and 4 examples'),
    ('empty', {'x': X[:0], 'y': Y[:0]}, 'has parts of 0 examples'),
    ('missing', {'x': X}, 'held_out has x, the example of the plan x, y'),
    ('no_axis', {'x': X, 'y': Y[0]}, r'y of held_out has shape \[\]'),
    (
      'no_weight',
      {'x': X, 'y': Y, 'weights': 0 * Y},
      'weights of held_out are',
    ),
  )
  def test_refuses(self, batch, message):
    with self.assertRaisesRegex(errors.UserError, message):
      self.held_out(batch)


if __name__ == '__main__':
  absltest.main()
