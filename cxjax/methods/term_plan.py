"""Shapes of one term of a stage, and errors where they do not fit."""

from collections.abc import Mapping
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cxjax import errors
from cxjax import types
from cxjax.methods import fitted
from cxjax.methods import losses
from cxjax.methods import other_sizes
from cxjax.methods import projections
from cxjax.methods import python_state
from cxjax.methods import stage as stage_lib
from cxjax.methods import targets as targets_lib
from cxjax.methods import weights as weights_lib
from cxjax.parallel import reception

# Number of equal parts of a stage at whose ends a schedule is checked.
CHECKED_PARTS = 100


@dataclasses.dataclass(frozen=True)
class TermPlan:
  """Shapes of one term.

  Attributes:
    projection: shape `(d_T, r)` of the random projection, or None.
    regressor: shape `(d_S, r)` of the regressor, or None.
    teacher_width: width of the target, or None for labels.
    student_width: width of the activation that is trained.
  """

  projection: tuple[int, int] | None
  regressor: tuple[int, int] | None
  teacher_width: int | None
  student_width: int


def _check_schedule(stage: stage_lib.Stage, term: stage_lib.Term) -> None:
  """Raises UserError for a schedule that makes no finite positive scalars."""
  if not term.scheduled:
    return
  what = f'The weight of {term.student!r} in stage {stage.name!r}'
  fraction = jax.ShapeDtypeStruct((), jnp.float32)
  try:
    shape = jax.eval_shape(term.weight_at, fraction)
  except Exception as error:  # Whatever a function of the user raises.
    reason = str(error).partition('\n')[0].rstrip('.')
    raise errors.UserError(
      f'{what} is no schedule of the fraction of the stage that is done: '
      f'{reason}.'
    ) from error
  errors.require(
    getattr(shape, 'shape', None) == (),
    f'{what} is a schedule that returns {shape}: it must return a scalar, as '
    'optax.linear_schedule(1.0, 0.0, 1.0) does.',
  )
  python_state.refuse(what, term.weight_at, fraction)
  fractions = np.linspace(0, 1, CHECKED_PARTS + 1, dtype=np.float32)
  weights = np.asarray(jax.vmap(term.weight_at)(jnp.asarray(fractions)))
  for fraction, weight in zip(fractions, weights, strict=True):
    errors.require(
      0 <= weight < math.inf,
      f'{what} is {weight:g} after {round(float(fraction), 2)} of the stage: '
      'it must be finite and not negative.',
    )


def plan_term(
  stage: stage_lib.Stage,
  term: stage_lib.Term,
  batch: types.Batch,
  ours: targets_lib.Activations,
  theirs: targets_lib.Activations,
) -> TermPlan:
  """Shapes of a term.

  Args:
    stage: the stage, for messages.
    term: one of its terms.
    batch: shapes of a batch.
    ours: shapes of all activations of the student.
    theirs: shapes of those of the teacher, if the stage needs it.

  Returns:
    The shapes.

  Raises:
    UserError: activations that do not exist or do not fit, a loss that does not
      reduce the last axis, or a weight that is no scalar.
  """
  _check_schedule(stage, term)

  def shape(found: targets_lib.Activations, name: str) -> tuple[int, ...]:
    one = lambda found, x: targets_lib.compared(found, x, name, term)
    compared = jax.eval_shape(one, found, batch['x'])
    shape = compared.shape
    errors.require(
      len(shape) > 1,
      f'{name!r} of shape {shape} has no width: give it a last axis, as in '
      '[B, 1].',
    )
    errors.require(
      math.prod(shape) > 0,
      f'{name!r} of shape {list(shape)} is empty: nothing can be compared.',
    )
    role = 'student' if found is ours else 'teacher'
    what = f"The {role}'s {_called(name)}"
    _check_real(stage, term, what, compared, batch.get('y'))
    return shape

  *axes, student_width = shape(ours, term.student)
  _check_positions(stage, term, axes, batch, ours)
  if not term.needs_teacher:
    _check_loss(stage, term, (*axes, student_width), batch)
    return TermPlan(None, None, None, student_width)
  *others, teacher_width = shape(theirs, term.target)
  errors.require(
    axes == others,
    f'Stage {stage.name!r} cannot compare {term.student!r}, '
    f'{[*axes, student_width]}, with {term.target!r}, '
    f'{[*others, teacher_width]}: all axes but the last must agree. Choose '
    "another pair of layers, or pool='mean'; feature_axis of cxjax.plan says "
    'which axis the features are.',
  )
  errors.require(
    term.top_k <= teacher_width,
    f'top_k={term.top_k}: the teacher has {teacher_width} logits.',
  )
  _check_target(stage, term, axes, teacher_width)
  projection = regressor = None
  got = teacher_width
  if term.projection is not None:
    outputs = theirs[stage_lib.LOGITS].shape[-1]
    projection = targets_lib.projection_shape(
      term, teacher_width, student_width, outputs
    )
    _check_projection(stage, term, projection, outputs)
    got = projection[1]
  if term.regressor:
    regressor = (student_width, got)
  errors.require(
    got == student_width or term.regressor,
    f'Stage {stage.name!r} compares {term.student!r}, {student_width} wide, '
    f'with {term.target!r}, {got} wide. Give it a projection, as '
    "projection='gaussian'.",
  )
  _check_loss(stage, term, (*axes, got), batch)
  return TermPlan(projection, regressor, teacher_width, student_width)


