"""Experiments from a config: the teacher, a student by a method, a comparison.

With `build.py` the only module that reads a whole config. Files of a workdir:
`teacher/` and one folder per method, each with `config.json`, `metrics.jsonl`,
`checkpoints/`, `tensorboard/` and, once finished, `summary.json`.
"""

from collections.abc import Sequence
import copy
import csv
import dataclasses
import functools
import io
import pathlib
from typing import Any
from typing import TypeAlias

from absl import logging
import jax
import ml_collections

from cxjax.configs import builders
from cxjax.training import target_cache
from cxjax.training import checkpoints as checkpoints_lib
from cxjax import errors
from cxjax import files
from cxjax.training import metric_log
from cxjax.parallel import mesh as mesh_lib
from cxjax.methods import curricula
from cxjax.analysis import plots
from cxjax.parallel import multihost
from cxjax.methods import train_step
from cxjax.training import summary as summary_lib
from cxjax.training import trainer

Config: TypeAlias = ml_collections.ConfigDict


def teacher_folder(config: Config, workdir: pathlib.Path) -> pathlib.Path:
  """Where the teacher lives."""
  return pathlib.Path(config.teacher.folder or workdir / 'teacher')


def _finish(method, spec, folder) -> summary_lib.Summary:
  """Trains unless finished; the summary."""
  path = folder / 'summary.json'
  if multihost.from_first(path.exists):
    logging.info('%s is finished.', folder)
    return files.read_json(path)
  result = trainer.fit(spec, folder, title=f'{folder.parent.name}/{method}')
  summary = summary_lib.summarize(method, spec, result)
  files.write_json(path, summary)
  return summary


def train_teacher(config: Config, workdir: pathlib.Path) -> curricula.Teacher:
  """The teacher of a config: trained, or found finished.

  Args:
    config: of the experiment.
    workdir: where `teacher/` is, unless `config.teacher.folder` is another.

  Returns:
    The teacher.

  Raises:
    UserError: the folder belongs to another teacher, or is damaged.
  """
  folder = teacher_folder(config, workdir)
  spec = builders.teacher_spec(config)
  files.claim_workdir(folder, builders.teacher_config(config))
  told = (folder / 'summary.json').exists()
  finished = _finish('teacher', spec, folder)
  if not told:
    _judge(config.teacher, finished)
  return load_teacher(config, folder, last=finished['steps'])


def _judge(block, finished):
  """Warns of a teacher that used its steps up and did not learn enough."""
  accuracy = finished['final']['accuracy'][0]
  if accuracy < block.stop_at <= 1 and finished['steps'] >= block.num_steps:
    logging.warning(
      'The teacher ended at an accuracy of %.3g, teacher.stop_at=%.3g was not '
      'reached: students learn what it knows. Give it more teacher.num_steps '
      'than %d, or another seed.',
      accuracy,
      block.stop_at,
      block.num_steps,
    )


def _template(spec, module, num_seeds):
  """What is restored of `num_seeds` networks, on the devices of a spec."""
  x = jax.tree.map(lambda leaf: leaf[:1], spec.held_out['x'])
  one = jax.eval_shape(module.init, jax.random.key(0), x)
  shapes = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct((num_seeds, *leaf.shape), leaf.dtype), one
  )
  return mesh_lib.abstract(shapes, spec.mesh, spec.rules[0], seeds=True)


def load_teacher(
  config: Config, folder: pathlib.Path, last: int
) -> curricula.Teacher:
  """A finished teacher, from its folder.

  Args:
    config: of the experiment.
    folder: of the teacher.
    last: step of the final checkpoint.

  Returns:
    The teacher.

  Raises:
    UserError: a checkpoint is missing, damaged or of other shapes.
  """
  spec = builders.teacher_spec(config)
  template = _template(spec, spec.student, num_seeds=1)

  @functools.cache
  def load(at):
    items = checkpoints_lib.restore(folder, at, {'params': template})
    return jax.tree.map(lambda leaf: leaf[0], items['params'])

  records = (
    checkpoints_lib.read_record(folder, at) for at in checkpoints_lib.steps(folder)
  )
  return curricula.Teacher(
    apply=spec.student.apply,
    params=load(last),
    layers=spec.student.layers,
    checkpoints=tuple((r['step'], r['accuracy'][0]) for r in records),
    load=load,
  )


def load(
  config: Config, workdir: pathlib.Path
) -> tuple[Config, curricula.Teacher]:
  """The teacher that a workdir holds, and the config it was trained with.

  Args:
    config: of the same experiment; the fields of the teacher are replaced.
    workdir: of any run.

  Returns:
    The config and the teacher.

  Raises:
    UserError: there is no finished teacher, or it is damaged.
  """
  folder = workdir / 'teacher'
  errors.require(
    (folder / 'summary.json').exists(),
    f'{folder} holds no finished teacher. Run launch.py on {workdir} first.',
  )
  config = copy.deepcopy(config)
  config.update(files.read_json(folder / 'config.json'))
  config = builders.resolve_paths(config, workdir)
  last = files.read_json(folder / 'summary.json')['steps']
  return config, load_teacher(config, folder, last)


def load_students(
  config: Config, workdir: pathlib.Path, method: str
) -> tuple[Any, train_step.Params]:
  """The finished students of a workdir, and their module.

  Args:
    config: of the same experiment; its fields are replaced.
    workdir: of the run.
    method: which.

  Returns:
    The module, and `[S, ...]` parameters.

  Raises:
    UserError: there are none, or they are damaged.
  """
  folder = workdir / method
  errors.require(
    (folder / 'summary.json').exists(),
    f'{folder} holds no finished students. Run launch.py on {workdir} first.',
  )
  config = copy.deepcopy(config)
  config.update(files.read_json(folder / 'config.json'))
  config = builders.resolve_paths(config, workdir)
  student = builders.make_model(config, 'student')
  template = _template(builders.teacher_spec(config), student, config.num_seeds)
  last = files.read_json(folder / 'summary.json')['steps']
  found = checkpoints_lib.restore(folder, last, {'params': template})
  return student, found['params']


