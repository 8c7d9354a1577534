"""Comparisons with a search, from a config: what `cxjax.compare` is given.

`launch.py --compare=... --rates=...` and `experiments.map` are made of it.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import itertools
import pathlib
from typing import Any
from typing import TypeAlias

import jax
import ml_collections
import numpy as np

from cxjax import errors
from cxjax import settings
from cxjax import types
from cxjax.api import budgets
from cxjax.api import compare as compare_lib
from cxjax.api import comparison
from cxjax.api import contest as contest_lib
from cxjax.api import mode_warnings
from cxjax.api import placement
from cxjax.api import plan as plan_lib
from cxjax.configs import builders
from cxjax.configs import student_starts
from cxjax.configs import teachers
from cxjax.methods import stage as stage_lib
from cxjax.methods import training_mode
from cxjax.models import adapters
from cxjax.models import teacher_checkpoints
from cxjax.parallel import multihost
from cxjax.training import metrics as metrics_lib
from cxjax.training import optimizers
from cxjax.training import teacher as teacher_lib

Config: TypeAlias = ml_collections.ConfigDict
Student: TypeAlias = Callable[[int], adapters.ModelAdapter]
SHOWN_RATES = 8  # In the name of a folder.
# Fields of a config that a comparison with a search cannot follow, the values
# that it allows, and why.
EARLY = 'ends a run early, and every method has its whole budget'
AFRESH = 'each stage has an optimizer and a schedule of its own'
FIXED: dict[str, tuple[Any, str]] = {
  'cache.folder': ('', 'the teacher is run'),
  'patience': (0, EARLY),
  'stop_at': (None, EARLY),
  'optimizer.restart_schedule': (True, AFRESH),
  'optimizer.carry_state': (False, AFRESH),
}


@dataclasses.dataclass(frozen=True)
class Setting:
  """Networks, data and methods of a comparison.

  Attributes:
    teacher: the trained teacher.
    student: makes the student of a seed.
    batches: training batches; each iteration begins anew.
    held_out: held-out set.
    num_steps: steps of one-shot distillation.
    methods: plan of each method, or its options, as `compare` takes them.
    options: others of `compare`.
    rates: learning rates to try.
    optimizer: fields of the optimizer, without its learning rate.
  """

  teacher: adapters.ModelAdapter
  student: Student
  batches: Iterable[Any]
  held_out: Any
  num_steps: int
  methods: Mapping[str, Any]
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  rates: tuple[float, ...] = compare_lib.RATES
  optimizer: Mapping[str, Any] = dataclasses.field(
    default_factory=lambda: {'warmup': compare_lib.WARMUP}
  )


class TaskBatches:
  """Batches of a task of the configs; each iteration begins anew."""

  def __init__(self, experiment: builders.Experiment) -> None:
    """Compiles nothing yet."""
    config = experiment.config
    self._task, self._size = experiment.task, config.batch_size
    self._seed = config.seed
    self._key = builders.key_for(config, 'student_data')
    self._draw = jax.jit(self._task.batch, static_argnums=self._reads())

  def _reads(self) -> tuple[int, ...]:
    """The argument with the batch size, of a task that the host reads not."""
    return (2,) if self._task.host_spec(self._size) is None else ()

  def __iter__(self) -> Iterator[types.Batch]:
    """Yields batches without end."""
    rows: Iterable[Any] = itertools.repeat(self._size)
    if not self._reads():
      rows = self._task.host_batches(self._size, seed=self._seed)
    for step, some in enumerate(rows):
      yield _plain(self._draw(self._key, np.int32(step), some))


def _plain(batch: types.Batch) -> types.Batch:
  """The entries of a batch that `distill` takes; bytes of text are no such."""
  return {k: v for k, v in batch.items() if k in ('x', 'y', 'weights')}


def checkpoints_of(stages: stage_lib.Curriculum) -> tuple[int, ...]:
  """Steps of the teacher's checkpoints that stages learn from."""
  found = {stage.checkpoint for stage in stages}
  return tuple(sorted(step for step in found if step is not None))


