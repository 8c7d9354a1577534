"""Runs of `distill` that are asked to stop."""

import os
import signal

from absl.testing import absltest
import jax.numpy as jnp
import numpy as np
import pytest

import cxjax

pytestmark = pytest.mark.slow

X = np.linspace(-1.0, 1.0, 24, dtype=np.float32).reshape(8, 3)


def apply(params, x):
  return x @ params, {}


def interrupted():
  """Batches; this process is asked to stop at the sixth."""
  for i in range(40):
    if i == 6:
      os.kill(os.getpid(), signal.SIGINT)
    yield X


def run(batches, **options):
  teacher = cxjax.from_fn(apply, jnp.ones((3, 2)).at[0, 0].set(2.0))
  student = cxjax.from_fn(apply, jnp.zeros((3, 2)))
  plan = cxjax.plan(teacher, student, X, num_steps=30, layers=())
  return cxjax.distill(plan, batches, log_every=2, **options)


class InterruptTest(absltest.TestCase):
  def test_without_a_workdir_nothing_is_said_to_be_kept(self):
    with self.assertRaises(cxjax.Stopped) as caught:
      run(interrupted())
    self.assertRegex(
      str(caught.exception), 'SIGINT after .* Without a workdir nothing is kept'
    )
    self.assertNotIn('saved', str(caught.exception))
    self.assertEqual(caught.exception.signal, 'SIGINT')
    self.assertBetween(caught.exception.step, 2, 29)

  def test_with_one_the_same_call_continues(self):
    folder = self.create_tempdir().full_path
    with self.assertRaisesRegex(cxjax.Stopped, f'saved step .* {folder}'):
      run(interrupted(), workdir=folder)
    _, history = run([X], workdir=folder)
    self.assertEqual(history, run([X])[1])


if __name__ == '__main__':
  absltest.main()
