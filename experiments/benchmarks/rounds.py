"""Shared parts of the benchmarks: our side, checks, rounds and ratios.

A side trains students one way. Each benchmark compares several sides, which
take turns, so that other work on the machine slows all of them.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import importlib.util
import math
import os
import statistics
import time
from typing import Any
from typing import Protocol
from typing import TypeAlias

from absl import flags
import jax
import numpy as np

from cxjax import errors
from cxjax.configs import builders
from cxjax.training import compiled_steps
from cxjax.training import run_spec
from cxjax.training import teacher as teacher_lib
from experiments.benchmarks import machine

ROUNDS = flags.DEFINE_integer('rounds', 5, 'Rounds of each side.', 1)
OUT = flags.DEFINE_string(
  'out', 'experiments/results/benchmark', 'Folder of the results.'
)
CHECKED_STEPS = 100
ROUND_SECONDS = 0.4  # Minimum.
Row: TypeAlias = dict[str, Any]


class Side(Protocol):
  """One way to train students.

  Attributes:
    seeds: number of students at once.
    block: number of batches that the teacher sees at once.
    unit: number of steps of which a round is a multiple.
    limit: maximal number of steps of a round.
  """

  seeds: int
  block: int
  unit: int
  limit: float

  def losses(self, num_steps: int) -> Any:
    """Trains; returns the losses of the first student, in order."""

  def run(self, num_steps: int) -> Any:
    """Trains, to be timed."""


def begin() -> None:
  """Chooses the CPU.

  Raises:
    UserError: PyTorch is not installed.
  """
  errors.require(
    importlib.util.find_spec('torch') is not None,
    "Run pip install 'torch>=2.13': this needs PyTorch.",
  )
  jax.config.update('jax_platforms', 'cpu')


def untrained_teacher(experiment: builders.Experiment) -> teacher_lib.Teacher:
  """Returns a teacher with initial parameters; its steps cost the same."""
  model = experiment.model('teacher')
  init = jax.jit(model.init)
  return teacher_lib.Teacher(
    apply=model.apply,
    params=init(jax.random.key(1), experiment.held_out['x']),
    layers=model.layers,
  )


class OneStage:
  """Students in one stage, trained by the programs of the training loop.

  Attributes:
    stage_plan: the stage with its shapes.
    first: parameters of the first student before its first step.
    matrices: projections of the first student, by term.
    states: states of all students.
  """

  def __init__(
    self, spec: run_spec.RunSpec, index: int = 0, params: Any = None
  ) -> None:
    """Begins a stage.

    Args:
      spec: the run.
      index: number of the stage.
      params: students to begin with, which are donated; None for fresh ones.
    """
    self.stage_plan = spec.plan()[index]
    self.steps = compiled_steps.CompiledSteps(spec)
    self._spec, self._index = spec, index
    stage = self.stage_plan.stage
    with jax.set_mesh(spec.layout.mesh):
      matrices = self.steps.matrices(self.stage_plan, index)
      if params is None:
        params = self.steps.init(spec.keys.init)
      self.first, self.matrices = jax.device_get(
        jax.tree.map(lambda leaf: leaf[0], (params, matrices or {}))
      )
      keys = self.steps.keys(spec.keys.stage, 2 * index + 1)
      self.states = self.steps.init_stage(self.stage_plan, keys, params)
    teacher = None
    if stage.needs_teacher and spec.teacher and spec.teacher.available:
      teacher = self.steps.place_teacher(spec.teacher.at(stage.checkpoint))
    self._constant = (teacher, matrices, spec.keys.data)

  def train(
    self, start: int, stop: int, rows: Any = None, targets: Any = None
  ) -> dict[str, Any]:
    """Trains from step `start` to `stop`.

    Args:
      start: first step.
      stop: one past the last step.
      rows: rows that the batches are made of, where the host reads them.
      targets: stored targets, in place of the teacher's.

    Returns:
      Sums of the losses, not waited for.
    """
    begin, length = (
      (0, *self._spec.ends)[self._index],
      self.stage_plan.stage.steps,
    )
    with jax.set_mesh(self._spec.layout.mesh):
      self.states, out = self.steps.train_many_steps(
        self.stage_plan,
        (length, 0),
        (begin, length),
        self.states,
        start,
        stop,
        *self._constant,
        rows,
        targets,
      )
    return out


class Ours:
  """Students of this project in the only stage of a run.

  Attributes:
    first: parameters of the first student before its first step.
    matrix: projection of its target, or None.
  """

  limit = math.inf

  def __init__(self, spec: run_spec.RunSpec) -> None:
    """Initializes the students."""
    self.seeds, self.block = spec.num_seeds, spec.lookahead_steps
    self.unit = spec.loop.log_every
    self._stage = OneStage(spec)
    self.first = self._stage.first
    self.matrix = next(iter(self._stage.matrices.values()), None)
    self._step = 0

  def _train(self, num_steps: int) -> np.ndarray:
    begin, self._step = self._step, self._step + num_steps
    return jax.device_get(self._stage.train(begin, self._step)['loss'])

  def losses(self, num_steps: int) -> list[float]:
    """Trains one step at a time; returns the losses of the first student."""
    return [self._train(1)[0] for _ in range(num_steps)]

  def run(self, num_steps: int) -> None:
    """Trains `unit` steps at a time."""
    for _ in range(num_steps // self.unit):
      self._train(self.unit)


def one_stage_spec(
  spec: run_spec.RunSpec, stage: Any, num_steps: int | None = None
) -> run_spec.RunSpec:
  """Returns a run of one stage of another run.

  Args:
    spec: the run.
    stage: the stage.
    num_steps: length of the stage; None keeps it.

  Returns:
    The run.
  """
  steps = num_steps or stage.steps
  stage = dataclasses.replace(stage, steps=steps)
  return dataclasses.replace(spec, stages=(stage,))


def check(
  name: str, sides: Mapping[str, Side], *, rtol: float, atol: float
) -> None:
  """Checks that the losses of the first steps agree.

  Args:
    name: name of what is timed, for the message.
    sides: the sides before their first step; the first is the reference.
    rtol: allowed relative difference.
    atol: allowed absolute difference on top.

  Raises:
    UserError: the losses differ.
  """
  (first, side), *others = sides.items()
  want = np.array(side.losses(CHECKED_STEPS))
  for other, side in others:
    got = np.array(side.losses(CHECKED_STEPS))
    bad = ~np.isclose(got, want, rtol=rtol, atol=atol)
    at = bad.argmax()
    errors.require(
      not bad.any(),
      f'{name}: the losses differ at step {at}: {want[at]} of {first!r}, '
      f'{got[at]} of {other!r}. Nothing was timed.',
    )


def _seconds(side: Side, num_steps: int) -> float:
  begin = time.perf_counter()
  side.run(num_steps)
  return time.perf_counter() - begin


def choose_steps(side: Side) -> int:
  """Returns the number of steps of a round; also warms up."""
  steps = side.unit
  while _seconds(side, steps) < ROUND_SECONDS and 2 * steps <= side.limit:
    steps *= 2
  return steps


def measure(labels: Mapping[str, Any], sides: Mapping[str, Side]) -> list[Row]:
  """Times all sides in turns.

  Args:
    labels: first columns of every row.
    sides: the sides by name.

  Returns:
    A row for each round and side; 'us' is microseconds of one student's step.
  """
  steps = {name: choose_steps(side) for name, side in sides.items()}
  rows = []
  for turn in range(ROUNDS.value):
    for name, side in sides.items():
      seconds = _seconds(side, steps[name])
      rows.append(
        {
          **labels,
          'side': name,
          'seeds': side.seeds,
          'lookahead': side.block,
          'round': turn,
          'steps': steps[name],
          'seconds': seconds,
          'us': 1e6 * seconds / steps[name] / side.seeds,
        }
      )
  return rows


def times(rows: Sequence[Row]) -> dict[str, list[float]]:
  """Returns the 'us' of every round by side."""
  us: dict[str, list[float]] = {}
  for row in rows:
    us.setdefault(row['side'], []).append(row['us'])
  return us


def spread(times: Sequence[float] | None) -> str | None:
  """Returns median and range as text; None for None."""
  if times is None:
    return None
  median, low, high = (
    f'{t:,.0f}' if t >= 100 else f'{t:.3g}'
    for t in (statistics.median(times), min(times), max(times))
  )
  return f'{median} ({low}..{high})'


def ratio(theirs: Sequence[float] | None, ours: Sequence[float]) -> str | None:
  """Returns the ratio of the medians and the median of the ratios as text.

  Args:
    theirs: times of the rounds; None if the side was left out.
    ours: times of the rounds of the other side.

  Returns:
    The text; None for None.
  """
  if theirs is None:
    return None
  of_medians = statistics.median(theirs) / statistics.median(ours)
  each = [a / b for a, b in zip(theirs, ours, strict=True)]
  return f'{of_medians:.3g} ({statistics.median(each):.3g})'


def describe() -> str:
  """Returns the versions, the machine and a legend of the table."""
  import torch  # noqa: PLC0415 It is slow to import, and no requirement.

  return (
    f'jax {jax.__version__}, torch {torch.__version__} with '
    f'{torch.get_num_threads()} threads, {os.cpu_count()} CPUs, '
    f'{jax.device_count()} devices of JAX, {machine.busy_cores():.1f} cores '
    'busy with others.\n\n'
    'Microseconds of one step of one student: median (min..max) of the rounds. '
    'Ratio of the medians (median of the ratios of the rounds).\n\n'
  )
