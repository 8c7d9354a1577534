"""The specification of a run: a value, built from a config or by hand."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cxjax import errors
from cxjax import types
from cxjax.data import loader as loader_lib
from cxjax.methods import flops as flops_lib
from cxjax.methods import stage as stage_lib
from cxjax.methods import stage_plan
from cxjax.methods import train_step
from cxjax.methods import training_mode
from cxjax.models import master_weights
from cxjax.models import modes
from cxjax.parallel import mesh as mesh_lib
from cxjax.training import evaluation
from cxjax.training import loop as loop_lib
from cxjax.training import metrics as metrics_lib
from cxjax.training import teacher as teacher_lib

# Rows of the teacher's product that are worth gathering: more gain nothing and
# leave the cache (experiments/benchmarks/parity_mlp.py).
LOOKAHEAD_ROWS = 128
DROPOUT = 0x64726F70  # Domain separator for dropout keys.


def num_rows(x: types.Input) -> int:
  """Rows of a model's products for an input: examples, or all their tokens."""
  if isinstance(x, Mapping):
    x = x.get('tokens', x)
  x = jax.tree.leaves(x)[0]
  return x.shape[0] if jnp.issubdtype(x.dtype, jnp.inexact) else x.size


@dataclasses.dataclass(frozen=True)
class Layout:
  """The devices of a run, and how its parameters are sharded over them.

  Attributes:
    mesh: the devices.
    student: how the parameters of the students are sharded.
    teacher: how those of the teacher are.
  """

  mesh: jax.sharding.Mesh
  student: mesh_lib.ParameterSharding = mesh_lib.REPLICATED
  teacher: mesh_lib.ParameterSharding = mesh_lib.REPLICATED


Loop = loop_lib.Loop


@dataclasses.dataclass(frozen=True)
class Keys:
  """PRNG keys of a run.

  Attributes:
    init: `[S]`, one for each student.
    data: `[S]`, or `[1]` for batches that all students share.
    stage: `[S]`, of projections and regressors.
  """

  init: jax.Array
  data: jax.Array
  stage: jax.Array


@dataclasses.dataclass(frozen=True)
class HostData:
  """The rows that the batches of a run are made of, if the host reads them.

  Attributes:
    loader: opens the prefetching reader; None where batches need only keys.
    rows: shapes of the rows of one batch.
    period: steps after which the batches come again; 0 is never.
    fit_on: rows of the batches to fit projections on; () is the first ones.
  """

  loader: Callable[[], loader_lib.Prefetch] | None = None
  rows: Any = None
  period: int = 0
  fit_on: tuple[Any, ...] = ()


Start = tuple[types.Params, ...]


