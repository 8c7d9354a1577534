"""The loop: a curriculum, trained stage by stage, saved and taken up again.

Teachers and students train here alike; a teacher is a `supervised` run of one
seed that keeps its checkpoints.
"""

import contextlib
import dataclasses
import functools
import math
import pathlib
import signal
import threading
import time
from typing import Any

from absl import logging
import jax

from cxjax.training import checkpoints as checkpoints_lib
from cxjax import errors
from cxjax import files
from cxjax.training import metric_log
from cxjax.parallel import mesh as mesh_lib
from cxjax.methods import stage_plan
from cxjax.parallel import multihost
from cxjax.training import compiled_steps
from cxjax.training import run_spec
from cxjax.methods import train_step


@dataclasses.dataclass(frozen=True)
class Result:
  """What a finished run leaves in memory.

  Attributes:
    params: `[S, ...]` in every leaf.
    rows: of metrics.jsonl.
    planned: the stages with their costs.
    seconds: of 'compile', 'train' and 'evaluate', over all restarts.
  """

  params: train_step.Params
  rows: list[metric_log.Row]
  planned: list[stage_plan.StagePlan]
  seconds: dict[str, float]


def fit(spec: run_spec.RunSpec, folder: pathlib.Path, title: str) -> Result:
  """Trains the stages of a spec, from the newest good checkpoint on.

  Args:
    spec: what to do.
    folder: where the run keeps its files.
    title: for the plan and the progress bar.

  Returns:
    The students, and what was logged.

  Raises:
    UserError: a loss that is not finite, or a folder that cannot be written.
    Stopped: the process was asked to stop; the run is saved.
  """
  with files.lock(folder), _signals() as signals:
    return _fit(spec, folder, title, signals)


def _fit(spec, folder, title, signals):
  """`fit`, alone in its folder."""
  begin = time.perf_counter()
  planned = spec.costed()
  spent = {'compile': time.perf_counter() - begin, 'train': 0, 'evaluate': 0}
  logging.info('The plan of %s:\n%s', title, stage_plan.format_plan(planned))
  found = checkpoints_lib.latest(folder)
  with (
    jax.set_mesh(spec.mesh),
    metric_log.MetricLog(folder, found or 0, title) as journal,
  ):
    run = _Run(spec, folder, planned, journal, spent, signals)
    with run.feed or contextlib.nullcontext():
      if found is None:
        run.begin()
      else:
        run.go_on(found)
      run.train()
  return Result(run.states.params, journal.rows, planned, run.seconds)


@contextlib.contextmanager
def _signals():
  """A list that the signals which ask the process to stop are put into.

  It is looked at after every row of metrics.
  """
  seen: list[str] = []

  def note(number, frame):
    del frame
    if seen:
      raise KeyboardInterrupt  # Asked twice: without saving.
    seen.append(signal.Signals(number).name)

  if threading.current_thread() is not threading.main_thread():
    yield seen  # Only there can handlers be set.
    return
  numbers = (signal.SIGTERM, signal.SIGINT)
  # A job in the background may have been told to ignore them.
  heard = [n for n in numbers if signal.getsignal(n) != signal.SIG_IGN]
  before = {n: signal.signal(n, note) for n in heard}
  try:
    yield seen
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def _items(states):
  return {f.name: getattr(states, f.name) for f in dataclasses.fields(states)}


