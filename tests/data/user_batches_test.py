"""Tests of batches that users give."""

from absl.testing import absltest
from absl.testing import parameterized
import grain
import jax
import jax.numpy as jnp
import numpy as np

from cxjax import errors
from cxjax.data import user_batches
from cxjax.models import adapters

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
  )
  def test_forms(self, given, names):
    found = user_batches.to_batch(given)
    self.assertEqual(list(found), names)

  def test_an_unknown_entry(self):
    with self.assertRaisesRegex(errors.UserError, 'A batch has mask beside x'):
      user_batches.to_batch({'x': X, 'mask': Y})

  def test_arrays_of_other_libraries(self):
    shape = jax.ShapeDtypeStruct((2,), jnp.float32)
    found = user_batches.arrays({'a': Foreign(), 'b': shape})
    np.testing.assert_array_equal(found['a'], X)
    self.assertIs(found['b'], shape)


class LabelsTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.student = adapters.from_fn(
      lambda params, x: (x @ params, {}), np.ones((3, 5), np.float32)
    )

  def check(self, **batch):
    return user_batches.check_labels(self.student, {'x': X, **batch})

  def test_classes_are_accepted(self):
    self.check(y=Y)
    self.check(y=Y, weights=np.ones(4, np.float32))

  @parameterized.named_parameters(
    ('one_hot', {'y': np.eye(5, dtype=int)[Y]}, r'int64\[4, 5\].*\[4\]'),
    ('floats', {'y': Y.astype(np.float32)}, r'float32\[4\].*integer classes'),
    ('weights', {'y': Y, 'weights': X}, r"'weights' of shape \[4, 3\].*\[4\]"),
  )
  def test_refuses(self, batch, message):
    with self.assertRaisesRegex(errors.UserError, message):
      self.check(**batch)

  @parameterized.parameters(([0, 3],), ([-1, 0],))
  def test_labels_out_of_range(self, y):
    batch = {'x': X[:2], 'y': np.array(y)}
    with self.assertRaisesRegex(errors.UserError, 'the output has 3 classes'):
      user_batches.checked(batch, 3)
    user_batches.checked(batch, None)

  def test_labels_of_weight_0_are_not_read(self):
    batch = {'x': X, 'y': np.array([0, -100, 2, 9]), 'weights': [1, 0, 1, 0]}
    found = user_batches.checked(batch, 3)
    np.testing.assert_array_equal(found['y'], [0, 0, 2, 0])

  def test_placeholders(self):
    np.testing.assert_array_equal(user_batches.no_labels({'x': X}), [0] * 4)


class ConformTest(parameterized.TestCase):
  def conform(self, batch, **kwargs):
    return user_batches.conform(batch, SHAPES, 'batch 7', **kwargs)

  def test_casts(self):
    found = self.conform({'x': X.astype(np.float64), 'y': Y.astype(np.int8)})
    self.assertEqual(found['x'].dtype, np.float32)
    self.assertEqual(found['y'].dtype, SHAPES['y'].dtype)
    np.testing.assert_array_equal(found['x'], X)

  @parameterized.named_parameters(
    ('entry', {'x': X}, 'batch 7 has x, the example of the plan x, y'),
    ('shape', {'x': X[:3], 'y': Y}, r'x of batch 7 has shape \[3, 3\], .*Drop'),
    ('rounded', {'x': X, 'y': Y + 0.5}, 'y of batch 7 is float64.*rounded'),
    (
      'too_large',
      {'x': X, 'y': Y + 2**40},
      'batch 7 has numbers that int',
    ),
  )
  def test_refuses(self, batch, message):
    with self.assertRaisesRegex(errors.UserError, message):
      self.conform(batch)

  def test_another_number_of_examples(self):
    found = self.conform({'x': X[:3], 'y': Y[:3]}, sized=False)
    self.assertLen(found['x'], 3)
    with self.assertRaisesRegex(errors.UserError, 'Only the number'):
      self.conform({'x': X[:, :2], 'y': Y}, sized=False)


class HeldOutTest(parameterized.TestCase):
  def held_out(self, batch, needed=('x', 'y')):
    return user_batches.held_out(batch, SHAPES, needed, 'held_out')

  def test_any_number_of_examples(self):
    found = self.held_out({'x': X[:3], 'y': Y[:3]})
    self.assertIsInstance(found['x'], jax.Array)
    self.assertLen(found['y'], 3)

  def test_entries_that_are_not_needed_pass(self):
    found = self.held_out({'x': X, 'y': Y / 2}, needed=('x',))
    np.testing.assert_array_equal(found['y'], Y / 2)

  @parameterized.named_parameters(
    ('sizes', {'x': X, 'y': Y[:3]}, 'has parts of 3 and 4 examples'),
    ('empty', {'x': X[:0], 'y': Y[:0]}, 'has parts of 0 examples'),
    ('missing', {'x': X}, 'held_out has x, the example of the plan x, y'),
  )
  def test_refuses(self, batch, message):
    with self.assertRaisesRegex(errors.UserError, message):
      self.held_out(batch)


class PeekedTest(parameterized.TestCase):
  def test_a_list_and_an_iterator_keep_their_first_item(self):
    for batches in ([1, 2, 3], iter([1, 2, 3])):
      peeked = user_batches.Peeked(batches)
      self.assertEqual(peeked.first, 1)
      self.assertEqual(list(peeked), [1, 2, 3])

  def test_an_iterator_with_a_state_is_set_back(self):
    data = grain.MapDataset.source([1, 2, 3]).to_iter_dataset()
    iterator = iter(data)
    peeked = user_batches.Peeked(iterator)
    self.assertEqual(peeked.first, 1)
    self.assertIs(iter(peeked), iterator)
    self.assertEqual(list(peeked), [1, 2, 3])

  def test_no_batch(self):
    with self.assertRaisesRegex(errors.UserError, 'There is no batch'):
      user_batches.Peeked([])


if __name__ == '__main__':
  absltest.main()
