"""Identity of a run of `distill`: all that decides its result.

A workdir keeps it as `config.json`, and a call whose identity differs is
refused by the field that does. Functions count by what they compute
(`identity.py`). Batches in a list are compared; of a loader, only the first
batch is, and another one is warned of. What a callback of the host does is not
known.
"""

from collections.abc import Callable
from collections.abc import Mapping
import math
import pathlib
from typing import Any

from absl import logging
import jax

from cxjax import errors
from cxjax import files
from cxjax import settings
from cxjax.api import identity
from cxjax.api import matching
from cxjax.api import plan as plan_lib
from cxjax.api import stage_identity
from cxjax.data import user_batches
from cxjax.data import user_loader
from cxjax.methods import optimizer
from cxjax.methods import stage_plan
from cxjax.models import adapters
from cxjax.parallel import agreement
from cxjax.training import run_spec

# Bytes of the longest list of which every batch is hashed: 16 GiB.
KNOWN = 2**34


def describe(
  plan: plan_lib.Plan,
  spec: run_spec.RunSpec,
  seed: int | tuple[int, ...],
  learning_rate: float | tuple[float, ...] | None,
  last_batch: str,
) -> dict[str, Any]:
  """Fields that the result of a run depends on.

  Args:
    plan: plan that is trained.
    spec: specification of the run.
    seed: seed of the projections and regressors, of all students or of each.
    learning_rate: learning rate of the default optimizer, of all students or of
      each; None if the user gave an optimizer.
    last_batch: treatment of a batch with fewer examples.

  Returns:
    JSON values.
  """
  return {
    'seed': _listed_values(seed),
    'stages': [_stage(plan, planned) for planned in plan.stage_plans],
    'batch': jax.tree.map(str, plan.batch),
    'teacher': _model(plan.teacher, plan.batch['x']),
    'student': _model(plan.student, plan.batch['x']),
    'dropout': _dropout(plan, spec),
    'optimizer': identity.optimizer_digest(
      spec.optimizer(),
      optimizer.visible(spec.student_shapes, plan.stage_plans[-1].mask),
    ),
    'learning_rate': _listed_values(learning_rate),
    'restart_schedule': spec.restart_schedule,
    'metrics': _metrics(plan, spec),
    'held_out': identity.tree_digest(jax.device_get(spec.held_out)),
    'trainable': _listed_values(
      getattr(spec.trainable, 'paths', spec.trainable)
    ),
    'keep_best': spec.loop.keep_best,
    # What is evaluated decides which is the best, and when the run ends.
    'eval_every': (
      spec.loop.eval_every
      if spec.loop.keep_best or spec.loop.patience
      else None
    ),
    'log_every': spec.loop.log_every,
    'microbatches': spec.microbatches,
    'mesh': dict(spec.layout.mesh.shape),
    'dtype': plan.dtype,
    **_mask(plan),
    **_fit_on(spec),
    **_patience(spec),
    **_stored(spec),
    **({'gradient_cosine': True} if spec.loop.gradient_cosine else {}),
    'last_batch': last_batch,
  }


def require_same(
  describe: Callable[[], Mapping[str, Any]], user: user_loader.UserLoader
) -> None:
  """Compares a run over its processes; all of them read the same batches.

  Args:
    describe: returns what `describe` does; not called in one process.
    user: the batches.

  Raises:
    UserError: a process has another run, other settings of JAX or another first
      batch.
  """
  agreement.require_same(
    lambda: {
      **describe(),
      'settings': {**settings.RECORDED, **settings.recorded()},
      'first batch': batch_digest(user.first()),
    }
  )


def _mask(plan: plan_lib.Plan) -> dict[str, str]:
  """Digest of what the mask of a plan computes, if it has one."""
  if plan.padding is None:
    return {}
  return {'mask': identity.function_digest(plan.padding.mask, plan.batch)}


def _patience(spec: run_spec.RunSpec) -> dict[str, Any]:
  """Patience of a run that has one, and the metric that it waits for."""
  loop = spec.loop
  if not loop.patience:
    return {}
  return {
    'patience': loop.patience,
    'decisive_metric': loop.keep_best or spec.primary,
  }


def _stored(spec: run_spec.RunSpec) -> dict[str, str]:
  """Identity of the stored targets of a run that has them."""
  assert spec.teacher is not None
  return {'cache': spec.teacher.stored} if spec.teacher.stored else {}


def _fit_on(spec: run_spec.RunSpec) -> dict[str, str]:
  """Digest of the batches that projections are fitted on, if any are."""
  found = spec.host.fit_on
  return {'fit_on': identity.tree_digest(list(found))} if found else {}


