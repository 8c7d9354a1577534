"""Tests of what the benchmarks share, and of the sides that they time."""

import dataclasses
import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import flagsaver
from absl.testing import parameterized
import jax
import numpy as np
import pytest

from cxjax import errors
from cxjax.configs import builders
from cxjax.configs import experiment
from cxjax.configs import teachers
from cxjax.training import metric_log
from experiments import parity_mlp
from experiments.benchmarks import one_stage
from experiments.benchmarks import rounds
import scripts

FOLDER = 'experiments.benchmarks'


class Fake:
  """A side whose losses are given."""

  seeds, block, unit, limit = 2, 1, 5, 40

  def __init__(self, losses=()):
    self.given, self.ran = losses, []

  def losses(self, num_steps):
    return self.given[:num_steps]

  def seconds(self, num_steps):
    self.ran.append(num_steps)
    return 1e-3 * num_steps


class RoundsTest(parameterized.TestCase):
  def test_equal_losses_pass(self):
    losses = np.ones(rounds.CHECKED_STEPS)
    sides = {'a': Fake(losses), 'b': Fake(losses + 1e-5)}
    rounds.check('case', sides, rtol=1e-4, atol=0)

  def test_losses_that_differ_stop_the_benchmark(self):
    losses = np.ones(rounds.CHECKED_STEPS)
    other = losses.copy()
    other[7] = 2
    with self.assertRaisesRegex(errors.UserError, "case, 'b'.* 7: 2 .* 1"):
      rounds.check(
        'case', {'a': Fake(losses), 'b': Fake(other)}, rtol=1e-4, atol=0
      )

  def test_losses_that_are_nan_stop_the_benchmark(self):
    losses = np.full(rounds.CHECKED_STEPS, np.nan)
    with self.assertRaises(errors.UserError):
      rounds.check(
        'case', {'a': Fake(losses), 'b': Fake(losses)}, rtol=1e-4, atol=0
      )

  def test_rounds_are_units_within_the_limit(self):
    side = Fake()
    self.assertEqual(rounds.choose_steps(side, 1.0), 40)
    self.assertEqual(side.ran, [5, 10, 20, 40])

  @parameterized.parameters(
    ([1.0, 0.5], 0.0),
    ([1.0, 0.5004], 0.0004),
    ([1.0, 0.5014], 0.0014),  # Within the absolute difference.
  )
  def test_losses_that_agree(self, got, want):
    found = rounds.difference(got, [1.0, 0.5], rtol=1e-3, atol=1e-3)
    self.assertAlmostEqual(found, want)

  @parameterized.parameters(0.502, np.nan, np.inf)
  def test_losses_that_differ_are_named(self, loss):
    with self.assertRaisesRegex(errors.UserError, 'differ at step 1: .* 0.5'):
      rounds.difference([1, loss, 0.2], [1, 0.5, 0.2], rtol=1e-3, atol=1e-3)

  def test_rounds_are_long_enough(self):
    one, other = Fake(), Fake()
    one.unit, one.limit, other.unit, other.limit = 25, 10**6, 1, 5
    rows = list(rounds.measure({'a': one, 'b': other}, 2, tiny=True))
    self.assertEqual([one.ran[-2:], other.ran[-2:]], [[25, 25], [4, 4]])
    self.assertEqual([row['round'] for row in rows], [0, 0, 1, 1])
    np.testing.assert_allclose([row['us'] for row in rows], 500)

  def test_sides_take_turns(self):
    sides = {'a': Fake(), 'b': Fake()}
    with flagsaver.flagsaver(rounds=3):
      rows = rounds.timed({'case': 1}, sides)
    self.assertEqual([row['side'] for row in rows], ['a', 'b'] * 3)
    self.assertEqual(list(rows[0])[:4], ['case', 'side', 'seeds', 'lookahead'])
    for row in rows:
      seconds = row['us'] * row['steps'] * row['seeds'] / 1e6
      self.assertAlmostEqual(seconds, row['seconds'])
    self.assertLen(rounds.times(rows)['a'], 3)

  def test_ratio_of_medians_and_median_of_ratios(self):
    self.assertEqual(rounds.ratio([2, 6, 100], [1, 2, 4]), '3 (3)')
    self.assertEqual(rounds.ratio([4, 4, 4], [1, 2, 8]), '2 (2)')
    self.assertIsNone(rounds.ratio(None, [1]))

  def test_spread(self):
    self.assertEqual(rounds.spread([1.234, 12_345.0, 5.0]), '5 (1.23..12,345)')
    self.assertIsNone(rounds.spread(None))


