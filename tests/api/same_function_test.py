"""Tests of models that are told apart by what they compute."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from cxjax import errors
from cxjax.api import same_function

X = jax.ShapeDtypeStruct((4, 3), np.float32)
PARAMS = jnp.eye(3)


def linear(params, x):
  return x @ params, {'hidden': 2 * x}


def negative(params, x):
  return -x @ params, {'hidden': 2 * x}


class FirstOtherTest(absltest.TestCase):
  def first(self, *applies, x=X):
    return same_function.first_other(applies, PARAMS, x)

  def test_the_first_that_differs(self):
    again = lambda params, x: linear(params, x)
    rounded = lambda params, x: linear(params, 1.01 * x)
    self.assertIsNone(self.first(linear, linear, again, rounded))
    self.assertEqual(self.first(linear, again, negative), 2)

  def test_what_cannot_be_run_is_not_told_apart(self):
    def several(params, x):
      raise errors.UserError('returns a dict')

    self.assertIsNone(self.first(several, several))
    x = {'x': X, 'dropout': jax.eval_shape(jax.random.key, 0)}
    self.assertIsNone(self.first(linear, negative, x=x))

  def test_a_model_of_one_batch_size(self):
    whole = lambda params, x: (x.reshape(4, 3) @ params, {})
    wrong = lambda params, x: (-x.reshape(4, 3) @ params, {})
    self.assertIsNone(self.first(whole, lambda params, x: whole(params, x)))
    self.assertEqual(self.first(whole, wrong), 1)

  def test_outputs_that_are_not_finite(self):
    masked = lambda params, x: (jnp.where(x > 0, x @ params, -jnp.inf), {})
    other = lambda params, x: (jnp.where(x > 0, 5 - x, -jnp.inf), {})
    self.assertIsNone(self.first(masked, lambda *args: masked(*args)))
    self.assertEqual(self.first(masked, other), 1)


class IsOtherTest(absltest.TestCase):
  def test_another_function(self):
    self.assertTrue(same_function.is_other(linear, negative, PARAMS, X))

  def test_the_same_with_another_output_chosen(self):
    for chosen in (
      lambda params, x: (linear(params, x)[1]['hidden'], {}),
      lambda params, x: (linear(params, x)[0][:, :2], {}),
    ):
      self.assertFalse(same_function.is_other(linear, chosen, PARAMS, X))


if __name__ == '__main__':
  absltest.main()