def _listed_values(value: Any) -> Any:
  """A value for all students as it is; those of each in a list, as in JSON."""
  return list(value) if isinstance(value, tuple) else value


def claim_batches(folder: pathlib.Path, batches: Any, first: Any) -> None:
  """Compares the batches with those that the run of a folder began with.

  Args:
    folder: folder of the run, which keeps the digests as `batches.json`.
    batches: training batches, as the user gives them. A list or tuple is known:
      all of it, or, after a warning, batches evenly spaced in one of more than
      `KNOWN` bytes.
    first: the first batch. Of an iterator it is all that is known, and it may
      differ by right, as that of a loader that shuffles.

  Raises:
    UserError: the run began with another list.
  """
  path = folder / 'batches.json'
  here = {'list': listed(batches), 'first': batch_digest(first)}
  if not path.exists():
    files.write_json(path, here)
    return
  there = files.read_json(path)
  errors.require(
    isinstance(there, dict) and here.keys() == there.keys(),
    f'{path} is damaged. Restore it, or remove it to resume with any batches.',
  )
  # Each of several processes may read examples of its own.
  known = there['list'] and here['list'] and jax.process_count() == 1
  errors.require(
    not known or here['list'] == there['list'],
    f'{folder} was begun with another list of batches. Choose another workdir, '
    'or give the same batches.',
  )
  if here['first'] != there['first'] and jax.process_index() == 0:
    logging.warning(
      'The first batch is not the one that %s began with: the result may '
      'differ from that of a run without interruption. Give the same batches, '
      'in the same order.',
      folder,
    )


def listed(batches: Any) -> str | None:
  """Digest of a list of batches; None if it is none, or has a bad batch."""
  if not isinstance(batches, list | tuple) or not batches:
    return None
  size = sum(getattr(leaf, 'nbytes', 0) for leaf in jax.tree.leaves(batches))
  every = max(math.ceil(size / KNOWN), 1)
  if every > 1 and jax.process_index() == 0:
    logging.warning(
      'The list of batches has %.1f GB, and every %d. of its batches is '
      'compared when the run resumes. If you change another, choose another '
      'workdir.',
      size / 1e9,
      every,
    )
  chosen = [*batches[::every], batches[-1]]
  try:
    return files.digest([len(batches), *map(batch_digest, chosen)])
  except errors.UserError:
    return None  # The run ends at that batch, and says which it is.


def batch_digest(batch: Any) -> str:
  """Digest of a batch as the user gives it."""
  kind = jax.dtypes.canonicalize_dtype  # What the devices get.
  return identity.tree_digest(
    jax.tree.map(
      lambda leaf: leaf.astype(kind(leaf.dtype), copy=False),
      user_batches.checked(batch, None),
    )
  )


def _model(model: adapters.ModelAdapter, x: Any) -> dict[str, str]:
  """Digests of what a model computes, and of its parameters."""
  shapes = jax.eval_shape(lambda tree: tree, (model.one, x))
  found = {
    'apply': identity.function_digest(model.apply, *shapes),
    'params': identity.tree_digest(jax.device_get(model.params)),
  }
  if model.training is not None:
    key = settings.key(0)
    found['training'] = identity.function_digest(model.training, *shapes, key)
  return found


def _dropout(plan: plan_lib.Plan, spec: run_spec.RunSpec) -> str | None:
  """Digest of what the student computes in training, if it drops out."""
  if not spec.dropout:
    return None
  key = settings.key(0)
  batch = jax.eval_shape(spec.batch, key, 0, spec.host.rows)
  return identity.function_digest(
    plan.student.apply, spec.student_shapes, batch['x']
  )


def _stage(
  plan: plan_lib.Plan, planned: stage_plan.StagePlan
) -> dict[str, Any]:
  stage = planned.stage
  learned = {}
  if stage.checkpoint is not None:
    params = jax.device_get(plan.teacher.checkpoints[stage.checkpoint])
    learned = {'checkpoint': identity.tree_digest(params)}
  return {
    'name': stage.name,
    'steps': stage.steps,
    'frozen': list(stage.frozen),
    **learned,
    'terms': stage_identity.terms(
      planned, plan.student.apply, plan.student.one, plan.batch
    ),
  }


def _metrics(plan: plan_lib.Plan, spec: run_spec.RunSpec) -> dict[str, Any]:
  """Digests of the metrics, on the outputs and references that they read."""
  batch = jax.eval_shape(lambda batch: batch, dict(spec.held_out))
  student, teacher = (
    matching.shapes(model, batch['x']) for model in (plan.student, plan.teacher)
  )
  return stage_identity.metrics(spec.metrics, student, teacher, batch)
