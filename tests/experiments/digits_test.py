"""Tests of the digits experiment, without its runs."""

import itertools
import sys
from unittest import mock

from absl.testing import absltest
import numpy as np

from cxjax import errors
from experiments import digits


class DigitsTest(absltest.TestCase):
  def test_batches_are_the_same_in_every_iteration(self):
    x = np.arange(130)
    batches = digits.Batches(x[:, None], x)
    one, two = (
      [labels for _, labels in itertools.islice(iter(batches), 9)]
      for _ in range(2)
    )
    np.testing.assert_array_equal(np.stack(one), np.stack(two))
    self.assertFalse((one[0] == one[2]).all())  # Another epoch.
    first_epoch = np.concatenate(one[:2])
    self.assertLen(set(first_epoch.tolist()), 2 * digits.BATCH)

  def test_images_and_labels_stay_together(self):
    x = np.arange(130)
    images, labels = next(iter(digits.Batches(x[:, None], x)))
    np.testing.assert_array_equal(images[:, 0], labels)

  def test_records_of_single_students_are_joined(self):
    one = {'step': 4, 'stage': 'a', 'loss': 0.5, 'eval/accuracy': [0.25]}
    two = {'step': 4, 'stage': 'a', 'loss': 0.7, 'eval/accuracy': [0.75]}
    joined = digits.together([one, two])
    self.assertEqual(joined, one | {'eval/accuracy': [0.25, 0.75]})

  def test_without_scikit_learn_it_says_what_to_install(self):
    with (
      mock.patch.dict(sys.modules, {'sklearn': None}),
      self.assertRaisesRegex(errors.UserError, 'pip install scikit-learn'),
    ):
      digits.digits()


if __name__ == '__main__':
  absltest.main()
