r"""This project: students in one stage, by the programs of the training loop.

Also writes the job of the others: the initial weights, the projection, the
batches, and the targets that are stored.
"""

import dataclasses
import json
import pathlib
import sys
import tempfile
import time
from typing import Any

from flax import traverse_util
import jax
import ml_collections
import numpy as np

from cxjax.configs import builders
from cxjax.interop import huggingface
from cxjax.parallel import devices as devices_lib
from cxjax.training import run_spec
from cxjax.training import trainer as trainer_lib
from experiments import base
from experiments import parity_mlp
from experiments.benchmarks import one_stage
from experiments.benchmarks.peers import cases as cases_lib
from experiments.benchmarks.peers import protocol as protocol
from experiments.benchmarks.peers import tasks as tasks_lib  # noqa: F401

FOREVER = 1_000_000  # Steps of the stage: more than are trained.


def make_config(
  case: cases_lib.Case, num_seeds: int, *, whole: bool = False
) -> ml_collections.ConfigDict:
  """Returns the config of a case, with the defaults of its experiment.

  Args:
    case: the case.
    num_seeds: number of students.
    whole: whether it logs, evaluates and saves as the experiment does.
  """
  method = 'extracted' if case.stage == 'hidden' else 'one_shot'
  if case.model == 'mlp':
    c = parity_mlp.get_config(f'{method},cpu')
    c.data.d, c.data.k = case.inputs, min(6, case.inputs // 2)
  else:
    c = base.get_config(method)
    c.task, c.student = 'full_rows', {}
    c.model = 'rotary_decoder' if case.model == 'llama' else case.model
    c.data = ml_collections.ConfigDict(
      dict(
        vocab_size=case.classes,
        length=case.inputs,
        predicted=case.predicted,
        eval_size=1_024,
      )
    )
    c.mesh.cpu_devices = 2
    c.eval_every = c.save_every = 250
  for role, block in (('teacher', c.teacher), ('student', c.student)):
    block.update(_sizes(case, role))
  c.batch_size, c.num_seeds, c.share_batches = case.batch, num_seeds, True
  c.optimizer.name, c.optimizer.learning_rate = case.optimizer
  c.log_every = case.unit
  if whole and case.model == 'mlp':
    shipped = parity_mlp.get_config(f'{method},{case.config}')
    for name in ('log_every', 'eval_every', 'save_every'):
      c[name] = shipped[name]
  c.extracted.rate_factor = 1.0
  if case.model == 'mlp':
    c.mesh.data = 1
  return c


def _sizes(case: cases_lib.Case, role: str) -> dict[str, Any]:
  """The fields of a config that say how large a network is."""
  model = getattr(case, role)
  if case.model == 'mlp':
    return dict(width=model.width, depth=model.depth)
  if case.model == 'llama':
    sizes = base.rotary_decoder(**dataclasses.asdict(model))
    # At 0.02 its outputs are nearly uniform, and rounding decides the losses.
    return {**sizes, 'init_std': 0.1} if role == 'teacher' else sizes
  return base.transformer(
    width=model.width, heads=model.heads, depth=model.depth
  )


def make_spec(
  case: cases_lib.Case, num_seeds: int, *, live: bool, whole: bool = False
) -> run_spec.RunSpec:
  """Returns the run of a case; its teacher is untrained.

  Args:
    case: the case.
    num_seeds: number of students.
    live: whether the teacher runs; otherwise its targets are stored.
    whole: whether it logs, evaluates and saves as the experiment does; else
      the held-out set has a single example.

  Returns:
    The run, of one stage.
  """
  c = make_config(case, num_seeds, whole=whole)
  if not whole:
    c.data.eval_size = 1
  experiment = builders.open_experiment(c, pathlib.Path())
  if live:
    teacher = one_stage.untrained_teacher(experiment)
  else:
    teacher = builders.abstract_teacher(experiment)
  spec = builders.student_spec(experiment, teacher)
  *hidden, stage = spec.stages
  if case.stage == 'hidden':
    stage = hidden[case.blocks('student') - 1]
  spec = one_stage.one_stage_spec(spec, stage, FOREVER)
  if live:
    return spec
  host = dataclasses.replace(spec.host, period=case.drawn)
  return dataclasses.replace(spec, host=host)


def _flat(tree: Any, prefix: str) -> dict[str, np.ndarray]:
  found = traverse_util.flatten_dict(jax.device_get(tree)['params'], sep='/')
  return {f'{prefix}/{name}': np.asarray(leaf) for name, leaf in found.items()}


def write_job(case: cases_lib.Case, folder: pathlib.Path) -> None:
  """Writes what the peers need to know about a case into a folder."""
  spec = make_spec(case, 1, live=True)
  assert spec.teacher is not None
  stage = one_stage.OneStage(spec)
  draw = jax.jit(jax.vmap(spec.batch, in_axes=(None, 0)))
  batch = jax.device_get(draw(spec.keys.data[0], np.arange(case.drawn)))
  x = batch['x'] if isinstance(batch['x'], dict) else {'x': batch['x']}
  arrays = {
    **_flat(spec.teacher.params, 'teacher'),
    **_flat(stage.first, 'student'),
    **x,
  }
  for matrix in stage.matrices.values():
    arrays['matrix'] = matrix
  folder.mkdir(parents=True, exist_ok=True)
  if case.model == 'llama':
    _write_folders(case, folder, spec.teacher.params, stage.first)
  np.savez(folder / 'arrays.npz', **arrays)
  if case.stage == 'stored':
    teacher = spec.teacher
    logits = lambda x: teacher.apply(teacher.params, x)[0]
    np.save(folder / 'targets.npy', jax.lax.map(logits, batch['x']))
  (folder / 'job.json').write_text(json.dumps(dataclasses.asdict(case)))


def _write_folders(
  case: cases_lib.Case, folder: pathlib.Path, teacher: Any, student: Any
) -> None:
  """Writes both networks as transformers reads them, a folder for each role."""
  experiment = builders.open_experiment(make_config(case, 1), pathlib.Path())
  for role, variables in (('teacher', teacher), ('student', student)):
    huggingface.write(folder / role, experiment.model(role), variables)


class Ours:
  """Students of this project.

  Attributes:
    seeds: number of students.
    unit: steps of a dispatch.
    lookahead: number of batches that the teacher sees at once.
  """

  def __init__(self, job: protocol.Job) -> None:
    """Initializes the students; the variant of the job is their number."""
    self._job, self.seeds = job, int(job.variant)
    stored = job.case.stage == 'stored'
    self._spec = make_spec(job.case, self.seeds, live=not stored)
    self._stage = one_stage.OneStage(self._spec)
    self.unit, self.lookahead = job.case.unit, self._spec.lookahead_steps
    self._targets = job.targets if stored else None
    self._step = 0

  def _chunk(self) -> Any:
    """The stored targets of the steps of a dispatch, by term; or None."""
    if self._targets is None:
      return None
    begin = self._step % self._job.case.drawn // self.unit * self.unit
    found = np.array(self._targets[begin : begin + self.unit])
    (name,) = self._stage.stage_plan.stage.teacher_terms
    return {name: found[:, None]}

  def _train(self, num_steps: int) -> dict[str, Any]:
    begin, end = self._step, self._step + num_steps
    out = self._stage.train(begin, end, None, self._chunk())
    self._step = end
    return out

  def losses(self, num_steps: int) -> list[float]:
    """Trains one step at a time; returns the losses of the first student."""
    return [
      float(jax.device_get(self._train(1)['loss'])[0]) for _ in range(num_steps)
    ]

  def run(self, num_steps: int) -> None:
    """Trains `unit` steps at a time; reads each loss behind the next one."""
    waiting = None
    for _ in range(num_steps // self.unit):
      out = self._train(self.unit)
      if waiting is not None:
        jax.device_get(waiting)
      waiting = out['loss']
    jax.device_get(waiting)

  @property
  def compile_seconds(self) -> float:
    """Seconds that its programs took to compile."""
    return self._stage.steps.seconds

  def whole(self, seconds: float) -> float | None:
    """Trains by the loop: with its log, evaluations and checkpoints.

    Args:
      seconds: about how long.

    Returns:
      Seconds of a step without those of compilation; None of stored targets,
      which the loop reads from a cache.
    """
    if self._targets is not None:
      return None
    begin = time.perf_counter()
    self.run(self.unit)
    each = (time.perf_counter() - begin) / self.unit
    spec = make_spec(self._job.case, self.seeds, live=True, whole=True)
    period = max(spec.loop.save_every, spec.loop.eval_every, self.unit)
    steps = max(round(seconds / each / period), 1) * period
    spec = one_stage.one_stage_spec(spec, spec.stages[0], steps)
    with tempfile.TemporaryDirectory() as folder:
      begin = time.perf_counter()
      result = trainer_lib.fit(spec, pathlib.Path(folder), 'students')
      spent = time.perf_counter() - begin
    return (spent - result.seconds['compile']) / steps


def make(job: protocol.Job) -> Ours:
  """Makes the trainer of a job."""
  jax.config.update('jax_platforms', 'cpu')
  devices_lib.split_cpu(make_config(job.case, 1).mesh.cpu_devices)
  return Ours(job)


if __name__ == '__main__':
  _size, _name, _folder = sys.argv[1:]
  jax.config.update('jax_platforms', 'cpu')
  write_job(cases_lib.SIZES[_size][_name], pathlib.Path(_folder))
