"""Tests of held-out sets: one batch, a list of batches, a loader."""

import collections
import functools
import itertools
import threading
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from cxjax import errors
from cxjax.data import held_out_batches
from cxjax.data import user_batches

X = np.arange(24, dtype=np.float32).reshape(8, 3)
Y = np.arange(8) % 3
A, B = X[:5], X[5:]


def shapes(**batch):
  return jax.eval_shape(lambda: jax.tree.map(jnp.asarray, batch))


UNLABELED, LABELED = shapes(x=X), shapes(x=X, y=Y)


def read(held_out, like=UNLABELED, needed=None):
  needed = needed or tuple(like)
  convert = functools.partial(user_batches.checked, classes=None)
  return held_out_batches.read(held_out, like, needed, convert)


class FormTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('array', lambda: X),
    ('pair', lambda: (A, B)),
    ('list', lambda: [A, B]),
    ('of_one', lambda: [X]),
    ('of_three', lambda: [X[:2], X[2:5], B]),
    ('rows', lambda: [row[None] for row in X]),
    ('dicts', lambda: [{'x': A}, {'x': B}]),
    ('generator', lambda: (part for part in (A, B))),
    ('iterator', lambda: iter([A, B])),
    ('labels_that_nobody_reads', lambda: (X, Y)),
  )
  def test_inputs(self, make):
    found = read(make())
    np.testing.assert_array_equal(found['x'], X)

  @parameterized.named_parameters(
    ('pair', lambda: (X, Y)),
    ('list', lambda: [X, Y]),
    ('dict', lambda: {'x': X, 'y': Y}),
    ('mapping', lambda: collections.UserDict(x=X, y=Y)),
    ('mappings', lambda: [collections.UserDict(x=X, y=Y)]),
    ('pairs', lambda: [(A, Y[:5]), (B, Y[5:])]),
    ('tuple_of_pairs', lambda: ((A, Y[:5]), (B, Y[5:]))),
    ('lists', lambda: [[A, Y[:5]], [B, Y[5:]]]),
    ('dicts', lambda: [{'x': A, 'y': Y[:5]}, {'x': B, 'y': Y[5:]}]),
    ('generator', lambda: ((X[i : i + 3], Y[i : i + 3]) for i in (0, 3, 6))),
  )
  def test_labels(self, make):
    found = read(make(), LABELED)
    self.assertEqual(list(found), ['x', 'y'])
    np.testing.assert_array_equal(found['x'], X)
    np.testing.assert_array_equal(found['y'], Y)

  def test_labels_like_the_input_are_labels(self):
    found = read([X, X + 1], shapes(x=X, y=X))
    np.testing.assert_array_equal(found['y'], X + 1)

  @parameterized.parameters(
    ([A, B], Y[:, None]), ((A, B), Y[:, None]), ([X, X], X)
  )
  def test_what_can_be_both_is_refused(self, held_out, y):
    like = shapes(x=X, y=y)  # The labels are not read.
    with self.assertRaisesRegex(errors.UserError, 'can be read as .x, labels'):
      read(held_out, like, ('x',))
    a, b = held_out
    self.assertLen(read({'x': a, 'y': a}, like, ('x',))['x'], len(a))
    found = read([{'x': a}, {'x': b}], like, ('x',))
    self.assertLen(found['x'], len(a) + len(b))

  def test_a_tuple_that_is_exactly_the_example(self):
    found = read((X, X + 1), shapes(x=X, y=X), ('x',))
    np.testing.assert_array_equal(found['y'], X + 1)

  def test_several_inputs(self):
    like = shapes(x={'a': X, 'b': Y})
    both = [{'a': A, 'b': Y[:5]}, {'a': B, 'b': Y[5:]}]
    for held_out in (both, iter(both), [{'x': part} for part in both]):
      found = read(held_out, like)
      np.testing.assert_array_equal(found['x']['b'], Y)


class ReadTest(parameterized.TestCase):
  def test_buffers_may_be_used_again(self):
    def parts():
      buffer = np.empty_like(A)
      for i in range(3):
        buffer[:] = i
        yield buffer

    np.testing.assert_array_equal(read(parts())['x'][::5, 0], [0, 1, 2])
    held_out = X.copy()
    found = read(held_out)
    held_out[:] = 0
    np.testing.assert_array_equal(found['x'], X)

  def test_weights_are_kept(self):
    parts = [
      {'x': A, 'y': Y[:5], 'weights': Y[:5]},
      {'x': B, 'y': Y[5:], 'weights': Y[5:]},
    ]
    found = read(parts, LABELED)
    np.testing.assert_array_equal(found['weights'], Y)

  def test_it_is_read_in_one_thread_and_closed(self):
    threads, before = [], threading.active_count()

    def parts():
      try:
        for part in (A, B):
          threads.append(threading.get_ident())
          yield part
      finally:
        threads.append(threading.get_ident())

    read(parts())
    self.assertLen(set(threads), 1)
    with self.assertRaisesRegex(errors.UserError, 'batch 2 of held_out'):
      read(itertools.chain([A], [B[:, :2]]))
    self.assertEqual(threading.active_count(), before)

  @parameterized.named_parameters(
    ('list', lambda: [], 'held_out has no batch'),
    ('generator', lambda: iter([]), 'held_out has no batch'),
    ('text', lambda: 'abc', 'x is a str of dtype'),
    ('number', lambda: 3, r'^held_out: A batch is a number of Python'),
    ('none', lambda: None, 'held_out: x of a batch is None'),
    ('objects', lambda: X.astype(object), 'ndarray of Python objects'),
    ('shape', lambda: [A, B[:, :2]], 'held_out'),
    ('kind', lambda: iter([A, B > 1]), 'x of batch 2 of held_out is bool'),
    (
      'no_examples',
      lambda: [A, A[:0], B],
      'batch 2 of held_out has parts of 0',
    ),
    (
      'raises',
      lambda: map(int, 'a'),
      'held_out: Batch 1 .*: ValueError: inval',
    ),
    (
      'weights_of_some',
      lambda: iter([{'x': A}, {'x': B, 'weights': Y[5:]}]),
      'batch 2 of held_out is weights .*, and the first is x',
    ),
  )
  def test_refuses(self, make, message):
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      read(make())
    self.assertNotIn('\n', str(caught.exception))

  def test_no_end(self):
    closed = []

    def parts():
      try:
        while True:
          yield A
      finally:
        closed.append(True)

    for name, most in (('MOST_BATCHES', 5), ('MOST_BYTES', 5 * A.nbytes)):
      with (
        mock.patch.object(held_out_batches, name, most),
        self.assertRaisesRegex(errors.UserError, 'held_out has no end.*: 6 of'),
      ):
        read(parts())
    self.assertEqual(closed, [True, True])


if __name__ == '__main__':
  absltest.main()
