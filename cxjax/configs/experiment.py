"""Experiments from a config: the teacher, a student by a method, a comparison.

With `builders.py` and `contest.py` the only module that reads a whole config.
Files of a workdir: `teacher/` and one folder per method, each with
`config.json`, `metrics.jsonl`, `checkpoints/`, `tensorboard/` and, once
finished, `summary.json`.
"""

from collections.abc import Sequence
import copy
import pathlib
from typing import Any
from typing import TypeAlias

import ml_collections

from cxjax import errors
from cxjax import files
from cxjax import folders
from cxjax import settings
from cxjax import tables
from cxjax import types
from cxjax.analysis import spread
from cxjax.api import mode_warnings
from cxjax.configs import builders
from cxjax.configs import functions
from cxjax.configs import identity
from cxjax.configs import stored_targets
from cxjax.configs import teachers
from cxjax.methods import registry
from cxjax.methods import stored_output
from cxjax.training import checkpoints as checkpoints_lib
from cxjax.training import metric_log
from cxjax.training import metrics as metrics_lib
from cxjax.training import run_spec
from cxjax.training import summary as summary_lib
from cxjax.training import teacher as teacher_lib

Config: TypeAlias = ml_collections.ConfigDict


def _reopen(
  config: Config, folder: pathlib.Path, workdir: pathlib.Path, what: str
) -> tuple[builders.Experiment, summary_lib.Summary]:
  """The experiment and the summary of a finished run, from its files."""
  folders.check(workdir)
  errors.require(
    (folder / 'summary.json').exists(),
    f'{folder} holds no finished {what}. Run launch.py on {workdir} first.',
  )
  summary = summary_lib.read(folder / 'summary.json')
  config = copy.deepcopy(config)
  config.update(functions.saved_config(folder))
  if 'pretrained' in summary:
    config.teacher.folder = summary['pretrained']
  experiment = builders.open_experiment(config, workdir)
  return experiment, summary


@settings.own()
def load(
  config: Config, workdir: str | pathlib.Path
) -> tuple[Config, teacher_lib.Teacher]:
  """The teacher that a workdir holds, and the config it was trained with.

  Args:
    config: config of the same experiment; the fields of the teacher are
      replaced.
    workdir: workdir of any run.

  Returns:
    The config and the teacher.

  Raises:
    UserError: there is no finished teacher, or it is damaged.
  """
  workdir = pathlib.Path(workdir)
  folder = workdir / 'teacher'
  experiment, summary = _reopen(config, folder, workdir, 'teacher')
  teacher = teachers.load_teacher(
    experiment, folder, summary['steps'], summary['checkpoints']
  )
  return experiment.config, teacher


@settings.own()
def load_students(
  config: Config,
  workdir: str | pathlib.Path,
  method: str,
  *,
  best: bool = False,
) -> tuple[Any, types.Params]:
  """The finished students of a workdir, and their model.

  Args:
    config: config of the same experiment; its fields are replaced.
    workdir: workdir of the run.
    method: name of the method.
    best: the best checkpoint, of a run with `keep_best`, instead of the last.

  Returns:
    The model, and `[S, ...]` parameters.

  Raises:
    UserError: there are none, or they are damaged.
  """
  errors.lookup('method', method, registry.METHODS)
  workdir = pathlib.Path(workdir)
  folder = workdir / method
  experiment, summary = _reopen(config, folder, workdir, 'students')
  at = summary['best_step'] if best else summary['steps']
  errors.require(
    at is not None,
    f'{folder} kept no best checkpoint: run it with keep_best=METRIC.',
  )
  student = experiment.model('student')
  template = teachers.template(
    builders.teacher_spec(experiment), student, experiment.config.num_seeds
  )
  found = checkpoints_lib.restore(folder, at, {'params': template})
  return student, found['params']


@settings.own()
def run(
  config: Config,
  workdir: str | pathlib.Path,
  on_record: metric_log.OnRecord | None = None,
) -> summary_lib.Summary:
  """Trains the teacher if need be, then students by `config.method`.

  Args:
    config: config of the experiment.
    workdir: where the files go.
    on_record: called with every record of the students' metrics.

  Returns:
    The summary of the students' run.

  Raises:
    UserError: the config, the data or a folder is invalid.
  """
  for name, usual in (('batches', 0), ('output', stored_output.LOGITS)):
    errors.require(
      bool(config.cache.folder) or config.cache[name] == usual,
      f'cache.{name}={config.cache[name]} is for stored targets: give '
      'cache.folder or --cache_targets, or leave it out.',
    )
  workdir = pathlib.Path(workdir)
  experiment = builders.open_experiment(config, workdir)
  identity.require_same(experiment.config)
  _check(experiment, workdir)
  return _run(experiment, workdir, on_record)


