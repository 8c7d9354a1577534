"""Tests of the parity transformer at its smallest size."""

import pathlib

from absl.testing import absltest
import jax
import numpy as np
import pytest

from cxjax.configs import builders
from experiments import parity_transformer

pytestmark = pytest.mark.slow


class ParityTransformerTest(absltest.TestCase):
  def test_stages_are_every_block_and_the_output(self):
    config = parity_transformer.tiny('extracted')
    workdir = pathlib.Path(self.create_tempdir().full_path)
    opened = builders.open_experiment(config, workdir)
    teacher = builders.abstract_teacher(opened)
    planned = builders.student_spec(opened, teacher).plan()
    names = [one.stage.name for one in planned]
    self.assertEqual(names, ['block0', 'block1', 'output'])
    self.assertEqual(planned[0].projections, {'block0': (16, 8)})

  def test_first_stage_leaves_what_is_above_it(self):
    config = parity_transformer.tiny('extracted')
    workdir = pathlib.Path(self.create_tempdir().full_path)
    opened = builders.open_experiment(config, workdir)
    teacher = builders.abstract_teacher(opened)
    planned, *_ = builders.student_spec(opened, teacher).plan()
    trained = planned.mask['params']
    self.assertTrue(all(jax.tree.leaves(trained['block0'])))
    self.assertFalse(any(jax.tree.leaves(trained['block1'])))
    self.assertFalse(any(jax.tree.leaves(trained['logits'])))

  def test_tokens_are_the_bits(self):
    config = parity_transformer.tiny('extracted')
    tokens = builders.make_task(config)
    config.task = 'parity'
    bits = builders.make_task(config)
    key = jax.random.key(1)
    ours, theirs = tokens.batch(key, 3, 16), bits.batch(key, 3, 16)
    np.testing.assert_array_equal(ours['y'][:, 0], theirs['y'])
    np.testing.assert_array_equal(
      tokens.coordinates(ours['x']), bits.coordinates(theirs['x'])
    )
    np.testing.assert_array_equal(ours['x']['target_positions'], 7)


if __name__ == '__main__':
  absltest.main()
