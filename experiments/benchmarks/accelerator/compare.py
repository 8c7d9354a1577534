"""Steps of a student, here and in PyTorch, on the same device.

JAX runs in this process, PyTorch in another (torch_steps.py). Both have the
same batches, initial weights, projections and precision. The losses of the
first 100 steps must agree, or nothing is timed. Then the sides take turns.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import pathlib
import statistics
from typing import Any
from typing import TypeAlias

import jax
import ml_collections
import numpy as np

from cxjax import errors
from cxjax.configs import builders
from cxjax.methods import flops
from cxjax.training import run_spec
from experiments.benchmarks import one_stage
from experiments.benchmarks import rounds
from experiments.benchmarks.accelerator import kernels as kernels
from experiments.benchmarks.accelerator import peer as peer_lib

Row: TypeAlias = dict[str, Any]

REFERENCE = 'eager'  # The side of PyTorch that must agree with ours.
# Precision of JAX's products in float32, for each type of the computation.
PRECISION = {'float32': 'highest', 'bfloat16': 'default'}
# Largest difference of losses: relative, and relative to the first loss. In
# bfloat16 the sides round at other places.
TOLERANCE = {'float32': (1e-3, 1e-3), 'bfloat16': (0.05, 0.02)}


@dataclasses.dataclass(frozen=True)
class Size:
  """Sizes of a case.

  Attributes:
    teacher: fields of the teacher.
    student: fields of the student.
    batch: examples of a batch.
    data: fields of the task.
    drawn: batches that are drawn for PyTorch; its longest round.
  """

  teacher: Mapping[str, Any]
  student: Mapping[str, Any]
  batch: int
  data: Mapping[str, Any]
  drawn: int


@dataclasses.dataclass(frozen=True)
class Comparison:
  """A case: one stage of a config, here and in PyTorch.

  Attributes:
    name: name of the case.
    config: config of the method 'extracted'.
    stage: 'output' or 'hidden'.
    size: its sizes.
    compute: type of the computation.
    seeds: numbers of students that are trained at once, here.
    sides: the ways of PyTorch (accelerator/torch_steps.py).
    tiny: whether rounds are short.
  """

  name: str
  config: ml_collections.ConfigDict
  stage: str
  size: Size
  compute: str
  seeds: tuple[int, ...]
  sides: tuple[str, ...]
  tiny: bool

  def rows(self) -> Iterator[Row]:
    """Checks the losses, then yields the rounds and the table's rows."""
    with jax.default_matmul_precision(PRECISION[self.compute]):
      yield from self._rows()

  def _rows(self) -> Iterator[Row]:
    specs = {f'ours {n}': self._spec(n) for n in self.seeds}
    ours = {name: one_stage.Ours(spec) for name, spec in specs.items()}
    first, *_ = ours.values()
    with peer_lib.Peer(self._job(first)) as peer:
      # PyTorch compiles at the same time, in its process.
      peer.build(self.sides)
      needed = self._flops(first.spec)
      want = first.losses(rounds.CHECKED_STEPS)
      others = {name: side for name, side in ours.items() if side is not first}
      theirs = peer.built()
      differences, failed = self._check({**others, **theirs.sides}, want)
      sides = {n: side for n, side in theirs.sides.items() if n not in failed}
      sides = {**ours, **sides}
      turns = 2 if self.tiny else 5
      found = list(rounds.measure(sides, turns, tiny=self.tiny))
    for row in found:
      yield {'table': 'rounds', 'case': self.name, **row}
    yield from self._table(sides, found, differences, needed)
    if jax.default_backend() != 'cpu':
      yield from kernels.rows(first, first.program(), {'case': self.name})
    for name, error in {**theirs.failed, **failed}.items():
      yield {'table': 'steps', **self._labels(name), 'error': error}

  def _spec(self, num_seeds: int) -> run_spec.RunSpec:
    """Returns a run of the stage; its teacher is untrained."""
    c = self.config.copy_and_resolve_references()
    c.num_seeds = num_seeds
    experiment = builders.open_experiment(c, pathlib.Path())
    teacher = one_stage.untrained_teacher(experiment)
    spec = builders.student_spec(experiment, teacher)
    *hidden, output = spec.stages
    stage = output if self.stage == 'output' else hidden[len(hidden) // 2]
    return one_stage.one_stage_spec(spec, stage, 1_000_000)

  def _job(self, first: one_stage.Ours) -> dict[str, Any]:
    """Returns what PyTorch needs to know."""
    spec, stage = first.spec, first.stage
    assert spec.teacher is not None
    draw = jax.jit(jax.vmap(spec.batch, in_axes=(None, 0)))
    batch = draw(spec.keys.data[0], np.arange(self.size.drawn))
    (term,) = stage.stage_plan.stage.terms
    blocks = {'teacher': self.config.teacher, 'student': self.config.student}
    return {
      'task': self.config.task,
      'device': 'cpu' if jax.default_backend() == 'cpu' else 'cuda',
      'compute': self.compute,
      'learning_rate': self.config.optimizer.learning_rate,
      'ahead': spec.lookahead_steps,
      'blocks': {role: block.to_dict() for role, block in blocks.items()},
      'data': self.config.data.to_dict(),
      'params': {
        'teacher': jax.device_get(spec.teacher.params),
        'student': first.stage.first,
      },
      'layers': {'teacher': term.target, 'student': term.student},
      'matrix': stage.matrix,
      'batches': jax.device_get(batch),
    }

  def _flops(self, spec: run_spec.RunSpec) -> float | None:
    """Returns the FLOPs of a step; None for an MLP, which touches few."""
    if self.config.model == 'mlp':
      return None
    (planned,) = spec.plan_with_costs(flops.counted)
    return (planned.student_flops or 0.0) + (planned.teacher_flops or 0.0)

  def _check(
    self, sides: Mapping[str, Any], want: list[float]
  ) -> tuple[dict[str, float], dict[str, str]]:
    """Compares the losses of the first steps with ours.

    Args:
      sides: the other sides.
      want: our losses.

    Returns:
      The largest difference of each side that agrees, and the error of each
      faster way of PyTorch that does not: it is not timed.

    Raises:
      UserError: our own students differ, or those of the plain loop.
    """
    found, failed = {}, {}
    rtol, part = TOLERANCE[self.compute]
    atol = part * abs(want[0])
    for name, side in sides.items():
      try:
        got = side.losses(rounds.CHECKED_STEPS)
        found[name] = rounds.difference(got, want, rtol=rtol, atol=atol)
      except (errors.UserError, RuntimeError) as error:
        if isinstance(side, one_stage.Ours) or name == REFERENCE:
          raise errors.UserError(
            f'{name!r}: {error} Nothing was timed.'
          ) from error
        failed[name] = f'{error} It was not timed.'
    return found, failed

  def _labels(self, side: str) -> Row:
    return {'case': self.name, 'compute': self.compute, 'side': side}

  def _table(
    self,
    sides: Mapping[str, Any],
    found: list[Row],
    differences: Mapping[str, float],
    needed: float | None,
  ) -> Iterator[Row]:
    """Yields a row for each side."""
    us = rounds.times(found)
    tokens = self.size.batch * self.size.data.get('length', 1)
    for name, side in sides.items():
      median = statistics.median(us[name])
      yield {
        'table': 'steps',
        **self._labels(name),
        'us': median,
        'low': min(us[name]),
        'high': max(us[name]),
        'tokens/s': 1e6 * tokens / median,
        'times ours': rounds.ratio(us[name], us['ours 1']),
        'flops': needed if side.seeds == 1 else None,
        'difference': differences.get(name, 0.0),
        'build s': side.built,
      }