@dataclasses.dataclass(frozen=True)
class RunSpec:
  """Specification of a run: everything but its files.

  Attributes:
    student: a model with `apply(params, x)` and, without `start`, `init(key,
      x)`; with `training(params, x, key)` if it has a training mode.
    stages: the curriculum.
    draw: `(key, step, batch_size) -> batch`, as in `cxjax.types`; where the
      host reads rows, `(key, step, rows)`.
    held_out: the batch of the evaluation; without 'y' its metrics compare with
      the teacher's output, which is computed with them.
    keys: PRNG keys.
    batch_size: `B`.
    optimizer: `(length, offset) -> transformation`, of a schedule that spans so
      many steps, so many of which have passed.
    layout: where the arrays lie.
    loop: when the run logs, evaluates, saves and ends.
    metrics: the held-out metrics, by name.
    primary: name of the metric that decides when the run saves and ends.
    teacher_metrics: metrics of the last evaluation, against the teacher.
    host: rows that the batches are made of, where the host reads them.
    teacher: the teacher, for stages that need one.
    start: the students in place of fresh ones, a tree for each, or a function
      that makes trees like those of `init`, called when the run begins. Their
      parameters are kept in float32 where they have less.
    lookahead: batches whose targets are computed at once; 0 chooses.
    microbatches: parts of a batch, computed one after the other.
    restart_schedule: restart the schedule at each stage; else it spans the run.
    carry_state: carry the state of the optimizer into the next stage.
    trainable: which parameters are trained, as of `masks.path_mask`; '' is all.
    plan_costs: gives the stages with their FLOPs; None compiles them.
  """

  student: Any
  stages: stage_lib.Curriculum
  draw: Callable[..., types.Batch]
  held_out: types.Batch
  keys: Keys
  batch_size: int
  optimizer: Callable[..., optax.GradientTransformation]
  layout: Layout
  loop: Loop
  metrics: Mapping[str, metrics_lib.Metric]
  primary: str
  teacher_metrics: Mapping[str, metrics_lib.Metric] = dataclasses.field(
    default_factory=dict
  )
  host: HostData = HostData()
  teacher: teacher_lib.Teacher | None = None
  start: Start | Callable[[], Start] | None = None
  lookahead: int = 0
  microbatches: int = 1
  restart_schedule: bool = True
  carry_state: bool = False
  trainable: Any = ''
  plan_costs: Callable[['RunSpec'], list[stage_plan.StagePlan]] | None = None

  def __post_init__(self) -> None:
    """Raises UserError for settings that do not fit each other."""
    self.optimizer()
    errors.lookup('primary metric', self.primary, self.metrics)
    loop_lib.check_keep_best(self.loop, self.metrics)
    self._check_save_at()
    loop_lib.check_patience(self.stages, self.loop)
    log_every = self.loop.log_every
    errors.require(
      0 <= self.lookahead <= log_every,
      f'lookahead={self.lookahead} must be from 0, which chooses, to '
      f'log_every={log_every}.',
    )
    errors.require(
      self.microbatches >= 1 and self.batch_size % self.microbatches == 0,
      f'microbatches={self.microbatches} must divide the batch_size='
      f'{self.batch_size}.',
    )

  def _check_save_at(self) -> None:
    """Raises UserError for scores that were meant for another metric."""
    scores, better = self.loop.save_at, self.primary_metric.better
    errors.require(
      not any(better(a, b) for a, b in itertools.pairwise(scores)),
      f'save_at={tuple(scores)} must go from worse to better values of '
      f'{self.primary!r}, which is better when '
      f'{"higher" if self.primary_metric.higher_is_better else "lower"}. Set '
      'save_at, and stop_at with it.',
    )

  @property
  def num_seeds(self) -> int:
    """Number of students trained at once, `S`."""
    return self.keys.init.shape[0]

  @property
  def primary_metric(self) -> metrics_lib.Metric:
    """The metric that decides when the run saves and ends."""
    return self.metrics[self.primary]

  @property
  def ends(self) -> tuple[int, ...]:
    """The step at which each stage ends."""
    return tuple(itertools.accumulate(stage.steps for stage in self.stages))

  def schedule(self, stage: int) -> tuple[int, int]:
    """Steps of the schedule that a stage is part of, and those before it."""
    if self.restart_schedule:
      return self.stages[stage].steps, 0
    return self.ends[-1], (0, *self.ends)[stage]

  def learning_rate(
    self, stage: int, step: int, out: Mapping[str, Any]
  ) -> dict[str, Any]:
    """The learning rate of an update, for its record.

    Args:
      stage: number of its stage.
      step: number of updates so far, with this one.
      out: output of the program that ends with it, with 'learning_rate' `[S]`
        if the state of a user's optimizer tells.

    Returns:
      'learning_rate', a number or one for each student; empty if nothing tells.
    """
    rate = getattr(self.optimizer, 'rate', None)
    if rate is None:
      name = 'learning_rate'
      return {name: float(out[name][0])} if name in out else {}
    length, before = self.schedule(stage)
    begin = (0, *self.ends)[stage]
    return {'learning_rate': rate(before + step - 1 - begin, length)}

  @property
  def stored_targets(self) -> bool:
    """True if the targets come from a cache instead of the teacher."""
    return self.teacher is not None and not self.teacher.is_run

  @property
  def dropout(self) -> float:
    """Dropout rate of the student."""
    abilities = getattr(self.student, 'abilities', None)
    return (abilities and abilities.dropout) or 0.0

  @property
  def training(self) -> types.Training | None:
    """The student in training mode, if it has one."""
    return training_mode.of_model(self.student)

  @property
  def teacher_apply(self) -> types.Apply:
    """The teacher as it reads the batches of the run.

    With dropout keys for the student an array comes as `{'tokens': x}`, which
    the teacher may not know.
    """
    assert self.teacher is not None
    apply = self.teacher.apply
    if not self.dropout or isinstance(self.held_out['x'], Mapping):
      return apply
    return lambda params, x: apply(
      params, x['tokens'] if isinstance(x, Mapping) else x
    )

  def batch(self, key: jax.Array, at: Any, rows: Any = None) -> types.Batch:
    """The batch of a step; the dropout keys of each student replace its own."""
    source = self.batch_size if self.host.rows is None else rows
    number = at % self.host.period if self.host.period else at
    batch = self.draw(key, number, source)
    if not self.dropout:
      return batch
    x = batch['x']
    x = x if isinstance(x, Mapping) else {'tokens': x}
    key = jax.random.fold_in(jax.random.fold_in(key, at), DROPOUT)
    keys = jax.random.split(key, self.batch_size)
    return {**batch, 'x': {**x, 'dropout': keys}}

  @property
  def length(self) -> int:
    """Tokens of an example, padding included; 1 for a vector."""
    return num_rows(self.held_out['x']) // self.num_held_out

  @property
  def num_held_out(self) -> int:
    """Number of examples of the held-out set."""
    return jax.tree.leaves(self.held_out['x'])[0].shape[0]

  @property
  def lookahead_steps(self) -> int:
    """Batches whose targets are computed in one product, `K`."""
    total = self.batch_size * self.keys.data.shape[0] * self.length
    most = max(int(LOOKAHEAD_ROWS // total), 1)
    # A block that a logging step divides is computed twice.
    log_every = self.loop.log_every
    divisors = (k for k in range(1, most + 1) if log_every % k == 0)
    return self.lookahead or max(divisors)

  @functools.cached_property
  def student_shapes(self) -> types.Params:
    """Shapes of one student's parameters."""
    if isinstance(self.start, tuple):
      return jax.eval_shape(master_weights.masters, self.start[0])
    return jax.eval_shape(
      self.student.init, jax.random.key(0), self.held_out['x']
    )

  def initial_students(self) -> Start | None:
    """The students that the run begins with; None for fresh ones."""
    return self.start() if callable(self.start) else self.start

  def init_stage(
    self, planned: stage_plan.StagePlan
  ) -> Callable[..., train_step.State]:
    """`(key, params) -> State` of one student, for the start of a stage."""
    return functools.partial(
      train_step.init_stage,
      stage=planned.stage,
      shapes=planned.regressors,
      tx=self.optimizer(),
      mask=planned.mask,
    )

  def state_shapes(self, planned: stage_plan.StagePlan) -> train_step.State:
    """Shapes of the states of all seeds in a stage."""
    one = jax.eval_shape(
      self.init_stage(planned), jax.random.key(0), self.student_shapes
    )
    return jax.tree.map(
      lambda leaf: types.shape_struct(
        (self.num_seeds, *leaf.shape), leaf.dtype
      ),
      one,
    )

  def plan(self) -> list[stage_plan.StagePlan]:
    """The stages with their shapes; raises UserError where they do not fit."""
    return list(self._stage_plans)

  @functools.cached_property
  def _stage_plans(self) -> list[stage_plan.StagePlan]:
    batch, models, training = self._traced
    self._check_metrics()
    return [
      stage_plan.plan_stage(
        stage, batch, *models, trainable=self.trainable, training=training
      )
      for stage in self.stages
    ]

  def plan_with_costs(
    self, flops: Callable[..., float] = flops_lib.compiled
  ) -> list[stage_plan.StagePlan]:
    """The stages with their shapes and their costs, by default as compiled."""
    batch, models, training = self._traced
    found: dict[stage_lib.Stage, stage_plan.StagePlan] = {}
    plans = self.plan()
    for planned in plans:
      if planned.stage.objective not in found:
        found[planned.stage.objective] = stage_plan.with_costs(
          planned,
          batch,
          self.optimizer(),
          *models,
          flops=flops,
          stored=self.stored_targets,
          training=training,
        )
    return [
      dataclasses.replace(found[one.stage.objective], stage=one.stage)
      for one in plans
    ]

  def target_flops(self, planned: stage_plan.StagePlan) -> float:
    """FLOPs of the targets of one batch, as compiled."""
    batch, (_, _, *teacher) = self._shapes
    return stage_plan.target_flops(planned, batch, *teacher)

  def _check_metrics(self) -> None:
    """Raises UserError for a metric that does not fit the held-out set."""
    one = functools.partial(
      evaluation.evaluate, apply=self.student.apply, metrics=self.metrics
    )
    if 'y' in self.held_out:
      jax.eval_shape(one, self.student_shapes, self.held_out)

  @functools.cached_property
  def _traced(self) -> tuple[types.Batch, tuple[Any, ...], Any]:
    """A batch and the models as of `_shapes`, and the student in training mode.

    All stages share one trace of each function.
    """
    batch, models = self._shapes
    once = lambda value: modes.traced_once(value) if callable(value) else value
    return batch, tuple(map(once, models)), once(self.training)

  @functools.cached_property
  def _shapes(self) -> tuple[types.Batch, tuple[Any, ...]]:
    """Shapes of a batch, and the models with the shapes of their parameters."""
    batch = jax.eval_shape(self.batch, jax.random.key(0), 0, self.host.rows)
    models = (self.student.apply, self.student_shapes)
    if self.teacher is not None:
      params = jax.eval_shape(lambda params: params, self.teacher.params)
      models += (self.teacher_apply, params)
    return batch, models