def _called(name: str) -> str:
  """An activation in a message."""
  return 'output' if name == stage_lib.LOGITS else repr(name)


def _check_real(
  stage: stage_lib.Stage,
  term: stage_lib.Term,
  what: str,
  compared: jax.ShapeDtypeStruct,
  labels: Any,
) -> None:
  """Raises UserError for complex numbers that a loss does not make real."""
  if not jnp.issubdtype(compared.dtype, jnp.complexfloating):
    return
  want = compared if term.needs_teacher else labels
  try:
    found = jax.eval_shape(term.loss, compared, want)  # type: ignore[arg-type]
  except Exception:  # Of a loss that does not take them at all.
    found = compared
  errors.require(
    jnp.issubdtype(found.dtype, jnp.floating),
    f'{what} is {compared.dtype}, {list(compared.shape)}, of which the loss of '
    f'stage {stage.name!r} makes no real numbers. Select a real one, as in '
    'output=jnp.real of from_linen and the others.',
  )


def _check_projection(
  stage: stage_lib.Stage,
  term: stage_lib.Term,
  shape: tuple[int, int],
  outputs: int,
) -> None:
  """Raises UserError for a projection that cannot have its shape."""
  assert term.projection is not None
  if fitted.is_fitted(term.projection):
    what = f'Stage {stage.name!r}'
    fitted.check_width(what, term.projection, shape, outputs, term.regressor)
    return
  draw = functools.partial(
    projections.random_projection, projection=term.projection, shape=shape
  )
  jax.eval_shape(draw, jax.random.key(0))


def _check_positions(
  stage: stage_lib.Stage,
  term: stage_lib.Term,
  axes: list[int],
  batch: types.Batch,
  ours: targets_lib.Activations,
) -> None:
  """Raises UserError for pooled positions, masks or weights of other axes."""
  x = batch['x']
  errors.require(
    term.pool == 'none'
    or term.all_tokens
    or not (isinstance(x, Mapping) and 'target_positions' in x),
    f'Stage {stage.name!r} pools {term.student!r} with pool={term.pool!r}, '
    'which is for all tokens: leave it out of terms at the target positions.',
  )
  mask = weights_lib.token_mask(x)
  unread = term.pool != 'none' or not term.all_tokens
  if mask is None or unread or weights_lib.is_of_tokens(mask, tuple(axes)):
    shape = axes
  else:
    shape = list(mask.shape)
  errors.require(
    shape == axes,
    f'Stage {stage.name!r} compares {axes} values of {term.student!r}, and the '
    f"'mask' is {shape}: it must be {axes}, True for what counts. For a mask "
    'of attention give plan mask=lambda batch: ..., which makes that shape; '
    "the model then reads its own 'mask' as before.",
  )
  whole = ours[term.student].shape
  weights = jax.eval_shape(
    lambda batch: weights_lib.loss_weights(batch, term, term.student, whole),
    batch,
  )
  shape = axes if weights is None else list(weights.shape)
  errors.require(
    shape == axes,
    f'Stage {stage.name!r} compares {axes} values of {term.student!r}, and the '
    f'weights are {shape}: give one for each value, or one for each of the '
    f'{axes[0]} examples.',
  )


def _check_loss(
  stage: stage_lib.Stage,
  term: stage_lib.Term,
  shape: tuple[int, ...],
  batch: types.Batch,
) -> None:
  """Raises UserError for a loss that does not reduce the last axis alone."""
  errors.require(
    term.loss is not losses.cross_entropy or not term.needs_teacher,
    f'The loss of stage {stage.name!r}, cross_entropy, does not take the '
    f"teacher's {term.target!r}: it reads labels or probabilities. Give 'kl', "
    "or target='labels'.",
  )
  features = jax.ShapeDtypeStruct(shape, jnp.float32)
  want: Any = features
  if term.top_k:
    want = jax.eval_shape(lambda x: losses.top_k(x, term.top_k), features)
  elif term.target == stage_lib.LABELS:
    if 'y' not in batch:
      return
    want = jax.eval_shape(lambda y: y, batch['y'])
  found = _evaluated_loss(stage, term, features, want)
  _check_reduced(stage, found, shape)
  again = other_sizes.result(term.loss, shape[:-1], features, want)  # type: ignore[arg-type]
  if again is not None:
    axes, made = again
    _check_reduced(stage, made, (*axes, shape[-1]))
  errors.require(
    jnp.issubdtype(found.dtype, jnp.floating),
    f'The loss of stage {stage.name!r} makes {found.dtype} values, which have '
    'no gradient: it must make floating-point ones, as cxjax.mse does.',
  )
  single = 1 in shape or term.top_k == 1
  errors.require(
    not single or not _is_constant(term, shape, want),
    f'The loss of stage {stage.name!r} is constant for {term.student!r} of '
    f'shape {list(shape)}, as a softmax of one class is, or the relations of '
    "one example: it cannot teach. Give a loss of values, as 'mse', or two of "
    'what there is one of.',
  )


