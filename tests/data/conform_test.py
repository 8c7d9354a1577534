"""Tests of what a batch must have in common with the example of its plan."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from cxjax import errors
from cxjax.data import conform

X = np.arange(12, dtype=np.float32).reshape(4, 3)
Y = np.array([0, 1, 2, 1])
SHAPES = jax.eval_shape(lambda: {'x': jnp.asarray(X), 'y': jnp.asarray(Y)})


class Ragged:
  def __array__(self, dtype=None, copy=None):
    del dtype, copy
    return np.array([[1, 2], [3]])


class Bfloat16:
  """Stands for a tensor of torch, which NumPy cannot read."""

  def __init__(self):
    self.array = jnp.asarray(X, jnp.bfloat16)

  def __array__(self, dtype=None, copy=None):
    raise TypeError('Got unsupported ScalarType BFloat16')

  def __dlpack__(self, **kwargs):
    return self.array.__dlpack__(**kwargs)

  def __dlpack_device__(self):
    return self.array.__dlpack_device__()


class Negative(Bfloat16):
  """Stands for a view of torch, whose negative bit DLPack drops."""

  def __init__(self):
    self.array = -X

  def resolve_neg(self):
    return X


class ConformTest(parameterized.TestCase):
  def conform(self, batch, **kwargs):
    return conform.conform(batch, SHAPES, 'batch 7', **kwargs)

  def test_casts(self):
    found = self.conform({'x': X.astype(np.float64), 'y': Y.astype(np.int8)})
    self.assertEqual(found['x'].dtype, np.float32)
    self.assertEqual(found['y'].dtype, SHAPES['y'].dtype)
    np.testing.assert_array_equal(found['x'], X)

  @parameterized.named_parameters(
    ('entry', {'x': X}, 'batch 7 has x, the example of the plan x, y'),
    ('shape', {'x': X[:3], 'y': Y}, r'x of batch 7 has shape \[3, 3\], .*drop'),
    (
      'rounded',
      {'x': X, 'y': Y + 0.5},
      'y of batch 7 is float64.*another kind',
    ),
    (
      'too_large',
      {'x': X, 'y': Y + 2**40},
      "numbers that int32, .* smaller, or set .*'jax_enable_x64', True",
    ),
    (
      'rows',
      {'x': [*map(list, [*X, *X])], 'y': [0]},
      'has x.0.0, x.0.1, .* and 19 more, .* x, y: they must be alike',
    ),
    (
      'list_of_rows',
      {'x': [*X, *X], 'y': Y},
      r'x.5 and 3 more, .* A list of 8 arrays is .* one array, as np.array',
    ),
    (
      'bytes',
      {'x': X.astype(np.uint8), 'y': Y},
      'x of batch 7 is uint8, .*kind',
    ),
    ('flags', {'x': X > 1, 'y': Y}, 'x of batch 7 is bool'),
    ('complex', {'x': X * 1j, 'y': Y}, 'x of batch 7 is complex64'),
    (
      'to_infinity',
      {'x': X.astype(float) * 1e200, 'y': Y},
      'numbers that float32, .* smaller, or set',
    ),
    ('objects', {'x': X.astype(object), 'y': Y}, 'ndarray of Python objects'),
    (
      'loader',
      {'x': iter(X), 'y': Y},
      r'x .*, which is iterated: .*next\(iter',
    ),
    ('texts', {'x': X.astype(str), 'y': Y}, 'a ndarray of dtype <U32'),
    ('times', {'x': X.astype('M8[s]'), 'y': Y}, r'dtype datetime64\[s\]'),
    ('spans', {'x': X.astype('m8[s]'), 'y': Y}, r'dtype timedelta64\[s\]'),
    ('masked', {'x': np.ma.array(X, mask=X > 1), 'y': Y}, 'is a masked array'),
    ('one', {'x': X[0], 'y': Y}, r'x of .* of one example: give .* np.stack'),
    ('no_axis', {'x': X[0, 0], 'y': Y}, r'has shape \[\]'),
    (
      'ragged',
      {'x': Ragged(), 'y': Y},
      'x of batch 7 is a Ragged, which NumPy',
    ),
    ('longer', {'x': X, 'y': [*Y, 0]}, 'batch 7 has x, y'),
  )
  def test_refuses(self, batch, message):
    with self.assertRaisesRegex(errors.UserError, message):
      self.conform(batch)

  def test_an_example_of_few_bits(self):
    shapes = {'x': jax.ShapeDtypeStruct((4,), jnp.int8)}
    message = 'int8, .* not hold. Give an example of another dtype'
    with self.assertRaisesRegex(errors.UserError, message):
      conform.conform({'x': Y + 2**40}, shapes, 'batch 7')

  def test_another_number_of_examples(self):
    found = self.conform({'x': X[:3], 'y': Y[:3]}, sized=False)
    self.assertLen(found['x'], 3)
    with self.assertRaisesRegex(errors.UserError, 'Only the number'):
      self.conform({'x': X[:, :2], 'y': Y}, sized=False)

  def test_what_keeps_its_meaning_is_cast(self):
    found = self.conform({'x': X.astype(np.float16), 'y': Y == 1})
    np.testing.assert_array_equal(found['y'], [0, 1, 0, 1])
    inf = self.conform({'x': np.where(X > 0, np.inf, X), 'y': Y})['x']
    self.assertTrue(np.isinf(inf[1:]).all())  # It was infinite before.

  def test_weights_may_be_counts_or_flags(self):
    shapes = {'weights': jax.ShapeDtypeStruct((4,), np.float32)}
    for weights in (Y, Y > 0):
      found = conform.conform({'weights': weights}, shapes, 'batch 7')
      np.testing.assert_array_equal(found['weights'], weights)

  def test_a_dtype_that_numpy_does_not_know(self):
    found = self.conform({'x': Bfloat16(), 'y': Y})
    np.testing.assert_array_equal(found['x'], X)
    self.assertEqual(
      conform.host_array(Bfloat16(), 'x').dtype, ml_dtypes.bfloat16
    )

  def test_a_view_that_only_its_library_can_read(self):
    np.testing.assert_array_equal(conform.host_array(Negative(), 'x'), X)

  def test_any_byte_order(self):
    found = conform.host_array(Y.astype('>i8'), 'y')
    np.testing.assert_array_equal(found, Y)
    self.assertTrue(found.dtype.isnative)


class LastBatchTest(parameterized.TestCase):
  def fit(self, last_batch, rows=3, **batch):
    shapes = {**SHAPES, 'weights': jax.ShapeDtypeStruct((4,), np.float32)}
    if last_batch != 'pad':
      shapes = SHAPES
    batch = {'x': X[:rows], 'y': Y[:rows], **batch}
    return conform.fit(batch, shapes, 'batch 7', last_batch)

  def test_an_error_names_the_choices(self):
    with self.assertRaisesRegex(errors.UserError, "last_batch='pad' or 'drop'"):
      self.fit('error')

  def test_dropped(self):
    self.assertIsNone(self.fit('drop'))
    self.assertIsNone(self.fit('drop', 0))
    np.testing.assert_array_equal(self.fit('drop', 4)['x'], X)

  def test_padded_with_examples_of_weight_0(self):
    found = self.fit('pad', 3)
    np.testing.assert_array_equal(found['x'], X[[0, 1, 2, 0]])
    np.testing.assert_array_equal(found['weights'], [1, 1, 1, 0])
    found = self.fit('pad', 1, weights=np.array([2.0]))
    np.testing.assert_array_equal(found['y'], Y[[0, 0, 0, 0]])
    np.testing.assert_array_equal(found['weights'], [2, 0, 0, 0])
    np.testing.assert_array_equal(self.fit('pad', 4)['weights'], np.ones(4))

  def test_padded_keeps_the_mask_of_the_tokens(self):
    mask = np.arange(6) < np.array([[6], [4], [2]])
    x = {'tokens': np.ones((3, 6), np.int32), 'mask': mask}
    shapes = jax.eval_shape(
      lambda: {
        'x': jax.tree.map(lambda leaf: jnp.resize(leaf, (4, 6)), x),
        'weights': jnp.ones((4, 6)),
      }
    )
    found = conform.fit({'x': x}, shapes, 'batch 7', 'pad')
    np.testing.assert_array_equal(found['weights'][:3], mask)
    np.testing.assert_array_equal(found['weights'][3], np.zeros(6))

  @parameterized.parameters('drop', 'pad')
  def test_other_shapes_are_still_refused(self, last_batch):
    for batch in ({'x': X[:, :2]}, {'y': Y[:2]}, {'x': np.ones((5, 3))}):
      with self.assertRaisesRegex(errors.UserError, 'has shape'):
        self.fit(last_batch, 4, **batch)

  def test_no_examples(self):
    with self.assertRaisesRegex(errors.UserError, 'has shape .0'):
      self.fit('pad', 0)


if __name__ == '__main__':
  absltest.main()
