"""The loop: a curriculum, trained stage by stage, saved and resumed.

Teachers and students train here alike; a teacher is a `supervised` run of one
seed that keeps its checkpoints.

The loop dispatches the next steps before it reads the metrics of the last ones,
so that the device never waits for the host. It waits only where the metrics
decide what comes next (`milestones.py`), and where a checkpoint is saved.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import functools
import pathlib
import time
from typing import Any

from absl import logging
import jax

from cxjax import errors
from cxjax import locks
from cxjax import settings
from cxjax import types
from cxjax.methods import stage_plan
from cxjax.methods import train_step
from cxjax.parallel import mesh as mesh_lib
from cxjax.parallel import multihost
from cxjax.training import checkpoint_writer
from cxjax.training import checkpoints as checkpoints_lib
from cxjax.training import compiled_steps
from cxjax.training import failures
from cxjax.training import gradient_cosine as cosine_lib
from cxjax.training import metric_log
from cxjax.training import milestones as milestones_lib
from cxjax.training import motion as motion_lib
from cxjax.training import pending as pending_lib
from cxjax.training import run_spec
from cxjax.training import signals as signals_lib
from cxjax.training import stopwatch as stopwatch_lib


@dataclasses.dataclass(frozen=True)
class Result:
  """A finished run in memory.

  Attributes:
    params: `[S, ...]` in every leaf.
    records: the lines of metrics.jsonl.
    stage_plans: the stages with their costs.
    seconds: time by purpose, over all restarts, as of `stopwatch.PURPOSES`.
    best: step of the best checkpoint, where one is kept.
  """

  params: types.Params
  records: list[types.Record]
  stage_plans: list[stage_plan.StagePlan]
  seconds: dict[str, float]
  best: int | None = None


@settings.fixed()
def fit(
  spec: run_spec.RunSpec,
  folder: pathlib.Path,
  title: str,
  on_record: metric_log.OnRecord | None = None,
) -> Result:
  """Trains the stages of a run, from the newest good checkpoint on.

  Args:
    spec: specification of the run.
    folder: folder where the run keeps its files.
    title: title of the plan and of the progress bar.
    on_record: called with every record of metrics once it is written; if it
      raises StopIteration, the run ends with the next record.

  Returns:
    The students, and what was logged.

  Raises:
    UserError: a loss that is not finite, or a folder that cannot be written.
    Stopped: the process was asked to stop; the run is saved.
  """
  with locks.lock(folder), signals_lib.catch() as signals:
    begin = time.perf_counter()
    plans = (spec.plan_costs or run_spec.RunSpec.plan_with_costs)(spec)
    seconds = time.perf_counter() - begin
    stage_plan.log(f'{title} on {mesh_lib.in_use(spec.layout.mesh)}', plans)
    found = checkpoints_lib.latest(folder)
    open_loader: Any = spec.host.loader or contextlib.nullcontext
    log = metric_log.MetricLog(
      folder, found or 0, title, spec.primary, on_record, spec.loop.temporary
    )
    with (
      jax.set_mesh(spec.layout.mesh),
      log,
      checkpoint_writer.CheckpointWriter(folder, spec.loop.keep) as writer,
      open_loader() as loader,
    ):
      trainer = Trainer(spec, plans, folder, log, writer, loader, signals)
      trainer.stopwatch.add({'compile': seconds})
      if found is None:
        trainer.begin()
      else:
        trainer.resume(found)
      trainer.train()
    return trainer.result()


def _items(states: train_step.State) -> dict[str, Any]:
  return {f.name: getattr(states, f.name) for f in dataclasses.fields(states)}


class Trainer:
  """A run under way: where it is, and how it goes on."""

  def __init__(
    self,
    spec: run_spec.RunSpec,
    plans: list[stage_plan.StagePlan],
    folder: pathlib.Path,
    log: metric_log.MetricLog,
    writer: checkpoint_writer.CheckpointWriter,
    loader: Any,
    signals: list[str],
  ) -> None:
    """Computes nothing yet.

    Args:
      spec: specification of the run.
      plans: its stages, with their costs.
      folder: folder of the run.
      log: where the records go.
      writer: where the checkpoints go.
      loader: loader of the rows, or None.
      signals: names of the signals that ask to stop, as they arrive.
    """
    self._spec, self._plans, self._folder = spec, plans, folder
    self._log, self._writer, self._loader = log, writer, loader
    self._signals = signals
    self._steps = compiled_steps.CompiledSteps(spec)
    self._milestones = milestones_lib.Milestones(spec)
    self._cosine = cosine_lib.GradientCosine(spec, plans, self._steps)
    self.stopwatch = stopwatch_lib.Stopwatch(lambda: self._steps.seconds)
    self._step = self._stage = 0
    self._states: Any = None
    self._pending: pending_lib.Pending | None = None
    self._stopped, self._diverged = False, 0
    self._saved, self._saved_at = -1, time.monotonic()

  def result(self) -> Result:
    """The result of the finished run."""
    best = self._milestones.best_step
    checkpoints_lib.require_best(self._folder, self._step, best)
    params, seconds = self._states.params, self.stopwatch.seconds
    return Result(params, self._log.records, self._plans, seconds, best)

  def begin(self) -> None:
    """Starts with fresh students."""
    self._enter(0, self._steps.init(self._spec.keys.init))
    if self._spec.loop.keep == 0:
      self._save(None)

  def resume(self, found: int) -> None:
    """Goes on from the checkpoint `found`."""
    spec, folder = self._spec, self._folder
    record = checkpoints_lib.read_record(folder, found)
    self._milestones.restore(record)
    best = self._milestones.best_step
    checkpoints_lib.require_best(folder, found, best)
    self.stopwatch.add(record['seconds'])
    self._writer.clear_later(found)
    self._step = self._saved = found
    if self._loader is not None:
      read = functools.partial(checkpoints_lib.read_local, folder, found)
      self._loader.restore(found, read)
    # At the end of a stage its own state was saved, not that of the next.
    self._stage = sum(found > end for end in spec.ends[:-1])
    shapes = spec.state_shapes(self._plans[self._stage])
    template = mesh_lib.abstract(
      shapes, spec.layout.mesh, spec.layout.student, seeds=True
    )
    items = checkpoints_lib.restore(folder, found, _items(template))
    self._states = train_step.State(**items)
    logging.info('Resuming from checkpoint %d of %s.', found, folder)

  def train(self) -> None:
    """Trains what is left of every stage."""
    self._log.expect(self._milestones.end)
    self.stopwatch.restart()
    self._train_stage()
    last = len(self._plans) - 1
    while self._stage < last and self._step < self._milestones.end:
      self._enter(self._stage + 1, self._states.params)
      self._train_stage()
    self._read()
    self._writer.wait()

  def _enter(self, index: int, params: types.Params) -> None:
    """Begins the stage `index`."""
    keys = self._steps.keys(self._spec.keys.stage, 2 * index + 1)
    fresh = self._steps.init_stage(self._plans[index], keys, params)
    if self._spec.carry_state and self._states is not None:
      fresh = train_step.carry(
        self._states, fresh, self._spec.optimizer(), self._plans[index].mask
      )
    self._stage, self._states = index, fresh

  @property
  def _stage_end(self) -> int:
    return min(self._milestones.end, self._spec.ends[self._stage])

  def _train_stage(self) -> None:
    """Dispatches the steps of a stage, up to log_every at a time."""
    spec, planned = self._spec, self._plans[self._stage]
    begin, end = (0, *spec.ends)[self._stage], spec.ends[self._stage]
    length, passed = spec.schedule(self._stage)
    # The optimizer's own count of steps, where it is carried over, is `begin`.
    schedule = (length, passed - begin * spec.carry_state)
    matrices = self._steps.matrices(planned, self._stage)
    constant = (self._steps.stage_teacher(planned), matrices, spec.keys.data)
    span = begin, end - begin
    train = functools.partial(
      self._steps.train_many_steps, planned, schedule, span
    )
    log_every, whole = spec.loop.log_every, self._step == begin
    motion = motion_lib.Motion(self._states.params)
    while self._step < self._stage_end:
      next_record = self._step - self._step % log_every + log_every
      self._dispatch(train, min(next_record, self._stage_end), constant)
      for following in self._plans[self._stage + 1 : self._stage + 2]:
        self._steps.prepare(following)  # While the device trains this one.
      if multihost.any_of(bool(self._signals)):
        self._stop()
    if whole and self._step > begin:
      motion.check(self._states.params, planned.stage.name, self._step - begin)

  def _dispatch(
    self, train: Callable[..., Any], stop: int, constant: tuple[Any, ...]
  ) -> None:
    """Dispatches the steps up to `stop`, then reads those before them."""
    start = self._step
    rows = targets = None
    if self._loader is not None:
      rows, targets = self._loader.rows(start), self._loader.targets(start)
    args = start, stop, *constant, rows, targets
    self._states, out = train(self._states, *args)
    self._step = stop
    metrics = None
    if self._milestones.is_evaluated(stop, self._stage_end):
      metrics = self._evaluate()
    before = self._pending
    self._pending = pending_lib.Pending(
      start, stop, self._stage, rows, out, metrics
    )
    if before is not None:
      self._record(before)
    if multihost.any_of(self._stopped):  # These steps are the last.
      self._milestones.stop(self._step)
    if self._must_read():
      self._read()

  def _must_read(self) -> bool:
    """True if metrics have to be read before more steps are dispatched."""
    if self._milestones.is_saved(self._step) or self._late():
      return True
    assert self._pending is not None
    return self._pending.metrics is not None and self._milestones.depend_on(
      self._step, self._stage + 1 == len(self._plans)
    )

  def _read(self) -> None:
    """Reads and records the metrics of the last dispatch."""
    if self._pending is not None:
      pending, self._pending = self._pending, None
      self._record(pending)

  def _record(self, pending: pending_lib.Pending) -> None:
    """Logs the steps of one dispatch, and saves where it is time."""
    out = self.stopwatch.wait('train', pending.out)
    self._check_finite(pending, out['bad'])
    record = pending.record(self._spec, out)
    crossed = best = False
    metrics = None
    if pending.metrics is not None or pending.stop == self._milestones.end:
      # At an end that nobody expected nothing was evaluated.
      metrics = self._values(pending.metrics or self._evaluate())
      final = pending.stage + 1 == len(self._plans)
      crossed = self._milestones.observe(metrics, pending.stop, final)
      best = self._milestones.is_best(metrics, pending.stop)
      self._log.expect(self._milestones.end)
      if pending.stop == self._milestones.end:
        metrics |= self._agreement()
      record |= {f'eval/{name}': values for name, values in metrics.items()}
    try:
      self._log.write(record)
    except StopIteration:
      self._stopped = True
    if self._pending is not None:
      return  # The states are those of later steps already.
    if crossed or self._milestones.is_saved(pending.stop):
      self._save(metrics, best=best)
    elif best or self._late():
      self._save(metrics, best=best, temporary=True)

  def _check_finite(self, pending: pending_lib.Pending, bad: Any) -> None:
    """Explains losses that are not finite, where more students have one."""
    failed = int((bad < pending.stop).sum())
    if failed > self._diverged:
      self._diverged = failed
      self._writer.wait()
      stage = self._plans[pending.stage].stage
      failures.explain(self._spec, stage, self._folder, bad, pending.rows)

  def _evaluate(self) -> dict[str, Any]:
    found = self._steps.evaluate(self._states.params)
    return {**found, **self._cosine(self._stage, self._states)}

  def _values(self, metrics: dict[str, Any]) -> milestones_lib.Metrics:
    found = self.stopwatch.wait('evaluate', metrics)
    return {name: values.tolist() for name, values in found.items()}

  def _agreement(self) -> milestones_lib.Metrics:
    """Metrics against the teacher, where there is one."""
    teacher, metrics = self._spec.teacher, self._spec.teacher_metrics
    if teacher is None or not (teacher.available and metrics):
      return {}
    params = self._steps.place_teacher(teacher.params)
    return self._values(self._steps.agreement(self._states.params, params))

  def _late(self) -> bool:
    """True if it is time to save by the clock, for any process."""
    limit = self._spec.loop.save_minutes
    minutes = (time.monotonic() - self._saved_at) / 60
    return bool(limit) and multihost.any_of(limit <= minutes)

  def _save(
    self,
    metrics: milestones_lib.Metrics | None,
    *,
    best: bool = False,
    temporary: bool = False,
  ) -> None:
    """Saves the present states; a temporary checkpoint goes with the next."""
    if metrics is None:
      metrics = self._values(self._evaluate())
    record = {
      'stage': self._plans[self._stage].stage.name,
      'score': metrics[self._spec.primary],
      **self._log.digest_records(),
      'seconds': self.stopwatch.seconds,
      **self._milestones.state(),
    }
    local = self._loader and self._loader.state(self._step)
    self._writer.save(
      self._step,
      _items(self._states),
      record,
      local,
      temporary=temporary,
      best=best,
    )
    self._saved, self._saved_at = self._step, time.monotonic()
    self.stopwatch.wait('save')

  def _stop(self) -> None:
    """Saves, and raises Stopped."""
    self._read()
    if self._saved != self._step:
      self._save(None, temporary=True)
    self._writer.wait()
    # Another process may have been asked.
    name = (self._signals or ['a signal'])[0]
    said = f'Stopped by {name}: saved step {self._step} of {self._folder}. '
    raise errors.Stopped(said + 'The same command resumes.', name, self._step)
