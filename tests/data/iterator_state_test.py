"""Tests of the states of iterators as JSON."""

import json
import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from cxjax import errors
from cxjax.data import iterator_state

ARRAYS = (
  np.arange(6).reshape(2, 3),
  np.zeros((0, 3), np.float16),
  np.array(['a', 'bc']),
  np.array([1.5, np.nan], '>f8'),
  np.ones(2, ml_dtypes.bfloat16),
  np.array('2026-01-01', 'M8[D]'),
)


def there_and_back(state):
  return iterator_state.decode(
    json.loads(json.dumps(iterator_state.encode(state), allow_nan=False))
  )


class IteratorStateTest(parameterized.TestCase):
  @parameterized.parameters(
    (None,),
    (3,),
    (2**70,),
    (0.1,),
    (True,),
    ('x',),
    ([1, [2, {}]],),
    ({'a': {'b': [None, 'c']}},),
  )
  def test_json_is_as_it_is(self, state):
    self.assertEqual(iterator_state.encode(state), state)
    self.assertEqual(there_and_back(state), state)

  @parameterized.parameters(
    (b'\0\xff',),
    ((1, (2, b'')),),
    ({1: 'a', (2, 3): 'b', None: [b'c']},),
    ({'$bytes': 'no bytes', '$x': 1},),
    (math.inf,),
    ([-math.inf, {'a': (b'x',)}],),
  )
  def test_what_json_does_not_know(self, state):
    self.assertEqual(there_and_back(state), state)
    self.assertEqual(str(there_and_back(state)), str(state))

  @parameterized.parameters(*range(len(ARRAYS)))
  def test_arrays(self, number):
    array = ARRAYS[number]
    found = there_and_back({'a': array})['a']
    self.assertEqual(found.dtype, array.dtype)
    np.testing.assert_array_equal(found, array)
    if array.ndim:
      found[:] = 0  # It can be written to.

  def test_scalars_and_arrays_of_jax(self):
    found = there_and_back((np.int64(3), jnp.arange(3)))
    self.assertIsInstance(found[0], np.int64)
    np.testing.assert_array_equal(found[1], [0, 1, 2])

  def test_a_copy(self):
    state = {'a': [1]}
    found = iterator_state.encode(state)
    state['a'].append(2)
    self.assertEqual(found, {'a': [1]})

  @parameterized.named_parameters(
    ('object', {'rng': object()}, r"get_state\(\)\['rng'\] is a object"),
    ('set', [1, {2}], r'get_state\(\)\[1\] is a set'),
    ('objects', np.array([None]), 'is a ndarray'),
    ('key', lambda: jax.random.key(0), 'is a .*Array'),
    ('of_a_key', {object(): 1}, 'a key of .* is a object'),
  )
  def test_refuses(self, state, message):
    state = state() if callable(state) else state
    with self.assertRaisesRegex(errors.UserError, message):
      iterator_state.encode(state)


if __name__ == '__main__':
  absltest.main()
