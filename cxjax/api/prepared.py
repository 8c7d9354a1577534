"""Models as `plan` checks them, and as a run compares them."""

import dataclasses
import math
from typing import Any

from absl import logging
import jax
import numpy as np

from cxjax import errors
from cxjax import types
from cxjax.api import matching
from cxjax.api import mode_warnings
from cxjax.methods import stage as stage_lib
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
) -> tuple[adapters.ModelAdapter, adapters.ModelAdapter]:
  """Teacher and student with all their layers, as a plan reads them.

  Args:
    given: teacher and student.
    x: shapes of a batch.
    dtype: to compute in; None is that of the models.
    hidden: whether the plan may compare hidden layers.

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
  _warn_of_order(teacher, student)
  return with_layers(teacher, x, dtype), with_layers(student, x, dtype)


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
  teacher: adapters.ModelAdapter, student: adapters.ModelAdapter
) -> None:
  """Warns of a student that is larger than its teacher."""
  size = lambda leaf: math.prod(np.shape(leaf))
  count = lambda params: sum(map(size, jax.tree.leaves(params)))
  theirs, ours = count(teacher.params), count(student.one)
  if ours > theirs:
    logging.warning(
      'The student has %s parameters and the teacher %s. The teacher comes '
      'first, and is meant to be the larger one: is this their order?',
      f'{ours:,}',
      f'{theirs:,}',
    )


def with_layers(
  model: adapters.ModelAdapter, x: types.Input, dtype: Any
) -> adapters.ModelAdapter:
  """The model as its layers can be compared.

  Args:
    model: a model.
    x: shapes of a batch.
    dtype: to compute in; None is that of the model.

  Returns:
    A model with all layers of its scans, and with the channels of its hidden
    activations last; traced once.
  """
  model = channels.last(scanned.with_layers(model), x)
  if dtype is not None:
    model = adapters.with_compute_dtype(model, dtype)
  return traced_once(model)


def as_compared(
  models: tuple[adapters.ModelAdapter, adapters.ModelAdapter],
  stages: stage_lib.Curriculum,
  x: types.Input,
  dtype: Any,
) -> tuple[adapters.ModelAdapter, ...]:
  """Teacher and student with those layers of scans that a stage compares.

  Args:
    models: teacher and student.
    stages: the stages of a plan.
    x: shapes of a batch.
    dtype: to compute in; None is that of the models.

  Returns:
    The two; the channels of their hidden activations are the last axis.
  """
  terms = [term for stage in stages for term in stage.terms]
  names = (
    {term.target for term in terms if term.needs_teacher},
    {term.student for term in terms}.union(*(s.frozen for s in stages)),
  )
  found = []
  for model, used in zip(models, names, strict=True):
    if used := used - set(matching.shapes(traced_once(model), x)):
      model = scanned.with_layers(model, used)
    model = channels.last(model, x, log=True)
    if dtype is not None:
      model = adapters.with_compute_dtype(model, dtype)
    found.append(model)
  return tuple(found)
