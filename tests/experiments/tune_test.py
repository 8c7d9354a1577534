"""Tests of the searches, with runs that are made up."""

import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import flagsaver
from absl.testing import parameterized
import pytest

from cxjax import errors
from experiments import base
from experiments import sweeps
import scripts

tune = scripts.load('experiments.tune')
masked_tune = scripts.load('experiments.masked_tune')

WORKDIR = pathlib.Path('/somewhere')


def summary(reached=(100, 100), accuracy=1.0, steps=200, flops=10.0):
  """The summary of a run of one stage and two seeds."""
  final = {'accuracy': [accuracy] * 2, 'loss': [0.5] * 2}
  final |= {'perplexity': [1.6] * 2, 'agreement': [0.5] * 2}
  final |= {'teacher_kl': [0.1] * 2}
  return {
    'method': 'made up',
    'primary_metric': 'accuracy',
    'num_seeds': 2,
    'steps': steps,
    'examples': steps * 8,
    'length': 1,
    'final': final,
    'steps_to': {'0.9': list(reached), '0.99': list(reached)},
    'stages': [
      {'steps': steps, 'student_flops': flops, 'teacher_flops': flops}
    ],
    'seconds': {'train': 1.0},
  }


class TuneTest(parameterized.TestCase):
  def search(self, method, steps_of):
    """The search of a method, whose runs take `steps_of` their config."""
    ran = []

    def run(config, overrides, workdir):
      del workdir
      config = sweeps.variant(config, overrides)
      ran.append(config)
      steps = steps_of(config)
      return summary((steps, steps))

    with mock.patch.object(sweeps, 'run', run):
      return tune.search(method, tune.SPACES['parity_mlp'], WORKDIR), ran

  def test_failures_count_before_steps(self):
    runs = [
      summary((100, 200)),
      summary((50, None), accuracy=0.7),
      summary((50, None), accuracy=0.6),
      summary((None, None)),
    ]
    self.assertEqual(sorted(runs[::-1], key=tune.rank), runs)

  def test_learning_rate_comes_first(self):
    found, ran = self.search(
      'one_shot', lambda c: round(1e4 * abs(c.optimizer.learning_rate - 1e-2))
    )
    self.assertLen(ran, 5)
    self.assertEqual(found[0][0], {'optimizer.learning_rate': 1e-2})

  def test_stages_come_after_the_learning_rate(self):
    found, ran = self.search(
      'progressive',
      lambda c: round(
        100 * c.progressive.share
        + 100 * abs(c.progressive.scores[0] - 0.95)
        + 1e4 * abs(c.optimizer.learning_rate - 1e-3)
      ),
    )
    best, _ = found[0]
    self.assertEqual(best['optimizer.learning_rate'], 1e-3)
    self.assertEqual(best['progressive.share'], 250 / 40_000)
    self.assertEqual(best['progressive.scores'], (0.95,))
    # Five rates, four more lengths, four more checkpoints.
    self.assertLen(ran, 13)
    for config in ran:
      self.assertEqual(config.progressive.rate_factor, 1.0)
      self.assertEqual(config.num_steps, 40_000)

  @parameterized.parameters(*tune.SPACES)
  def test_writes_every_method(self, name):
    folder = pathlib.Path(self.create_tempdir().full_path)
    with (
      mock.patch.object(sweeps, 'run', lambda *unused: summary()),
      flagsaver.flagsaver(experiment=name, results=str(folder)),
    ):
      tune.main([])
    text = (folder / f'{name}_tune.csv').read_text()
    for method in base.METHODS:
      self.assertIn(f'\n{method},', text)
    self.assertEqual(text.count(',best'), 1 + len(base.METHODS))

  def test_unknown_experiment_is_an_error(self):
    with (
      flagsaver.flagsaver(experiment='parity'),
      self.assertRaisesRegex(errors.UserError, "mean 'parity_mlp'"),
    ):
      tune.main([])


class MaskedTuneTest(parameterized.TestCase):
  @parameterized.parameters(
    *(
      (name, method, overrides)
      for name, methods in masked_tune.CHOICES.items()
      for method, choices in methods.items()
      for overrides in (masked_tune.START, *choices)
    ),
    *(
      ('pcfg_bert', 'extracted', overrides)
      for overrides in masked_tune.RECIPES.values()
    ),
  )
  def test_overrides_are_of_fields_that_exist(self, name, method, overrides):
    config = masked_tune.EXPERIMENTS[name].get_config(method)
    sweeps.variant(config.lock(), overrides)

  def test_equal_steps_have_equal_flops(self):
    cheap, dear = summary(flops=5.0), summary(flops=10.0)
    self.assertEqual(masked_tune.equal_steps(cheap, dear), 400)
    self.assertEqual(masked_tune.equal_steps(dear, cheap), 100)

  @pytest.mark.slow
  def test_searches_and_compares_every_method(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    ran = []

    def run(config, overrides, workdir):
      del workdir
      config = sweeps.variant(config, overrides)
      rate = config.optimizer.learning_rate
      ran.append((config.method, config.num_seeds, config.num_steps, rate))
      # One-shot costs twice as much; the best learning rate is 1e-2.
      flops = 20.0 if config.method == 'one_shot' else 10.0
      accuracy = 1 - abs(config.optimizer.learning_rate - 1e-2)
      return summary(accuracy=accuracy, flops=flops)

    drawn = mock.Mock()
    with (
      mock.patch.object(sweeps, 'run', run),
      mock.patch.object(masked_tune.plots, 'curves', drawn),
      mock.patch.object(masked_tune.metric_log, 'read', lambda folder: []),
      flagsaver.flagsaver(
        experiment='pcfg_bert',
        results=str(folder),
        workdir=str(folder / 'work'),
      ),
    ):
      masked_tune.main([])
    self.assertEqual(list(drawn.call_args.args[0]), list(base.METHODS))
    self.assertLen([one for one in ran if one[1] == 1], 6 * len(base.METHODS))
    # The others at 400 steps cost as much as one-shot at 200.
    longer = [(m, s) for m, seeds, s, _ in ran if seeds == 3 and s == 400]
    methods = [name for name in base.METHODS if name != 'one_shot']
    self.assertEqual(longer, [(name, 400) for name in methods])
    best = {rate for _, seeds, _, rate in ran if seeds == 3}
    self.assertEqual(best, {1e-2})
    text = (folder / 'pcfg_bert.csv').read_text()
    self.assertIn('"extracted, FLOPs of one_shot"', text)
    self.assertNotIn('"one_shot, FLOPs of one_shot"', text)

  def test_recipes_are_runs_of_extracted(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    with (
      mock.patch.object(sweeps, 'run', lambda *unused: summary()),
      flagsaver.flagsaver(
        experiment='pcfg_bert',
        results=str(folder),
        workdir=str(folder / 'work'),
        recipes=True,
      ),
    ):
      masked_tune.main([])
    lines = (folder / 'pcfg_bert_recipes.csv').read_text().splitlines()
    self.assertLen(lines, 1 + len(masked_tune.RECIPES))


if __name__ == '__main__':
  absltest.main()
