"""Step time of a student on text, with its teacher and with stored targets.

Run (about ten minutes):
  python -m experiments.benchmarks.cache --workdir=runs/text

The student is that of `text_bert.py`, in one stage at a time. The teacher is
that of the workdir, which is trained first if it is not there. The losses of
the first steps must agree, or nothing is timed. Then steps with the teacher and
with its stored targets, read from the disk, are timed in turns. Stored targets
save the teacher's forward pass.

Writes cache.{md,csv} into --out; the CSV file has every round.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import os
import pathlib
import shutil
import statistics
import time
from typing import Any

from absl import flags
import jax
import numpy as np

from cxjax import tables
from cxjax.configs import builders
from cxjax.configs import cli
from cxjax.configs import teachers
from cxjax.training import run_spec
from cxjax.training import target_cache
from experiments import text_bert
from experiments.benchmarks import one_stage
from experiments.benchmarks import rounds

_WORKDIR = flags.DEFINE_string(
  'workdir', 'runs/text', 'Folder of the teacher and of the targets.'
)
_SIZE = flags.DEFINE_string('size', 'cpu', 'Size of the config: cpu, tiny.')
_SOURCE = flags.DEFINE_string('source', '', 'Text, as data.source.')
STEPS = 100  # Number of batches that are stored.
HEADER = """\
jax {jax}, {cpus} CPUs. {steps} batches of {rows} rows of {length} tokens, one \
student.

Tokens a second, median of the rounds; the teacher's share is the part of a \
step that stored targets save; ratio of the medians (median of the ratios of \
the rounds)."""


@dataclasses.dataclass(frozen=True)
class Case:
  """A stage, and how its targets are stored.

  Attributes:
    stage: name of the stage.
    top_k: number of the teacher's logits; 0 is all.
    dtype: dtype of the stored floats.
  """

  stage: str
  top_k: int = 0
  dtype: str = 'bfloat16'


def cases(layers: Sequence[str]) -> list[Case]:
  """Returns the cases of a student with some layers."""
  return [
    Case('labels'),
    Case(layers[0], dtype='float32'),
    *(Case(layer) for layer in layers),
    Case('output'),
    Case('output', top_k=64),
    Case('output', top_k=16),
  ]


class Side:
  """The students of a run of one stage; every call begins at its first batch.

  The students go on from where the last call left them.
  """

  limit = STEPS

  def __init__(self, spec: run_spec.RunSpec) -> None:
    """Initializes the students."""
    self.seeds, self.block = spec.num_seeds, spec.lookahead_steps
    self.unit = spec.loop.log_every
    self._loader = spec.host.loader
    self._stage = one_stage.OneStage(spec)

  def losses(self, num_steps: int) -> np.ndarray:
    """Trains; returns the loss of the first student, summed over each chunk."""
    found = []
    assert self._loader is not None
    with self._loader() as loader:
      for start in range(0, num_steps, self.unit):
        rows, targets = loader.rows(start), loader.targets(start)
        out = self._stage.train(start, start + self.unit, rows, targets)
        found.append(out['loss'])
    return np.array(jax.device_get(found))[:, 0]

  def seconds(self, num_steps: int) -> float:
    """Trains; returns the seconds that it took."""
    begin = time.perf_counter()
    self.losses(num_steps)
    return time.perf_counter() - begin


def make_sides(
  case: Case, workdir: pathlib.Path
) -> tuple[dict[str, rounds.Side], dict[str, Any] | None]:
  """Returns the sides of a case by name, and the summary of its targets."""
  method = 'supervised' if case.stage == 'labels' else 'extracted'
  config = make_config(method)
  config.top_k = case.top_k
  experiment = builders.open_experiment(config, workdir)
  teachers.save_task(experiment)
  teacher = teachers.train_teacher(experiment, workdir)
  spec = builders.student_spec(experiment, teacher)
  (stage,) = (stage for stage in spec.stages if stage.name == case.stage)
  live = _with_host(one_stage.one_stage_spec(spec, stage, STEPS), period=STEPS)
  if not stage.needs_teacher:
    return {'live': Side(live)}, None
  folder = workdir / 'cache_benchmark'
  shutil.rmtree(folder, ignore_errors=True)
  summary = target_cache.write(folder, live, {}, case.dtype)
  absent = builders.abstract_teacher(experiment, teacher.checkpoints)
  stored = dataclasses.replace(live, teacher=absent)
  loader = functools.partial(
    target_cache.CachedTargetLoader, target_cache.load(folder), stored
  )
  return {
    'live': Side(live),
    'stored': Side(_with_host(stored, loader=loader)),
  }, summary


def make_config(method: str) -> Any:
  """Returns the config of a method."""
  config = text_bert.get_config(f'{method},{_SIZE.value}')
  if _SOURCE.value:
    config.data.source = _SOURCE.value
  config.num_steps = STEPS
  config.num_seeds, config.mesh.data, config.log_every = 1, 1, 10
  return config


def _with_host(spec: run_spec.RunSpec, **fields: Any) -> run_spec.RunSpec:
  host = dataclasses.replace(spec.host, **fields)
  return dataclasses.replace(spec, host=host)


def line(
  us: Mapping[str, Sequence[float]],
  summary: Mapping[str, Any] | None,
  tokens: int,
) -> dict[str, Any]:
  """Returns the measurements of a case; None for what is not stored.

  Args:
    us: times of the sides.
    summary: summary of the stored targets.
    tokens: tokens of a step.

  Returns:
    The cells by column.
  """
  per_second = {
    side: tokens / statistics.median(times) * 1e6 for side, times in us.items()
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


def main(argv: list[str]) -> None:
  """Checks and times every case, and writes the table after each."""
  del argv
  jax.config.update('jax_platforms', 'cpu')
  config = make_config('extracted')
  header = HEADER.format(
    jax=jax.__version__,
    cpus=len(os.sched_getaffinity(0)),
    steps=STEPS,
    rows=config.batch_size,
    length=config.data.length,
  )
  layers = [f'block{i}' for i in range(config.student.depth)]
  rows: list[rounds.Row] = []
  lines: list[dict[str, Any]] = []
  for case in cases(layers):
    labels = dataclasses.asdict(case)
    sides, summary = make_sides(case, pathlib.Path(_WORKDIR.value))
    rtol = 1e-3 if case.dtype == 'float32' else 1e-2
    rounds.check(str(case), sides, rtol=rtol, atol=0)
    found = rounds.timed(labels, sides)
    rows += found
    tokens = config.batch_size * config.data.length
    lines.append(labels | line(rounds.times(found), summary, tokens))
    text = f'{header}\n\n{tables.markdown(lines)}'
    cli.write(pathlib.Path(rounds.OUT.value) / 'cache', text, rows)


if __name__ == '__main__':
  cli.run(main)
