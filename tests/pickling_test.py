"""Pickles and copies of objects with functions defined inside of others."""

import copy
import dataclasses
import pickle
import threading

from absl.testing import absltest
import cloudpickle
import numpy as np

import cxjax
from cxjax import errors
from cxjax import pickling


@dataclasses.dataclass(frozen=True)
class Holder(pickling.Picklable):
  fun: object
  inner: object = None


def holder():
  two = 2
  fun = lambda x: two * x
  return Holder(fun, Holder(fun))


class PickleTest(absltest.TestCase):
  def test_functions_are_written(self):
    for written in (pickle.dumps(holder()), cloudpickle.dumps(holder())):
      found = pickle.loads(written)
      self.assertIsInstance(found, Holder)
      self.assertEqual(found.fun(3), 6)
      # As in the original, the two objects have one function.
      self.assertIs(found.inner.fun, found.fun)

  def test_copies_share_functions(self):
    one = holder()
    for copied in (copy.copy(one), copy.deepcopy(one)):
      self.assertIsNot(copied, one)
      self.assertIs(copied.fun, one.fun)
    self.assertIs(copy.copy(one).inner, one.inner)
    self.assertIsNot(copy.deepcopy(one).inner, one.inner)

  def test_what_cannot_be_written(self):
    with self.assertRaisesRegex(
      errors.UserError, 'A Holder cannot be pickled: TypeError: .*lock.*Pickle'
    ):
      pickle.dumps(Holder(threading.Lock()))
    self.assertEqual(pickle.loads(pickle.dumps(holder())).fun(3), 6)

  def test_a_model(self):
    model = cxjax.from_fn(lambda params, x: x @ params, np.ones((2, 3)))
    found = pickle.loads(pickle.dumps(model))
    x = np.ones((4, 2))
    np.testing.assert_array_equal(
      found.apply(found.params, x)[0], model.apply(model.params, x)[0]
    )


if __name__ == '__main__':
  absltest.main()
