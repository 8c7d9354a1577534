"""Check of a config whose model gives probabilities."""

from unittest import mock

from absl.testing import absltest
import jax
import pytest

from cxjax import errors
from cxjax.configs import experiment
import own_config

pytestmark = pytest.mark.slow


class Sure(own_config.Plain):
  """A model that ends in a softmax."""

  def __call__(self, x):
    logits, found = super().__call__(x)
    return jax.nn.softmax(logits), found


class CheckTest(absltest.TestCase):
  def test_a_registered_model_that_ends_in_softmax(self):
    folder = self.create_tempdir().full_path
    with (
      mock.patch.object(own_config, 'Plain', Sure),
      self.assertRaisesRegex(errors.UserError, 'student is probabilities'),
    ):
      experiment.run(own_config.get_config('one_shot'), folder)
