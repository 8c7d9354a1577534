"""Dry runs: memory and work of every stage, on devices that are not attached.

The programs that a run dispatches are compiled from shapes alone.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
import math
import re
import time
from typing import Any

from absl import logging
import jax

from cxjax import tables
from cxjax.analysis import hlo_cost
from cxjax.methods import flops as flops_lib
from cxjax.methods import stage_plan
from cxjax.parallel import devices as devices_lib
from cxjax.parallel import mesh as mesh_lib
from cxjax.training import abstract
from cxjax.training import compiled_steps
from cxjax.training import run_spec

# Of gathers on a SparseCore (v5p and later) jaxlib cannot read the program.
READABLE = {'xla_tpu_offload_gather_to_sparsecore': False}
LEGEND = """\
Memory is that of one device. Arguments: inputs of a step. Temporaries: XLA's
estimate of what it needs meanwhile. Output: results that do not replace an
argument in place. Beside: other arrays of the run, which are the held-out
batch, the next examples and the teacher's parameters. Of: memory of the device.
Evaluation and checkpoints are not counted.

Work is that of one step on one device. Over written: FLOPs of all devices
divided by those of the program as written; 1 means that nothing is computed
twice. Moved: bytes from and to memory. Sent: bytes to other devices, in rings.
Step at least: the longest of the times that its FLOPs, moved and sent bytes
take at the full rate of the chip. Teacher's share: of the FLOPs.
"""


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes of one device while a stage runs.

  Attributes:
    arguments: bytes of the arguments of the program.
    temporaries: bytes of its temporaries, as XLA estimates them.
    output: bytes of its outputs that are not written in place of arguments.
    beside: bytes of the other arrays that the run holds.
  """

  arguments: float
  temporaries: float
  output: float
  beside: float

  @property
  def total(self) -> float:
    """Sum of the four."""
    return self.arguments + self.temporaries + self.output + self.beside


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Memory and work that one stage would need.

  Attributes:
    run: 'teacher' or the method.
    stage: name of the stage.
    steps: number of steps of the stage.
    devices: number of devices in the mesh.
    chip: kind of the devices.
    memory: memory of one device; None where the compiler refused.
    cost: cost of one step on one device; None where the compiler refused.
    written: FLOPs of a step of all students, before it is compiled and sharded.
    teacher_share: fraction of `written` that the teacher's forward pass takes.
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
  def memory_problem(self) -> str:
    """Text on the size that does not fit; empty where all fits."""
    need, have = self.refused or ('', '')
    limit = self.chip.memory or math.inf
    if self.memory is not None and self.memory.total > limit:
      need, have = (human(n, 'B') for n in (self.memory.total, limit))
    return f'does not fit: {need} of {have}' if need else ''

  @property
  def seconds(self) -> dict[str, float]:
    """Seconds of a step by their cause, where the chip's rates are known."""
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
    """The cause that takes longest."""
    return max(self.seconds, key=self.seconds.__getitem__, default=None)

  @property
  def step_seconds(self) -> float | None:
    """Lower bound on the seconds of a step."""
    return self.seconds[self.bound] if self.bound else None

  @property
  def over_written(self) -> float | None:
    """FLOPs of all devices over those of the program as written."""
    if self.cost is None:
      return None
    return self.cost.flops * self.devices / self.written


def estimate(run: str, spec: run_spec.RunSpec) -> list[Estimate]:
  """Estimates of every stage of a spec.

  Args:
    run: name of the run: 'teacher' or the method.
    spec: specification with shapes alone, as from `builders.abstract_specs`.

  Returns:
    One for each stage. Those that differ in nothing that is compiled, such as
    two checkpoints of a teacher, are compiled once.

  Raises:
    UserError: stages that do not fit the models.
  """
  mesh = spec.layout.mesh
  tpu = mesh.devices.flat[0].platform == 'tpu'
  programs = compiled_steps.CompiledSteps(spec, READABLE if tpu else None)
  chip = devices_lib.chip(mesh)
  analyzed: dict[Any, Any] = {}
  found = []
  for planned in spec.plan_with_costs(flops_lib.lowered):
    stage = planned.stage
    if stage.objective not in analyzed:
      analyzed[stage.objective] = _analyze(spec, planned, programs)
    memory, cost, refused = analyzed[stage.objective]
    teacher = spec.keys.data.shape[0] * (planned.teacher_flops or 0)
    written = teacher + spec.num_seeds * (planned.student_flops or 0)
    found.append(
      Estimate(
        run=run,
        stage=stage.name,
        steps=stage.steps,
        devices=mesh.size,
        chip=chip,
        memory=memory,
        cost=cost,
        written=written,
        teacher_share=teacher / written,
        refused=refused,
      )
    )
  return found


