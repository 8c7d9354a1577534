"""Gradients of losses, and logits at the ends of their range."""

import functools

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from cxjax.methods import losses
from tests.methods.compared import DIVERGENCES
from tests.methods.compared import jit
from tests.methods.compared import random
from tests.methods.compared import softmax
from tests.methods.compared import target_of
from tests.methods.compared import value_and_grads


class GradientTest(parameterized.TestCase):
  @parameterized.parameters(0.5, 1.0, 4.0)
  def test_kl(self, temperature):
    student, teacher = random(0), random(1)
    loss = functools.partial(losses.kl, temperature=temperature)
    _, grad, _ = value_and_grads(loss, student, teacher)
    q, p = softmax(student / temperature), softmax(teacher / temperature)
    np.testing.assert_allclose(grad, temperature * (q - p), atol=1e-6)

  def test_cross_entropy(self):
    student, labels = random(0), target_of(losses.cross_entropy, 1)
    total = lambda s: losses.cross_entropy(s, labels).sum()
    grad = jax.jit(jax.grad(total))(student)
    np.testing.assert_allclose(
      grad, softmax(student) - np.eye(4)[labels], atol=1e-6
    )

  def test_hard_kl(self):
    student = random(0)
    teacher = jnp.array([[0.0, 3, 1, 2], [2, 2, 0, 1], [1, 1, 1, 1]])
    _, grad, to_teacher = value_and_grads(losses.hard_kl, student, teacher)
    p = [[0, 1, 0, 0], [0.5, 0.5, 0, 0], [0.25] * 4]
    np.testing.assert_allclose(grad, softmax(student) - p, atol=1e-6)
    np.testing.assert_array_equal(to_teacher, 0)

  @parameterized.parameters((losses.mse, 2 / 4), (losses.l2, 2))
  def test_squared_errors(self, loss, factor):
    student, target = random(0), random(1)
    _, grad, to_target = value_and_grads(loss, student, target)
    expected = factor * (student - target)
    np.testing.assert_allclose(grad, expected, rtol=1e-5)
    np.testing.assert_allclose(to_target, -expected, rtol=1e-5)

  @parameterized.parameters(*DIVERGENCES, losses.mse, losses.l2, losses.cosine)
  @pytest.mark.slow
  def test_numerically_in_both_arguments(self, loss):
    args = random(0, (2, 3)), random(1, (2, 3))
    jax.test_util.check_grads(
      jit(loss), args, order=1, modes=('rev',), atol=5e-3, rtol=5e-3, eps=1e-2
    )

  @parameterized.parameters(losses.cross_entropy, losses.hard_kl)
  def test_numerically_in_the_student(self, loss):
    target = target_of(loss, 1, (2, 3))
    jax.test_util.check_grads(
      jax.jit(lambda s: loss(s, target)),
      (random(0, (2, 3)),),
      order=1,
      modes=('rev',),
      atol=5e-3,
      rtol=5e-3,
      eps=1e-2,
    )


class HighTemperatureTest(parameterized.TestCase):
  # The KL tends to the mean squared error of the centered logits, halved
  # (Hinton et al., section 2.1), with an error of order 1/T: 1% at T = 100.
  # Above it float32 loses the value, but not the gradient.
  @pytest.mark.slow
  def test_kl_is_half_the_centered_mse(self):
    student, teacher = random(0), random(1)
    value = losses.kl(student, teacher, temperature=100.0)
    error = student - teacher
    error = error - error.mean(-1, keepdims=True)
    np.testing.assert_allclose(value, 0.5 * (error**2).mean(-1), rtol=0.03)

  @pytest.mark.slow
  def test_its_gradient_is_that_of_half_the_centered_mse(self):
    student, teacher = random(0), random(1)
    loss = functools.partial(losses.kl, temperature=1e3)
    _, grad, _ = value_and_grads(loss, student, teacher)
    error = student - teacher
    error = error - error.mean(-1, keepdims=True)
    np.testing.assert_allclose(grad, error / 4, atol=2e-3)


