"""Digests of the functions that a config names.

A config has names of tasks, models, methods, metrics, losses and projections.
The functions that a config file registers by them may change while the names
stay. So `config.json` of a run has digests of what they compute, in `functions`
beside the fields of the config.
"""

from collections.abc import Mapping
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from cxjax import errors
from cxjax import files
from cxjax import settings
from cxjax import types
from cxjax.api import identity
from cxjax.api import stage_identity
from cxjax.configs import builders
from cxjax.methods import stage_plan
from cxjax.methods import targets as targets_lib
from cxjax.training import run_spec

# Fields of `config.json` that are no fields of a config: digests of functions,
# and settings of JAX.
NO_FIELDS = {'functions', 'settings'}
# Fields of every config.
ALWAYS = ('seed', 'task', 'model', 'data', 'teacher')


def claim_workdir(
  folder: pathlib.Path,
  fields: dict[str, Any],
  experiment: builders.Experiment,
  spec: run_spec.RunSpec,
) -> None:
  """Reserves a folder for a run of a config.

  Functions are compared in the environment that the run began in: another
  version of JAX may trace the same function to another program. It is warned
  of, as any other environment is.

  Args:
    folder: the folder of the run.
    fields: fields of the config that the run depends on.
    experiment: the experiment.
    spec: specification of the run.

  Raises:
    UserError: the folder belongs to another run, its config is damaged, or it
      cannot be written.
  """
  if (folder / 'config.json').exists():
    _require_whole_config(folder, fields)
  settings.claim_workdir(folder, fields, digests(experiment, spec))


def require_same_config(folder: pathlib.Path, fields: dict[str, Any]) -> None:
  """Checks that a folder is of a config, as `claim_workdir`; writes nothing.

  Args:
    folder: the folder of a run.
    fields: fields of the config that the run depends on. Functions, settings of
      JAX and fingerprints of data are not compared.

  Raises:
    UserError: the folder belongs to another run, or its config is damaged.
  """
  begun = _require_whole_config(folder, fields)
  if not isinstance(begun, dict) or not isinstance(begun.get('data'), dict):
    begun = {'data': {}}
  read = {n: v for n, v in begun['data'].items() if n == 'fingerprints'}
  data = {**fields['data'], **read}
  files.claim_workdir(folder, {**begun, **fields, 'data': data})


def _require_whole_config(folder: pathlib.Path, fields: dict[str, Any]) -> Any:
  """The `config.json` of a folder; raises UserError if it is damaged."""
  path = folder / 'config.json'
  known = {name: fields[name] for name in ALWAYS}
  begun = files.read_json(path)
  # That of a run of `distill` has other fields; it is not damaged.
  if not isinstance(begun, dict) or fields.keys() >= begun.keys() - NO_FIELDS:
    require_whole(path, begun, known, 'remove its folder to start afresh')
  return begun


def require_whole(
  path: pathlib.Path, there: Any, like: Mapping[str, Any], advice: str
) -> None:
  """Checks the form of what a file of a run holds, and not its values.

  Args:
    path: the file.
    there: the JSON value that it holds.
    like: fields that it must have; those that are dicts or lists here must be
      such there, and not empty unless they are here.
    advice: advice on a damaged file that cannot be restored.

  Raises:
    UserError: the file is damaged.
  """
  errors.require(
    isinstance(there, dict)
    and all(
      name in there and _is_alike(there[name], value)
      for name, value in like.items()
    ),
    f'{path} is damaged. Restore it, or {advice}.',
  )


def _is_alike(there: Any, here: Any) -> bool:
  """True for two JSON values of one form."""
  for kind in (dict, list):
    if isinstance(here, kind):
      return isinstance(there, kind) and (bool(there) or not here)
  return True


def saved_config(folder: pathlib.Path) -> dict[str, Any]:
  """Fields of the config that a run began with, from its folder."""
  saved = files.read_json(folder / 'config.json')
  return {name: v for name, v in saved.items() if name not in NO_FIELDS}


def digests(
  experiment: builders.Experiment, spec: run_spec.RunSpec
) -> dict[str, Any]:
  """Digests of the functions that decide the result of a run.

  What the host reads for a task counts by the held-out set alone.

  Args:
    experiment: the experiment.
    spec: specification of one of its runs.

  Returns:
    JSON values.
  """
  held_out = jax.eval_shape(lambda batch: batch, dict(spec.held_out))
  outputs = jax.eval_shape(
    lambda params, x: targets_lib.forward(spec.student.apply, params, x),
    spec.student_shapes,
    held_out['x'],
  )
  return {
    'task': _task(experiment, spec),
    'model': _model(spec, held_out['x']),
    'primary_metric': spec.primary,
    'metrics': stage_identity.metrics(spec.metrics, outputs, {}, held_out),
    'stages': [_stage(spec, planned) for planned in spec.plan()],
  }


def _task(
  experiment: builders.Experiment, spec: run_spec.RunSpec
) -> dict[str, str]:
  """Digests of what makes the batches and the held-out set."""
  key, rows = settings.key(0), spec.host.rows
  at = jax.ShapeDtypeStruct((), jnp.int32)
  if rows is not None:
    return {
      'batch': identity.function_digest(spec.draw, key, at, rows),
      'held_out': identity.tree_digest(jax.device_get(experiment.held_out)),
    }
  draw = lambda key, at: spec.draw(key, at, spec.batch_size)
  size = experiment.config.data.eval_size
  held_out = lambda key: experiment.task.held_out(key, size)
  return {
    'batch': identity.function_digest(draw, key, at),
    'held_out': identity.function_digest(held_out, key),
  }


def _model(spec: run_spec.RunSpec, x: types.Input) -> dict[str, str]:
  """Digests of what the model that is trained computes, and its teacher."""
  key = settings.key(0)
  batch = jax.eval_shape(spec.batch, key, 0, spec.host.rows)
  apply, shapes = spec.student.apply, spec.student_shapes
  args = shapes, batch['x']
  found = {
    'init': identity.function_digest(spec.student.init, key, x),
    'apply': identity.function_digest(apply, shapes, x),
  }
  if spec.dropout:
    found['dropout'] = identity.function_digest(apply, *args)
  if spec.training is not None:
    found['training'] = identity.function_digest(spec.training, *args, key)
  if spec.teacher is not None:
    params = jax.eval_shape(lambda tree: tree, spec.teacher.params)
    found['teacher'] = identity.function_digest(spec.teacher.apply, params, x)
  return found


def _stage(
  spec: run_spec.RunSpec, planned: stage_plan.StagePlan
) -> dict[str, Any]:
  """Fields of a stage that its method chooses."""
  batch = jax.eval_shape(spec.batch, settings.key(0), 0, spec.host.rows)
  stage = planned.stage
  return {
    'name': stage.name,
    'steps': stage.steps,
    'frozen': list(stage.frozen),
    'checkpoint': stage.checkpoint,
    'terms': stage_identity.terms(
      planned, spec.student.apply, spec.student_shapes, batch
    ),
  }