def _check_reduced(
  stage: stage_lib.Stage, found: Any, shape: tuple[int, ...]
) -> None:
  """Raises UserError unless a loss of some shape reduced the last axis."""
  got = list(getattr(found, 'shape', [None]))
  errors.require(
    got == list(shape[:-1]),
    f'The loss of stage {stage.name!r} makes {got} of {list(shape)}: it must '
    f'reduce the last axis alone, to {list(shape[:-1])}, as cxjax.mse does.',
  )


def _check_target(
  stage: stage_lib.Stage, term: stage_lib.Term, axes: list[int], width: int
) -> None:
  """Raises UserError for a target that is 0 whatever the teacher does."""
  errors.require(
    term.norm != 'layer' or width > 1,
    f"Stage {stage.name!r} normalizes {term.target!r} of width 1 by norm='"
    "layer': that is always 0. Leave norm out.",
  )
  errors.require(
    not term.centered or math.prod(axes) > 1,
    f'Stage {stage.name!r} centers {term.target!r}, of which a batch has one '
    'alone: that is always 0. Leave centered out, or give larger batches.',
  )


def _is_constant(
  term: stage_lib.Term, shape: tuple[int, ...], want: Any
) -> bool:
  """True if the gradient of a loss is 0, tried on random values."""
  size = len(shape) - 1
  random = np.random.default_rng(0)

  def draw(leaf: Any) -> Any:
    few = tuple(min(3, n) for n in shape[:-1]) + leaf.shape[size:]
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      return np.zeros(few, leaf.dtype)
    return random.uniform(1, 2, size=few).astype(leaf.dtype)

  got, want = jax.tree.map(
    draw, (jax.ShapeDtypeStruct(shape, jnp.float32), want)
  )
  # Both signs, or the cosine of all pairs would be 0.
  got[-1] *= -1
  total = lambda got: jnp.sum(term.loss(got, want))  # type: ignore[operator, misc]
  try:
    # As one program: it has some twenty operations.
    loss, grad = jax.device_get(jax.jit(jax.value_and_grad(total))(got))
  except Exception:  # A loss of the user, of its own shapes alone.
    return False
  slope, size = np.abs(grad).max(), np.abs(loss)
  # The square of a rounded 0, as CPUs differ in it, and its gradient.
  rounded = np.maximum(slope, size) <= 1e-10
  return bool(rounded | (slope <= 1e-6 * size))


def check_weights(stage: stage_lib.Stage) -> None:
  """Raises UserError if no term of a stage ever has a weight."""
  if any(not callable(t.weight) and t.weight > 0 for t in stage.terms):
    return
  fractions = jnp.linspace(0, 1, CHECKED_PARTS + 1, dtype=jnp.float32)
  errors.require(
    any(
      bool((jax.vmap(term.weight_at)(fractions) > 0).any())
      for term in stage.terms
      if term.scheduled
    ),
    f'All terms of stage {stage.name!r} have weight 0 from its beginning to '
    'its end: nothing is trained.',
  )


def _evaluated_loss(
  stage: stage_lib.Stage, term: stage_lib.Term, got: Any, want: Any
) -> Any:
  """Shape of what a term's loss returns; its errors in one line."""
  try:
    found = jax.eval_shape(term.loss, got, want)  # type: ignore[arg-type]
  except Exception as error:  # Whatever a function of the user raises.
    reason = str(error).partition('\n')[0].rstrip('.')
    sizes = ' and '.join(str(list(x.shape)) for x in jax.tree.leaves(want))
    raise errors.UserError(
      f"The loss of stage {stage.name!r} does not take the student's "
      f'{term.student!r}, {list(got.shape)}, and {term.target!r}, {sizes}: '
      f'{reason}.'
    ) from error
  what = f'The loss of stage {stage.name!r}'
  reception.require_same_mesh(what, found)
  python_state.refuse(what, term.loss, got, want)  # type: ignore[arg-type]
  return found
