"""Tests of the probe of a parity teacher."""

import pathlib

from absl.testing import absltest
from absl.testing import flagsaver
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax.training import teacher as teacher_lib
from experiments import parity_mlp
from experiments import parity_transformer
import scripts

probe_parity = scripts.load('experiments.probe_parity')

# 1,024 examples: the standard error of a correlation is 0.03.
NOISE = 0.15


class MeasureTest(parameterized.TestCase):
  @parameterized.parameters(
    (parity_mlp, lambda x: x),
    (parity_transformer, lambda x: 1.0 - 2.0 * x['tokens']),
  )
  @pytest.mark.slow
  def test_finds_the_coordinates_that_a_function_reads(self, module, signs):
    """One layer reads coordinate 3; one checkpoint's output, coordinate 5."""
    config = module.tiny('extracted')

    def apply(params, x):
      x = signs(x)
      hidden = jnp.stack([x[:, 3]] * config.teacher.width, axis=-1)
      logits = jnp.stack([x[:, 5] * params, jnp.zeros(len(x))], axis=-1)
      if module is parity_transformer:
        # The layer at other tokens, which must not be read, is that of 1.
        at = jnp.arange(x.shape[1])[None, :, None] == x.shape[1] - 1
        hidden = jnp.where(at, hidden[:, None], x[:, 1][:, None, None])
        logits = logits[:, None]
      return logits, {'layer': hidden}

    teacher = teacher_lib.Teacher(
      apply,
      jnp.ones(()),
      ('layer',),
      checkpoints=((10, 0.5), (20, 0.9)),
      load=lambda step: jnp.float32(step == 20),
    )
    found = probe_parity.measure(config, teacher, width=4, examples=1_024)
    self.assertEqual(list(found), ['layer', 10, 20])
    self.assertGreater(found['layer'][3], 0.9)
    self.assertLess(max(np.delete(found['layer'], 3)), NOISE)
    np.testing.assert_array_equal(found[10], 0)  # A constant.
    self.assertGreater(found[20][5], 0.9)
    self.assertLess(max(np.delete(found[20], 5)), NOISE)


class ReportTest(absltest.TestCase):
  found = {
    'hidden0': np.array([0.4, 0.1, 0.4, 0.1]),
    10: np.array([0.1, 0.1, 0.1, 0.1]),
    20: np.array([0.2, 0.1, 0.2, 0.1]),
  }
  scores = {10: 0.5, 20: 0.75}

  def test_rows_compare_inside_with_outside(self):
    rows = list(probe_parity.rows(self.found, [0, 2], self.scores))
    self.assertEqual(
      [(row['function'], row['accuracy']) for row in rows],
      [
        ('projected hidden0, final', None),
        ('output, checkpoint 10', 0.5),
        ('output, checkpoint 20', 0.75),
      ],
    )
    np.testing.assert_allclose([row['ratio'] for row in rows], [4, 1, 2])

  @pytest.mark.slow
  def test_picture_is_drawn(self):
    path = pathlib.Path(self.create_tempdir().full_path) / 'a.png'
    probe_parity.draw_picture(self.found, [0, 2], self.scores, path)
    self.assertGreater(path.stat().st_size, 0)

  def test_without_a_workdir_it_says_so(self):
    with (
      flagsaver.flagsaver(workdir=''),
      self.assertRaisesRegex(Exception, '--workdir is missing'),
    ):
      probe_parity.main([])


if __name__ == '__main__':
  absltest.main()
