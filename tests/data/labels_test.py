"""Tests of labels: classes, one-hot and soft labels."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from cxjax import errors
from cxjax.data import labels
from cxjax.data import user_batches
from cxjax.models import adapters

X = np.arange(12, dtype=np.float32).reshape(4, 3)
Y = np.array([0, 1, 2, 1])
SOFT = np.array([[0.5, 0.25, 0.25], [1, 0, 0], [0, 1, 0], [0.2, 0.3, 0.5]])


class LabelsTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.student = adapters.from_fn(
      lambda params, x: (x @ params, {}), np.ones((3, 5), np.float32)
    )

  def check(self, **batch):
    return labels.check(self.student, {'x': X, **batch})

  def test_classes_are_accepted(self):
    self.check(y=Y)
    self.check(y=Y, weights=np.ones(4, np.float32))

  @parameterized.parameters(int, bool, np.float32, jnp.bfloat16)
  def test_probabilities_are_accepted(self, dtype):
    self.check(y=np.eye(5)[Y].astype(dtype), weights=np.ones(4, np.float32))

  @parameterized.named_parameters(
    ('column', {'y': Y[:, None]}, r'int64\[4, 1\].*\[4\].*\[4, 5\]'),
    ('other_classes', {'y': np.eye(4)[Y]}, r'float64\[4, 4\].*\[4, 5\]'),
    ('complex', {'y': 1j * np.eye(5)[Y]}, r'complex128\[4, 5\]'),
    ('floats', {'y': Y.astype(np.float32)}, r'float32\[4\].*integer classes'),
    ('weights', {'y': Y, 'weights': X}, r"'weights' of shape \[4, 3\].*\[4\]"),
  )
  def test_refuses(self, batch, message):
    with self.assertRaisesRegex(errors.UserError, message):
      self.check(**batch)

  @parameterized.parameters(([0, 3],), ([-1, 0],))
  def test_labels_out_of_range(self, y):
    batch = {'x': X[:2], 'y': np.array(y)}
    with self.assertRaisesRegex(errors.UserError, 'the output has 3 classes'):
      user_batches.checked(batch, 3)
    user_batches.checked(batch, None)

  def test_advice_for_the_labels_of_tokens(self):
    batch = {'x': X[:2], 'y': np.array([[0, 1], [-100, 2]])}
    with self.assertRaisesRegex(errors.UserError, r"mask=.*\['y'\] >= 0"):
      user_batches.checked(batch, 3)

  def test_labels_of_weight_0_are_not_read(self):
    batch = {'x': X, 'y': np.array([0, -100, 2, 9]), 'weights': [1, 0, 1, 0]}
    found = user_batches.checked(batch, 3)
    np.testing.assert_array_equal(found['y'], [0, 0, 2, 0])

  def test_labels_of_padding_are_not_read(self):
    mask = np.array([[True, True], [True, False]])
    y = np.array([[1, 2], [0, -100]])
    for weights in ({}, {'weights': np.ones(2)}):  # And those of examples.
      found = user_batches.checked({'x': {'mask': mask}, 'y': y, **weights}, 3)
      np.testing.assert_array_equal(found['y'], [[1, 2], [0, 0]])
    with self.assertRaisesRegex(errors.UserError, 'Labels from -100'):
      user_batches.checked({'x': {'mask': ~mask}, 'y': y}, 3)

  def test_a_mask_is_of_tokens_and_not_of_what_has_its_shape(self):
    mask = np.array([[0, 0, 1, 1], [1, 1, 1, 1]])
    inputs = {'tokens': mask, 'mask': mask}
    positions = np.array([[2, 3, 2, 3], [0, 1, 0, 0]])
    of_positions = np.array([[1, 2, 1, 2], [0, 1, 0, 0]])
    values = np.arange(8.0).reshape(2, 4) + 1
    for x, y, classes, soft in (
      ({**inputs, 'target_positions': positions}, of_positions, 3, False),
      # Of a loss of the user, and of sequences: as wide as there are tokens.
      (inputs, values, None, False),
      (inputs, np.eye(4)[[0, 3]], 4, True),
    ):
      found = user_batches.checked({'x': x, 'y': y}, classes, soft=soft)
      np.testing.assert_array_equal(found['y'], y)

  def test_placeholders(self):
    np.testing.assert_array_equal(labels.placeholders({'x': X}), [0] * 4)

  def test_soft_labels(self):
    batch = {'x': X, 'y': SOFT}
    found = user_batches.checked(batch, 3, soft=True)
    np.testing.assert_array_equal(found['y'], SOFT)

  @parameterized.named_parameters(
    ('sum', SOFT * 1.1, r'some of sum 1\.1\. Give classes'),
    ('percent', SOFT * 100, 'of sum 100'),
    ('negative', SOFT + [-0.5, 0.5, 0], 'not negative'),
    ('several', np.array([[1, 1, 0]] * 4), 'of sum 2.*several labels at once'),
    ('nan', SOFT * np.nan, 'of sum nan'),
  )
  def test_soft_labels_that_are_no_probabilities(self, y, message):
    for batch in ({'x': X, 'y': y}, {'x': X, 'y': y, 'weights': np.ones(4)}):
      with self.assertRaisesRegex(errors.UserError, message):
        user_batches.checked(batch, 3, soft=True)
    weights = np.zeros(4)
    found = user_batches.checked(
      {'x': X, 'y': y, 'weights': weights}, 3, soft=True
    )
    np.testing.assert_array_equal(found['y'], np.zeros((4, 3)))


if __name__ == '__main__':
  absltest.main()
