"""The compiled programs of a run, each compiled once."""

from collections.abc import Callable
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cxjax.training import multi_step
from cxjax.training import evaluation
from cxjax.parallel import mesh as mesh_lib
from cxjax.methods import stage_plan
from cxjax.methods import projections
from cxjax.training import run_spec
from cxjax.methods import train_step


class CompiledSteps:
  """Compiles what a spec needs when it is first called, and counts the time.

  A stage's program is found by its objective: another checkpoint of the
  teacher, another length or another place in the run compiles nothing.
  """

  def __init__(self, spec: run_spec.RunSpec):
    """Compiles nothing yet."""
    self._spec = spec
    student, teacher = spec.rules
    self._student = mesh_lib.gathered(spec.student.apply, student)
    self._teacher = None
    if spec.teacher is not None:
      self._teacher = mesh_lib.gathered(spec.teacher.apply, teacher)
    self._compiled: dict[Any, Callable] = {}
    self.seconds = 0.0

  def __len__(self) -> int:
    """How many programs were compiled."""
    return len(self._compiled)

  def _compile(self, name, fun: Callable, *args, **kwargs):
    if name not in self._compiled:
      begin = time.perf_counter()
      self._compiled[name] = jax.jit(fun, **kwargs).lower(*args).compile()
      self.seconds += time.perf_counter() - begin
    return self._compiled[name]

  def _call(self, name, fun: Callable, *args, **kwargs):
    return self._compile(name, fun, *args, **kwargs)(*args)

  def keys(self, keys: jax.Array, number: int) -> jax.Array:
    """`[S]` keys for the purpose `number`, from `[S]` keys."""
    fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))
    return self._call('keys', fold, keys, np.int32(number))

  def init(self, keys: jax.Array) -> train_step.Params:
    """`[S]` students to begin with."""
    start = self._spec.start
    if start is not None:
      # A copy: what the run gives away is not the caller's.
      fun = lambda start: self._parted(jax.tree.map(jnp.copy, start))
      return self._call('init', fun, start)
    x = jax.tree.map(lambda leaf: leaf[:1], self._spec.held_out['x'])
    student = self._spec.student
    fun = lambda keys: self._parted(
      jax.vmap(lambda key: student.init(key, x))(keys)
    )
    return self._call('init', fun, keys)

  def _parted(self, tree):
    """Of `[S]` students, over the devices; what else there is stays whole."""
    spec = self._spec
    return mesh_lib.constrain(tree, spec.mesh, spec.rules[0], seeds=True)

  def project(self, planned: stage_plan.StagePlan, keys: jax.Array):
    """`[S, d_T, r]` projections of a stage, or None."""
    law, shape = planned.stage.law, planned.projection
    if law is None or shape is None:
      return None
    draw = lambda key: projections.random_projection(key, law, shape)
    fun = lambda keys: self._parted(jax.vmap(draw)(keys))
    return self._call(('project', law, shape), fun, keys)

  def matrices(self, planned: stage_plan.StagePlan, index: int):
    """`[S, d_T, r]` projections of the stage `index` of the run, or None."""
    if self._spec.teacher is None:
      return None
    number = 0 if planned.stage.shared else 2 * index
    return self.project(planned, self.keys(self._spec.stage_keys, number))

  def look(
    self,
    planned: stage_plan.StagePlan,
    at: int,
    rows: Any,
    params: train_step.Params,
    matrices: jax.Array | None,
  ) -> tuple[train_step.Batch, train_step.Target]:
    """The batches of one step, and what the teacher makes of them.

    Args:
      planned: the stage.
      at: the step.
      rows: `[streams, ...]`, what the batches are made of, or None.
      params: the teacher's; not read by a spec without a teacher.
      matrices: from `matrices`.

    Returns:
      `[streams, B, ...]` batches, and `[streams, B, ...]` targets; projected,
      `[S, B, ...]`; None without a teacher.
    """
    spec, stage = self._spec, planned.stage

    def fun(at, rows, params, matrices, keys):
      rows = jax.tree.map(lambda leaf: leaf[None], rows)
      batches = multi_step.draw_batches(spec.batch, keys, at[None], rows)
      batches = {**batches, 'x': train_step.without_dropout(batches['x'])}
      wants = self._teacher and multi_step.targets(
        self._teacher, params, matrices, batches, stage, spec.microbatches
      )
      first = jax.tree.map(lambda leaf: leaf[:, 0], (batches, wants))
      return mesh_lib.whole(first)

    name = ('look', stage.objective)
    args = (np.int32(at), rows, params, matrices, spec.data_keys)
    return self._call(name, fun, *args)

  def enter(
    self, planned: stage_plan.StagePlan, keys: jax.Array, params: train_step.Params
  ) -> train_step.State:
    """`[S]` states for the start of a stage; `params` are given away."""
    enter = jax.vmap(self._spec.enter(planned))
    fun = lambda keys, params: self._parted(enter(keys, params))
    name = ('enter', planned.stage.objective)
    return self._call(name, fun, keys, params, donate_argnums=1)

  def advance(
    self,
    planned: stage_plan.StagePlan,
    schedule: tuple[int, int],
    states: train_step.State,
    start: int,
    stop: int,
    *args,
  ) -> tuple[train_step.State, dict[str, jax.Array]]:
    """`multi_step.train_many_steps`; `states` are given away.

    Args:
      planned: the stage.
      schedule: length and offset of the learning rate's schedule.
      states: `[S]`.
      start: first step.
      stop: one past the last step.
      *args: the teacher's parameters, projections, keys of the batches, the
        rows that they are made of and stored targets; each of them, keys apart,
        may be None.

    Returns:
      The states, and what was seen on the way.
    """
    args = (states, *numbers(schedule, start, stop), *args)
    return self.compile_advance(planned, *args)(*args)

  def compile_advance(
    self, planned: stage_plan.StagePlan, *args
  ) -> jax.stages.Compiled:
    """The program of `advance`, not run; of its arguments shapes are enough."""
    spec, stage = self._spec, planned.stage

    def fun(states, schedule, start, stop, *args):
      states, out = multi_step.train_many_steps(
        states,
        start,
        stop,
        *args,
        draw=spec.batch,
        student=self._student,
        teacher=self._teacher,
        stage=stage,
        tx=spec.optimizer(*schedule),
        mask=planned.mask,
        lookahead=spec.blocks,
        microbatches=spec.microbatches,
      )
      return self._parted(states), mesh_lib.whole(out)

    name = ('advance', stage.objective)
    return self._compile(name, fun, *args, donate_argnums=0)

  def evaluate(self, params: train_step.Params) -> dict[str, jax.Array]:
    """Held-out metrics of `[S]` students, `[S]` each."""
    one = functools.partial(
      evaluation.evaluate,
      apply=self._student,
      metrics=self._spec.metrics,
      parts=self._spec.eval_parts,
    )

    def fun(params, batch):
      every = multi_step.each_seed(lambda params: one(params, batch))
      return mesh_lib.whole(every(params))

    return self._call('evaluate', fun, params, self._spec.held_out)

  def agree(
    self, params: train_step.Params, teacher: train_step.Params
  ) -> dict[str, jax.Array]:
    """Held-out agreement of `[S]` students with the teacher, `[S]` each."""
    assert self._teacher is not None
    one = functools.partial(
      evaluation.agreement,
      apply=self._student,
      teacher=self._teacher,
      metrics=self._spec.teacher_metrics,
      parts=self._spec.eval_parts,
    )

    def fun(params, teacher, batch):
      every = multi_step.each_seed(lambda params: one(params, teacher, batch))
      return mesh_lib.whole(every(params))

    return self._call('agree', fun, params, teacher, self._spec.held_out)


def numbers(schedule: tuple[int, int], start: int, stop: int) -> tuple:
  """The arguments of `advance` that are numbers, as its program takes them."""
  return tuple(map(np.int32, schedule)), np.int32(start), np.int32(stop)