def run(config: Config, workdir: pathlib.Path) -> summary_lib.Summary:
  """Trains the teacher if need be, then students by `config.method`.

  Args:
    config: of the experiment.
    workdir: where the files go.

  Returns:
    The summary of the students' run.

  Raises:
    UserError: input that cannot be; the message is for people.
  """
  errors.require(
    bool(config.cache.folder) or config.cache.batches == 0,
    f'cache.batches={config.cache.batches} is of stored targets: give '
    'cache.folder or --cache_targets, or leave it out.',
  )
  config = builders.resolve_paths(config, workdir)
  builders.check(config)
  _save_text(config)
  folder = workdir / config.method
  if config.cache.folder:
    finished = (folder / 'summary.json').exists()
    spec = _stored_spec(config, workdir, checked=not finished)
  else:
    teacher = train_teacher(config, workdir)
    spec = builders.student_spec(config, teacher)
    for stage in spec.stages:
      teacher.at(stage.checkpoint)  # An error now, not after hours.
  files.claim_workdir(folder, builders.student_config(config))
  return _finish(config.method, spec, folder)


def _save_text(config):
  if config.task == 'text':
    builders.text_of(config).save(pathlib.Path(config.data.folder))


def cache_targets(
  config: Config, workdir: pathlib.Path, folder: pathlib.Path
) -> dict[str, Any]:
  """Stores the targets of `config.method`, for runs with `cache.folder`.

  Args:
    config: of the experiment.
    workdir: where the teacher is, or goes.
    folder: where the targets go.

  Returns:
    What was stored, and what it took.

  Raises:
    UserError: input that cannot be; the message is for people.
  """
  errors.require(
    not config.cache.folder,
    f'cache.folder={config.cache.folder} is read, --cache_targets={folder} '
    'written: give one of the two.',
  )
  builders.check_stored(config)
  config = builders.resolve_paths(config, workdir)
  builders.check(config)
  _save_text(config)
  spec = dataclasses.replace(
    builders.student_spec(config, train_teacher(config, workdir)),
    period=builders.period(config),
  )
  identity = builders.stored_config(config, spec)
  return target_cache.write(folder, spec, identity, config.cache.dtype)


def _stored_spec(config, workdir, checked):
  """As `student_spec`, but with a cache in place of the teacher."""
  cache = target_cache.load(pathlib.Path(config.cache.folder))
  errors.require(
    config.cache.fingerprint in ('', cache.fingerprint),
    f'cache.fingerprint={config.cache.fingerprint}, but that of {cache.folder} '
    f'is {cache.fingerprint}.',
  )
  config.cache.fingerprint = cache.fingerprint
  absent = builders.abstract_teacher(config, map(tuple, cache.record['checkpoints']))
  spec = dataclasses.replace(
    builders.student_spec(config, absent),
    teacher=None,
    absent=absent,
    period=builders.period(config),
  )
  cache.require_same(builders.stored_config(config, spec))
  cache.require_all(spec)
  if checked:
    teacher = _found_teacher(config, workdir)
    target_cache.check(cache, dataclasses.replace(spec, teacher=teacher))
  feed = functools.partial(target_cache.Feed, cache, spec)
  return dataclasses.replace(spec, feed=feed)


def _found_teacher(config, workdir):
  """The finished teacher, if it is there."""
  folder = teacher_folder(config, workdir)
  if not (folder / 'summary.json').exists():
    logging.info(
      'No teacher in %s: its targets were compared with it when they were '
      'written, and are not now.',
      folder,
    )
    return None
  files.claim_workdir(folder, builders.teacher_config(config))
  last = files.read_json(folder / 'summary.json')['steps']
  return load_teacher(config, folder, last)


def compare(
  config: Config, names: Sequence[str], workdir: pathlib.Path
) -> list[summary_lib.Summary]:
  """Runs several methods on one teacher, and writes `comparison.*`.

  Args:
    config: of the experiment; its `method` is not read.
    names: methods.
    workdir: where the files go.

  Returns:
    One summary per method.

  Raises:
    UserError: input that cannot be; the message is for people.
  """
  errors.require(
    not config.cache.folder,
    'cache.folder holds the targets of one method: leave --compare out.',
  )
  configs = []
  for name in names:
    chosen = copy.deepcopy(config)
    chosen.method = name
    chosen = builders.resolve_paths(chosen, workdir)
    builders.check(chosen)
    configs.append(chosen)
  summaries = [run(chosen, workdir) for chosen in configs]
  files.write_text(
    workdir / 'comparison.md', summary_lib.compare_table(summaries)
  )
  rows = [row for s in summaries for row in summary_lib.seed_rows(s)]
  write_csv(workdir / 'comparison.csv', rows)
  curves = {s['method']: metric_log.read(workdir / s['method']) for s in summaries}
  plots.accuracy_curves(curves, workdir / 'comparison.png')
  return summaries


def write_csv(path: pathlib.Path, rows: Sequence[dict[str, Any]]) -> None:
  """Writes rows of equal fields as CSV, with a header."""
  text = io.StringIO()
  writer = csv.DictWriter(text, rows[0], lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  files.write_text(path, text.getvalue())