def of_experiment(
  experiment: builders.Experiment,
  teacher: teacher_lib.Teacher,
  checkpoints: Iterable[int] = (),
) -> Setting:
  """Networks and data of a config, without methods yet.

  Args:
    experiment: the experiment.
    teacher: its teacher, trained.
    checkpoints: steps of the teacher's checkpoints that methods learn from.

  Returns:
    The setting, with the optimizer of the config.
  """
  model = lambda params: adapters.from_fn(teacher.apply, params)
  found = model(teacher.params)
  earlier = {step: model(teacher.at(step)) for step in checkpoints}
  if earlier:
    found = teacher_checkpoints.with_checkpoints(found, earlier)
  config = experiment.config
  # A flag may name another optimizer than the one that the file sets up.
  others = {*optimizers.ARGUMENTS, *optimizers.unread(config.optimizer)}
  optimizer = {n: v for n, v in config.optimizer.items() if n not in others}
  return Setting(
    found,
    _students(experiment, teacher),
    TaskBatches(experiment),
    _plain(experiment.held_out),
    config.num_steps,
    methods={},
    options={'metrics': _metrics(experiment.task)},
    optimizer=optimizer,
  )


def _metrics(task: Any) -> tuple[str, ...]:
  """The metrics of a task that read labels alone; the deciding one is first."""
  names = (task.primary_metric, *task.metrics)
  found = metrics_lib.resolve(tuple(dict.fromkeys(names)))
  return tuple(name for name, metric in found.items() if not metric.others)


def _students(
  experiment: builders.Experiment, teacher: teacher_lib.Teacher
) -> Student:
  """Makes the student of a seed: at random, or cut out of the teacher."""
  model, config = experiment.model('student'), experiment.config
  training = training_mode.of_model(model)
  adapt = functools.partial(adapters.from_fn, model.apply, training=training)
  if student_starts.is_cut(config):
    key = builders.key_for(config, 'student_start')

    def cut(seed: int) -> adapters.ModelAdapter:
      (start,) = student_starts.cut(experiment, teacher.params, key, (seed,))
      return adapt(start)

    return cut
  x = jax.tree.map(lambda leaf: leaf[:1], experiment.held_out['x'])
  init = jax.jit(lambda key: model.init(key, x))
  key = builders.key_for(config, 'student_init')
  fold = lambda seed: jax.random.fold_in(key, seed)
  return lambda seed: adapt(init(fold(seed)))


def compare(
  one: Setting,
  *,
  rates: Sequence[float],
  seeds: int,
  equal: str,
  workdir: pathlib.Path,
  **options: Any,
) -> comparison.Comparison:
  """Compares the methods of a setting by `cxjax.compare`.

  Args:
    one: the setting.
    rates: learning rates to try.
    seeds: number of students of each method.
    equal: quantity that all methods have as much of.
    workdir: folder of the runs.
    **options: others of `cxjax.compare`, before those of the setting.

  Returns:
    The comparison.
  """
  return compare_lib.compare(
    one.teacher,
    one.student,
    one.batches,
    held_out=one.held_out,
    num_steps=one.num_steps,
    methods=one.methods,
    rates=rates,
    seeds=seeds,
    equal=equal,
    workdir=workdir,
    **{'optimizer': one.optimizer, **one.options, **options},
  )


