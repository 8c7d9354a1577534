"""A workdir remembers the batches of its run, as far as they can be known."""

import pathlib
from unittest import mock

from absl import logging
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax import errors
from cxjax.api import run_identity
from small_networks import X
from small_networks import Y


class BatchesTest(parameterized.TestCase):
  """A folder remembers its batches, as far as they can be known."""

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.batches = [(X, Y), (X + 1, Y), (X + 2, Y)]
    run_identity.claim_batches(self.folder, self.batches, (X, Y))

  @parameterized.parameters(
    lambda batches: [*batches[:2], batches[0]],
    lambda batches: batches[:2],
    lambda batches: [batches[0], batches[2], batches[1]],
    lambda batches: [(x, y + 1) for x, y in batches],
  )
  def test_another_list_is_refused(self, change):
    batches = change(self.batches)
    with self.assertRaisesRegex(errors.UserError, 'another list of batches'):
      run_identity.claim_batches(self.folder, batches, batches[0])

  @parameterized.parameters(tuple, iter, list)
  def test_the_same_go_on(self, kind):
    with mock.patch.object(logging, 'warning') as warning:
      run_identity.claim_batches(
        self.folder, kind(self.batches), [jnp.asarray(X), jnp.asarray(Y)]
      )
    warning.assert_not_called()

  def test_another_first_batch_of_a_loader_is_warned_of(self):
    with mock.patch.object(logging, 'warning') as warning:
      run_identity.claim_batches(self.folder, iter(()), (X + 1, Y))
    self.assertIn('The first batch is not', str(warning.call_args))

  @pytest.mark.slow
  def test_every_batch_of_a_long_list_counts(self):
    """A third of a gigabyte, of batches of one number each."""
    folder = pathlib.Path(self.create_tempdir().full_path)
    batches = [np.broadcast_to(np.float32(i), (8, 2**21)) for i in range(5)]
    run_identity.claim_batches(folder, batches, batches[0])
    for i in range(1, 5):
      other = [*batches[:i], batches[0], *batches[i + 1 :]]
      with self.assertRaisesRegex(errors.UserError, 'another list of batches'):
        run_identity.claim_batches(folder, other, batches[0])

  def test_of_a_longer_one_some_do_after_a_warning(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    with (
      mock.patch.object(run_identity, 'KNOWN', X.nbytes + Y.nbytes),
      self.assertLogs(level='WARNING') as log,
    ):
      run_identity.claim_batches(folder, self.batches, (X, Y))
      other = [*self.batches[:2], (X + 3, Y)]
      with self.assertRaises(errors.UserError):
        run_identity.claim_batches(folder, other, (X, Y))
    self.assertIn('every 3. of its batches is compared', log.output[0])
