"""Models as `plan` checks them, and as a run compares them."""

from collections.abc import Collection
import dataclasses
import math
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from cxjax import errors
from cxjax import types
from cxjax.api import feature_axes
from cxjax.api import matching
from cxjax.api import mode_warnings
from cxjax.methods import stage as stage_lib
from cxjax.methods import training_mode
from cxjax.models import adapters
from cxjax.models import channels
from cxjax.models import modes
from cxjax.models import scanned
from cxjax.parallel import reception


def traced_once(model: adapters.ModelAdapter) -> adapters.ModelAdapter:
  """The model for the checks of a plan, which read it many times."""
  if not isinstance(model, adapters.ModelAdapter):
    return model  # `adapters.outputs` says what it must be.
  training = model.training and modes.traced_once(model.training)
  return dataclasses.replace(
    model, apply=modes.traced_once(model.apply), training=training
  )


def checked(
  given: tuple[adapters.ModelAdapter, adapters.ModelAdapter],
  x: types.Input,
  dtype: Any,
  hidden: bool = True,
  sides: tuple[feature_axes.Side, feature_axes.Side] = (None, None),
) -> tuple[adapters.ModelAdapter, adapters.ModelAdapter]:
  """Teacher and student with all their layers, as a plan reads them.

  Args:
    given: teacher and student.
    x: shapes of a batch.
    dtype: to compute in; None is that of the models.
    hidden: whether the plan may compare hidden layers.
    sides: axes of the features that the user says, of each.

  Returns:
    The two, traced once.

  Raises:
    UserError: they do not run on the batch, or not in training mode.
  """
  teacher, student = map(traced_once, given)
  for role, model in (('teacher', teacher), ('student', student)):
    made = adapters.outputs(model, x, role)
    reception.require_same_mesh(f'The {role}', made)
    if hidden:
      _warn_of_nested(role, model, x)
  errors.require(
    not teacher.several, 'A plan has one teacher: give it one set of params.'
  )
  adapters.check_training(student, x)
  mode_warnings.warn(teacher, student, x)
  _warn_of_order(teacher, student, x)
  return (
    with_layers(teacher, x, dtype, sides[0]),
    with_layers(student, x, dtype, sides[1]),
  )


def _warn_of_nested(
  role: str, model: adapters.ModelAdapter, x: types.Input
) -> None:
  """Warns of steps of a scan that are several layers each."""
  for stack, size in scanned.nested(model, x).items():
    logging.warning(
      'Each of %r of the %s is %d layers, a scan inside of a scan, as in '
      'nn.remat_scan: those between cannot be matched. In one scan over all '
      'layers they can.',
      f'{stack}/*',
      role,
      size,
    )


def _warn_of_order(
  teacher: adapters.ModelAdapter,
  student: adapters.ModelAdapter,
  x: types.Input,
) -> None:
  """Warns of a student that is larger than its teacher."""
  size = lambda leaf: math.prod(np.shape(leaf))
  theirs = sum(map(size, jax.tree.leaves(teacher.params)))
  leaves = training_mode.by_name(student.one)
  ours = sum(map(size, leaves.values()))
  if ours > theirs and student.training is not None:
    # Statistics, counts and keys are no parameters, and a model at inference
    # does not list them.
    changed = training_mode.changed_shapes(student.training, student.one, x)
    ours = sum(
      size(leaf)
      for name, leaf in leaves.items()
      if name not in changed and jnp.issubdtype(leaf.dtype, jnp.inexact)
    )
  if ours > theirs:
    logging.warning(
      'The student has %s parameters and the teacher %s. The teacher comes '
      'first, and is meant to be the larger one: is this their order?',
      f'{ours:,}',
      f'{theirs:,}',
    )


def with_layers(
  model: adapters.ModelAdapter,
  x: types.Input,
  dtype: Any,
  side: feature_axes.Side = None,
) -> adapters.ModelAdapter:
  """The model as its layers can be compared.

  Args:
    model: a model.
    x: shapes of a batch.
    dtype: to compute in; None is that of the model.
    side: axes of the features that the user says.

  Returns:
    A model with all layers of its scans, and with the features of its hidden
    activations last; traced once.
  """
  model = scanned.with_layers(model)
  model = channels.last(model, x, feature_axes.by_name(side, model, x))
  if dtype is not None:
    model = adapters.with_compute_dtype(model, dtype)
  return traced_once(model)


def as_compared(
  models: tuple[adapters.ModelAdapter, adapters.ModelAdapter],
  stages: stage_lib.Curriculum,
  x: types.Input,
  dtype: Any,
  sides: tuple[feature_axes.Side, feature_axes.Side] = (None, None),
) -> tuple[adapters.ModelAdapter, adapters.ModelAdapter]:
  """Teacher and student with those layers of scans that a stage compares.

  Args:
    models: teacher and student.
    stages: the stages of a plan.
    x: shapes of a batch.
    dtype: to compute in; None is that of the models.
    sides: axes of the features that the user says, of each.

  Returns:
    The two; the features of their hidden activations are the last axis.
  """
  terms = [term for stage in stages for term in stage.terms]
  compared = (
    {term.target for term in terms if term.needs_teacher},
    {term.student for term in terms},
  )
  frozen = {name for stage in stages for name in stage.frozen}
  found = []
  for i, model in enumerate(models):
    used = compared[i] | frozen if i else compared[i]
    if used := used - set(matching.shapes(traced_once(model), x)):
      model = scanned.with_layers(model, used)
    model = _with_features_last(i, model, x, sides[i], compared[i])
    if dtype is not None:
      model = adapters.with_compute_dtype(model, dtype)
    found.append(model)
  return found[0], found[1]


def _with_features_last(
  number: int,
  model: adapters.ModelAdapter,
  x: types.Input,
  side: feature_axes.Side,
  compared: Collection[str],
) -> adapters.ModelAdapter:
  """The teacher (0) or the student (1); says where the features were found."""
  given = feature_axes.by_name(side, model, x)
  axes, doubts = channels.of_hidden(model, x)
  if names := [n for n in axes if n in compared and n not in given]:
    logging.info(
      'Channels of activations of the %s are moved to the last axis: %s.',
      matching.ROLES[number],
      ', '.join(names),
    )
  in_doubt: dict[Any, list[str]] = {}
  for name in [n for n in doubts if n in compared and n not in given]:
    in_doubt.setdefault((doubts[name], axes.get(name)), []).append(name)
  for (pair, axis), names in in_doubt.items():
    mode_warnings.say(
      'The features of %s of the %s may be axis %d or axis %d: the layers do '
      'not tell them from tokens or positions. %s is compared. Say which it '
      'is, as feature_axis=%s.',
      ', '.join(map(repr, names)),
      matching.ROLES[number],
      *pair,
      'The last axis' if axis is None else f'Axis {axis}',
      f'(None, {pair[0]})' if number else f'({pair[0]}, None)',
    )
  return channels.moved(model, {**axes, **given})
