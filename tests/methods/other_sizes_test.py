"""Tests of functions of users at other sizes."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp

from cxjax.methods import other_sizes


def shape(*sizes):
  return jax.ShapeDtypeStruct(sizes, jnp.float32)


class ResultTest(parameterized.TestCase):
  def test_all_leading_axes_differ(self):
    axes, found = other_sizes.result(
      lambda a, b: a.sum(-1) + b, (3, 3), shape(3, 3, 4), shape(3, 3)
    )
    self.assertEqual(axes, (5, 6))
    self.assertEqual(found.shape, (5, 6))

  def test_a_function_of_its_own_tokens_is_tried_with_another_batch(self):
    axes, found = other_sizes.result(
      lambda a: (a * jnp.ones((1, 3, 1))).sum(-1), (3, 3), shape(3, 3, 4)
    )
    self.assertEqual(axes, (5, 3))
    self.assertEqual(found.shape, (5, 3))

  def test_nothing_is_tried_without_need(self):
    def fun(a):
      raise AssertionError('It was traced.')

    self.assertIsNone(other_sizes.result(fun, (3,), shape(3, 4)))

  def test_rows_that_are_picked_by_number(self):
    rows = jnp.arange(3)
    for fun in (lambda a: a[rows].mean(-1), lambda a: a[rows, 0]):
      self.assertIsNone(other_sizes.result(fun, (3,), shape(3, 3)))

  def test_another_axis_that_is_reduced(self):
    axes, found = other_sizes.result(lambda a: a.sum(0), (3,), shape(3, 3))
    self.assertEqual((axes, found.shape), ((4,), (3,)))

  def test_a_function_of_its_own_sizes_alone(self):
    fun = lambda a: (a * jnp.ones((3, 3))).sum(-1)
    self.assertIsNone(other_sizes.result(fun, (3,), shape(3, 3)))