def _check(experiment: builders.Experiment, workdir: pathlib.Path) -> None:
  """Raises UserError for what would stop a run after its teacher's."""
  builders.check(experiment)
  folders.check(workdir / experiment.config.method)


def _run(
  experiment: builders.Experiment,
  workdir: pathlib.Path,
  on_record: metric_log.OnRecord | None = None,
) -> summary_lib.Summary:
  """`run` of an experiment that was checked."""
  teachers.save_task(experiment)
  config = experiment.config
  folder = workdir / config.method
  if config.cache.folder:
    finished = (folder / 'summary.json').exists()
    spec = stored_targets.stored_spec(experiment, workdir, checked=not finished)
  else:
    spec = _student_spec(
      experiment, teachers.train_teacher(experiment, workdir)
    )
  if config.cache.folder:
    identity.require_same(config)  # Now with the fingerprint of the targets.
  fields = identity.student_config(config)
  functions.claim_workdir(folder, fields, experiment, spec)
  if not config.cache.folder:
    teachers.claim_students(
      spec, folder, teachers.teacher_folder(config, workdir)
    )
  return teachers.finish(config.method, spec, folder, on_record)


def _student_spec(
  experiment: builders.Experiment, teacher: teacher_lib.Teacher
) -> run_spec.RunSpec:
  """The run of the students, whose checkpoints of the teacher are all there."""
  spec = builders.student_spec(experiment, teacher)
  for stage in spec.stages:
    teacher.at(stage.checkpoint)  # An error now, not after hours.
  return spec


@settings.own()
@mode_warnings.once()
def compare(
  config: Config, names: Sequence[str], workdir: pathlib.Path
) -> list[summary_lib.Summary]:
  """Runs several methods on one teacher, and writes `comparison.*`.

  Args:
    config: config of the experiment; its `method` is not read.
    names: methods.
    workdir: where the files go.

  Returns:
    One summary per method.

  Raises:
    UserError: the config, the data or a folder is invalid.
  """
  errors.require(
    not config.cache.folder,
    'cache.folder holds the targets of one method: leave --compare out.',
  )
  for name in names:
    errors.lookup('method', name, registry.METHODS)
  experiment = builders.open_experiment(config, workdir)
  identity.require_same(experiment.config, compare=list(names))
  experiments = [experiment.with_method(name) for name in names]
  for chosen in experiments:
    _check(chosen, workdir)
  teachers.save_task(experiment)
  teacher = teachers.train_teacher(experiment, workdir)
  for chosen in experiments:
    _student_spec(chosen, teacher)
  summaries = [_run(chosen, workdir) for chosen in experiments]
  primary = experiment.task.primary_metric
  found = {s['method']: s['final'][primary] for s in summaries}
  metric = metrics_lib.resolve(experiment.task.metrics)[primary]
  parts = (
    summary_lib.compare_table(summaries),
    spread.verdict(found, metric.higher_is_better),
  )
  text = '\n'.join(filter(None, parts)).rstrip('\n')
  files.write_text(workdir / 'comparison.md', f'{text}\n')
  rows = [row for s in summaries for row in summary_lib.seed_rows(s)]
  tables.write_csv(workdir / 'comparison.csv', rows)
  curves = {
    s['method']: metric_log.read(workdir / s['method']) for s in summaries
  }
  # Imported here, as matplotlib is slow to import.
  from cxjax.analysis import plots

  plots.curves(
    curves,
    primary,
    f'held-out {primary}',
    workdir / 'comparison.png',
    title=f'{config.task}: held-out {primary} by method',
    teacher=_teacher_score(config, workdir, primary),
  )
  return summaries


def _teacher_score(
  config: Config, workdir: pathlib.Path, metric: str
) -> float | None:
  """The teacher's value of a metric, if its summary has one."""
  for folder in (teachers.teacher_folder(config, workdir), workdir / 'teacher'):
    path = folder / 'summary.json'
    if path.exists():
      values = summary_lib.read(path)['final'].get(metric)
      return float(values[0]) if values else None
  return None