@pytest.mark.slow
class OneStageTest(parameterized.TestCase):
  """The benchmarks time what the training loop runs."""

  @parameterized.parameters('extracted', 'custom')
  def test_stages_are_those_of_a_run(self, method):
    workdir = pathlib.Path(self.create_tempdir().full_path)
    config = parity_mlp.tiny(method)
    hidden = dict(student='hidden0', target='hidden0', projection='gaussian')
    fading = dict(hidden, weight=dict(schedule='linear'))
    config.custom.stages = (
      dict(name='a', steps=20, terms=(fading,)),
      dict(name='b', terms=(fading, dict())),
    )
    experiment.run(config, workdir)
    records = metric_log.read(workdir / method)
    opened = builders.open_experiment(config, workdir)
    teacher = teachers.train_teacher(opened, workdir)
    spec = builders.student_spec(opened, teacher)
    params, losses = None, []
    for i, end in enumerate(spec.ends):
      stage = one_stage.OneStage(spec, i, params)
      for step in range((0, *spec.ends)[i], end, 10):
        out = jax.device_get(stage.train(step, step + 10))
        losses.append(float(out['loss'].mean()) / 10)
      params = stage.states.params
    self.assertEqual(losses, [record['loss'] for record in records])

  def test_a_side_counts_its_steps(self):
    config = parity_mlp.tiny('one_shot')
    workdir = pathlib.Path(self.create_tempdir().full_path)
    opened = builders.open_experiment(config, workdir)
    spec = builders.student_spec(opened, one_stage.untrained_teacher(opened))
    one, other = one_stage.Ours(spec), one_stage.Ours(spec)
    self.assertEqual((one.unit, one.seeds), (10, 2))
    one.seconds(20)
    other.losses(20)
    np.testing.assert_array_equal(one.losses(3), other.losses(3))

  def test_one_stage_has_the_length_that_is_asked(self):
    config = parity_mlp.tiny('extracted')
    workdir = pathlib.Path(self.create_tempdir().full_path)
    opened = builders.open_experiment(config, workdir)
    spec = builders.student_spec(opened, builders.abstract_teacher(opened))
    one = one_stage.one_stage_spec(spec, spec.stages[0], 7)
    self.assertEqual([(s.name, s.steps) for s in one.stages], [('hidden0', 7)])
    same = one_stage.one_stage_spec(spec, spec.stages[1])
    self.assertEqual(same.stages, (spec.stages[1],))


