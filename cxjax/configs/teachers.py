"""The teacher of an experiment: trained, found finished, loaded."""

from collections.abc import Sequence
import dataclasses
import functools
import pathlib
from typing import Any
from typing import TypeAlias

from absl import logging
import jax
import ml_collections

from cxjax import errors
from cxjax import files
from cxjax import types
from cxjax.configs import builders
from cxjax.configs import functions
from cxjax.configs import identity
from cxjax.configs import pretrained
from cxjax.parallel import agreement
from cxjax.parallel import mesh as mesh_lib
from cxjax.parallel import multihost
from cxjax.training import checkpoints as checkpoints_lib
from cxjax.training import evaluation
from cxjax.training import metric_log
from cxjax.training import output_memory
from cxjax.training import run_spec
from cxjax.training import summary as summary_lib
from cxjax.training import target_cache
from cxjax.training import teacher as teacher_lib
from cxjax.training import trainer

Config: TypeAlias = ml_collections.ConfigDict


def teacher_folder(config: Config, workdir: pathlib.Path) -> pathlib.Path:
  """Folder of the teacher."""
  return pathlib.Path(config.teacher.folder or workdir / 'teacher')


def check_folder(config: Config) -> None:
  """Checks that `teacher.folder` has the teacher of a config; writes nothing.

  Args:
    config: config of the experiment, whose data need not be read.

  Raises:
    UserError: it has the teacher of another config.
  """
  given = config.teacher.folder
  if given and pretrained.find(given) is None:
    fields = identity.teacher_config(config)
    functions.require_same_config(pathlib.Path(given).absolute(), fields)


def finish(
  method: str,
  spec: run_spec.RunSpec,
  folder: pathlib.Path,
  on_record: metric_log.OnRecord | None = None,
) -> summary_lib.Summary:
  """Trains unless finished; the summary.

  Raises:
    UserError: a run that keeps all its checkpoints lacks one.
  """
  path = folder / 'summary.json'
  if multihost.from_first(path.exists):
    logging.info('%s is finished.', folder)
    summary = summary_lib.read(path)
    _require(folder, summary.get('checkpoints', ()))
    return summary
  if spec.loop.keep == 0:  # An error now, not after hours.
    _require(folder, checkpoints_lib.scheduled(folder))
  title = f'{folder.parent.name}/{method}'
  result = trainer.fit(spec, folder, title, on_record)
  summary = summary_lib.summarize(method, spec, result)
  if spec.loop.keep == 0:
    summary['checkpoints'] = checkpoints_lib.scheduled(folder)
  summary_lib.write(path, summary, result.records)
  return summary


def _require(folder: pathlib.Path, kept: Sequence[int]) -> None:
  """Raises UserError unless a run has all checkpoints of its schedule."""
  for at in kept:
    checkpoints_lib.require(folder, at)


def train_teacher(
  experiment: builders.Experiment, workdir: pathlib.Path
) -> teacher_lib.Teacher:
  """The teacher of an experiment: trained, or found finished.

  Args:
    experiment: the experiment.
    workdir: where `teacher/` is, unless `config.teacher.folder` is another.

  Returns:
    The teacher.

  Raises:
    UserError: the folder belongs to another teacher, is damaged, or lacks a
      checkpoint of its schedule.
  """
  config = experiment.config
  if experiment.pretrained is not None:
    return _pretrained_teacher(experiment, workdir / 'teacher')
  folder = teacher_folder(config, workdir)
  spec = builders.teacher_spec(experiment)
  claim_teacher(experiment, spec, folder)
  was_finished = (folder / 'summary.json').exists()
  finished = finish('teacher', spec, folder)
  if not was_finished:
    _warn_if_untrained(spec, config.teacher.num_steps, finished)
  steps, kept = finished['steps'], finished['checkpoints']
  return load_teacher(experiment, folder, steps, kept)


def _pretrained_teacher(
  experiment: builders.Experiment, folder: pathlib.Path
) -> teacher_lib.Teacher:
  """The teacher of a folder of Hugging Face, evaluated once.

  Args:
    experiment: the experiment.
    folder: where its metrics go, as those of a teacher that is trained.

  Returns:
    The teacher.

  Raises:
    UserError: the folder has the metrics of another teacher.
  """
  given = experiment.pretrained
  assert given is not None
  spec = builders.teacher_spec(experiment)
  teacher = given.teacher(given.load(spec.layout))
  claim_teacher(experiment, spec, folder)
  path, here = folder / 'summary.json', _source(given, spec, teacher)
  if multihost.from_first(path.exists):
    _require_same_source(path, here)
    return teacher
  evaluate = functools.partial(
    evaluation.evaluate,
    apply=spec.student.apply,
    metrics=spec.metrics,
    parts=output_memory.eval_parts(spec),
  )
  with jax.set_mesh(spec.layout.mesh):
    fun = lambda *args: mesh_lib.constrain_replicated(evaluate(*args))
    found = jax.device_get(jax.jit(fun)(teacher.params, spec.held_out))
  final = {name: [float(value)] for name, value in found.items()}
  logging.info('The teacher of %s: %s', here['pretrained'], final)
  summary = {'method': 'teacher', 'steps': 0, 'checkpoints': []}
  summary_lib.write(path, {**summary, **here, 'final': final})
  return teacher


def _source(
  given: pretrained.Pretrained,
  spec: run_spec.RunSpec,
  teacher: teacher_lib.Teacher,
) -> dict[str, Any]:
  """The folder of a pretrained teacher, and a hash of its parameters."""
  spec = dataclasses.replace(spec, teacher=teacher)
  return {
    'pretrained': str(given.folder.absolute()),
    'parameters': target_cache.parameter_digests(spec)['final'],
  }


