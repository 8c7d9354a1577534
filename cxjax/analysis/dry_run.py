"""What every stage of a run would need, compiled for devices that are not here.

What is compiled is the program that a run dispatches, from shapes alone.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
import functools
import math
import re
import time
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp

from cxjax.analysis import hlo_cost
from cxjax.parallel import devices as devices_lib
from cxjax.parallel import mesh as mesh_lib
from cxjax.methods import stage_plan
from cxjax.training import compiled_steps
from cxjax.training import run_spec
from cxjax.methods import train_step
from cxjax import tables

LEGEND = """\
Memory is that of one device. Arguments are what a step is given, output what it
leaves elsewhere than in their place, beside what else the run holds meanwhile:
held-out batch, next rows, parameters of the teacher. Its evaluation and its
checkpoints are not counted.

Work is that of one step on one device. FLOPs over written: those of all devices
over those of the program as it is written; 1 is a perfect division. A step
takes at least as long as its FLOPs, its bytes from and to memory, or the bytes
it sends in rings, whichever is the longest at the full rate of the chip.
"""


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes of one device while a stage runs.

  Attributes:
    arguments: what the program is given.
    temporaries: what it needs on the way.
    output: what it returns and does not write in place of arguments.
    beside: what else the run holds.
  """

  arguments: float
  temporaries: float
  output: float
  beside: float

  @property
  def total(self) -> float:
    """All of it."""
    return self.arguments + self.temporaries + self.output + self.beside


@dataclasses.dataclass(frozen=True)
class Estimate:
  """What one stage would need.

  Attributes:
    run: 'teacher' or the method.
    stage: its name.
    steps: its length.
    devices: in the mesh.
    chip: one of them.
    memory: of one device; None where the compiler refused.
    cost: of one step on one device; None where the compiler refused.
    written: FLOPs of a step of all students, before it is compiled and parted.
    teacher_share: of those, what the teacher's forward takes.
    refused: bytes that the compiler needed, and those it had, if it refused.
  """

  run: str
  stage: str
  steps: int
  devices: int
  chip: devices_lib.Chip
  memory: Memory | None
  cost: hlo_cost.Cost | None
  written: float
  teacher_share: float
  refused: tuple[str, str] | None = None

  @property
  def misfit(self) -> str:
    """What does not fit, for people; '' where all does."""
    need, have = self.refused or ('', '')
    limit = self.chip.memory or math.inf
    if self.memory is not None and self.memory.total > limit:
      need, have = (human(n, 'B') for n in (self.memory.total, limit))
    return f'does not fit: {need} of {have}' if need else ''

  @property
  def seconds(self) -> dict[str, float]:
    """Of a step by what takes it, as far as the chip's rates are known."""
    if self.cost is None:
      return {}
    chip, cost = self.chip, self.cost
    rates = {
      'FLOPs': (cost.flops, chip.flops),
      'memory': (cost.moved, chip.bandwidth),
      'collectives': (cost.sent, chip.links),
    }
    return {name: n / rate for name, (n, rate) in rates.items() if rate}

  @property
  def bound(self) -> str | None:
    """What takes longest."""
    return max(self.seconds, key=self.seconds.__getitem__, default=None)

  @property
  def step_seconds(self) -> float | None:
    """Of a step, at least."""
    return self.seconds[self.bound] if self.bound else None

  @property
  def over_written(self) -> float | None:
    """FLOPs of all devices over those as written."""
    if self.cost is None:
      return None
    return self.cost.flops * self.devices / self.written


def estimate(run: str, spec: run_spec.RunSpec) -> list[Estimate]:
  """What every stage of a spec would need.

  Args:
    run: what it is called.
    spec: of shapes, as from `build.abstract`.

  Returns:
    One for each stage. Those that differ in nothing that is compiled, such as
    two checkpoints of a teacher, are compiled once.

  Raises:
    UserError: stages that do not fit the models.
  """
  programs = compiled_steps.CompiledSteps(spec)
  chip = devices_lib.chip(spec.mesh)
  analysed: dict[Any, Any] = {}
  found = []
  for planned in spec.costed(train_step.flops_as_written):
    stage = planned.stage
    if stage.objective not in analysed:
      analysed[stage.objective] = _analyse(spec, planned, programs)
    memory, cost, refused = analysed[stage.objective]
    teacher = spec.data_keys.shape[0] * (planned.teacher_flops or 0)
    written = teacher + spec.num_seeds * (planned.student_flops or 0)
    found.append(
      Estimate(
        run=run,
        stage=stage.name,
        steps=stage.steps,
        devices=spec.mesh.size,
        chip=chip,
        memory=memory,
        cost=cost,
        written=written,
        teacher_share=teacher / written,
        refused=refused,
      )
    )
  return found


def arguments(
  spec: run_spec.RunSpec, planned: stage_plan.StagePlan
) -> tuple[Any, ...]:
  """What `CompiledSteps.compile_advance` takes, as shapes that know where they lie.

  Args:
    spec: of arrays, or of shapes.
    planned: one of its stages.

  Returns:
    States, schedule, start, stop; the teacher's parameters, projections, keys
    and rows, or None for those that the stage does without.
  """
  mesh, (student, teacher) = spec.mesh, spec.rules
  parted = functools.partial(mesh_lib.abstract, mesh=mesh)
  whole = functools.partial(parted, rule='replicated')
  states = parted(spec.state_shapes(planned), rule=student, seeds=True)
  params = matrices = rows = None
  if planned.stage.needs_teacher:
    assert spec.teacher is not None
    params = parted(spec.teacher.params, rule=teacher)
  if planned.projection is not None:
    shape = (spec.num_seeds, *planned.projection)
    matrices = jax.ShapeDtypeStruct(shape, jnp.float32)
    matrices = parted(matrices, rule=student, seeds=True)
  if spec.feed is not None:
    rows = _chunk(spec)
  numbers = compiled_steps.numbers((1, 0), 0, spec.log_every)
  return states, *numbers, params, matrices, whole(spec.data_keys), rows


