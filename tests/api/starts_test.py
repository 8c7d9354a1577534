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

  def test_of_a_list(self):
    students = [network(Net((4,)), X, seed) for seed in range(3)]
    found = starts.starts(students, 2)
    chex.assert_trees_all_equal(found.params, [s.one for s in students[:2]])
    with self.assertRaisesRegex(errors.UserError, 'seeds=4.*list has 3'):
      starts.starts(students, 4)

  def test_equal_starts_are_told(self):
    one = network(Net((4,)), X, 0)
    for student in (lambda seed: one, [one, one], network(Net((4,)), X, 0, 0)):
      found = starts.starts(student, 2)
      self.assertIn('Some begin alike', found.how)
      self.assertEqual(starts.distinct(found.params), [0])
    found = starts.starts(network(Net((4,)), X, 0, 1), 2)
    self.assertNotIn('alike', found.how)
    self.assertEqual(starts.distinct([*found.params, found.params[1]]), [0, 1])

  def test_other_functions_are_refused(self):
    def student(sign):
      return lambda seed: cxjax.from_fn(
        lambda params, x: (sign(seed) * x @ params['a'], {}),
        {'a': np.full((3, 2), float(seed + 1))},
      )

    x = jax.ShapeDtypeStruct((4, 3), np.float32)
    starts.starts(student(lambda seed: 1), 3).require_one_function(x)
    found = starts.starts(student(lambda seed: -1 if seed == 2 else 1), 3)
    message = r'student\(0\) and student\(2\) compute other outputs'
    with self.assertRaisesRegex(errors.UserError, message):
      found.require_one_function(x)

  def test_a_trained_student_has_one_start(self):
    params = {'a': np.random.default_rng(0).normal(size=(4, 9))}
    student = cxjax.from_fn(lambda params, x: x, params)
    found = starts.starts(student, 2)
    own = lambda params: float(
      np.array_equal(params['a'], found.params[0]['a'])
    )
    with self.assertRaisesRegex(
      errors.UserError, 'scores 1 .* order 0: it was'
    ):
      found.require_untrained(own, 100)
    for score in (lambda params: params['a'][0, 0], lambda params: np.nan):
      found.require_untrained(score, 100)
    starts.starts(student, 1).require_untrained(own, 100)
    # All draws at 0, and one of 64 examples right by chance.
    chance = lambda params: own(params) / 64
    found.require_untrained(chance, 64)

  def test_an_orthogonal_start_is_one_of_its_own(self):
    draw = np.random.default_rng(0).normal(size=(300, 16))
    long = np.random.default_rng(0).normal(size=(2**20, 8)).astype(np.float32)
    self.assertFalse(starts._is_orthogonal(long))
    for kernel in (np.linalg.qr(draw)[0], np.linalg.qr(draw)[0].T):
      student = cxjax.from_fn(lambda params, x: x, {'a': 2 * kernel})
      with self.assertRaisesRegex(errors.UserError, 'a start of its own'):
        starts.starts(student, 2)

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