class ImpossibleClassTest(parameterized.TestCase):
  @parameterized.parameters(1.0, 2.0)
  def test_kl_with_a_class_that_the_teacher_excludes(self, temperature):
    student, teacher = random(0), random(1).at[:, 2].set(-jnp.inf)
    loss = functools.partial(losses.kl, temperature=temperature)
    value, grad, to_teacher = value_and_grads(loss, student, teacher)
    q, p = softmax(student / temperature), softmax(teacher / temperature)
    kept = np.array([0, 1, 3])
    ratio = np.log(p[:, kept] / q[:, kept])
    kl = (p[:, kept] * ratio).sum(-1)
    np.testing.assert_allclose(value, temperature**2 * kl, rtol=1e-5)
    np.testing.assert_allclose(grad, temperature * (q - p), atol=1e-5)
    np.testing.assert_allclose(
      to_teacher[:, kept],
      temperature * p[:, kept] * (ratio - kl[:, None]),
      atol=1e-5,
    )
    self.assertTrue(np.isfinite(to_teacher).all())

  def test_jensen_shannon_with_a_class_that_the_teacher_excludes(self):
    student, teacher = random(0), random(1).at[:, 2].set(-jnp.inf)
    value, grad, _ = value_and_grads(losses.jensen_shannon, student, teacher)
    q, p = softmax(student), softmax(teacher)
    m = (q + p) / 2
    kept = p > 0
    ratio = np.log(np.where(kept, p / m, 1))
    expected = (p * ratio + q * np.log(q / m)).sum(-1) / 2
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    self.assertTrue(np.isfinite(grad).all())

  def test_cosine_with_nothing_has_no_gradient(self):
    _, grad, _ = value_and_grads(
      losses.cosine, jnp.zeros((2, 3)), random(1, (2, 3))
    )
    np.testing.assert_array_equal(grad, 0)

  @pytest.mark.slow
  def test_kl_with_a_class_that_both_exclude_is_that_of_the_others(self):
    student = random(0).at[:, 2].set(-jnp.inf)
    teacher = random(1).at[:, 2].set(-jnp.inf)
    kept = jnp.array([0, 1, 3])
    got = value_and_grads(losses.kl, student, teacher)
    want = value_and_grads(losses.kl, student[:, kept], teacher[:, kept])
    for a, b in zip(got, want, strict=True):
      self.assertTrue(np.isfinite(a).all())
      np.testing.assert_allclose(a[:, kept] if a.ndim > 1 else a, b, atol=1e-6)

  def test_kl_is_infinite_for_a_class_that_only_the_student_excludes(self):
    student = random(0).at[:, 2].set(-jnp.inf)
    np.testing.assert_array_equal(losses.kl(student, random(1)), np.inf)

  def test_hard_kl_with_a_class_that_both_exclude(self):
    student = random(0).at[:, 2].set(-jnp.inf)
    teacher = random(1).at[:, 2].set(-jnp.inf)
    value, grad, _ = value_and_grads(losses.hard_kl, student, teacher)
    self.assertTrue(np.isfinite(value).all())
    p = np.eye(4)[teacher.argmax(-1)]
    np.testing.assert_allclose(grad, softmax(student) - p, atol=1e-6)

  @pytest.mark.slow
  def test_jensen_shannon_with_a_class_that_both_exclude(self):
    student = jnp.array([[1.0, 0.0, -jnp.inf]])
    teacher = jnp.array([[0.0, 1.0, -jnp.inf]])
    got = value_and_grads(losses.jensen_shannon, student, teacher)
    few = value_and_grads(losses.jensen_shannon, student[:, :2], teacher[:, :2])
    np.testing.assert_allclose(got[1], [[0.0983, -0.0983, 0]], atol=1e-4)
    for a, b in zip(got, few, strict=True):
      np.testing.assert_allclose(a[:, :2] if a.ndim > 1 else a, b, atol=1e-6)

  def test_mse_with_a_class_that_both_exclude(self):
    student = random(0).at[:, 2].set(-jnp.inf)
    teacher = random(1).at[:, 2].set(-jnp.inf)
    value, grad, _ = value_and_grads(losses.mse, student, teacher)
    error = np.where(np.arange(4) == 2, 0, random(0) - random(1))
    np.testing.assert_allclose(value, np.square(error).mean(-1), rtol=1e-5)
    np.testing.assert_allclose(grad, error / 2, rtol=1e-5)
    # Of one alone it is an infinite error, not a NaN.
    np.testing.assert_array_equal(losses.mse(student, random(1)), np.inf)
