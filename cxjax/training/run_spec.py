"""What a run does: a value, built from a config or by hand."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cxjax.methods import stage as stage_lib
from cxjax import errors
from cxjax.training import evaluation
from cxjax.data import loader
from cxjax.parallel import mesh as mesh_lib
from cxjax.methods import curricula
from cxjax.methods import stage_plan
from cxjax.methods import train_step

# Rows of the teacher's product that are worth gathering: more gain nothing and
# leave the cache (experiments/benchmarks/parity_mlp.py).
LOOKAHEAD_ROWS = 128
DROPOUT = 0x64726F70  # Parts its keys from those of the batch.
# Rows of an evaluation that are computed at once.
EVAL_ROWS = 32_768


def num_rows(x: train_step.Input) -> int:
  """Rows of a model's products for an input: examples, or tokens of all."""
  if isinstance(x, Mapping):
    x = x.get('tokens', x)
  x = jax.tree.leaves(x)[0]
  return x.shape[0] if jnp.issubdtype(x.dtype, jnp.inexact) else x.size


@dataclasses.dataclass(frozen=True)
class RunSpec:
  """Everything that a run does, config and files apart.

  Attributes:
    student: module with `apply(params, x)` and, without `start`, `init(key,
      x)`.
    stages: the curriculum.
    draw: `(key, step, batch_size) -> batch`, as in `cxjax.step`; with `rows`
      `(key, step, rows)`.
    held_out: the batch of the evaluation.
    init_keys: `[S]`, one per student.
    data_keys: `[S]`, or `[1]` for batches that all students share.
    stage_keys: `[S]`, of projections and readouts.
    batch_size: `B`.
    optimizer: `(length, offset) -> transformation`, of a schedule that spans so
      many steps, so many of which have passed.
    mesh: the devices.
    rules: how the student is parted over them, and the teacher; of
      `mesh.RULES`.
    log_every: steps to a row of metrics.
    eval_every: steps between evaluations, a multiple of log_every.
    save_every: steps between checkpoints, a multiple of log_every.
    save_minutes: after which to save as well; 0 is never.
    save_at: accuracies at which to save as well, when first reached.
    keep: how many checkpoints; 0 keeps all, and the untrained network.
    stop_at: accuracy that, once all seeds have it, ends the last stage.
    overrun: share of the steps so far to go on after that.
    lookahead: batches whose targets are computed at once; 0 chooses.
    microbatches: parts of a batch, computed one after the other.
    restart_schedule: at each stage; else one schedule for the run.
    carry_state: of the optimizer into the next stage.
    metrics: of every evaluation, as for `evaluation.evaluate`; by the first a
      run is stopped early, and its checkpoints are told apart.
    teacher_metrics: of the last one, against the teacher's output.
    start: `[S]` students in place of fresh ones.
    teacher: for stages that need one.
    feed: opens what the rows of the batches come from, if not from the keys.
    rows: shapes of the rows of one batch.
    period: steps after which the batches come again; 0 is never.
    absent: a teacher whose targets the feed brings; its parameters are shapes.
  """

  student: Any
  stages: stage_lib.Curriculum
  draw: Callable[..., train_step.Batch]
  held_out: train_step.Batch
  init_keys: jax.Array
  data_keys: jax.Array
  stage_keys: jax.Array
  batch_size: int
  optimizer: Callable[..., optax.GradientTransformation]
  mesh: jax.sharding.Mesh
  rules: tuple[str, str]
  log_every: int
  eval_every: int
  save_every: int
  save_minutes: float = 0.0
  save_at: tuple[float, ...] = ()
  keep: int = 3
  stop_at: float = 2.0
  overrun: float = 0.0
  lookahead: int = 0
  microbatches: int = 1
  restart_schedule: bool = True
  carry_state: bool = False
  metrics: evaluation.Metrics = dataclasses.field(
    default_factory=lambda: evaluation.LABEL_METRICS
  )
  teacher_metrics: evaluation.Metrics = dataclasses.field(
    default_factory=lambda: evaluation.TEACHER_METRICS
  )
  start: train_step.Params = None
  teacher: curricula.Teacher | None = None
  feed: Callable[[], loader.Ahead] | None = None
  rows: Any = None
  period: int = 0
  absent: curricula.Teacher | None = None

  def __post_init__(self):
    """Raises UserError for settings that cannot be."""
    self.optimizer()
    for rule in self.rules:
      mesh_lib.check(rule)
    for name in ('log_every', 'eval_every', 'save_every'):
      value = getattr(self, name)
      errors.require(value >= 1, f'{name}={value} must be at least 1.')
      errors.require(
        value % self.log_every == 0,
        f'{name}={value} must be a multiple of log_every={self.log_every}.',
      )
    errors.require(
      self.keep == 0 or self.keep >= 2,
      f'keep={self.keep} must be 0 (all) or at least 2, so that a damaged '
      'checkpoint has one before it.',
    )
    errors.require(
      0 <= self.lookahead <= self.log_every,
      f'lookahead={self.lookahead} must be from 0, which chooses, to '
      f'log_every={self.log_every}.',
    )
    errors.require(
      self.microbatches >= 1 and self.batch_size % self.microbatches == 0,
      f'microbatches={self.microbatches} must divide the batch_size='
      f'{self.batch_size}.',
    )

  @property
  def num_seeds(self) -> int:
    """`S`."""
    return self.init_keys.shape[0]

  @property
  def ends(self) -> tuple[int, ...]:
    """The step at which each stage ends."""
    return tuple(itertools.accumulate(stage.steps for stage in self.stages))

  @property
  def batch(self) -> Callable[..., train_step.Batch]:
    """`(key, step, rows) -> batch`; dropout is new in every epoch."""

    def draw(key, at, rows=None):
      source = self.batch_size if self.rows is None else rows
      number = at % self.period if self.period else at
      batch = self.draw(key, number, source)
      if not getattr(self.student, 'dropout', 0):
        return batch
      x = batch['x']
      x = x if isinstance(x, Mapping) else {'tokens': x}
      key = jax.random.fold_in(jax.random.fold_in(key, at), DROPOUT)
      keys = jax.random.split(key, self.batch_size)
      return {**batch, 'x': {**x, 'dropout': keys}}

    return draw

  @property
  def length(self) -> int:
    """Tokens of an example, padding included; 1 for a vector."""
    return num_rows(self.held_out['x']) // _examples(self.held_out)

  @property
  def blocks(self) -> int:
    """Batches whose targets are computed in one product, `K`."""
    total = self.batch_size * self.data_keys.shape[0] * self.length
    most = max(int(LOOKAHEAD_ROWS // total), 1)
    # A block that a logging step parts is computed twice.
    whole = (k for k in range(1, most + 1) if self.log_every % k == 0)
    return self.lookahead or max(whole)

  @property
  def eval_parts(self) -> int:
    """Parts of the held-out batch that are computed one after the other."""
    examples = _examples(self.held_out)
    fewest = -(-num_rows(self.held_out['x']) // EVAL_ROWS)
    parts = range(min(fewest, examples), examples + 1)
    return next(n for n in parts if examples % n == 0)

  @property
  def student_shapes(self) -> train_step.Params:
    """Shapes of one student's parameters."""
    if self.start is not None:
      return jax.eval_shape(
        lambda params: jax.tree.map(lambda leaf: leaf[0], params), self.start
      )
    return jax.eval_shape(
      self.student.init, jax.random.key(0), self.held_out['x']
    )

  def enter(self, planned: stage_plan.StagePlan) -> Callable[..., train_step.State]:
    """`(key, params) -> State` of one student, for the start of a stage."""
    return functools.partial(
      train_step.init_stage,
      stage=planned.stage,
      shape=planned.readout,
      tx=self.optimizer(),
      mask=planned.mask,
    )

  def state_shapes(self, planned: stage_plan.StagePlan) -> train_step.State:
    """Shapes of the states of all seeds in a stage."""
    one = jax.eval_shape(
      self.enter(planned), jax.random.key(0), self.student_shapes
    )
    return jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(
        (self.num_seeds, *leaf.shape), leaf.dtype
      ),
      one,
    )

  def planned(self) -> list[stage_plan.StagePlan]:
    """The stages with their shapes; raises UserError where they do not fit."""
    batch, models = self._shapes()
    return [stage_plan.plan_stage(stage, batch, *models) for stage in self.stages]

  def costed(
    self, flops: Callable[..., float] = train_step.flops
  ) -> list[stage_plan.StagePlan]:
    """The stages with their shapes and their costs, by default as compiled."""
    batch, models = self._shapes()
    tx = self.optimizer()
    costed: dict[stage_lib.Stage, stage_plan.StagePlan] = {}
    planned = self.planned()
    for one in planned:
      if one.stage.objective not in costed:
        costed[one.stage.objective] = stage_plan.with_costs(
          one,
          batch,
          tx,
          *models,
          flops=flops,
          stored=self.absent is not None,
        )
    return [
      dataclasses.replace(costed[one.stage.objective], stage=one.stage)
      for one in planned
    ]

  def target_flops(self, planned: stage_plan.StagePlan) -> float:
    """FLOPs of the targets of one batch, as compiled."""
    batch, (_, _, *teacher) = self._shapes()
    return stage_plan.target_flops(planned, batch, *teacher)

  def _shapes(self):
    batch = jax.eval_shape(self.batch, jax.random.key(0), 0, self.rows)
    models = (self.student.apply, self.student_shapes)
    teacher = self.teacher or self.absent
    if teacher is not None:
      params = jax.eval_shape(lambda params: params, teacher.params)
      models += (teacher.apply, params)
    return batch, models


def _examples(batch):
  return batch['y'].shape[0]