def _chunk(spec):
  """Rows of a dispatch, as `feed.Feed` brings them."""
  lead = (spec.log_every, spec.data_keys.shape[0])
  rows = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct((*lead, *leaf.shape), leaf.dtype),
    spec.rows,
  )
  return mesh_lib.abstract_rows(rows, spec.mesh)


def _analyse(spec, planned, programs):
  """Memory and cost of a stage, or what the compiler refused it for."""
  args, begin = arguments(spec, planned), time.perf_counter()
  try:
    # Not `set_mesh`: what is computed on the way has no device to be on.
    with jax.sharding.use_abstract_mesh(spec.mesh.abstract_mesh):
      compiled = programs.compile_advance(planned, *args)
  except jax.errors.JaxRuntimeError as error:
    # 'Used 20.01G of 15.75G hbm', or '(20.01G) exceeds available HBM (15.75G)'.
    sizes = re.findall(r'\b(\d[\d.]*[KMGT])\b', str(error))
    if 'RESOURCE_EXHAUSTED' not in str(error) or len(sizes) < 2:
      raise
    return None, None, tuple(sizes[:2])
  logging.info(
    'Compiled %s in %.0f s.', planned.stage.name, time.perf_counter() - begin
  )
  used = compiled.memory_analysis()
  memory = Memory(
    arguments=used.argument_size_in_bytes,
    temporaries=used.temp_size_in_bytes,
    output=used.output_size_in_bytes - used.alias_size_in_bytes,
    beside=_beside(spec, planned),
  )
  steps = spec.log_every
  turns = (steps / spec.blocks, spec.blocks)
  cost = hlo_cost.cost(compiled.as_text(), turns)
  return memory, hlo_cost.Cost().plus(cost, 1 / steps), None


def _beside(spec, planned) -> int:
  """Bytes that a run holds and does not give to the program of a stage."""
  whole = functools.partial(
    mesh_lib.abstract, mesh=spec.mesh, rule='replicated'
  )
  total = mesh_lib.held(whole(spec.held_out))
  if spec.feed is not None:
    total += mesh_lib.held(_chunk(spec))
  if spec.teacher is not None:
    params = mesh_lib.abstract(
      spec.teacher.params, spec.mesh, spec.rules[1]
    )
    # Every checkpoint that the run will need is loaded when it begins.
    needed = {stage.checkpoint for stage in spec.stages} | {None}
    others = len(needed) - planned.stage.needs_teacher
    total += others * mesh_lib.held(params)
  return total


def show(estimates: Iterable[Estimate]) -> str:
  """The estimates of one run as two tables, of memory and of work."""
  estimates = list(estimates)
  memory = tables.markdown(map(_memory_cells, estimates))
  return f'{memory}\n{tables.markdown(map(_work_cells, estimates))}'


def report(title: str, specs: Mapping[str, run_spec.RunSpec]) -> str:
  """The tables of several runs, and what their columns mean.

  Args:
    title: of the topology.
    specs: by what they are called, as from `build.abstract`.

  Returns:
    Markdown.

  Raises:
    UserError: stages that do not fit the models.
  """
  parts = []
  for run, spec in specs.items():
    heading = f'{run} on {title}: {mesh_lib.name_of(spec.mesh)}'
    parts += [heading, show(estimate(run, spec))]
  return '\n'.join([*('\n'.join((part, '')) for part in parts), LEGEND])


def _memory_cells(one: Estimate) -> dict[str, Any]:
  names = [field.name for field in dataclasses.fields(Memory)]
  cells: dict[str, Any] = dict.fromkeys([*names, 'total'])
  if one.memory is not None:
    cells = {name: human(getattr(one.memory, name), 'B') for name in cells}
  return {
    'stage': one.stage,
    **cells,
    'of': human(one.chip.memory, 'B'),
    'fits': one.misfit or (one.chip.memory and 'yes'),
  }


def _work_cells(one: Estimate) -> dict[str, Any]:
  cost = one.cost or hlo_cost.Cost(math.nan, math.nan, {}, math.nan)
  kinds = ', '.join(
    f'{kind} {human(size, "B")}'
    for kind, size in sorted(cost.collectives.items())
  )
  return {
    'stage': one.stage,
    'steps': one.steps,
    'FLOPs': human(cost.flops, ''),
    'over written': one.over_written and f'{one.over_written:.2f}',
    'moved': human(cost.moved, 'B'),
    'collectives': kinds or None,
    'sent': human(cost.sent, 'B'),
    'step at least': human(one.step_seconds, 's'),
    'bound by': one.bound,
    "teacher's share": human_share(one.teacher_share),
  }


def human_share(share: float) -> str | None:
  """Per cent; None of nothing."""
  return f'{share:.0%}' if share else None


def human(value: float | None, unit: str) -> str | None:
  """Three digits and a prefix: '1.06 T', '3.2 GB'; None if unknown."""
  if value is None or math.isnan(value):
    return None
  if value == 0:
    return f'0 {unit}'.strip()
  scale = 1e12
  for prefix in ('T', 'G', 'M', 'k', '', 'm', 'u'):
    if abs(value) >= 0.9995 * scale or prefix == 'u':
      break
    scale /= 1e3
  digits = value / scale
  text = f'{digits:.0f}' if digits >= 99.95 else f'{digits:.3g}'
  return f'{text} {prefix}{unit}'.strip()
