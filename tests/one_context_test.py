"""Tests of the context that programs share."""

import threading

from absl.testing import absltest
import jax
import jax.numpy as jnp


def context(size):
  """Returns the context of a program that was not lowered before."""
  return jax.jit(jnp.cos).lower(jnp.ones(size)).compiler_ir().context


class OneContextTest(absltest.TestCase):
  def test_programs_share_it(self):
    self.assertEqual(context(101), context(102))

  def test_threads_have_their_own(self):
    found = []
    thread = threading.Thread(target=lambda: found.append(context(103)))
    thread.start()
    thread.join()
    self.assertNotEqual(found, [context(104)])
