"""Compares stored targets with those that the teacher computes now."""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import secrets
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from cxjax import errors
from cxjax import types
from cxjax.methods import stage_plan
from cxjax.methods import stored_output
from cxjax.parallel import mesh as mesh_lib
from cxjax.parallel import multihost
from cxjax.training import checkpoints
from cxjax.training import compiled_steps
from cxjax.training import run_spec
from cxjax.training.target_cache import reader
from cxjax.training.target_cache import records

NUM_CHECKS = 2  # Batches of each stage that are compared.
MIN_AGREEMENT = 0.9  # Share of equal integers: logits may tie.

# `(number, rows) -> (batches, targets)`; no targets without a teacher.
Compute = Callable[[int, Any], tuple[types.Batch, dict[str, Any] | None]]


def parameter_digests(
  spec: run_spec.RunSpec, also: Sequence[int | None] = ()
) -> dict[str, str]:
  """Returns hashes of the teacher's parameters, by checkpoint.

  Args:
    spec: a run with a teacher that is available.
    also: checkpoints beside those that the stages use; None is the final
      teacher.

  Returns:
    A hash for each checkpoint; 'final' is the final teacher.
  """
  assert spec.teacher is not None
  replicate, found = jax.jit(mesh_lib.constrain_replicated), {}
  layout = spec.layout

  def read(leaf: jax.Array) -> Any:
    # One at a time: no device need have room for all of them.
    whole = leaf if leaf.is_fully_addressable else replicate(leaf)
    return jax.device_get(whole)

  with jax.set_mesh(layout.mesh):
    used = [stage.checkpoint for stage in spec.stages]
    for at in dict.fromkeys([*used, *also]):
      params = mesh_lib.place(spec.teacher.at(at), layout.mesh, layout.teacher)
      name = 'final' if at is None else str(at)
      found[name] = checkpoints.fingerprint(params, read)
  return found


def live_targets(
  spec: run_spec.RunSpec,
  steps: compiled_steps.CompiledSteps,
  index: int,
  planned: stage_plan.StagePlan,
  kind: str,
) -> Compute:
  """Returns a function that computes batches of a stage and their targets.

  Args:
    spec: the run.
    steps: the programs of the run.
    index: the index of the stage in the curriculum.
    planned: the stage.
    kind: kind of its stored outputs, one of `stored_output.KINDS`.
  """
  params = None
  if spec.teacher is not None and spec.teacher.available:
    params = steps.place_teacher(spec.teacher.at(planned.stage.checkpoint))
  matrices = steps.matrices(planned, index)
  stored = stored_output.stored_stage(planned.stage, kind)
  planned = dataclasses.replace(planned, stage=stored)
  return lambda number, rows: steps.targets(
    planned, number, rows, params, matrices
  )


def check(
  cache: reader.CachedTargets,
  spec: run_spec.RunSpec,
  steps: compiled_steps.CompiledSteps | None = None,
) -> None:
  """Compares random batches of every stage with those that are drawn now.

  Where the teacher is available, its parameters and the targets are compared as
  well.

  Args:
    cache: holds all batches that the stages read.
    spec: the run.
    steps: the programs of the run, to compile none twice.

  Raises:
    UserError: a batch or a target differs; the message names it.
  """
  if spec.teacher is not None and spec.teacher.available:
    digests = parameter_digests(spec)
    cache.require_same({**cache.record['config'], 'parameters': digests})
  if steps is None:
    steps = compiled_steps.CompiledSteps(spec)
  # All processes compute the same batches, each its part of them.
  seed = multihost.from_first(lambda: secrets.randbits(30))
  random = np.random.default_rng(seed)
  with jax.set_mesh(spec.layout.mesh):
    for index, planned, numbers in records.stages_with_batches(spec):
      compute = live_targets(spec, steps, index, planned, cache.kind)
      for number in random.choice(numbers, NUM_CHECKS):
        what = f'Batch {number} of {planned.stage.name!r} in {cache.folder}'
        _check_batch(cache, index, int(number), compute, what)


def _check_batch(
  cache: reader.CachedTargets,
  stage: int,
  number: int,
  compute: Compute,
  what: str,
) -> None:
  again = f'Then {cache.again}.'
  stored, digest = cache.read(stage, number)
  batches, live = compute(number, stored.get('rows'))
  errors.require(
    digest == checkpoints.fingerprint(batches),
    f'{what} is not the one that is drawn here: it was made by other '
    f'versions of cxjax or its packages. Remove the folder. {again}',
  )
  if live is None:
    return
  have = traverse_util.flatten_dict(stored.get('targets', {}))
  want = traverse_util.flatten_dict(live)
  for keys in have.keys() | want.keys():
    errors.require(
      keys in have
      and keys in want
      and is_near(have[keys], want[keys], _tolerance(cache, have[keys])),
      f'{what} is not what the teacher says of {keys[0]!r}. Remove the folder. '
      f'{again}',
    )


def _tolerance(cache: reader.CachedTargets, stored: np.ndarray) -> float:
  """Tolerance of an array; a hidden state has the dtype of the teacher."""
  floats = jnp.issubdtype(stored.dtype, jnp.inexact)
  if floats and stored.dtype.itemsize < 4:
    return max(cache.tolerance, records.TOLERANCES['bfloat16'])
  return cache.tolerance


def is_near(stored: Any, live: Any, tolerance: float) -> bool:
  """Compares an array of stored targets with the live one.

  Args:
    stored: any array.
    live: an array of the same shape.
    tolerance: how large the norm of the difference of floats may be, relative
      to the norm of the live ones.

  Returns:
    Whether rounding explains the difference.
  """
  live = np.asarray(live)
  if not jnp.issubdtype(live.dtype, jnp.inexact):
    return bool(np.mean(stored == live) >= MIN_AGREEMENT)
  stored, live = (np.asarray(x, np.float32) for x in (stored, live))
  finite = np.isfinite(live)
  if not np.array_equal(stored[~finite], live[~finite], equal_nan=True):
    return False
  stored, live = stored[finite], live[finite]
  distance = np.linalg.norm(stored - live)
  return bool(distance <= tolerance * np.linalg.norm(live))
