"""From a config to an experiment, and from that to the specification of runs.

With `experiment.py` and `contest.py` the only module that reads a whole config.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import copy
import dataclasses
import functools
import pathlib
from typing import Any
from typing import TypeAlias

import jax
import jax.numpy as jnp
import ml_collections

from cxjax import errors
from cxjax import folders
from cxjax import settings
from cxjax import types
from cxjax.api import mode_warnings
from cxjax.configs import curriculum
from cxjax.configs import defaults
from cxjax.configs import identity
from cxjax.configs import layouts
from cxjax.configs import pretrained as pretrained_lib
from cxjax.configs import ranges
from cxjax.configs import student_starts
from cxjax.configs import task_batches
from cxjax.configs import thresholds
from cxjax.methods import curricula
from cxjax.models import base as models
from cxjax.parallel import mesh as mesh_lib
from cxjax.tasks import base as tasks
from cxjax.training import fitting
from cxjax.training import logit_checks
from cxjax.training import memory
from cxjax.training import metrics as metrics_lib
from cxjax.training import optimizers
from cxjax.training import run_spec
from cxjax.training import target_cache
from cxjax.training import teacher as teacher_lib

Config: TypeAlias = ml_collections.ConfigDict
Devices: TypeAlias = Sequence[Any] | None

PURPOSES = (
  'support',
  'held_out',
  'teacher_init',
  'teacher_data',
  'student_init',
  'student_data',
  'student_stage',
  'student_start',
)


def key_for(config: Config, purpose: str) -> jax.Array:
  """PRNG key of a purpose, from `config.seed`."""
  return jax.random.fold_in(settings.key(config.seed), PURPOSES.index(purpose))


def make_task(config: Config) -> tasks.Task:
  """The task that a config names."""
  with ranges.named_fields():
    return tasks.make(config.task, config.data, key_for(config, 'support'))


def make_model(config: Config, role: str, task: Any = None) -> Any:
  """The model of 'teacher' or 'student', for a task or that of the config."""
  with ranges.named_fields():
    return models.make(config.model, config[role], task or make_task(config))


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A config with its task, which is made once for all runs.

  Attributes:
    config: config of the experiment, with its paths filled in.
    task: makes the batches.
    held_out: the batch of the evaluation; shapes for devices not attached.
    devices: from `devices.topology`: runs then hold shapes in place of arrays.
      None is those of this process.
    pretrained: the teacher, if it comes from a folder of Hugging Face.
  """

  config: Config
  task: tasks.Task
  held_out: types.Batch
  devices: Devices = None
  pretrained: pretrained_lib.Pretrained | None = None

  def with_method(self, name: str) -> 'Experiment':
    """The same experiment by another method."""
    config = copy.deepcopy(self.config)
    config.method = name
    return dataclasses.replace(self, config=config)

  def model(self, role: str) -> Any:
    """The model of 'teacher' or 'student'."""
    if role == 'teacher' and self.pretrained is not None:
      return self.pretrained.model(self.task)
    if role == 'student' and student_starts.is_cut(self.config):
      return student_starts.outline(self)[0]
    return make_model(self.config, role, self.task)

  def place(self, tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """Arrays on every device of a mesh, or their shapes."""
    if self.devices is None:
      return mesh_lib.replicate(tree, mesh)
    return mesh_lib.abstract(tree, mesh, mesh_lib.REPLICATED)


@settings.own()
def open_experiment(config: Config, workdir: pathlib.Path) -> Experiment:
  """Reads the data of a config.

  Args:
    config: config of the experiment; a copy is changed.
    workdir: folder of its runs.

  Returns:
    The experiment; its config knows the paths and the fingerprints of its data.

  Raises:
    UserError: invalid settings, or data that are not what the config asks for.
  """
  folders.check(workdir)
  ranges.check(config.to_dict())
  ranges.warn_of_unread(config)
  config = copy.deepcopy(config)
  tasks.resolve_paths(config.task, config.data, workdir)
  pretrained = pretrained_lib.open_teacher(config)
  task = make_task(config)
  tasks.record_fingerprints(config.data, task)
  key = key_for(config, 'held_out')
  held_out = task_batches.held_out(config, task, key)
  return Experiment(config, task, held_out, pretrained=pretrained)


def abstract_experiment(config: Config, devices: Devices) -> Experiment:
  """An experiment of shapes alone; of files it reads a pretrained teacher's."""
  ranges.check(config.to_dict())
  config = copy.deepcopy(config)
  pretrained = pretrained_lib.open_teacher(config)
  key = key_for(config, 'support')
  task = tasks.make_abstract(config.task, config.data, key)
  held_out = functools.partial(task.held_out, size=config.data.eval_size)
  return Experiment(
    config,
    task,
    jax.eval_shape(held_out, jax.random.key(0)),
    devices,
    pretrained,
  )


def _seed_keys(config: Config, purpose: str, num: int) -> jax.Array:
  # Not split: seed 0 is the same student however many are trained.
  fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
  return fold(key_for(config, purpose), jnp.arange(num))


def _host_data(
  experiment: Experiment, role: str, mesh: jax.sharding.Mesh, streams: int
) -> run_spec.HostData:
  """The loader of a task whose batches the host reads."""
  config, task = experiment.config, experiment.task
  block = config.teacher if role == 'teacher' else config
  rows = task.host_spec(block.batch_size)
  if rows is None:
    return run_spec.HostData()
  keys = _seed_keys(config, f'{role}_data', streams)

  def open_loader() -> Any:
    bits = lambda key: jax.random.bits(key, dtype=jnp.uint32)
    seeds = jax.device_get(jax.vmap(bits)(keys))
    return tasks.open_loader(
      task, block.batch_size, list(map(int, seeds)), block.log_every, mesh
    )

  return run_spec.HostData(open_loader, rows)


def _spec(
  experiment: Experiment, role: str, num_seeds: int, loop: Any, **kwargs: Any
) -> run_spec.RunSpec:
  """Specification of a teacher or a student; `kwargs` is what differs."""
  config, task = experiment.config, experiment.task
  block = config.teacher if role == 'teacher' else config
  streams = 1 if config.share_batches else num_seeds
  layout = layouts.make(config, role, experiment.model, experiment.devices)
  keys = run_spec.Keys(
    *experiment.place(
      (
        _seed_keys(config, f'{role}_init', num_seeds),
        _seed_keys(config, f'{role}_data', streams),
        _seed_keys(config, 'student_stage', num_seeds),
      ),
      layout.mesh,
    )
  )
  loop = run_spec.Loop(
    log_every=block.log_every,
    eval_every=block.eval_every,
    save_every=block.save_every,
    save_minutes=config.save_minutes,
    stop_at=block.stop_at,
    **loop,
  )
  optimizer = kwargs.pop('optimizer', block.optimizer)
  metrics = metrics_lib.resolve(task.metrics)
  metrics_lib.require_reference(metrics, 'labels')
  spec = run_spec.RunSpec(
    student=experiment.model(role),
    draw=task.batch,
    held_out=experiment.place(experiment.held_out, layout.mesh),
    keys=keys,
    batch_size=block.batch_size,
    optimizer=optimizers.Scheduled(optimizer),
    layout=layout,
    loop=loop,
    metrics=metrics,
    primary=task.primary_metric,
    host=_host_data(experiment, role, layout.mesh, streams),
    microbatches=block.microbatches,
    restart_schedule=optimizer.restart_schedule,
    carry_state=optimizer.carry_state,
    **kwargs,
  )
  layouts.warn_unmatched(spec, role)
  return spec


def teacher_spec(experiment: Experiment) -> run_spec.RunSpec:
  """Specification of the run that trains the teacher, on the labels.

  Raises:
    UserError: settings that do not fit each other.
  """
  block = experiment.config.teacher
  with errors.about('The teacher'):
    return _spec(
      experiment,
      'teacher',
      num_seeds=1,
      loop=dict(save_at=tuple(block.save_at), overrun=block.overrun, keep=0),
      stages=curricula.supervised(block.num_steps),
    )


def student_spec(
  experiment: Experiment, teacher: teacher_lib.Teacher | None
) -> run_spec.RunSpec:
  """Specification of the run that trains the students by `config.method`.

  Args:
    experiment: the experiment.
    teacher: trained teacher, for methods that need one.

  Returns:
    The specification of the run.

  Raises:
    UserError: settings that do not fit each other or the teacher.
  """
  config = experiment.config
  optimizer = copy.deepcopy(config.optimizer)
  optimizer.learning_rate *= defaults.method_block(config).rate_factor
  stages = curriculum.make(experiment, teacher)
  needed = teacher is not None or any(stage.needs_teacher for stage in stages)
  return _spec(
    experiment,
    'student',
    num_seeds=config.num_seeds,
    loop={name: config[name] for name in ('keep', 'keep_best', 'patience')},
    stages=stages,
    optimizer=optimizer,
    teacher=teacher,
    start=start(experiment, teacher),
    teacher_metrics=metrics_lib.resolve(
      metrics_lib.TEACHER_METRICS if needed else ()
    ),
    lookahead=config.lookahead,
    trainable=config.trainable,
  )


def start(
  experiment: Experiment, teacher: teacher_lib.Teacher | None
) -> Callable[[], tuple[types.Params, ...]] | None:
  """Makes students that are cut out of their teacher; None for random ones."""
  key = key_for(experiment.config, 'student_start')
  return student_starts.function(experiment, teacher, key)


def check(experiment: Experiment) -> None:
  """Checks a config before anything is written, with an abstract teacher.

  Raises:
    UserError: the config cannot run.
  """
  config = experiment.config
  errors.lookup('cache.dtype', config.cache.dtype, target_cache.TOLERANCES)
  if config.cache.folder:
    identity.check_stored(config)
  task_batches.check(config, experiment.task)
  spec = student_spec(experiment, abstract_teacher(experiment))
  curriculum.check_checkpoints(experiment, spec.stages)
  thresholds.check(config, spec.primary, spec.primary_metric)
  memory.require(spec, spec.plan())
  fitting.check(spec, spec.plan())
  logit_checks.check(spec)
  mode_warnings.warn_of_run(spec)


def abstract_teacher(
  experiment: Experiment,
  checkpoints: Iterable[tuple[int, float]] | None = None,
) -> teacher_lib.Teacher:
  """A teacher whose parameters are shapes.

  Args:
    experiment: the experiment.
    checkpoints: `(step, score)` of each; None is every one there may be.

  Returns:
    The teacher, not available.
  """
  if experiment.pretrained is not None:
    return experiment.pretrained.teacher()
  spec = teacher_spec(experiment)
  if checkpoints is None:
    steps = sorted({*range(1_000), *experiment.config.progressive.checkpoints})
    ahead = ((step, i / len(steps)) for i, step in enumerate(steps))
    checkpoints = (*ahead, (steps[-1] + 1, 1.0))
  return teacher_lib.Teacher(
    apply=spec.student.apply,
    params=spec.student_shapes,
    layers=spec.student.layers,
    checkpoints=tuple(checkpoints),
    available=False,
  )


@settings.own()
def abstract_specs(
  config: Config, names: Sequence[str], devices: Sequence[Any]
) -> Mapping[str, run_spec.RunSpec]:
  """Runs of a config for devices that need not be attached: shapes alone.

  Args:
    config: config of the experiment; neither `method` nor a file is read.
    names: methods.
    devices: devices from `devices.topology`.

  Returns:
    The run of the teacher, unless it comes from elsewhere, and those of the
    students; by 'teacher' and the method. Their teacher counts as available:
    the programs run it.

  Raises:
    UserError: invalid settings.
  """
  experiment = abstract_experiment(config, devices)
  teacher = dataclasses.replace(abstract_teacher(experiment), available=True)
  specs = {}
  if not config.teacher.folder:
    specs['teacher'] = teacher_spec(experiment)
  for name in names:
    chosen = experiment.with_method(name)
    specs[name] = student_spec(chosen, teacher)
    curriculum.check_checkpoints(chosen, specs[name].stages)
  return specs
