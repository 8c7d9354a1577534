"""What stored targets take up, and how much faster a student is with them.

  python -m experiments.benchmarks.cache --workdir=runs/cache_speed

The students of `text_bert.py`, in one stage at a time; the teacher is trained
for --teacher_steps, since how well targets compress depends on what it knows.
After the losses of the first steps have been found equal, a step with the
teacher and one with its stored targets, read from the disk, are timed in turns.
Writes cache.md and cache.csv; some twenty minutes on one core.
"""

import dataclasses
import functools
import os
import pathlib
import shutil

from absl import app
from absl import flags
import jax
import numpy as np

from cxjax import build
from cxjax import cache
from cxjax import command
from cxjax import experiment
from cxjax import programs as programs_lib
from cxjax import table
from experiments import text_bert
from experiments.benchmarks import rounds

_WORKDIR = flags.DEFINE_string(
  'workdir', 'runs/cache_speed', 'Where the teacher and the targets go.'
)
_TEACHER_STEPS = flags.DEFINE_integer(
  'teacher_steps', 2_500, 'How long the teacher is trained.', 1
)
STEPS = 100  # Batches that are stored.


@dataclasses.dataclass(frozen=True)
class Case:
  """A stage, and how its targets are stored."""

  stage: str
  top_k: int
  dtype: str


CASES = (
  Case('block0', 0, 'float32'),
  Case('block0', 0, 'bfloat16'),
  Case('block3', 0, 'bfloat16'),
  Case('output', 0, 'bfloat16'),
  Case('output', 64, 'float32'),
  Case('output', 64, 'bfloat16'),
  Case('output', 16, 'float32'),
  Case('output', 16, 'bfloat16'),
)


class Side:
  """The students of a recipe of one stage, from its first batch on."""

  limit = STEPS

  def __init__(self, recipe):
    """Fresh students."""
    self.seeds, self.block = recipe.num_seeds, recipe.blocks
    self.unit = recipe.log_every
    self._recipe, self._programs = recipe, programs_lib.Programs(recipe)
    (self._planned,) = recipe.planned()
    matrices = self._programs.matrices(self._planned, 0)
    params = self._programs.init(recipe.init_keys)
    self._states = self._programs.enter(
      self._planned, recipe.stage_keys, params
    )
    teacher = recipe.teacher and recipe.teacher.params
    self._args = (teacher, matrices, recipe.data_keys)

  def losses(self, num_steps):
    """Trains; the loss of the first student, summed over each chunk."""
    found = []
    with jax.set_mesh(self._recipe.mesh), self._recipe.feed() as feed:
      for start in range(0, num_steps, self.unit):
        rows, wants = feed.rows(start), feed.wants(start)
        span = start, start + self.unit
        self._states, out = self._programs.advance(
          self._planned, (1, 0), self._states, *span, *self._args, rows, wants
        )
        found.append(out['loss'])
    return np.array(jax.device_get(found))[:, 0]

  run = losses


def make_sides(case, folder):
  """The two sides of a case, and what its cache takes up."""
  config = text_bert.get_config('extracted')
  config.teacher.num_steps = _TEACHER_STEPS.value
  config.num_steps, config.top_k = STEPS, case.top_k
  config.mesh.data = 1
  config = build.located(config, folder)
  teacher = experiment.train_teacher(config, folder)
  recipe = build.student_recipe(config, teacher)
  (stage,) = (stage for stage in recipe.stages if stage.name == case.stage)
  stages = (dataclasses.replace(stage, steps=STEPS),)
  live = dataclasses.replace(recipe, stages=stages, period=STEPS)
  path = folder / 'targets'
  shutil.rmtree(path, ignore_errors=True)
  summary = cache.write(path, live, {}, case.dtype)
  stored = dataclasses.replace(live, teacher=None, absent=teacher)
  feed = functools.partial(cache.Feed, cache.load(path), stored)
  stored = dataclasses.replace(stored, feed=feed)
  return {'live': Side(live), 'stored': Side(stored)}, summary


def main(argv):
  """Checks all cases, times them, writes and prints."""
  del argv
  jax.config.update('jax_platforms', 'cpu')
  rows, lines = [], []
  for case in CASES:
    labels = dataclasses.asdict(case)
    sides, summary = make_sides(case, pathlib.Path(_WORKDIR.value))
    rtol = 1e-3 if case.dtype == 'float32' else 1e-2
    rounds.check(str(case), sides, rtol=rtol, atol=0)
    found = rounds.measure(labels, sides)
    us = rounds.times(found)
    rows += found
    lines.append(
      labels
      | {
        'bytes a token': round(summary['bytes_per_token'], 1),
        'before zstd': round(summary['raw_bytes'] / summary['tokens'], 1),
        'live': rounds.spread(us['live']),
        'stored': rounds.spread(us['stored']),
        'live / stored': rounds.ratio(us['live'], us['stored']),
      }
    )
  text = (
    f'jax {jax.__version__}, {os.cpu_count()} CPUs, load '
    f'{os.getloadavg()[0]:.1f}. A teacher of {_TEACHER_STEPS.value} steps; '
    f'{STEPS} batches of 32 rows of 64 tokens; three students share them, and '
    'each has its own projection.\n\nMicroseconds of one '
    'step of one student: median (min..max) of the rounds. Ratio of the '
    'medians (median of the ratios of the rounds).\n\n'
  )
  text += table.markdown(lines)
  command.write(pathlib.Path(rounds.OUT.value) / 'cache', text, rows)


if __name__ == '__main__':
  app.run(command.guarded(main))
