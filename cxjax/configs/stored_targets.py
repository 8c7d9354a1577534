"""Targets that the teacher computes once, for runs without it."""

import dataclasses
import pathlib
from typing import Any
from typing import TypeAlias

from absl import logging
import ml_collections

from cxjax import errors
from cxjax import settings
from cxjax.configs import builders
from cxjax.configs import identity
from cxjax.configs import teachers
from cxjax.methods import registry
from cxjax.methods import stored_output
from cxjax.training import run_spec
from cxjax.training import summary as summary_lib
from cxjax.training import target_cache
from cxjax.training import teacher as teacher_lib

Config: TypeAlias = ml_collections.ConfigDict


@settings.own()
def cache_targets(
  config: Config, workdir: pathlib.Path, folder: pathlib.Path
) -> dict[str, Any]:
  """Stores the targets of `config.method`, for runs with `cache.folder`.

  Args:
    config: config of the experiment.
    workdir: where the teacher is, or goes.
    folder: where the targets go.

  Returns:
    The summary of the stored targets, as in `FOLDER/summary.json`.

  Raises:
    UserError: the config, the data or a folder is invalid.
  """
  errors.require(
    not config.cache.folder,
    f'cache.folder={config.cache.folder} is read, --cache_targets={folder} '
    'written: give one of the two.',
  )
  identity.check_stored(config)
  target_cache.check_folder(folder, '--cache_targets')
  experiment = builders.open_experiment(config, workdir)
  identity.require_same(experiment.config, cache_targets=True)
  builders.check(experiment)
  _require_head(experiment)
  _require_own(folder, config, workdir)
  teachers.save_task(experiment)
  spec = builders.student_spec(
    experiment, teachers.train_teacher(experiment, workdir)
  )
  spec = _with_period(spec, experiment)
  stored = identity.stored_config(experiment.config, spec)
  cache = config.cache
  return target_cache.write(folder, spec, stored, cache.dtype, cache.output)


def _require_head(experiment: builders.Experiment) -> None:
  """Raises UserError for hidden states that are not there, before training."""
  if experiment.config.cache.output != stored_output.HIDDEN:
    return
  teacher = builders.abstract_teacher(experiment)
  spec = builders.student_spec(experiment, teacher)
  target_cache.require_hidden(spec)


def _require_own(
  folder: pathlib.Path, config: Config, workdir: pathlib.Path
) -> None:
  """Raises UserError for a folder of a run, before its teacher is trained."""
  target_cache.require_no_run(folder)
  runs = [workdir / name for name in registry.METHODS]
  for run in (teachers.teacher_folder(config, workdir), *runs):
    errors.require(
      not folder.resolve().is_relative_to(run.resolve()),
      f'--cache_targets={folder} lies in {run}, the folder of a run: targets '
      'need a folder of their own.',
    )
  # Who removes the targets, to write them again, must not remove the runs.
  for run in (workdir, teachers.teacher_folder(config, workdir)):
    errors.require(
      not run.resolve().is_relative_to(folder.resolve()),
      f'--cache_targets={folder} holds {run}: targets need a folder of their '
      f'own, as {workdir / "targets"}.',
    )


def _with_period(
  spec: run_spec.RunSpec, experiment: builders.Experiment
) -> run_spec.RunSpec:
  period = identity.period(experiment.config)
  host = dataclasses.replace(spec.host, period=period)
  return dataclasses.replace(spec, host=host)


def stored_spec(
  experiment: builders.Experiment, workdir: pathlib.Path, checked: bool
) -> run_spec.RunSpec:
  """Specification of `student_spec` with stored targets for its teacher."""
  config = experiment.config
  cache = target_cache.load(pathlib.Path(config.cache.folder))
  errors.require(
    config.cache.fingerprint in ('', cache.fingerprint),
    f'cache.fingerprint={config.cache.fingerprint}, but that of {cache.folder} '
    f'is {cache.fingerprint}.',
  )
  config.cache.fingerprint = cache.fingerprint
  teacher = builders.abstract_teacher(
    experiment, map(tuple, cache.record['checkpoints'])
  )
  spec = builders.student_spec(experiment, teacher)
  spec = _with_period(spec, experiment)
  cache.require_kind(config.cache.output)
  cache.require_same(identity.stored_config(config, spec))
  cache.require_all(spec)
  if checked:
    found = _found_teacher(experiment, workdir) or teacher
    target_cache.check(cache, dataclasses.replace(spec, teacher=found))
    errors.require(
      spec.start is None or found.available,
      'student.start=teacher cuts the students out of the teacher, and there '
      f'is none in {teachers.teacher_folder(config, workdir)}. Copy it there, '
      'or give its folder as teacher.folder.',
    )
    spec = dataclasses.replace(spec, start=builders.start(experiment, found))
  return target_cache.served(cache, spec)


def _found_teacher(
  experiment: builders.Experiment, workdir: pathlib.Path
) -> teacher_lib.Teacher | None:
  """The finished teacher, if it is there."""
  if experiment.pretrained is not None:
    return teachers.train_teacher(experiment, workdir)
  folder = teachers.teacher_folder(experiment.config, workdir)
  if not (folder / 'summary.json').exists():
    logging.info(
      'No teacher in %s: the stored targets are not compared with it again; '
      'they were when they were written.',
      folder,
    )
    return None
  teachers.claim_teacher(experiment, builders.teacher_spec(experiment), folder)
  finished = summary_lib.read(folder / 'summary.json')
  return teachers.load_teacher(
    experiment, folder, finished['steps'], finished['checkpoints']
  )