def _analyze(
  spec: run_spec.RunSpec,
  planned: stage_plan.StagePlan,
  programs: compiled_steps.CompiledSteps,
) -> tuple[Memory | None, hlo_cost.Cost | None, tuple[str, str] | None]:
  """Memory and cost of a stage, or the sizes for which XLA refused it."""
  args, begin = abstract.arguments(spec, planned), time.perf_counter()
  mesh = spec.layout.mesh
  try:
    # Not `set_mesh`: what is computed on the way has no device to be on.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      compiled = programs.compile_train_many_steps(planned, *args)
  except jax.errors.JaxRuntimeError as error:
    # 'Used 20.01G of 15.75G hbm', or '(20.01G) exceeds available HBM (15.75G)'.
    sizes = re.findall(r'\b(\d[\d.]*[KMGT])\b', str(error))
    if 'RESOURCE_EXHAUSTED' not in str(error) or len(sizes) < 2:
      raise
    return None, None, tuple(sizes[:2])
  logging.info(
    'Compiled %s in %.0f s.', planned.stage.name, time.perf_counter() - begin
  )
  used: Any = compiled.memory_analysis()
  memory = Memory(
    arguments=used.argument_size_in_bytes,
    temporaries=used.temp_size_in_bytes,
    output=used.output_size_in_bytes - used.alias_size_in_bytes,
    beside=_beside(spec, planned),
  )
  steps = spec.loop.log_every
  turns = (steps / spec.lookahead_steps, spec.lookahead_steps)
  cost = hlo_cost.cost(compiled.as_text() or '', turns)
  return memory, hlo_cost.Cost().plus(cost, 1 / steps), None


def _beside(spec: run_spec.RunSpec, planned: stage_plan.StagePlan) -> int:
  """Bytes that a run holds and does not pass to the program of a stage."""
  layout = spec.layout
  size = mesh_lib.bytes_per_device
  total = size(
    mesh_lib.abstract(spec.held_out, layout.mesh, mesh_lib.REPLICATED)
  )
  rows = abstract.rows(spec)
  if rows is not None:
    total += size(rows)
  if spec.teacher is not None:
    params = mesh_lib.abstract(spec.teacher.params, layout.mesh, layout.teacher)
    # Every checkpoint that the run will need is loaded when it begins.
    needed = {stage.checkpoint for stage in spec.stages} | {None}
    others = len(needed) - planned.stage.needs_teacher
    total += others * size(params)
  return total


def show(estimates: Iterable[Estimate]) -> str:
  """The estimates of one run as two tables, of memory and of work."""
  estimates = list(estimates)
  memory = tables.markdown(map(_memory_cells, estimates))
  return f'{memory}\n{tables.markdown(map(_work_cells, estimates))}'


def report(title: str, specs: Mapping[str, run_spec.RunSpec]) -> str:
  """The tables of several runs, and what their columns mean.

  Args:
    title: name of the topology.
    specs: specifications by the name of the run, as from
      `builders.abstract_specs`.

  Returns:
    Markdown.

  Raises:
    UserError: stages that do not fit the models.
  """
  parts = []
  for run, spec in specs.items():
    heading = f'{run} on {title}: {mesh_lib.describe(spec.layout.mesh)}'
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
    'fits': one.memory_problem or (one.chip.memory and 'yes'),
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
