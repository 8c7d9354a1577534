"""Degree-1 correlations of functions whose coefficients are known."""

import functools

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from cxjax import probes
from cxjax.data import parity

D, N, BATCHES = 5, 512, 16
TASK = parity.Parity(D, ((0, 3),))
# Six standard errors: fails by chance once in a hundred million.
TOLERANCE = 6 / np.sqrt(N * BATCHES)


class DegreeOneTest(absltest.TestCase):
  def test_known_functions(self):
    def features(x):
      return jnp.stack(
        [
          x[:, 3],
          -2.0 * x[:, 1] + 7.0,  # Scale and offset do not count.
          x[:, 0] * x[:, 3],  # A parity has none.
          x[:, 0] + x[:, 4],
          jnp.zeros(x.shape[0]),  # A dead unit.
        ],
        axis=1,
      )

    draw = functools.partial(TASK.draw, batch_size=N)
    got = probes.degree_one(features, draw, jax.random.key(0), BATCHES)
    half = 0.5**0.5
    want = np.zeros((5, D))
    want[0, 3], want[1, 1], want[3, 0], want[3, 4] = 1, -1, half, half
    np.testing.assert_allclose(got, want, atol=TOLERANCE)
    np.testing.assert_array_equal(got[4], 0)


if __name__ == '__main__':
  absltest.main()
