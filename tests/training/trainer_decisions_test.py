"""What the loop decides by metrics: stops, saves, keeps."""

import itertools
import math
import shutil
from unittest import mock

from absl.testing import parameterized
import numpy as np
import pytest

from cxjax import errors
from cxjax.training import checkpoints
from cxjax.training import compiled_steps
from cxjax.training import trainer
from tests import faults
from tests.training import runs

pytestmark = pytest.mark.slow


def scripted(**scores):
  """Evaluations that give these values, one after the other, to every seed.

  A value may be a pair, one for each seed.
  """
  metrics = {
    name: [np.broadcast_to(np.float32(v), (runs.SEEDS,)) for v in values]
    for name, values in scores.items()
  }
  numbers = itertools.count()

  def evaluate(self, params):
    i = next(numbers)
    return {
      name: values[min(i, len(values) - 1)] for name, values in metrics.items()
    }

  return mock.patch.object(compiled_steps.CompiledSteps, 'evaluate', evaluate)


def cut(checkpoint, name='params/manifest.ocdbt'):
  """Cuts a file of a checkpoint in half."""
  file = checkpoint / name
  content = file.read_bytes()
  file.write_bytes(content[: len(content) // 2])


class DecisionTest(runs.TestCase):
  """Stops, saves and keeps by metrics that are made up."""

  def run_of(self, loop, folder=None, **scores):
    folder = folder or self.folder()
    loop = {'eval_every': 4, 'save_every': 40, 'keep': 0, **loop}
    scores = {'accuracy': [0.5], 'loss': [1.0], **scores}
    with scripted(**scores):
      result = self.fit(runs.changed(runs.labels(), loop=loop), folder)
    steps = [record['step'] for record in result.records]
    return steps, checkpoints.steps(folder), result

  # The first evaluation is that of the untrained networks, which are kept.
  def test_runs_to_the_end(self):
    steps, saved, result = self.run_of({})
    self.assertEqual(steps, list(range(4, 41, 4)))
    self.assertEqual(saved, [0, 40])
    self.assertIsNone(result.best)

  @parameterized.parameters((0.0, 12), (0.25, 15), (0.5, 18), (10.0, 40))
  def test_stops(self, overrun, end):
    steps, saved, result = self.run_of(
      {'stop_at': 0.9, 'overrun': overrun},
      accuracy=[0.0, 0.5, 0.8, (0.95, 0.91), 0.95],
    )
    self.assertEqual(steps[-1], end)
    self.assertEqual(saved, [0, end])
    self.assertIn('eval/accuracy', result.records[-1])

  def test_the_worst_seed_decides(self):
    steps, _, _ = self.run_of(
      {'stop_at': 0.9}, accuracy=[0.0, (0.95, 0.8), (0.8, 0.95), 0.91]
    )
    self.assertEqual(steps, [4, 8, 12])

  def test_stop_at_acts_in_the_last_stage_alone(self):
    spec = runs.changed(runs.main(), loop={'stop_at': 0.9, 'save_every': 80})
    with scripted(accuracy=[0.95], loss=[1.0]):
      result = self.fit(spec)
    # Stages end at 6, 11 and 20; it is evaluated at 8 and 16 as well.
    self.assertEqual(result.records[-1]['step'], 16)

  def test_saves_at_scores(self):
    _, saved, _ = self.run_of(
      {'save_at': (0.6, 0.9)},
      accuracy=[0.0, 0.5, 0.6, 0.5, 0.7, 0.95, 0.5, 0.95],
    )
    self.assertEqual(saved, [0, 8, 20, 40])

  @parameterized.parameters(
    ('accuracy', [0.5, 0.7, 0.6, 0.7, 0.4], 8),
    ('loss', [2.0, 1.0, 1.5, 1.0, 2.0], 8),
    ('loss', [2.0, (0.1, 3.0), (1.0, 0.9), 2.0], 12),
    ('loss', [math.nan, 2.0, math.nan, 3.0], 8),
    ('accuracy', [0.5, 0.4], 4),
    # A checkpoint of the schedule may be the best.
    ('loss', [2.0, 1.5, 1.2, 1.0, 1.1], 16),
  )
  def test_keeps_the_best(self, name, scores, best):
    _, saved, result = self.run_of(
      {'keep_best': name, 'keep': 2, 'save_every': 16}, **{name: scores}
    )
    self.assertEqual(result.best, best)
    self.assertEqual(saved, [best, 32, 40])

  def test_the_best_of_a_run_that_goes_on(self):
    folder = self.folder()
    loop = {'keep_best': 'loss', 'keep': 2, 'save_every': 16}
    with faults.killed_after(6):
      self.run_of(loop, folder, loss=[2.0, 1.0, 1.5, 3.0, 3.0, 3.0])
    self.assertEqual(checkpoints.steps(folder), [8, 16])
    _, saved, result = self.run_of(loop, folder, loss=[1.2])
    self.assertEqual(result.best, 8)
    self.assertEqual(saved, [8, 32, 40])

  @parameterized.product(lose=(shutil.rmtree, cut), records=(6, 10))
  def test_the_best_is_lost(self, lose, records):
    """A run that was killed after six records, and a finished one."""
    folder = self.folder()
    loop = {'keep_best': 'loss', 'keep': 2, 'save_every': 16}
    scores = [2.0, 1.0, 1.5, 3.0]
    with faults.killed_after(records):
      self.run_of(loop, folder, loss=scores)
    if records == 10:
      self.run_of(loop, folder, loss=scores)
    lose(checkpoints.step_folder(folder, 8))
    kept = checkpoints.steps(folder)
    for _ in range(2):
      with self.assertRaisesRegex(
        errors.UserError, f'Checkpoint 8 of {folder}, the best.*Restore it, or'
      ):
        self.run_of(loop, folder, loss=scores)
    self.assertEqual(checkpoints.steps(folder), kept)

  @parameterized.parameters('params/manifest.ocdbt', 'record.json')
  def test_the_best_is_damaged_and_found_again(self, name):
    """The one before it was removed, and is not needed."""
    folder = self.folder()
    loop = {'keep_best': 'loss', 'keep': 2, 'save_every': 16}
    with faults.killed_after(6):
      self.run_of(loop, folder, loss=[2.0, 1.0, 1.5, 1.5, 0.5, 3.0])
    self.assertEqual(checkpoints.steps(folder), [16, 20])
    cut(checkpoints.step_folder(folder, 20), name)
    _, saved, result = self.run_of(loop, folder, loss=[0.5, 3.0])
    self.assertEqual(result.best, 20)
    self.assertEqual(saved, [20, 32, 40])

  def test_the_best_is_lost_while_the_run_goes_on(self):
    folder = self.folder()

    def lose(record):
      if record['step'] == 36:
        shutil.rmtree(checkpoints.step_folder(folder, 8))

    loop = {'keep_best': 'loss', 'keep': 2, 'save_every': 16, 'eval_every': 4}
    spec = runs.changed(runs.labels(), loop=loop)
    with (
      scripted(loss=[2.0, 1.0, 1.5], accuracy=[0.5]),
      self.assertRaisesRegex(errors.UserError, 'Checkpoint 8 .*the best'),
    ):
      self.fit(spec, folder, lose)

  def test_the_end_of_a_run_that_goes_on(self):
    folder = self.folder()
    loop = {'stop_at': 0.9, 'overrun': 1.0, 'save_every': 8}
    with faults.killed_after(3):
      self.run_of(loop, folder, accuracy=[0.0, 0.5, 0.95, 0.0])
    self.assertEqual(checkpoints.latest(folder), 8)
    steps, _, _ = self.run_of(loop, folder, accuracy=[0.0])
    self.assertEqual(steps, [4, 8, 12, 16])

  def test_saves_by_the_clock_as_well(self):
    clock = itertools.count(0, 20).__next__  # Seconds, at every look.
    temporary, save = [], trainer.checkpoint_writer.CheckpointWriter.save

    def note(writer, step, *args, **kwargs):
      temporary.append((step, kwargs['temporary']))
      return save(writer, step, *args, **kwargs)

    with (
      mock.patch.object(trainer.time, 'monotonic', clock),
      mock.patch.object(
        trainer.checkpoint_writer.CheckpointWriter, 'save', note
      ),
    ):
      _, saved, _ = self.run_of(
        {'save_minutes': 0.01, 'keep': 3, 'save_every': 16}
      )
    every = [(step, step not in (16, 32, 40)) for step in range(4, 41, 4)]
    self.assertEqual(temporary, every)
    self.assertEqual(saved, [16, 32, 40])

  def test_does_not_save_by_the_clock_before_it_is_time(self):
    _, saved, _ = self.run_of({'save_minutes': 10.0})
    self.assertEqual(saved, [0, 40])
