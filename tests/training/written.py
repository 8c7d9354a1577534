"""Small checkpoints that tests write and read. Not a test."""

import pathlib

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp

from cxjax.training import checkpoint_writer
from cxjax.training import checkpoints


def items(number=0):
  return {'params': {'kernel': jnp.arange(6.0).reshape(2, 3) + number}}


def template(tree):
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree
  )


class WriterTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path) / 'run'

  def writer(self, keep=2):
    return checkpoint_writer.CheckpointWriter(self.folder, keep)

  def save(self, *steps, keep=2, **flags):
    """Saves in a process of its own, as it were."""
    with self.writer(keep) as writer:
      for step in steps:
        writer.save(step, items(step), {}, **flags)

  def steps(self):
    return checkpoints.steps(self.folder)

  def assert_good(self, *steps):
    self.assertEqual(self.steps(), list(steps))
    for step in steps:
      self.assertIsNone(checkpoints.fault(self.folder, step))
      found = checkpoints.restore(self.folder, step, template(items()))
      chex.assert_trees_all_equal(found, items(step))
