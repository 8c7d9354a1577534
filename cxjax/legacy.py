"""Functions of the previous release in their old form, for one more.

`deprecation.py` serves them under their old names. Renamed functions whose
arguments and results are as they were need no entry here.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import pathlib
from typing import Any

import jax
import ml_collections
import optax

from cxjax import deprecation
from cxjax import types
from cxjax.analysis import plots
from cxjax.configs import builders
from cxjax.configs import teachers
from cxjax.methods import masks
from cxjax.methods import stage as stage_lib
from cxjax.methods import targets as targets_lib
from cxjax.methods import train_step
from cxjax.training import checkpoints as checkpoints_lib
from cxjax.training import metric_log
from cxjax.training import multi_step
from cxjax.training import teacher as teacher_lib

# There were two colors of runs that are no method.
OTHERS = plots.OTHERS[:2]


def target(
  apply: types.Apply | None,
  params: types.Params,
  matrix: jax.Array | None,
  batch: types.Batch,
  stage: stage_lib.Stage,
) -> Any:
  """`make_targets` with one matrix; the target of a single term by itself."""
  matrices = _by_term(stage, matrix, 'projection')
  found = targets_lib.make_targets(apply, params, matrices, batch, stage)
  return next(iter(found.values())) if len(found) == 1 else found


def _by_term(stage: stage_lib.Stage, value: Any, field: str) -> dict[str, Any]:
  """One value for every term that has a projection or a regressor."""
  if value is None or isinstance(value, Mapping):
    return dict(value or {})
  terms = stage.named_terms.items()
  return {name: value for name, term in terms if getattr(term, field)}


def enter(
  key: jax.Array,
  params: types.Params,
  *,
  stage: stage_lib.Stage,
  shape: tuple[int, int] | None,
  tx: optax.GradientTransformation,
  mask: masks.Mask,
) -> train_step.State:
  """`init_stage` with the shape of a single regressor."""
  shapes = _by_term(stage, shape, 'regressor')
  return train_step.init_stage(
    key, params, stage=stage, shapes=shapes, tx=tx, mask=mask
  )


def advance(
  states: train_step.State,
  start: Any,
  stop: Any,
  teacher_params: types.Params,
  matrices: Any,
  keys: jax.Array,
  rows: Any = None,
  wants: Any = None,
  *,
  stage: stage_lib.Stage,
  **kwargs: Any,
) -> tuple[train_step.State, dict[str, Any]]:
  """`train_many_steps` with one array of matrices and one of targets."""
  if wants is not None:
    wants = stage_lib.as_dict(stage, wants)
  return multi_step.train_many_steps(
    states,
    start,
    stop,
    teacher_params,
    _by_term(stage, matrices, 'projection'),
    keys,
    rows,
    wants,
    stage=stage,
    **kwargs,
  )


def evaluations(
  rows: Sequence[types.Record], metric: str | None = None
) -> Iterator[tuple[int, list[float]]]:
  """`metric_log.evaluations` of the accuracy, unless another is named."""
  if metric is None:
    deprecation.warn(
      "evaluations(rows) is now evaluations(records, 'accuracy')"
    )
  return metric_log.evaluations(rows, metric or 'accuracy')


def steps_to(rows: Sequence[types.Record], accuracy: float) -> list[int | None]:
  """`metric_log.steps_to` of the accuracy."""
  deprecation.warn("steps_to(rows, x) is now steps_to(records, 'accuracy', x)")
  return metric_log.steps_to(rows, 'accuracy', accuracy)


class _Record(dict[str, Any]):
  """A record of a checkpoint that has its old fields, too."""

  def __missing__(self, name: str) -> Any:
    names = {'accuracy': 'score', 'extra': 'temporary', 'rows': 'records'}
    if name not in names:
      raise KeyError(name)
    deprecation.warn(f'record[{name!r}] is now record[{names[name]!r}]')
    return self[names[name]]


def read_record(folder: pathlib.Path, step: int) -> dict[str, Any]:
  """`checkpoints.read_record` with the score as 'accuracy' as well."""
  return _Record(checkpoints_lib.read_record(folder, step))


def train_teacher(
  config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> teacher_lib.Teacher:
  """`teachers.train_teacher` of a config."""
  deprecation.warn(
    'train_teacher(config, workdir) is now teachers.train_teacher('
    'builders.open_experiment(config, workdir), workdir)'
  )
  experiment = builders.open_experiment(config, workdir)
  return teachers.train_teacher(experiment, workdir)


def load_teacher(
  config: ml_collections.ConfigDict, folder: pathlib.Path, last: int
) -> teacher_lib.Teacher:
  """`teachers.load_teacher` of a config."""
  deprecation.warn(
    'load_teacher(config, folder, last) is now teachers.load_teacher('
    'builders.open_experiment(config, workdir), folder, last)'
  )
  experiment = builders.open_experiment(config, folder.parent)
  return teachers.load_teacher(experiment, folder, last)


def accuracy_curves(
  runs: Mapping[str, Sequence[types.Record]], path: pathlib.Path
) -> None:
  """`plots.curves` of the accuracy."""
  deprecation.warn(
    'accuracy_curves(runs, path) is now curves(runs, '
    "'accuracy', 'held-out accuracy', path)"
  )
  plots.curves(runs, 'accuracy', 'held-out accuracy', path)
