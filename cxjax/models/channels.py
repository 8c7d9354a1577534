"""Channels of convolutional activations, moved to the last axis.

Losses, projections and regressors read the last axis as the features. A
convolution says where its channels are, as in `[B, C, H, W]` of equinox; they
are followed from there through elementwise operations, norms and pooling.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
import math
from typing import Any

from absl import logging
import jax
from jax.extend import core
import jax.numpy as jnp

from cxjax import errors
from cxjax import types
from cxjax.methods import losses
from cxjax.methods import relational
from cxjax.methods import stage as stage_lib
from cxjax.methods import targets as targets_lib
from cxjax.models import adapters
from cxjax.models import dataflow
from cxjax.models import modes
from cxjax.models import probabilities

# Their result may have other axes than their operands.
_OTHER_AXES = (
  'cond',
  'custom_jvp_call',
  'custom_vjp_call',
  'dot_general',
  'fft',
  'gather',
  'scan',
  'shard_map',
  'while',
)
# They may change the number of channels.
_RESIZING = ('concatenate', 'pad', 'slice')
# Losses whose value depends on which axis they reduce.
_OF_AXIS = (losses.cosine, *relational.LOSSES.values())


@dataclasses.dataclass(frozen=True)
class _Channels:
  """The axis of the channels of a value.

  Attributes:
    axis: the axis; None after a reshape that cut it, as in a group norm.
    shape: shape in which the axis was known last.
    known: the axis in that shape.
  """

  axis: int | None
  shape: tuple[int, ...]
  known: int


def axes(
  apply: types.Apply, params: types.Params, x: types.Input
) -> dict[str, int]:
  """Axes of channels that are not the last, by name of the activation.

  Args:
    apply: the model.
    params: its parameters; shapes are enough.
    x: an input; its shape is enough.

  Returns:
    The axes; without activations that no convolution makes.
  """
  closed, found = jax.make_jaxpr(
    functools.partial(targets_lib.forward, modes.traced_once(apply)),
    return_shape=True,
  )(*jax.eval_shape(lambda tree: tree, (params, x)))
  if not _has_convolution(closed.jaxpr):
    return {}
  flow = dataflow.Dataflow(closed)
  known = _found(flow)
  axes = {}
  for name, value in zip(sorted(found), flow.outputs, strict=True):
    channels = None if value is None else known.get(value)
    axis = channels.axis if channels is not None else None
    if axis is not None and 0 < axis < len(found[name].shape) - 1:
      axes[name] = axis
  return axes


def last(model: adapters.ModelAdapter, x: types.Input) -> adapters.ModelAdapter:
  """The model whose hidden activations have their channels last.

  Args:
    model: a model.
    x: shapes of a batch.

  Returns:
    The model itself, if they all have. Outputs stay as they are.
  """
  try:
    found = axes(model.apply, model.one, x)
  except Exception:  # A model of the user; `plan` says what is wrong with it.
    return model
  hidden = {n: axis for n, axis in found.items() if not _is_output(n)}
  if not hidden:
    return model
  logging.info(
    'Channels of activations of %s are moved to the last axis: %s.',
    model.name or 'the model',
    ', '.join(hidden),
  )
  run = functools.partial(_moved, hidden)
  training = model.training and functools.partial(run, model.training)
  return dataclasses.replace(
    model, apply=functools.partial(run, model.apply), training=training
  )


def _moved(
  axes: Mapping[str, int], fun: Callable[..., Any], *args: Any
) -> tuple[Any, ...]:
  """Runs a model, and moves the channels of its activations."""
  output, found, *rest = fun(*args)
  moved = {
    name: jnp.moveaxis(value, axes[name], -1) if name in axes else value
    for name, value in found.items()
  }
  return output, moved, *rest


def _is_output(name: str) -> bool:
  return name == stage_lib.LOGITS or name.startswith(stage_lib.OUTPUT)


def check(
  stages: stage_lib.Curriculum,
  x: types.Input,
  student: types.Apply,
  student_params: types.Params,
  teacher: types.Apply,
  teacher_params: types.Params,
) -> None:
  """Checks that losses of outputs reduce the channels.

  Args:
    stages: stages of a plan.
    x: shapes of an input.
    student: the student.
    student_params: its parameters; shapes are enough.
    teacher: the teacher.
    teacher_params: its parameters; shapes are enough.

  Raises:
    UserError: a loss whose value depends on the axis would reduce the width of
      an image, for its channels.
  """
  terms = [
    term
    for stage in stages
    for term in stage.terms
    if probabilities.reads_logits(term.loss)
    or probabilities.bare(term.loss) in _OF_AXIS
  ]
  for role, apply, params, names in (
    ('student', student, student_params, [t.student for t in terms]),
    (
      'teacher',
      teacher,
      teacher_params,
      [t.target for t in terms if t.needs_teacher],
    ),
  ):
    if not any(map(_is_output, names)):
      continue
    found = axes(apply, params, x)
    for name in filter(found.__contains__, names):
      raise errors.UserError(
        f'The output {name!r} of the {role} has its channels in axis '
        f'{found[name]}, and the loss reduces the last axis. Move them, as by '
        f'output=lambda y: jnp.moveaxis(y, {found[name]}, -1).'
      )


def _has_convolution(jaxpr: core.Jaxpr) -> bool:
  """True if there is a convolution in a jaxpr, at any depth."""
  return any(
    equation.primitive.name == 'conv_general_dilated'
    or any(map(_has_convolution, core.jaxprs_in_params(equation.params)))
    for equation in jaxpr.eqns
  )


def _found(flow: dataflow.Dataflow) -> dict[dataflow.Value, _Channels]:
  """The channels of all values that are made by convolutions."""
  known: dict[dataflow.Value, _Channels] = {}
  for number, node in enumerate(flow.nodes):
    equation = node.equation
    if equation is None:
      continue
    if equation.primitive.name == 'conv_general_dilated':
      axis = equation.params['dimension_numbers'].out_spec[1]
      shape = dataflow.shape(equation.outvars[0])
      known[number, 0] = _Channels(axis, shape, axis)
      continue
    for operand, atom in zip(node.operands, equation.invars, strict=True):
      below = None if operand is None else known.get(operand)
      if below is None:
        continue
      above = _above(equation, below, dataflow.shape(atom))
      if above is not None:
        known[number, 0] = above
        break
  return known


def _above(
  equation: core.JaxprEqn, below: _Channels, shape: tuple[int, ...]
) -> _Channels | None:
  """The channels of the result of an equation, from those of an operand.

  Args:
    equation: the equation.
    below: channels of an operand.
    shape: shape of that operand.

  Returns:
    The channels; None if they are not known.
  """
  name, result = equation.primitive.name, dataflow.shape(equation.outvars[0])
  axis = below.axis
  if name == 'reshape' and result == below.shape:
    return _Channels(below.known, result, below.known)
  if name in _MOVED:
    new = None if axis is None else _MOVED[name](equation, axis, shape)
    if new is not None:
      return _Channels(new, result, new)
    return dataclasses.replace(below, axis=None) if name == 'reshape' else None
  if name in _OTHER_AXES or len(result) != len(shape):
    return None
  if axis is None:  # Elementwise, inside of a group norm.
    return below if result == shape else None
  same = result[axis] == shape[axis] or name in _RESIZING
  return _Channels(axis, result, axis) if same else None


def _reshaped(
  equation: core.JaxprEqn, axis: int, shape: tuple[int, ...]
) -> int | None:
  result, before = dataflow.shape(equation.outvars[0]), math.prod(shape[:axis])
  fitting = [
    i
    for i, size in enumerate(result)
    if size == shape[axis] and math.prod(result[:i]) == before
  ]
  return fitting[-1] if fitting else None


def _squeezed(
  equation: core.JaxprEqn, axis: int, shape: tuple[int, ...]
) -> int | None:
  gone = [i % len(shape) for i in equation.params['dimensions']]
  return None if axis in gone else axis - sum(i < axis for i in gone)


def _reduced(
  equation: core.JaxprEqn, axis: int, shape: tuple[int, ...]
) -> int | None:
  del shape
  gone = equation.params['axes']
  return None if axis in gone else axis - sum(i < axis for i in gone)


def _broadcast(
  equation: core.JaxprEqn, axis: int, shape: tuple[int, ...]
) -> int | None:
  new: int = equation.params['broadcast_dimensions'][axis]
  same = dataflow.shape(equation.outvars[0])[new] == shape[axis]
  return new if same else None


def _transposed(
  equation: core.JaxprEqn, axis: int, shape: tuple[int, ...]
) -> int | None:
  del shape
  return list(equation.params['permutation']).index(axis)


_MOVED: dict[str, Callable[..., int | None]] = {
  'broadcast_in_dim': _broadcast,
  'reduce_max': _reduced,
  'reduce_sum': _reduced,
  'reshape': _reshaped,
  'squeeze': _squeezed,
  'transpose': _transposed,
}