def _require_same_source(path: pathlib.Path, here: dict[str, Any]) -> None:
  """Raises UserError unless a summary is of the same pretrained teacher."""
  before, folder = summary_lib.read(path), path.parent
  there, source = before.get('pretrained'), here['pretrained']
  errors.require(
    there == source,
    f'{folder} has the metrics of {there or "a teacher trained there"}, not '
    f'of {source}. Choose another workdir.',
  )
  errors.require(  # A workdir of an earlier version has no hash.
    before.get('parameters', here['parameters']) == here['parameters'],
    f'{folder} has the metrics of the teacher in {source}, which has other '
    'parameters now. Restore them, or choose another workdir.',
  )


def _warn_if_untrained(
  spec: run_spec.RunSpec, num_steps: int, finished: summary_lib.Summary
) -> None:
  """Warns of a teacher that used its steps up and did not learn enough."""
  score, stop_at = finished['final'][spec.primary][0], spec.loop.stop_at
  if stop_at is None or finished['steps'] < num_steps:
    return
  metric = spec.primary_metric
  if metric.is_possible(stop_at) and not metric.reaches(score, stop_at):
    logging.warning(
      'The teacher ended with %s %.3g; teacher.stop_at=%.3g was not reached, '
      'so students learn from an unfinished teacher. Raise teacher.num_steps '
      'above %d, or choose another seed.',
      spec.primary,
      score,
      stop_at,
      num_steps,
    )


def template(
  spec: run_spec.RunSpec, model: Any, num_seeds: int
) -> types.Params:
  """Shapes of the parameters of `num_seeds` networks, with their shardings."""
  x = jax.tree.map(lambda leaf: leaf[:1], spec.held_out['x'])
  one = jax.eval_shape(model.init, jax.random.key(0), x)
  shapes = jax.tree.map(
    lambda leaf: types.shape_struct((num_seeds, *leaf.shape), leaf.dtype), one
  )
  layout = spec.layout
  return mesh_lib.abstract(shapes, layout.mesh, layout.student, seeds=True)


def load_teacher(
  experiment: builders.Experiment,
  folder: pathlib.Path,
  last: int,
  kept: Sequence[int] | None = None,
) -> teacher_lib.Teacher:
  """A finished teacher, from its folder.

  Args:
    experiment: the experiment.
    folder: folder of the teacher.
    last: step of the final checkpoint.
    kept: steps of all its checkpoints, as its summary has them; None reads them
      from the newest record.

  Returns:
    The teacher.

  Raises:
    UserError: a checkpoint is missing, damaged or of other shapes.
  """
  spec, given = builders.teacher_spec(experiment), experiment.pretrained
  if given is not None:
    teacher = given.teacher(given.load(spec.layout))
    here = _source(given, spec, teacher)
    _require_same_source(folder / 'summary.json', here)
    return teacher
  shapes = template(spec, spec.student, num_seeds=1)
  loaded: dict[int, types.Params] = {}

  def load(at: int) -> types.Params:
    if at not in loaded:
      items = checkpoints_lib.restore(folder, at, {'params': shapes})
      loaded[at] = jax.tree.map(lambda leaf: leaf[0], items['params'])
    return loaded[at]

  if kept is None:
    kept = checkpoints_lib.scheduled(folder)
  records = [checkpoints_lib.require(folder, at) for at in kept]
  return teacher_lib.Teacher(
    apply=spec.student.apply,
    params=load(last),
    layers=spec.student.layers,
    checkpoints=tuple((r['step'], r['score'][0]) for r in records),
    load=load,
  )


def claim_teacher(
  experiment: builders.Experiment, spec: run_spec.RunSpec, folder: pathlib.Path
) -> None:
  """Reserves a folder for the teacher of an experiment, as `spec` trains it."""
  fields = identity.teacher_config(experiment.config)
  functions.claim_workdir(folder, fields, experiment, spec)


def claim_students(
  spec: run_spec.RunSpec, folder: pathlib.Path, teacher: pathlib.Path
) -> None:
  """Reserves a folder for students of the teacher that they began with.

  Args:
    spec: the run of the students, with a teacher that is available.
    folder: the folder of the students; `teacher.json` in it has hashes of the
      teacher's parameters, and the checkpoints that the stages use.
    teacher: the folder of the teacher.

  Raises:
    UserError: the students began with another teacher, `teacher.json` is
      damaged, or the processes of the run have different teachers.
  """
  path = folder / 'teacher.json'
  here = {
    'stages': [stage.checkpoint for stage in spec.stages],
    'parameters': target_cache.parameter_digests(spec, also=(None,)),
  }
  agreement.require_same(lambda: {'teacher': here})
  remove = f'remove {folder} to train again'
  if not path.exists():
    begun = any((folder / n).exists() for n in ('checkpoints', 'summary.json'))
    errors.require(
      not begun,
      f'{path} is missing. It identifies the teacher of the students in '
      f'{folder}: restore it, or {remove}.',
    )
    files.write_json(path, here)
    return
  there = files.read_json(path, remove)
  functions.require_whole(path, there, here, remove)
  differ = files.differences(there, here)
  errors.require(
    not differ,
    f'The teacher in {teacher} is not the one that {folder} began with. What '
    f'differs: {differ}. Restore that teacher, or {remove}.',
  )


def save_task(experiment: builders.Experiment) -> None:
  """Keeps what a later run needs to find the same data."""
  folder = experiment.config.data.get('folder')
  if folder:
    experiment.task.save(pathlib.Path(folder))
