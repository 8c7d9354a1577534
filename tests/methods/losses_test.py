"""Tests of the losses."""

import functools

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from cxjax import errors
from cxjax.methods import losses
from tests.methods.compared import ALL
from tests.methods.compared import DIVERGENCES
from tests.methods.compared import LOG3
from tests.methods.compared import PAIRWISE
from tests.methods.compared import jit
from tests.methods.compared import random
from tests.methods.compared import softmax
from tests.methods.compared import target_of


@pytest.mark.slow
class ValueTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  def test_cross_entropy_by_hand(self):
    student = jnp.log(jnp.array([[0.25] * 4, [0.1, 0.1, 0.7, 0.1]]))
    loss = self.variant(losses.cross_entropy)(student, jnp.array([3, 2]))
    np.testing.assert_allclose(loss, [np.log(4), -np.log(0.7)], rtol=1e-6)

  # With logits (log 3, 0) the probabilities are (3/4, 1/4).
  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.named_parameters(
    ('kl', losses.kl, [0, 0], [LOG3, 0], 0.75 * LOG3 - np.log(2)),
    ('kl_reversed', losses.kl, [LOG3, 0], [0, 0], np.log(2) - 0.5 * LOG3),
    (
      'kl_of_temperature_2',
      functools.partial(losses.kl, temperature=2.0),
      [0, 0],
      [2 * LOG3, 0],
      4 * (0.75 * LOG3 - np.log(2)),
    ),
    ('hard_kl', losses.hard_kl, [LOG3, 0], [1, 2], np.log(4)),
    ('hard_kl_tie', losses.hard_kl, [LOG3, 0], [2, 2], np.log(2) - LOG3 / 2),
    ('mse', losses.mse, [1, 2, 3], [0, 0, 1], 3),
    ('l2', losses.l2, [1, 2, 3], [0, 0, 1], 9),
    ('reverse', losses.reverse_kl, [LOG3, 0], [0, 0], 0.75 * LOG3 - np.log(2)),
    # The average of (3/4, 1/4) and (1/2, 1/2) is (5/8, 3/8).
    (
      'jensen_shannon',
      losses.jensen_shannon,
      [LOG3, 0],
      [0, 0],
      (
        0.75 * np.log(6 / 5)
        + 0.25 * np.log(2 / 3)
        + 0.5 * np.log(4 / 5)
        + 0.5 * np.log(4 / 3)
      )
      / 2,
    ),
    (
      'jensen_shannon_of_strangers',
      functools.partial(losses.jensen_shannon, temperature=2.0),
      [99, 0],
      [0, 99],
      4 * np.log(2),
    ),
    ('cosine', losses.cosine, [3, 0], [1, 1], 1 - 0.5**0.5),
    ('cosine_opposite', losses.cosine, [3, 1], [-6, -2], 2),
    ('cosine_of_nothing', losses.cosine, [0, 0], [1, 1], 1),
  )
  def test_by_hand(self, loss, student, target, expected):
    student, target = jnp.array(student, float), jnp.array(target, float)
    value = self.variant(loss)(student, target)
    np.testing.assert_allclose(value, expected, rtol=1e-6)

  def test_the_largest_of_bfloat16_are_found_in_float32(self):
    logits = jnp.bfloat16([[0.5, 2, 2, -jnp.inf, 3]])
    found = losses.top_k(logits, 3)
    self.assertEqual(found['values'].dtype, jnp.bfloat16)
    np.testing.assert_array_equal(found['classes'], [[4, 1, 2]])
    np.testing.assert_array_equal(found['values'], logits[:, (4, 1, 2)])
    program = str(jax.make_jaxpr(lambda x: losses.top_k(x, 3))(logits))
    self.assertRegex(program, r'f32\[1,3\] \w+:i32\[1,3\] = top_k')

  def test_the_largest_of_numpy_arrays_in_float64(self):
    with jax.enable_x64(False):
      found = losses.top_k(np.array([[0.5, 3.0, 2.0]]), 2)
    self.assertEqual(found['values'].dtype, jnp.float32)
    np.testing.assert_array_equal(found['values'], [[3, 2]])

  def test_the_largest_logits_alone(self):
    student, teacher = random(0, (3, 5)), random(1, (3, 5))
    whole = losses.top_k(teacher, 5)
    for temperature in (1.0, 2.0):
      np.testing.assert_allclose(
        losses.top_k_kl(student, whole, temperature),
        losses.kl(student, teacher, temperature),
        rtol=1e-5,
      )
    few = losses.top_k(teacher, 2)
    least = jnp.sort(teacher)[:, 3:4]
    some = jnp.where(teacher >= least, teacher, -jnp.inf)
    np.testing.assert_allclose(
      losses.top_k_kl(student, few), losses.kl(student, some), rtol=1e-5
    )
    np.testing.assert_allclose(
      losses.top_k_kl(student, losses.top_k(teacher, 1)),
      losses.hard_kl(student, teacher),
      rtol=1e-5,
    )

  @parameterized.product(loss=ALL, lead=((), (3,), (2, 3)))
  def test_reduces_the_last_axis_only(self, loss, lead):
    student, target = random(0, (*lead, 4)), target_of(loss, 1, (*lead, 4))
    value = np.asarray(jit(loss)(student, target))
    self.assertEqual(value.shape, lead)
    last = (-1,) * len(lead)
    alone = jit(loss)(np.asarray(student)[last], np.asarray(target)[last])
    np.testing.assert_allclose(value[last], alone, rtol=1e-5)

  @parameterized.parameters(*ALL)
  def test_bfloat16_is_computed_in_float32(self, loss):
    student = random(0).astype(jnp.bfloat16)
    target = target_of(loss, 1)
    if loss is not losses.cross_entropy:
      target = target.astype(jnp.bfloat16)
    value = jit(loss)(student, target)
    self.assertEqual(value.dtype, jnp.float32)
    if loss is not losses.cross_entropy:
      target = target.astype(jnp.float32)
    expected = jit(loss)(student.astype(jnp.float32), target)
    np.testing.assert_allclose(value, expected, rtol=1e-5)

  @parameterized.parameters(*DIVERGENCES, losses.mse, losses.l2, losses.cosine)
  def test_zero_at_equality_and_positive_elsewhere(self, loss):
    loss = jit(loss)
    np.testing.assert_allclose(loss(random(0), random(0)), 0, atol=1e-6)
    self.assertGreater(loss(random(0), random(1)).min(), 1e-3)

  @parameterized.parameters(losses.cross_entropy, *DIVERGENCES, losses.hard_kl)
  def test_a_shift_of_the_logits_changes_nothing(self, loss):
    student, target = random(0), target_of(loss, 1)
    shift = jnp.array([[10.0], [-3.0], [0.5]])
    moved = target if loss is losses.cross_entropy else target - 2 * shift
    np.testing.assert_allclose(
      jit(loss)(student + shift, moved),
      jit(loss)(student, target),
      rtol=1e-5,
      atol=1e-6,
    )

  @parameterized.parameters(*PAIRWISE)
  def test_refuses_to_broadcast(self, loss):
    with self.assertRaisesRegex(errors.UserError, 'Shapes must be equal'):
      loss(random(0, (3, 4)), random(1, (3, 1)))

  def test_cross_entropy_of_soft_labels(self):
    student = np.array([[0, 1, -np.inf, 2], [3, 0, 1, 2]], np.float32)
    soft = np.array([[0.25, 0.75, 0, 0], [0, 0, 1, 0]], np.float32)
    loss = lambda s: losses.cross_entropy(s, soft)
    with np.errstate(divide='ignore'):
      log_q = np.log(softmax(student))
    want = [-0.25 * log_q[0, 0] - 0.75 * log_q[0, 1], -log_q[1, 2]]
    np.testing.assert_allclose(loss(student), want, rtol=1e-5)
    np.testing.assert_allclose(
      loss(student)[1], losses.cross_entropy(student, jnp.array([0, 2]))[1]
    )
    grad = jax.grad(lambda s: loss(s).sum())(student)
    np.testing.assert_allclose(grad, softmax(student) - soft, atol=1e-6)

  def test_cross_entropy_refuses_a_column_of_labels(self):
    with self.assertRaisesRegex(errors.UserError, 'labels of shape'):
      losses.cross_entropy(random(0), jnp.zeros((3, 1), int))


