"""Targets of many batches and many students at once.

In shapes, `S` is the number of seeds (students trained at once), `K` the number
of batches whose targets are computed together; the rest is as in `cxjax.types`.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from cxjax import errors
from cxjax import types
from cxjax.methods import fitted
from cxjax.methods import microbatches as microbatches_lib
from cxjax.methods import output_split
from cxjax.methods import stage as stage_lib
from cxjax.methods import stored_output
from cxjax.methods import targets as targets_lib
from cxjax.methods import weights as weights_lib
from cxjax.parallel import mesh as mesh_lib


def many_targets(
  teacher: types.Apply | None,
  params: types.Params,
  matrices: Mapping[str, jax.Array] | None,
  batches: types.Batch,
  stage: stage_lib.Stage,
  microbatches: int = 1,
) -> dict[str, types.Target]:
  """Targets of many batches and of every seed, in one forward pass.

  Args:
    teacher: the teacher; not read by a stage that needs none.
    params: its parameters.
    matrices: `[S, d_T, r]` projections of the terms that have one.
    batches: `[streams, K, B, ...]`; one stream is shared by the seeds.
    stage: stage whose targets are computed.
    microbatches: parts that the teacher sees one after the other.

  Returns:
    `[streams, K, B, ...]` in every leaf of every term; projected, `[S, K, B,
    ...]`.
  """
  if not stage.needs_teacher:
    return dict.fromkeys(stage.named_terms, batches['y'])
  if teacher is None:
    raise errors.UserError(targets_lib.NO_TEACHER.format(stage.name))
  run = lambda batch: targets_lib.forward(teacher, params, batch['x'])
  read = {'x': targets_lib.without_dropout(batches['x'])}
  if 'weights' in batches and any(term.centered for term in stage.terms):
    read['weights'] = batches['weights']
  raw = _raw_targets(run, read, stage.teacher_terms, microbatches)
  found = {}
  for name, term in stage.named_terms.items():
    if term.needs_teacher:
      matrix = (matrices or {}).get(name)
      found[name] = _finished(*raw[name], matrix, term)
    else:
      found[name] = batches['y']
  return found


def with_stored(
  stored: Mapping[str, types.Target],
  teacher: types.Apply | output_split.Ending | None,
  params: Any,
  batches: types.Batch,
  stage: stage_lib.Stage,
  microbatches: int = 1,
) -> dict[str, types.Target]:
  """Targets of many batches, of stored ones and of the labels.

  Args:
    stored: `[K, streams, B, ...]`, by term.
    teacher: the end of the teacher, if hidden states are stored; otherwise it
      is not read.
    params: weights of its head.
    batches: `[streams, K, B, ...]`.
    stage: stage that is trained.
    microbatches: parts that the head sees one after the other.

  Returns:
    `[streams, K, B, ...]` in every leaf of every term.
  """
  stored = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), stored)
  stored = mesh_lib.constrain_batch(stored, axis=2, seeds=0)
  labels = {
    name: batches['y']
    for name, term in stage.named_terms.items()
    if not term.needs_teacher
  }
  if isinstance(teacher, output_split.Ending):
    stored = completed(teacher, params, stored, batches, stage, microbatches)
  return {**labels, **stored}


def completed(
  head: output_split.Ending,
  weights: tuple[jax.Array, ...],
  stored: Mapping[str, types.Target],
  batches: types.Batch,
  stage: stage_lib.Stage,
  microbatches: int = 1,
) -> dict[str, types.Target]:
  """Targets of many batches, of stored ones with last hidden states.

  Args:
    head: the end of the teacher.
    weights: weights of its head; not read by a stage without an output.
    stored: `[streams, K, B, ...]`, by the terms of
      `stored_output.stored_stage`.
    batches: `[streams, K, B, ...]`.
    stage: stage that is trained.
    microbatches: parts that the head sees one after the other.

  Returns:
    The targets of `many_targets`, without the labels.
  """
  terms, found = stored_output.terms(stage), dict(stored)
  first = next((name for name in terms if name in stored), None)
  if first is None:
    return found
  read = {
    'x': targets_lib.without_dropout(batches['x']),
    'hidden': found.pop(first),
  }
  if 'weights' in batches and any(term.centered for term in terms.values()):
    read['weights'] = batches['weights']
  run = lambda batch: {stage_lib.LOGITS: head(weights, batch['hidden'])}
  raw = _raw_targets(run, read, terms, microbatches)
  for name, term in terms.items():
    found[name] = _finished(*raw[name], None, term)
  return found


def _raw_targets(
  run: Callable[[types.Batch], targets_lib.Activations],
  read: types.Batch,
  terms: Mapping[str, stage_lib.Term],
  microbatches: int,
) -> dict[str, tuple[types.Target, jax.Array | None]]:
  """Activations that the terms compare, `[streams, K, B, ...]`.

  Those that are centered come with the weights of their mean, the others with
  None.

  Args:
    run: `[B, ...]` batch to the activations of the teacher.
    read: `[streams, K, B, ...]`, what `run` and the weights need of batches.
    terms: terms by their names.
    microbatches: parts that `run` sees one after the other.
  """
  # Examples first where devices shard them, or each would compute all.
  first = 2 if mesh_lib.num_batch_shards() > 1 else 0
  axes = list(jax.tree.leaves(read['x'])[0].shape[:3])
  axes.insert(0, axes.pop(first))
  examples = jax.tree.map(
    lambda x: jnp.moveaxis(x, first, 0).reshape(-1, *x.shape[3:]), read
  )

  def forward(batch: types.Batch) -> dict[str, tuple[types.Target, Any]]:
    found = run(batch)
    seen = {}
    for name, term in terms.items():
      want = targets_lib.compared(found, batch['x'], term.target, term)
      weights = None
      if term.centered:
        shape = found[term.target].shape
        weights = weights_lib.loss_weights(batch, term, term.target, shape)
      seen[name] = targets_lib.top(want, term), weights
    return seen

  found = microbatches_lib.apply(forward, examples, microbatches)
  part = lambda leaf: leaf.reshape(*axes, *leaf.shape[1:])
  return jax.tree.map(lambda leaf: jnp.moveaxis(part(leaf), 0, first), found)


def _finished(
  want: types.Target,
  weights: jax.Array | None,
  matrices: jax.Array | None,
  term: stage_lib.Term,
) -> types.Target:
  """Targets of one term, shaped batch by batch and projected seed by seed."""
  shape = lambda want, weights: targets_lib.transform(want, weights, term)
  want = jax.vmap(jax.vmap(shape))(want, weights)
  if matrices is None:
    return jax.lax.stop_gradient(want)
  # A projection belongs to a seed: the targets of a shared batch differ.
  shared = want.shape[0] == 1
  seeds = (None if shared else 0, 0)
  want = want[0] if shared else want
  one = lambda want, matrix: fitted.apply(want, matrix, term.projection)
  return jax.vmap(one, in_axes=seeds)(want, matrices)