@pytest.mark.slow
class TorchTest(parameterized.TestCase):
  """PyTorch's side has the losses of ours."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    pytest.importorskip('torch')

  def test_parity_mlp(self):
    module = scripts.load(f'{FOLDER}.parity_mlp')
    sides = module.make_sides(module.Case(teacher=20, student=10, batch=4))
    self.assertEqual(list(sides), ['ours 1', 'ours 8', 'plain', 'look-ahead'])
    rounds.check('tiny', sides, rtol=1e-4, atol=1e-6)

  @parameterized.parameters(
    ('pcfg_bert', ['labels', 'output', 'block0']),
    # Causal, without a mask; the second of its blocks is not run.
    ('parity_transformer', ['block0']),
  )
  def test_transformer(self, name, checked):
    module = scripts.load(f'{FOLDER}.transformer')
    self.enter_context(mock.patch.object(module, 'SEEDS', (1,)))
    self.enter_context(mock.patch.object(module, 'LOG_EVERY', 5))
    self.enter_context(
      mock.patch.object(rounds, 'CHECKED_STEPS', module.LOG_EVERY)
    )
    self.enter_context(flagsaver.flagsaver(compile=False))
    config = scripts.load(f'experiments.{name}').tiny('extracted')
    stages = module.make_stages(config)
    names = [stage.name for stage in stages]
    self.assertEqual(names[:3], ['labels', 'output', 'block0'])
    self.draw_once(module, module.make_spec(config, stages[0], 1))
    batches = module.draw(module.make_spec(config, stages[0], 1))
    for stage in stages:
      if stage.name not in checked:
        continue
      sides = module.make_sides(config, stage, batches)
      rounds.check(stage.name, sides, rtol=1e-4, atol=1e-6)

  def draw_once(self, module, spec):
    """Puts the batches of a run in place of the draw, slow to compile."""
    steps = np.arange(module.LOG_EVERY)
    many = jax.jit(jax.vmap(spec.batch, in_axes=(None, 0)))
    drawn = many(spec.keys.data[0], steps)
    pick = lambda key, t, rows: jax.tree.map(lambda leaf: leaf[t], drawn)
    make = module.make_spec
    teacher = mock.Mock(return_value=spec.teacher)
    self.enter_context(
      mock.patch.object(one_stage, 'untrained_teacher', teacher)
    )
    replaced = lambda *args: dataclasses.replace(make(*args), draw=pick)
    self.enter_context(mock.patch.object(module, 'make_spec', replaced))
    self.enter_context(mock.patch.object(module, 'BATCHES', len(steps)))


@pytest.mark.slow
class CacheTest(absltest.TestCase):
  def test_stored_targets_have_the_losses_of_the_teacher(self):
    module = scripts.load(f'{FOLDER}.cache')
    folder = pathlib.Path(self.create_tempdir().full_path)
    source = folder / 'text.txt'
    lines = [f'word{i % 7} of line {i} and {i * i}.' for i in range(300)]
    source.write_text('\n\n'.join(lines))
    with (
      flagsaver.flagsaver(size='tiny', source=f'files:{source}'),
      mock.patch.object(module, 'STEPS', 20),
      mock.patch.object(rounds, 'CHECKED_STEPS', 20),
    ):
      for case in (
        module.Case('labels'),
        module.Case('output', top_k=16),
      ):
        sides, summary = module.make_sides(case, folder)
        stored = case.stage != 'labels'
        self.assertEqual('stored' in sides, stored)
        self.assertEqual(summary is not None, stored)
        if stored:
          rounds.check(str(case), sides, rtol=1e-2, atol=0)


@pytest.mark.slow
class MemoryTest(absltest.TestCase):
  def test_estimates_and_measures_every_stage(self):
    module = scripts.load(f'{FOLDER}.memory')
    status = pathlib.Path(self.create_tempdir().full_path)
    (status / 'status').write_text('VmRSS:\t  10 kB\nVmHWM:\t  30 kB\n')
    with mock.patch.object(module, 'PROCESS', status):
      self.assertEqual(module.resident('VmHWM'), 30 * 1024)
      rows = list(module.measure('tiny', parity_mlp.tiny('extracted')))
    self.assertEqual([row['stage'] for row in rows], ['hidden0', 'output'])
    for row in rows:
      self.assertAlmostEqual(row['the process grew, MB'], 0.02048)


@pytest.mark.slow
class PiecesTest(absltest.TestCase):
  def test_both_ways_have_one_loss_and_pieces_take_less(self):
    module = scripts.load(f'{FOLDER}.pieces')
    with flagsaver.flagsaver(ids=20_000, student=8, teacher=16, rounds=1):
      whole, pieces = (
        module.measure(way, 1_024) for way in (module.WHOLE, module.PIECES)
      )
    self.assertAlmostEqual(whole['loss'], pieces['loss'], delta=1e-6)
    self.assertLess(pieces['program, MB'], whole['program, MB'] / 4)
    self.assertGreater(pieces['seconds'], 0)


if __name__ == '__main__':
  absltest.main()
