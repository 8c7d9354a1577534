"""Tests of the starts of several students."""

from absl.testing import parameterized
import chex
import jax
import numpy as np
import pytest

import cxjax
from cxjax import errors
from cxjax.api import starts
from small_networks import STUDENT
from small_networks import Net
from small_networks import X
from small_networks import network


class StartsTest(parameterized.TestCase):
  def test_of_a_function(self):
    found = starts.starts(lambda seed: network(Net((4,)), X, seed), 1)
    self.assertLen(found.params, 1)
    make = lambda seed: cxjax.from_fn(
      lambda params, x: x, {'a': np.full(2, seed)}
    )
    found = starts.starts(make, 3)
    self.assertEqual([p['a'][0] for p in found.params], [0, 1, 2])
    self.assertFalse(found.student.several)

  def test_of_several_students(self):
    student = network(Net((4,)), X, 0, 1, 2)
    found = starts.starts(student, 2)
    chex.assert_trees_all_equal(found.params, student.params[:2])
    with self.assertRaisesRegex(errors.UserError, 'seeds=4.*3 students'):
      starts.starts(student, 4)

  def test_of_one_student_the_others_are_drawn(self):
    found = starts.starts(STUDENT, 3)
    chex.assert_trees_all_equal(found.params[0], STUDENT.params)
    again = starts.starts(STUDENT, 3)
    chex.assert_trees_all_equal(found.params, again.params)
    flat = [jax.tree.leaves(params) for params in found.params]
    for a, b, c in zip(*flat, strict=True):
      np.testing.assert_array_equal(np.sort(a, None), np.sort(b, None))
      if a.ndim > 1:
        self.assertFalse((a == b).all() or (b == c).all())

  @pytest.mark.slow
  def test_a_student_that_is_not_fresh_has_one_start(self):
    params = jax.device_get(network(Net((32, 32)), X).params)
    student = cxjax.from_fn(lambda params, x: x, params)
    self.assertLen(starts.starts(student, 2).params, 2)
    kernel = params['Dense_1']['kernel']
    u, s, v = np.linalg.svd(kernel)
    params['Dense_1']['kernel'] = (u * np.r_[3 * s[:1], s[1:]]) @ v
    self.assertLen(starts.starts(student, 1).params, 1)
    with self.assertRaisesRegex(errors.UserError, "Dense_1/kernel' .*seeds=1"):
      starts.starts(student, 2)

  @parameterized.parameters(3, lambda seed: X)
  def test_no_student(self, student):
    with self.assertRaisesRegex(errors.UserError, 'student.* is a'):
      starts.starts(student, 2)
