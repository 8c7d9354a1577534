"""Targets of the student: activations, pooled, shaped and projected."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from cxjax import arguments
from cxjax import checks
from cxjax import errors
from cxjax import types
from cxjax.methods import fitted
from cxjax.methods import loss_values
from cxjax.methods import losses
from cxjax.methods import output_pieces
from cxjax.methods import output_split
from cxjax.methods import stage as stage_lib
from cxjax.methods import weights as weights_lib

Activations = dict[str, jax.Array]
NO_TEACHER = (
  'Stage {!r} compares the student with a teacher, and there is none. Give '
  'one, or the target labels.'
)
APPLY = checks.function_like('module.apply')
STAGE = checks.instance(stage_lib.Stage, "cxjax.Stage('output', 100, terms)")


def forward(
  apply: types.Apply, params: types.Params, x: types.Input
) -> Activations:
  """All activations of a model by name; 'logits' is its output.

  Under `jit`, the layers above the highest one that is used cost nothing: XLA
  drops them.
  """
  with errors.calling(
    'The model', 'Give it the parameters of that model, and an x that it reads.'
  ):
    found = apply(params, x)
  errors.require(
    isinstance(found, tuple | list)
    and len(found) == 2
    and isinstance(found[1], Mapping)
    and hasattr(found[0], 'shape'),
    f'The model returns {jax.tree.structure(found)}; it must return (output, '
    'activations), an array and a dict of arrays.',
  )
  return by_name(*found)


def by_name(logits: jax.Array, activations: Mapping[str, Any]) -> Activations:
  """The activations that can be compared and the output, 'logits', by name.

  Entries that are no floating-point arrays of at least two axes, as None,
  counts and auxiliary losses, are left out.
  """
  found = {k: v for k, v in activations.items() if is_activation(v)}
  return {**found, stage_lib.LOGITS: logits}


def output_name(path: str) -> str:
  """Name of an output among the activations; '' is the main one, 'logits'."""
  return stage_lib.OUTPUT + path if path else stage_lib.LOGITS


def is_activation(value: Any, axes: int = 2) -> bool:
  """True for a floating-point array, or a shape, of at least two axes."""
  return getattr(value, 'ndim', 0) >= axes and jnp.issubdtype(
    value.dtype, jnp.floating
  )


@checks.checked(apply=APPLY, params=arguments.shapes, x=arguments.shapes)
def activation(
  apply: types.Apply, params: types.Params, x: types.Input, name: str
) -> jax.Array:
  """The activation `name` of a model; 'logits' is its output.

  Raises:
    UserError: there is no such activation; lists those that there are.
  """
  return errors.lookup('activation', name, forward(apply, params, x))


def without_dropout(x: types.Input) -> types.Input:
  """The input without the keys that make a model drop activations."""
  if not isinstance(x, Mapping):
    return x
  return {name: leaf for name, leaf in x.items() if name != 'dropout'}


def with_dropout(batch: types.Batch, key: jax.Array | None) -> types.Batch:
  """A batch of one student, whose dropout keys are drawn from its own key.

  Args:
    batch: batch of examples, as in `cxjax.types`.
    key: PRNG key of the student and the step, or None.

  Returns:
    The batch; as it is without a key, or without dropout keys.
  """
  x = batch['x']
  if key is None or not isinstance(x, Mapping) or 'dropout' not in x:
    return batch
  keys = jax.random.split(key, len(x['dropout']))
  return {**batch, 'x': {**x, 'dropout': keys}}


def compared(
  activations: Activations, x: types.Input, name: str, term: stage_lib.Term
) -> jax.Array:
  """The activation `name` at the tokens that a term compares, pooled.

  Args:
    activations: activations from `forward`.
    x: the input that they are of.
    name: name of the activation.
    term: term, of which `tokens` and `pool` are read.

  Returns:
    `[B, D]`, or `[B, ..., D]` where nothing is pooled.

  Raises:
    UserError: there is no such activation; lists those that there are.
  """
  value = errors.lookup('activation', name, activations)
  positions = x.get('target_positions') if isinstance(x, Mapping) else None
  if (
    term.all_tokens
    or name in stage_lib.TARGET_POSITION_ACTIVATIONS
    or positions is None
  ):
    return weights_lib.pooled(value, weights_lib.token_mask(x), term.pool)
  return jnp.take_along_axis(value, positions[..., None], axis=1)


def projection_shape(
  term: stage_lib.Term,
  teacher_width: int,
  student_width: int,
  outputs: int | None = None,
) -> tuple[int, int]:
  """Shape `(d_T, r)` of a term's projection; `outputs` is the logits' width."""
  widest = teacher_width if term.projection == 'identity' else student_width
  if fitted.is_fitted(term.projection):
    limit = fitted.directions(str(term.projection), teacher_width, outputs)
    widest = min(student_width, limit)
  width = (term.width or widest) if term.regressor else student_width
  return teacher_width, width


def transform(
  want: jax.Array, weights: jax.Array | None, term: stage_lib.Term
) -> jax.Array:
  """Normalizes, centers and scales a target, before its projection.

  Args:
    want: `[..., d_T]`, an activation of the teacher for one batch.
    weights: `[...]`, of the mean that `term.centered` subtracts.
    term: term, of which `norm`, `centered` and `scale` are read.

  Returns:
    `[..., d_T]`.
  """
  if term.norm == 'layer':
    want = loss_values.standardized(want)
  if term.centered:
    axes = tuple(range(want.ndim - 1))
    each = None if weights is None else weights[..., None]
    middle = weights_lib.weighted_mean(want, each, axes)
    want = want - jnp.expand_dims(middle, axes)
  return want if term.scale == 1 else want * term.scale


def top(want: Any, term: stage_lib.Term) -> types.Target:
  """All logits, or the `term.top_k` largest of them.

  Of logits in pieces it is their features, or the largest of each piece.
  """
  few = lambda logits: losses.top_k(logits, term.top_k)
  if isinstance(want, output_split.Apart):
    return output_pieces.each(few, want) if term.top_k else want.features
  return few(want) if term.top_k else want


@checks.checked(
  apply=checks.optional(APPLY),
  params=arguments.shapes,
  matrices=checks.optional(checks.mapping_like("{'h': matrix}")),
  batch=checks.batch,
  stage=STAGE,
)
def make_targets(
  apply: types.Apply | None,
  params: types.Params,
  matrices: Mapping[str, jax.Array] | None,
  batch: types.Batch,
  stage: stage_lib.Stage,
) -> dict[str, types.Target]:
  """Targets of a stage, constant to the gradient.

  One forward pass of the teacher serves all terms.

  Args:
    apply: the teacher; not read by a stage that needs none.
    params: the teacher's parameters.
    matrices: the `[d_T, r]` projection matrix of each term that has one.
    batch: batch of examples, as in `cxjax.types`.
    stage: stage that the student trains in.

  Returns:
    The targets by the names of the terms. They are `[B]` labels, `[B, C]`
    logits or `[B, r]` projected activations; for sequences `[B, P]`, `[B, P,
    C]` and `[B, L, r]`, or `[B, P, r]`. With `top_k` a target is the result of
    `losses.top_k`.
  """
  found: dict[str, types.Target] = {}
  activations: Activations = {}
  if stage.needs_teacher:
    if apply is None:
      raise errors.UserError(NO_TEACHER.format(stage.name))
    x = without_dropout(batch['x'])
    activations = forward(apply, params, x)
  for name, term in stage.named_terms.items():
    if not term.needs_teacher:
      # A loss that is an activation has no target.
      labels = term.target == stage_lib.LABELS
      size = len(jax.tree.leaves(batch['x'])[0])
      found[name] = batch['y'] if labels else jnp.zeros(size)
      continue
    want = compared(activations, x, term.target, term)
    shape = activations[term.target].shape
    weights = weights_lib.loss_weights(batch, term, term.target, shape)
    want = transform(want, weights, term)
    found[name] = _finished(want, (matrices or {}).get(name), term)
  return found


def _finished(
  want: jax.Array, matrix: jax.Array | None, term: stage_lib.Term
) -> Any:
  """A target, projected or reduced to its largest entries."""
  if matrix is not None:
    return fitted.apply(want, matrix, term.projection)
  return jax.lax.stop_gradient(top(want, term))
