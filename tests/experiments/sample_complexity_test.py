"""Tests of the sample complexity, with runs that are made up."""

import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import flagsaver
from absl.testing import parameterized
import numpy as np

from cxjax import errors
from experiments import base
from experiments import sweeps
import scripts

sample_complexity = scripts.load('experiments.sample_complexity')

WORKDIR = pathlib.Path('/somewhere')


def summary(steps):
  return {'steps_to': {'0.99': list(steps)}}


class FitTest(absltest.TestCase):
  def test_slope_of_a_power(self):
    d = np.array([20.0, 30.0, 50.0, 100.0])
    slope, error = sample_complexity.fit(d, 7 * d**3)
    self.assertAlmostEqual(slope, 3)
    self.assertAlmostEqual(error, 0)

  def test_points_that_were_not_reached_are_left_out(self):
    slope, _ = sample_complexity.fit(
      [10, 20, 30, 40], [100, 400, 900, float('inf')]
    )
    self.assertAlmostEqual(slope, 2)
    self.assertEqual(
      sample_complexity.fit([10, 20, 30], [100, 400, float('inf')]),
      (None, None),
    )

  def test_error_is_that_of_least_squares(self):
    noise = np.array([0.1, -0.2, 0.1])
    x = np.array([1.0, 2.0, 3.0])
    slope, error = sample_complexity.fit(np.exp(x), np.exp(2 * x + noise))
    self.assertAlmostEqual(slope, 2)
    self.assertAlmostEqual(error, np.sqrt(np.sum(noise**2) / 1 / 2))


class MeasureTest(parameterized.TestCase):
  def measure(self, method, steps_of):
    ran = []

    def run(config, overrides, workdir):
      del workdir
      config = sweeps.variant(config, overrides)
      ran.append(config)
      return summary(steps_of(config))

    with mock.patch.object(sweeps, 'run', run):
      return (*sample_complexity.measure(method, 30, 4, WORKDIR), ran)

  @parameterized.parameters('supervised', 'one_shot')
  def test_methods_of_one_stage_run_once(self, method):
    length, found, ran = self.measure(method, lambda c: [100, None])
    self.assertIsNone(length)
    np.testing.assert_array_equal(found, [100, np.inf])
    (config,) = ran
    self.assertEqual((config.data.d, config.data.k), (30, 4))
    self.assertEqual(config.num_steps, sample_complexity.BUDGET)

  @parameterized.parameters('progressive', 'extracted')
  def test_others_choose_the_best_first_stage(self, method):
    steps_of = lambda c: [abs(c[method].steps[0] - 500) + 600] * 3
    length, found, ran = self.measure(method, steps_of)
    self.assertEqual(length, 500)
    np.testing.assert_array_equal(found, 600)
    # 1,000 is longer than the best run was.
    self.assertEqual([c[method].steps[0] for c in ran], [125, 250, 500])
    for config in ran:
      self.assertEqual(sum(config[method].steps), config.num_steps)

  def test_the_longest_first_stage_has_a_second_one(self):
    _, found, ran = self.measure('extracted', lambda c: [None])
    np.testing.assert_array_equal(found, np.inf)
    self.assertEqual(ran[-1].extracted.steps, (16_000, 48_000))


class MainTest(absltest.TestCase):
  def test_writes_a_row_for_each_point(self):
    folder = pathlib.Path(self.create_tempdir().full_path)

    def run(config, overrides, workdir):
      del overrides, workdir
      if config.method == 'supervised':  # It never gets there.
        return summary([None] * 3)
      return summary([10 * config.data.d**2] * 3)

    with (
      mock.patch.object(sweeps, 'run', run),
      flagsaver.flagsaver(
        k=['3'],
        d=['20', '30', '40'],
        methods=list(base.METHODS),
        results=str(folder),
      ),
    ):
      sample_complexity.main([])
    lines = (folder / 'sample_complexity.csv').read_text().splitlines()
    self.assertLen(lines, 1 + 3 * len(base.METHODS))
    text = (folder / 'sample_complexity.md').read_text()
    self.assertRegex(text, r'one_shot +\| +2 \|')
    self.assertRegex(text, r'supervised +\| +- \|')
    self.assertGreater((folder / 'sample_complexity.png').stat().st_size, 0)

  def test_methods_without_a_theory_are_refused(self):
    with (
      flagsaver.flagsaver(methods=['joint']),
      self.assertRaisesRegex(errors.UserError, "'joint'.*one_shot"),
    ):
      sample_complexity.main([])


if __name__ == '__main__':
  absltest.main()
