"""Channels of convolutional activations, moved to the last axis.

Losses, projections and regressors read the last axis as the features. A
convolution says where its channels are, as in `[B, C, H, W]` of equinox; their
axis is followed from there through the whole model (`axis_roles`). Where they
read different axes, the nearest one says. One of a single position that mixes
tokens, as in an MLP-Mixer, says nothing.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

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
from cxjax.models import axis_roles
from cxjax.models import modes
from cxjax.models import probabilities

# Losses whose value depends on which axis they reduce.
_OF_AXIS = (losses.cosine, *relational.LOSSES.values())


def axes(
  apply: types.Apply, params: types.Params, x: types.Input
) -> dict[str, int]:
  """Axes of channels that are not the last, by name of the activation.

  Args:
    apply: the model.
    params: its parameters; shapes are enough.
    x: an input; its shape is enough.

  Returns:
    The axes; empty for a model without convolutions.
  """
  return find(apply, params, x)[0]


def find(
  apply: types.Apply, params: types.Params, x: types.Input
) -> tuple[dict[str, int], dict[str, tuple[int, int]]]:
  """Axes of channels that are not the last, and axes in doubt.

  Args:
    apply: the model.
    params: its parameters; shapes are enough.
    x: an input; its shape is enough.

  Returns:
    The axes by name of the activation; and two axes of some activations, where
    the layers do not tell which of them the channels are.
  """
  closed, found = jax.make_jaxpr(
    functools.partial(targets_lib.forward, modes.traced_once(apply)),
    return_shape=True,
  )(*jax.eval_shape(lambda tree: tree, (params, x)))
  if not _has_convolution(closed.jaxpr):
    return {}, {}
  roles = axis_roles.Roles(closed, len(jax.tree.leaves(params)))
  values = dict(zip(sorted(found), roles.outputs, strict=True))
  ends = [value for name, value in values.items() if is_output(name)]
  axes, doubts = {}, {}
  for name, value in values.items():
    axis, doubt = roles.channels(value, ends)
    if axis is not None and 0 < axis < len(found[name].shape) - 1:
      axes[name] = axis
    if doubt is not None:
      doubts[name] = doubt
  return axes, doubts


def of_hidden(
  model: adapters.ModelAdapter, x: types.Input
) -> tuple[dict[str, int], dict[str, tuple[int, int]]]:
  """Axes of the channels of hidden activations, and axes in doubt: `find`.

  Args:
    model: a model.
    x: shapes of a batch.

  Returns:
    Both by name; none for a model that does not run.
  """
  try:
    found, doubts = find(model.apply, model.one, x)
  except Exception:  # A model of the user; `plan` says what is wrong with it.
    return {}, {}
  return (
    {name: axis for name, axis in found.items() if not is_output(name)},
    {name: doubt for name, doubt in doubts.items() if not is_output(name)},
  )


def last(
  model: adapters.ModelAdapter,
  x: types.Input,
  given: Mapping[str, int] | None = None,
) -> adapters.ModelAdapter:
  """The model whose hidden activations have their channels last.

  Args:
    model: a model.
    x: shapes of a batch.
    given: axes of the channels that are known, by name; the others are found.

  Returns:
    The model itself, if they all have. Outputs stay as they are.
  """
  return moved(model, {**of_hidden(model, x)[0], **(given or {})})


def moved(
  model: adapters.ModelAdapter, axes: Mapping[str, int]
) -> adapters.ModelAdapter:
  """The model whose activations have some of their axes last.

  Args:
    model: a model.
    axes: axes of activations, by name.

  Returns:
    The model itself, if there are none.
  """
  if not axes:
    return model
  run = functools.partial(_moved, axes)
  training = model.training and functools.partial(run, model.training)
  return dataclasses.replace(
    model, apply=functools.partial(run, model.apply), training=training
  )


def _moved(
  axes: Mapping[str, int], fun: Callable[..., Any], *args: Any
) -> tuple[Any, ...]:
  """Runs a model, and moves the channels of its activations."""
  output, found, *rest = fun(*args)

  def last(name: str, value: Any) -> Any:
    rank = jnp.ndim(value)
    axis = axes.get(name, rank - 1)
    return value if axis == rank - 1 else jnp.moveaxis(value, axis, -1)

  return output, {n: last(n, value) for n, value in found.items()}, *rest


def is_output(name: str) -> bool:
  """True for the name of an output of a model."""
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
    if not any(map(is_output, names)):
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