@settings.own()
@mode_warnings.once()
def search(
  config: Config,
  names: Sequence[str],
  workdir: pathlib.Path,
  *,
  rates: Sequence[float],
  equal: str = 'flops',
  budget: float = 1.0,
  report: contest_lib.Report = print,
) -> comparison.Comparison:
  """Compares methods of a config, each at the best of several learning rates.

  Args:
    config: config of the experiment; its `method` and its learning rates are
      not read.
    names: methods.
    workdir: where the files go: `comparison.*` and `search.csv`, the teacher,
      and in a folder of `search/` the runs.
    rates: learning rates to try.
    equal: quantity that all methods have as much of, as of `cxjax.compare`.
    budget: part of the budget at which everything is done.
    report: called with lines of text as the comparison goes on.

  Returns:
    The comparison.

  Raises:
    UserError: the config, the data or a folder is invalid, the budget is too
      small, or there are several processes.
  """
  _check(config)
  experiment = builders.open_experiment(config, workdir)
  experiments = {name: experiment.with_method(name) for name in names}
  for chosen in experiments.values():
    builders.check(chosen)
  num_steps = budgets.part_of(config.num_steps, budget)
  _check_budget(experiments, num_steps, len(rates), equal)
  teachers.save_task(experiment)
  teacher = teachers.train_teacher(experiment, workdir)
  one = _with_plans(experiments, teacher)

  found = compare(
    one,
    rates=rates,
    seeds=config.num_seeds,
    equal=equal,
    workdir=workdir / 'search' / _folder(equal, num_steps, rates),
    budget=budget,
    report=report,
    microbatches=config.microbatches,
    trainable=config.trainable,
    mesh={name: config.mesh[name] for name in placement.MESH},
  )
  found.write(workdir)
  return found


def _folder(equal: str, num_steps: int, rates: Sequence[float]) -> str:
  """Folder of the runs of a search; other rates have another."""
  listed = '_'.join(f'{rate:g}' for rate in sorted(rates))
  if len(rates) > SHOWN_RATES:  # Names of folders are limited in length.
    digest = hashlib.sha256(listed.encode()).hexdigest()[:16]
    listed = f'{len(rates)}_rates_{digest}'
  return f'{equal}_{num_steps}_{listed}'


def _check(config: Config) -> None:
  """Raises UserError for what a comparison with a search cannot do."""
  errors.require(
    multihost.count() == 1,
    f'--rates searches in one process, and there are {multihost.count()}: '
    'start one, or leave --rates out.',
  )
  for name, (allowed, why) in FIXED.items():
    value = functools.reduce(
      lambda block, field: block[field], name.split('.'), config
    )
    errors.require(
      value == allowed,
      f'{name}={value} is not for --rates: {why}. Leave it at {allowed!r}.',
    )


def _check_budget(
  experiments: Mapping[str, builders.Experiment],
  num_steps: int,
  rates: int,
  equal: str,
) -> None:
  """Raises UserError for too few steps, before a teacher is trained.

  FLOPs of the other methods are known once it is.
  """
  reference = contest_lib.reference_of(experiments)
  alike = equal in ('steps', 'examples')
  for name in experiments if alike else (reference,):
    stages = _stages(experiments[name], None)
    contest_lib.require_steps(name, len(stages), num_steps, rates)


def _stages(
  experiment: builders.Experiment, teacher: teacher_lib.Teacher | None
) -> stage_lib.Curriculum:
  """The curriculum of a config, of an abstract teacher if there is none."""
  teacher = teacher or builders.abstract_teacher(experiment)
  return builders.student_spec(experiment, teacher).stages


def _with_plans(
  experiments: Mapping[str, builders.Experiment], teacher: teacher_lib.Teacher
) -> Setting:
  """The setting of a config, whose methods are its curricula."""
  stages = {name: _stages(one, teacher) for name, one in experiments.items()}
  steps = sorted({s for each in stages.values() for s in checkpoints_of(each)})
  found = of_experiment(next(iter(experiments.values())), teacher, steps)
  student, example = found.student(0), next(iter(found.batches))
  plan = functools.partial(plan_lib.plan, found.teacher, student, example)
  plans = {name: plan(stages=each) for name, each in stages.items()}
  return dataclasses.replace(found, methods=plans)
