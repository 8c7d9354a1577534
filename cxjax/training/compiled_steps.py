"""The compiled programs of a run, each compiled once."""

from collections.abc import Callable
from collections.abc import Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cxjax import types
from cxjax.methods import fitted
from cxjax.methods import output_split
from cxjax.methods import projections
from cxjax.methods import stage_plan
from cxjax.methods import stored_output
from cxjax.methods import targets as targets_lib
from cxjax.methods import train_step
from cxjax.models import master_weights
from cxjax.parallel import joint_gradients
from cxjax.parallel import mesh as mesh_lib
from cxjax.training import abstract
from cxjax.training import batch_targets
from cxjax.training import evaluation
from cxjax.training import fitting
from cxjax.training import metrics as metrics_lib
from cxjax.training import multi_step
from cxjax.training import optimizers
from cxjax.training import output_memory
from cxjax.training import programs
from cxjax.training import run_spec
from cxjax.training import teacher_head

Matrices = dict[str, jax.Array]


class CompiledSteps:
  """Compiles the programs of a run when first called, and counts the time.

  The program of a stage is found by its objective: another checkpoint of the
  teacher, another length or another place in the run compiles nothing. The one
  place where the arguments of a step are assembled: the loop, the dry run, the
  cache of targets and the benchmarks use it alike.
  """

  def __init__(
    self, spec: run_spec.RunSpec, options: Mapping[str, Any] | None = None
  ) -> None:
    """Compiles nothing yet; `options` are those of XLA's compiler."""
    self._spec = spec
    layout = spec.layout
    self._student = mesh_lib.gathered(spec.student.apply, layout.student)
    self._training: types.Training | None = None
    if spec.training is not None:
      self._training = mesh_lib.gathered(spec.training, layout.student)
    self._teacher: types.Apply | None = None
    if spec.teacher is not None and spec.teacher.available:
      self._teacher = mesh_lib.gathered(spec.teacher_apply, layout.teacher)
    self._by_example = joint_gradients.fit(spec.student, layout.mesh)
    self._pools: fitting.Pools = {}
    self._programs = programs.Programs(options)
    self._call = self._programs.call

  def __len__(self) -> int:
    """Number of programs that were compiled."""
    return len(self._programs.compiled)

  @property
  def programs(self) -> Mapping[Any, Callable[..., Any]]:
    """The programs that were compiled, by name."""
    return self._programs.compiled

  @property
  def seconds(self) -> float:
    """Seconds in which the run waited for compilation."""
    return self._programs.seconds

  def _sharded(self, tree: Any) -> Any:
    """Shards `[S]` student arrays by the student's sharding."""
    layout = self._spec.layout
    return mesh_lib.constrain(tree, layout.mesh, layout.student, seeds=True)

  def place_teacher(self, params: types.Params) -> types.Params:
    """Parameters of the teacher, on the devices."""
    layout = self._spec.layout
    return mesh_lib.place(params, layout.mesh, layout.teacher)

  def stage_teacher(self, planned: stage_plan.StagePlan) -> types.Params:
    """Parameters of the teacher that a stage runs, on the devices, or None.

    With stored targets it runs the head at most, and has its weights alone.
    """
    teacher, stage = self._spec.teacher, planned.stage
    if teacher is None or not stage.needs_teacher:
      return None
    if self._spec.stored_targets:
      if teacher.heads is None or not stored_output.terms(stage):
        return None
      return teacher_head.place(self._spec, teacher.heads(stage.checkpoint))
    return self.place_teacher(teacher.at(stage.checkpoint))

  def keys(self, keys: jax.Array, number: int) -> jax.Array:
    """`[S]` keys for the purpose `number`, from `[S]` keys."""
    fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))
    return self._call('keys', fold, keys, np.int32(number))

  def init(self, keys: jax.Array) -> types.Params:
    """`[S]` students to begin with."""
    start = self._spec.initial_students()
    if start is not None:
      # A copy: what the run donates is not the caller's.
      stack = lambda *leaves: jnp.stack(leaves)
      fun = lambda *start: self._sharded(
        jax.tree.map(stack, *map(master_weights.masters, start))
      )
      return self._call('init', fun, *start)
    x = jax.tree.map(lambda leaf: leaf[:1], self._spec.held_out['x'])
    student = self._spec.student
    fun = lambda keys: self._sharded(
      jax.vmap(lambda key: student.init(key, x))(keys)
    )
    return self._call('init', fun, keys)

  def matrices(
    self, planned: stage_plan.StagePlan, index: int
  ) -> Matrices | None:
    """Projection matrices of the stage `index` of the run.

    Args:
      planned: the stage.
      index: its number in the curriculum.

    Returns:
      `[S, d_T, r]` for each term that has a projection, by its name, or `[S,
      d_T + 1, r]` of a fitted one; None without a teacher that is run.
    """
    if self._teacher is None or self._spec.stored_targets:
      return None
    found = {}
    terms = (term for stage in self._spec.stages for term in stage.terms)
    shared = any(term.shared_projection for term in terms)
    for i, (name, shape) in enumerate(planned.projections.items()):
      term = planned.stage.named_terms[name]
      number = 0 if term.shared_projection else 2 * index
      keys = self.keys(self._spec.keys.stage, number)
      # The first key of stage 0 is that of the shared projections.
      if not term.shared_projection and (i or shared):
        keys = self.keys(keys, i)
      if fitted.is_fitted(term.projection):
        found[name] = self._fit(planned, name, keys)
      else:
        found[name] = self._draw(term.projection, shape, keys)
    return found

  def _fit(
    self, planned: stage_plan.StagePlan, name: str, keys: jax.Array
  ) -> jax.Array:
    """`[S, d_T + 1, r]` fitted projections of the term `name`."""
    assert self._teacher is not None
    start = lambda: self.init(self._spec.keys.init)
    found = fitting.fit(
      self._spec,
      planned,
      name,
      keys,
      fitting.Model(self._teacher, lambda: self.stage_teacher(planned)),
      fitting.Model(self._student, start),
      self._pools,
    )
    return self._call(('fitted', found.shape), self._sharded, found)

  def _draw(
    self, projection: str | None, shape: tuple[int, int], keys: jax.Array
  ) -> jax.Array:
    assert projection is not None
    draw = lambda key: projections.random_projection(key, projection, shape)
    fun = lambda keys: self._sharded(jax.vmap(draw)(keys))
    return self._call(('project', projection, shape), fun, keys)

  def targets(
    self,
    planned: stage_plan.StagePlan,
    at: int,
    rows: Any,
    params: types.Params,
    matrices: Matrices | None,
  ) -> tuple[types.Batch, dict[str, types.Target] | None]:
    """The batches of one step, and their targets.

    Args:
      planned: the stage.
      at: the step.
      rows: `[streams, ...]`, what the batches are made of, or None.
      params: the teacher's; not read where it is not available.
      matrices: projection matrices from `matrices`.

    Returns:
      `[streams, B, ...]` batches, and for each term that needs the teacher
      `[streams, B, ...]` targets; projected, `[S, B, ...]`; None where the
      teacher is not available.
    """
    spec, stage = self._spec, planned.stage

    def fun(
      at: Any, rows: Any, params: Any, matrices: Any, keys: jax.Array
    ) -> Any:
      rows = jax.tree.map(lambda leaf: leaf[None], rows)
      batches = multi_step.draw_batches(spec.batch, keys, at[None], rows)
      x = targets_lib.without_dropout(batches['x'])
      batches = {**batches, 'x': x}
      found = None
      if self._teacher is not None:
        teacher = self._teacher
        if any(term.target == output_split.FEATURES for term in stage.terms):
          teacher = output_split.with_features(teacher)
        found = batch_targets.many_targets(
          teacher, params, matrices, batches, stage, spec.microbatches
        )
        found = {name: found[name] for name in stage.teacher_terms}
      first = jax.tree.map(lambda leaf: leaf[:, 0], (batches, found))
      return mesh_lib.constrain_replicated(first)

    name = ('targets', stage.objective)
    args = (np.int32(at), rows, params, matrices, spec.keys.data)
    return self._call(name, fun, *args)

  def init_stage(
    self, planned: stage_plan.StagePlan, keys: jax.Array, params: types.Params
  ) -> train_step.State:
    """`[S]` states for the start of a stage; `params` are donated."""
    init = jax.vmap(self._spec.init_stage(planned))
    optimizer = self._spec.optimizer

    def fun(keys: jax.Array, params: types.Params) -> train_step.State:
      states = init(keys, params)
      if isinstance(optimizer, optimizers.PerStudent):
        states = states.replace(opt_state=optimizer.assign(states.opt_state))
      return self._sharded(states)

    name = ('init_stage', planned.stage.objective)
    return self._call(name, fun, keys, params, donate_argnums=1)

  def train_many_steps(
    self,
    planned: stage_plan.StagePlan,
    schedule: tuple[int, int],
    span: tuple[int, int],
    states: train_step.State,
    start: int,
    stop: int,
    *args: Any,
  ) -> tuple[train_step.State, dict[str, Any]]:
    """Dispatches `multi_step.train_many_steps`; `states` are donated.

    Args:
      planned: the stage.
      schedule: length and offset of the learning rate's schedule.
      span: first step and length of the stage.
      states: `[S]`.
      start: first step.
      stop: one past the last step.
      *args: the teacher's parameters, projections, keys of the batches, the
        rows that they are made of and stored targets; each of them, keys apart,
        may be None.

    Returns:
      The states, and the sums of the losses; not waited for.
    """
    steps = multi_step.int32_arguments(schedule, span, start, stop)
    args = (states, *steps, *args, *self._training_keys())
    return self.compile_train_many_steps(planned, *args)(*args)

  def _training_keys(self) -> tuple[jax.Array, ...]:
    """The `[S]` keys of the students' dropout; empty if they have none."""
    if self._training is None and not self._spec.dropout:
      return ()
    return (self.keys(self._spec.keys.stage, run_spec.DROPOUT),)

  def compile_train_many_steps(
    self, planned: stage_plan.StagePlan, *args: Any
  ) -> jax.stages.Compiled:
    """Compiles the program of `train_many_steps`, for arrays or shapes."""
    name, fun = self._many_steps(planned)
    return self._programs.compile(  # type: ignore[return-value]
      name, fun, *args, donate_argnums=0
    )

  def prepare(self, planned: stage_plan.StagePlan) -> None:
    """Begins to compile the program of `train_many_steps` for a later stage."""
    spec = self._spec
    if spec.stored_targets:
      return  # The shapes of stored targets are known once they are read.
    name, fun = self._many_steps(planned)
    if name not in self._programs:
      args = abstract.arguments(spec, planned)
      self._programs.prepare(name, fun, *args, donate_argnums=0)

  def _many_steps(
    self, planned: stage_plan.StagePlan
  ) -> tuple[Any, Callable[..., Any]]:
    """Name and function of the program of `train_many_steps`."""
    spec, stage = self._spec, planned.stage

    def fun(
      states: Any, schedule: Any, span: Any, start: Any, stop: Any, *args: Any
    ) -> Any:
      params, matrices, keys, rows, targets, *training_keys = args
      models = output_memory.split(
        output_memory.Models(self._student, self._training, self._teacher),
        spec,
        stage,
        stored=targets is not None,
      )
      states, out = multi_step.train_many_steps(
        states,
        start,
        stop,
        params,
        matrices,
        keys,
        rows,
        targets,
        span,
        *training_keys,
        draw=spec.batch,
        student=models.student,
        teacher=models.teacher,
        stage=stage,
        tx=spec.optimizer(*schedule),
        mask=planned.mask,
        lookahead=spec.lookahead_steps,
        microbatches=spec.microbatches,
        training=models.training,
        by_example=self._by_example,
      )
      return self._sharded(states), mesh_lib.constrain_replicated(out)

    return ('train_many_steps', stage.objective), fun

  def evaluate(self, params: types.Params) -> dict[str, jax.Array]:
    """Held-out metrics of `[S]` students, `[S]` each; not waited for."""
    if 'y' not in self._spec.held_out:
      assert self._spec.teacher is not None
      teacher = self.place_teacher(self._spec.teacher.params)
      return self._compared('evaluate', params, teacher, self._spec.metrics)

    def fun(params: types.Params, batch: types.Batch) -> dict[str, jax.Array]:
      metrics = self._spec.metrics
      student, _ = output_memory.eval_models(
        self._student, None, self._spec, metrics
      )
      one = functools.partial(
        evaluation.evaluate,
        apply=student,
        metrics=metrics,
        parts=output_memory.eval_parts(self._spec),
      )
      every = multi_step.each_seed(lambda params: one(params, batch))
      return mesh_lib.constrain_replicated(every(params))

    return self._call('evaluate', fun, params, self._spec.held_out)

  def agreement(
    self, params: types.Params, teacher: types.Params
  ) -> dict[str, jax.Array]:
    """Held-out agreement of `[S]` students with the teacher, `[S]` each."""
    metrics = self._spec.teacher_metrics
    return self._compared('agreement', params, teacher, metrics)

  def _compared(
    self,
    name: str,
    params: types.Params,
    teacher: types.Params,
    metrics: Mapping[str, metrics_lib.Metric],
  ) -> dict[str, jax.Array]:
    """Metrics of the outputs of `[S]` students and of the teacher."""
    assert self._teacher is not None

    def fun(
      params: types.Params, teacher: types.Params, batch: types.Batch
    ) -> dict[str, jax.Array]:
      ours, theirs = output_memory.eval_models(
        self._student, self._teacher, self._spec, metrics
      )
      assert theirs is not None
      one = functools.partial(
        evaluation.agreement,
        apply=ours,
        teacher=theirs,
        metrics=metrics,
        parts=output_memory.eval_parts(self._spec),
      )
      every = multi_step.each_seed(lambda params: one(params, teacher, batch))
      return mesh_lib.constrain_replicated(every(params))

    return self._call(name, fun, params, teacher, self._spec.held_out)
