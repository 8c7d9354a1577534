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
  closed, found = jax.make_jaxpr(
    functools.partial(targets_lib.forward, modes.traced_once(apply)),
    return_shape=True,
  )(*jax.eval_shape(lambda tree: tree, (params, x)))
  if not _has_convolution(closed.jaxpr):
    return {}
  roles = axis_roles.Roles(closed, len(jax.tree.leaves(params)))
  axes = {}
  for name, value in zip(sorted(found), roles.outputs, strict=True):
    axis = roles.channels(value)
    if axis is not None and 0 < axis < len(found[name].shape) - 1:
      axes[name] = axis
  return axes


def last(
  model: adapters.ModelAdapter, x: types.Input, log: bool = False
) -> adapters.ModelAdapter:
  """The model whose hidden activations have their channels last.

  Args:
    model: a model.
    x: shapes of a batch.
    log: says which activations are moved.

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
  if log:
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
