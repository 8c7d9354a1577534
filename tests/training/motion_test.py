"""Tests of the warning of stages that move nothing."""

import pathlib

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cxjax.training import motion
from tests.training import runs

PARAMS = {
  'a': np.array([[1.0, 2.0], [0.0, 3.0]], np.float32),
  'b': jnp.ones((2, 3), jnp.bfloat16),
  # Not trained.
  'n': np.ones((2,), np.int32),
  'key': jax.random.split(jax.random.key(0)),
}


class MotionTest(absltest.TestCase):
  def test_counts_the_students_that_are_what_they_were(self):
    before = motion.Motion(PARAMS)
    a = PARAMS['a'] + np.array([[0, 0], [1e-7, 0]], np.float32)
    with self.assertLogs(level='WARNING') as log:
      before.check({**PARAMS, 'a': a}, 'hidden', 7)
    self.assertIn(
      "No parameter of 1 of 2 students moved in the 7 steps of stage 'hidden'",
      log.output[0],
    )

  def test_says_nothing_where_each_moved(self):
    before = motion.Motion(PARAMS)
    with self.assertNoLogs(level='WARNING'):
      before.check({**PARAMS, 'a': PARAMS['a'] + 1}, 'hidden', 7)

  def test_a_complex_leaf_moves(self):
    leaf = np.ones((2, 2), np.complex64)
    with self.assertNoLogs(level='WARNING'):
      motion.Motion({'c': leaf}).check({'c': leaf + 1j}, 'hidden', 7)
      motion.Motion({'n': PARAMS['n']}).check({'n': PARAMS['n']}, 'hidden', 7)

  @pytest.mark.slow
  def test_a_run_whose_loss_has_no_gradient(self):
    nothing = lambda student, labels: 0.0 * student[..., 0] + labels
    stages = (
      runs.Stage('still', 4, runs.Term(target='labels', loss=nothing)),
      runs.Stage('labels', 4, runs.LABELS),
    )
    spec = runs.spec(
      stages,
      teacher=None,
      teacher_metrics={},
      optimizer=lambda *_: optax.sgd(0.1),
    )
    folder = pathlib.Path(self.create_tempdir().full_path) / 'run'
    with self.assertLogs(level='WARNING') as log:
      runs.fit(spec, folder)
    (said,) = [line for line in log.output if 'moved' in line]
    self.assertIn("2 of 2 students moved in the 4 steps of stage 'still'", said)


if __name__ == '__main__':
  absltest.main()