class HardLabelTest(parameterized.TestCase):
  def test_is_the_kl_to_a_sharp_teacher(self):
    # Panigrahi et al.: a temperature of 1e-20, of the teacher alone.
    student = random(0)
    teacher = jnp.array([[0.0, 3, 1, 2], [2, 2, 0, 1], [-5, -4, -3, -3]])
    np.testing.assert_allclose(
      losses.hard_kl(student, teacher),
      losses.kl(student, teacher / 1e-20, temperature=1.0),
      rtol=1e-6,
    )

  def test_is_the_cross_entropy_with_the_likeliest_class(self):
    student, teacher = random(0), random(1)
    np.testing.assert_allclose(
      losses.hard_kl(student, teacher),
      losses.cross_entropy(student, teacher.argmax(-1)),
      rtol=1e-6,
    )


class LogitLossTest(parameterized.TestCase):
  def test_unknown_name_lists_the_names(self):
    with self.assertRaisesRegex(
      errors.UserError, "'kll'.*kl, reverse_kl, jensen_shannon, mse"
    ):
      losses.logit_loss('kll', 1.0, False)

  @parameterized.parameters(0.0, -1.0, float('nan'), 1e-20, 1e10, '1')
  def test_temperature_must_be_positive(self, temperature):
    with self.assertRaisesRegex(errors.UserError, 'hard_labels=True'):
      losses.logit_loss('kl', temperature, False)

  @parameterized.parameters(0.0, -1.0, float('nan'), 1e-31, 1e10)
  def test_a_temperature_that_cannot_be_computed(self, temperature):
    for loss in DIVERGENCES:
      with self.assertRaisesRegex(errors.UserError, 'must be from 1e-30 to'):
        loss(random(0), random(1), temperature)

  def test_hard_labels_need_no_temperature(self):
    self.assertIs(losses.logit_loss('kl', 0.0, True), losses.hard_kl)

  def test_temperature_is_passed_on(self):
    student, teacher = random(0), random(1)
    np.testing.assert_array_equal(
      losses.logit_loss('kl', 3.0, False)(student, teacher),
      losses.kl(student, teacher, temperature=3.0),
    )

  @parameterized.parameters('reverse_kl', 'jensen_shannon')
  def test_other_divergences(self, name):
    student, teacher = random(0), random(1)
    np.testing.assert_array_equal(
      losses.logit_loss(name, 3.0, False)(student, teacher),
      getattr(losses, name)(student, teacher, temperature=3.0),
    )
    with self.assertRaisesRegex(errors.UserError, f"not of '{name}'"):
      losses.logit_loss(name, 1.0, True)

  def test_mse(self):
    self.assertIs(losses.logit_loss('mse', 1.0, False), losses.mse)

  def test_jensen_shannon_of_many_classes_is_not_rounded_away(self):
    student = np.asarray(random(0, (3, 2000)))
    teacher = student + 0.1 * np.asarray(random(1, (3, 2000)))
    q, p = (softmax(x.astype(np.float64) / 30) for x in (student, teacher))
    logs = [np.log(2 * x / (p + q)) for x in (p, q)]
    want = 30**2 * (p * logs[0] + q * logs[1]).sum(-1) / 2
    loss = functools.partial(losses.jensen_shannon, temperature=30.0)
    found = jax.jit(loss)(student, teacher)
    np.testing.assert_allclose(found, want, rtol=2e-3)

  @parameterized.parameters('kl', 'reverse_kl', 'jensen_shannon', 'top_k_kl')
  def test_a_temperature_may_be_traced(self, name):
    loss, student, teacher = losses.LOSSES[name], random(0), random(1)
    teacher = losses.top_k(teacher, 2) if name == 'top_k_kl' else teacher
    found = jax.jit(loss)(student, teacher, 3.0)
    np.testing.assert_allclose(found, loss(student, teacher, 3.0), rtol=3e-5)

  def test_the_largest_logits(self):
    loss = losses.logit_loss('kl', 3.0, False, 2)
    student, teacher = random(0), losses.top_k(random(1), 2)
    np.testing.assert_array_equal(
      loss(student, teacher), losses.top_k_kl(student, teacher, 3.0)
    )

  @parameterized.parameters(
    ('kl', False, -1), ('kl', True, 2), ('mse', False, 2), ('kl', False, 1.5)
  )
  def test_the_largest_logits_are_for_kl(self, name, hard_labels, top):
    with self.assertRaisesRegex(errors.UserError, f'top_k={top} must be 0'):
      losses.logit_loss(name, 1.0, hard_labels, top)
