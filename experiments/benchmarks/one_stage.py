"""Students of this project in one stage, as the benchmarks time them."""

import dataclasses
import math
import time
from typing import Any

import jax
import numpy as np

from cxjax.configs import builders
from cxjax.training import compiled_steps
from cxjax.training import run_spec
from cxjax.training import teacher as teacher_lib


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

  @property
  def matrix(self) -> np.ndarray | None:
    """Projection of the first student in a stage of one term, or None."""
    return next(iter(self.matrices.values()), None)

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
  """Students of this project in one stage, a side of the benchmarks.

  Attributes:
    spec: the run.
    stage: the stage and its states.
    seeds: number of students.
    block: number of batches that the teacher sees at once.
    unit: number of steps of a dispatch.
    limit: maximal number of steps of a round.
  """

  limit = math.inf

  def __init__(self, spec: run_spec.RunSpec) -> None:
    """Initializes the students."""
    self.spec, self.stage = spec, OneStage(spec)
    self.seeds, self.block = spec.num_seeds, spec.lookahead_steps
    self.unit = spec.loop.log_every
    self._step = 0

  def _train(self, num_steps: int) -> np.ndarray:
    begin, self._step = self._step, self._step + num_steps
    return jax.device_get(self.stage.train(begin, self._step)['loss'])

  def losses(self, num_steps: int) -> list[float]:
    """Trains one step at a time; returns the losses of the first student."""
    return [float(self._train(1)[0]) for _ in range(num_steps)]

  def seconds(self, num_steps: int) -> float:
    """Trains `unit` steps at a time; returns the seconds that it took."""
    begin = time.perf_counter()
    for _ in range(num_steps // self.unit):
      self._train(self.unit)
    return time.perf_counter() - begin

  def program(self) -> str:
    """Returns XLA's text of the program of the steps."""
    (program,) = (
      found
      for name, found in self.stage.steps.programs.items()
      if name[0] == 'train_many_steps'
    )
    return program.as_text()  # type: ignore[attr-defined]

  @property
  def built(self) -> float:
    """Seconds that its programs took to compile."""
    return self.stage.steps.seconds


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