class _Run:
  """A run under way: where it is, and how it goes on."""

  def __init__(self, spec, folder, planned, journal, spent, signals):
    self.spec = spec
    self.folder = folder
    self.planned = planned
    self.journal = journal
    self.signals = signals
    # The last checkpoint, and when; those that the next one makes superfluous.
    self.saved, self.saved_at = None, time.monotonic()
    self.stale = {
      at
      for at in checkpoints_lib.steps(folder)
      if not checkpoints_lib.is_scheduled(folder, at)
    }
    self.programs = compiled_steps.CompiledSteps(spec)
    self.feed = spec.feed and spec.feed()
    self.spent = spent
    self.step = self.stage = 0
    self.end = spec.ends[-1]
    self.best = 0.0
    self.states: Any = None

  @property
  def seconds(self):
    """Time spent by purpose, over all restarts."""
    compiled = self.spent['compile'] + self.programs.seconds
    return {**self.spent, 'compile': compiled}

  def begin(self):
    """Starts with fresh students."""
    self._enter(0, self.programs.init(self.spec.init_keys))
    if self.spec.keep == 0:
      self._save()

  def go_on(self, found):
    """Takes the run up at the checkpoint `found`."""
    record = checkpoints_lib.read_record(self.folder, found)
    self.step, self.end, self.best = found, record['end'], record['best']
    self.saved = found
    self.spent = {k: v + record['seconds'][k] for k, v in self.spent.items()}
    if self.feed is not None:
      read = functools.partial(checkpoints_lib.read_own, self.folder, found)
      self.feed.restore(found, read)
    # At the end of a stage its state was saved, not that of the next.
    self.stage = sum(found > end for end in self.spec.ends[:-1])
    shapes = self.spec.state_shapes(self.planned[self.stage])
    template = mesh_lib.abstract(
      shapes, self.spec.mesh, self.spec.rules[0], seeds=True
    )
    self.states = train_step.State(
      **checkpoints_lib.restore(self.folder, found, _items(template))
    )
    logging.info('Goes on from checkpoint %d of %s.', found, self.folder)

  def train(self):
    """Trains what is left of every stage."""
    self.journal.expect(self.end)
    self._train_stage()
    while self.stage + 1 < len(self.planned):
      self._enter(self.stage + 1, self.states.params)
      self._train_stage()
    self._clean()

  def _enter(self, index, params):
    keys = self.programs.keys(self.spec.stage_keys, 2 * index + 1)
    fresh = self.programs.enter(self.planned[index], keys, params)
    if self.spec.carry_state and self.states is not None:
      carried = train_step.carry_optimizer_state(self.states.opt_state, fresh.opt_state)
      fresh = fresh.replace(opt_state=carried)
    self.stage, self.states = index, fresh

  @property
  def _score(self):
    """Name of the metric that a run is judged by."""
    return f'eval/{next(iter(self.spec.metrics))}'

  @property
  def _stage_end(self):
    final = self.stage + 1 == len(self.planned)
    return self.end if final else self.spec.ends[self.stage]

  def _train_stage(self):
    spec, planned = self.spec, self.planned[self.stage]
    begin, end = (0, *spec.ends)[self.stage], spec.ends[self.stage]
    schedule = (end - begin, 0)
    if not spec.restart_schedule:
      schedule = (spec.ends[-1], begin)
    matrices = self.programs.matrices(planned, self.stage)
    args = (self._teacher_params(), matrices, spec.data_keys)
    while self.step < self._stage_end:
      row = self.step - self.step % spec.log_every + spec.log_every
      stop = min(row, self._stage_end)
      loss = self._advance(planned, schedule, stop, args)
      self._log(loss)
      if multihost.any_of(bool(self.signals)):
        self._stop()

  def _teacher_params(self):
    stage, teacher = self.planned[self.stage].stage, self.spec.teacher
    if teacher is None or not stage.needs_teacher:
      return None
    return self._placed(teacher.at(stage.checkpoint))

  def _placed(self, params):
    """Parameters of the teacher, on the devices."""
    return mesh_lib.place(params, self.spec.mesh, self.spec.rules[1])

  def _timed(self, purpose, program, *args):
    compiled, begin = self.programs.seconds, time.perf_counter()
    out = jax.block_until_ready(program(*args))
    compiled = self.programs.seconds - compiled
    self.spent[purpose] += time.perf_counter() - begin - compiled
    return out

  def _dispatch(self, planned, schedule, stop, args):
    rows = self.feed and self.feed.rows(self.step)
    wants = self.feed and self.feed.wants(self.step)
    return self.programs.advance(
      planned, schedule, self.states, self.step, stop, *args, rows, wants
    )

  def _advance(self, planned, schedule, stop, args):
    self.states, out = self._timed(
      'train', self._dispatch, planned, schedule, stop, args
    )
    out = jax.device_get(out)
    if (out['bad'] < stop).any():
      self._fail(out['bad'])
    loss = float(out['loss'].mean()) / (stop - self.step)
    self.step = stop
    return loss

  def _fail(self, bad):
    self._check_weights(int(bad.argmin()), int(bad.min()))
    good = checkpoints_lib.latest(self.folder)
    kept = 'none was saved yet' if good is None else f'checkpoint {good}'
    raise errors.UserError(
      f'The loss of seed {bad.argmin()} is not finite at step {bad.min()}, in '
      f'stage {self.planned[self.stage].stage.name!r} of {self.folder}. The '
      f'last good checkpoint: {kept}. Try a smaller optimizer.learning_rate, '
      'in another workdir.'
    )

  def _check_weights(self, seed, at):
    keys, rows = self.spec.data_keys, None
    if self.feed is not None:
      one = lambda leaf: leaf[at % len(leaf), seed % len(keys)]
      rows = jax.tree.map(one, self.feed.rows(at))
    batch = jax.jit(self.spec.batch)(keys[seed % len(keys)], at, rows)
    weights = train_step.weights(batch, self.planned[self.stage].stage)
    errors.require(
      weights is None or bool(weights.any()),
      f'The batch of seed {seed} at step {at} has no position that counts in '
      'the loss: none was masked, or all weights are 0. Raise batch_size or '
      'data.mask_rate, or mend the weights.',
    )

  def _evaluate(self):
    return self._metrics(self.programs.evaluate)

  def _agree(self):
    teacher = self._placed(self.spec.teacher.params)
    return self._metrics(self.programs.agree, teacher)

  def _metrics(self, program, *args):
    found = self._timed('evaluate', program, self.states.params, *args)
    found = jax.device_get(found)
    return {f'eval/{name}': v.tolist() for name, v in found.items()}

  def _log(self, loss):
    spec = self.spec
    name = self.planned[self.stage].stage.name
    row = {'step': self.step, 'stage': name, 'loss': loss}
    crossed = False
    if self.step % spec.eval_every == 0 or self.step == self._stage_end:
      row |= self._evaluate()
      accuracy = min(row[self._score])
      crossed = any(self.best < a <= accuracy for a in spec.save_at)
      self.best = max(self.best, accuracy)
      self._stop_early(accuracy)
    judged = spec.teacher is not None and spec.teacher_metrics
    if self.step == self.end and judged:
      row |= self._agree()
    self.journal.write(row)
    late = multihost.any_of(self._late())
    if crossed or self.step % spec.save_every == 0 or self.step == self.end:
      self._save(row.get(self._score))
    elif late:
      self._save(row.get(self._score), extra=True)

  def _late(self):
    """Whether it is time to save by the clock."""
    minutes = (time.monotonic() - self.saved_at) / 60
    return 0 < self.spec.save_minutes <= minutes

  def _stop(self):
    if self.saved != self.step:
      self._save(extra=True)
    # Another process may have been asked.
    signals = self.signals or ['a signal']
    raise errors.Stopped(
      f'Stopped by {signals[0]}: saved step {self.step} of {self.folder}. '
      'The same command goes on.'
    )

  def _stop_early(self, accuracy):
    spec = self.spec
    final = self.stage + 1 == len(self.planned)
    undecided = self.end == spec.ends[-1]
    if final and undecided and accuracy >= spec.stop_at:
      self.end = min(math.ceil(self.step * (1 + spec.overrun)), self.end)
      self.journal.expect(self.end)

  def _save(self, accuracy=None, extra=False):
    """Saves; an `extra` checkpoint goes when the next is there."""
    accuracy = accuracy or self._evaluate()[self._score]
    record = {
      'stage': self.planned[self.stage].stage.name,
      'accuracy': accuracy,
      'end': self.end,
      'best': self.best,
      'extra': extra,
      'rows': self.journal.sync(),
      'seconds': self.seconds,
    }
    own = self.feed and self.feed.state(self.step)
    checkpoints_lib.save(self.folder, self.step, _items(self.states), record, own)
    self._clean()
    self.stale = {self.step} if extra else set()
    self.saved, self.saved_at = self.step, time.monotonic()
    if self.spec.keep:
      checkpoints_lib.prune(self.folder, self.spec.keep)

  def _clean(self):
    """Removes what is not of the schedule, once there is a later checkpoint."""
    for other in checkpoints_lib.steps(self.folder):
      # Those after this step are of a run that was taken up before them.
      if other > self.step or (other in self.stale and other != self.step):
        checkpoints_lib.remove(self.folder, other)
