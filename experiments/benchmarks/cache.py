"""Steps of a student on text, with its teacher and with stored targets.

  python -m experiments.benchmarks.cache --workdir=runs/text

A student of `text_bert.py`, in one stage at a time, and the teacher of the
workdir, which is trained first if it is not there. After the losses of the
first steps have been found equal, a step with the teacher and one with its
stored targets, read from the disk, are timed in turns: what they save is the
teacher's forward pass. Writes cache.md and cache.csv; some ten minutes.
"""

import dataclasses
import functools
import os
import pathlib
import shutil
import statistics

from absl import app
from absl import flags
import jax
import numpy as np

from cxjax.configs import builders
from cxjax.training import target_cache
from cxjax.configs import cli
from cxjax.configs import experiment
from cxjax.training import compiled_steps
from cxjax import tables
from experiments import text_bert
from experiments.benchmarks import rounds

_WORKDIR = flags.DEFINE_string(
  'workdir', 'runs/text', 'Where the teacher is, and the targets go.'
)
STEPS = 100  # Batches that are stored.
BATCH_TOKENS = 32 * 64
HEADER = f"""\
jax {jax.__version__}, {len(os.sched_getaffinity(0))} CPUs. {STEPS} batches of \
32 rows of 64 tokens, one student.

Tokens a second, median of the rounds; the share of a step that stored \
targets save, which is the teacher's; ratio of the medians (median of the \
ratios of the rounds)."""


@dataclasses.dataclass(frozen=True)
class Case:
  """A stage, and how its targets are stored."""

  stage: str
  top_k: int = 0
  dtype: str = 'bfloat16'


CASES = (
  Case('labels'),
  Case('block0', dtype='float32'),
  *(Case(f'block{i}') for i in range(4)),
  Case('output'),
  Case('output', top_k=64),
  Case('output', top_k=16),
)


class Side:
  """The students of a spec of one stage, from its first batch on."""

  limit = STEPS

  def __init__(self, spec):
    """Fresh students."""
    self.seeds, self.block = spec.num_seeds, spec.blocks
    self.unit = spec.log_every
    self._spec, self._programs = spec, compiled_steps.CompiledSteps(spec)
    (self._planned,) = spec.planned()
    matrices = self._programs.matrices(self._planned, 0)
    params = self._programs.init(spec.init_keys)
    self._states = self._programs.enter(
      self._planned, spec.stage_keys, params
    )
    teacher = spec.teacher and spec.teacher.params
    self._args = (teacher, matrices, spec.data_keys)

  def losses(self, num_steps):
    """Trains; the loss of the first student, summed over each chunk."""
    found = []
    with jax.set_mesh(self._spec.mesh), self._spec.feed() as feed:
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
  """The sides of a case, and what its cache takes up."""
  config = text_bert.get_config(
    'supervised' if case.stage == 'labels' else 'extracted'
  )
  config.num_steps, config.top_k = STEPS, case.top_k
  config.num_seeds, config.mesh.data, config.log_every = 1, 1, 10
  config = builders.resolve_paths(config, folder)
  teacher = experiment.train_teacher(config, folder)
  spec = builders.student_spec(config, teacher)
  (stage,) = (stage for stage in spec.stages if stage.name == case.stage)
  stages = (dataclasses.replace(stage, steps=STEPS),)
  live = dataclasses.replace(spec, stages=stages, period=STEPS)
  if not stage.needs_teacher:
    return {'live': Side(live)}, None
  path = folder / 'cache_benchmark'
  shutil.rmtree(path, ignore_errors=True)
  summary = target_cache.write(path, live, {}, case.dtype)
  stored = dataclasses.replace(live, teacher=None, absent=teacher)
  feed = functools.partial(target_cache.Feed, target_cache.load(path), stored)
  stored = dataclasses.replace(stored, feed=feed)
  return {'live': Side(live), 'stored': Side(stored)}, summary


def line(us, summary):
  """What was measured of a case; None is not stored."""
  per_second = {
    side: BATCH_TOKENS / statistics.median(times) * 1e6
    for side, times in us.items()
  }
  live, stored = per_second['live'], per_second.get('stored')
  return {
    'tokens/s': round(live),
    'stored: tokens/s': stored and round(stored),
    "teacher's share": stored and f'{1 - live / stored:.0%}',
    'live / stored': stored and rounds.ratio(us['live'], us['stored']),
    'bytes a token': summary and round(summary['bytes_per_token'], 1),
    'before zstd': summary
    and round(summary['raw_bytes'] / summary['tokens'], 1),
  }


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
    rows += found
    lines.append(labels | line(rounds.times(found), summary))
    text = f'{HEADER}\n\n{tables.markdown(lines)}'
    cli.write(pathlib.Path(rounds.OUT.value) / 'cache', text, rows)


if __name__ == '__main__':
  app.run(cli.guarded(main))
