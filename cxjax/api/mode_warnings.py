"""Warnings of a plan: layers that training runs otherwise than is meant."""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import contextvars
import itertools
from typing import Any

from absl import logging

from cxjax import arguments
from cxjax import types
from cxjax.models import adapters
from cxjax.models import modes
from cxjax.training import run_spec

SHOWN = 4
# Warnings of the comparison in force, or None.
_given: contextvars.ContextVar[set[str] | None] = contextvars.ContextVar(
  'given', default=None
)


@contextlib.contextmanager
def once() -> Iterator[None]:
  """Context in which each warning is given once, over many plans and runs.

  One inside of another goes on with what was given there.
  """
  given = _given.get()
  token = _given.set(set() if given is None else given)
  try:
    yield
  finally:
    _given.reset(token)


def say(message: str, *args: Any) -> None:
  """Warns, in a comparison once.

  Args:
    message: one line, with a format for each argument.
    *args: the arguments.
  """
  given, line = _given.get(), message % args
  if given is None or line not in given:
    logging.warning('%s', line)
  if given is not None:
    given.add(line)


def warn(
  teacher: adapters.ModelAdapter, student: adapters.ModelAdapter, x: types.Input
) -> None:
  """Warns of dropout that does not act, constant statistics and the like.

  Args:
    teacher: the teacher, which always runs at inference.
    student: the student.
    x: shapes of a batch.
  """
  mode = (
    "give the arguments of its training mode, as training={'train': True}, or "
    'a module of nnx in training mode'
  )
  if layers := student.unused_dropout(x):
    say(
      'The student trains without dropout: %s. For dropout %s.',
      _listed(layers),
      mode,
    )
  if statistics := student.constant_statistics(x):
    say(
      'The batch statistics of the student are not updated: %s. To update them '
      '%s.',
      _listed(statistics),
      mode,
    )
  if student.ignored:
    say(
      'The student trains without the constraints and regularizers of Keras: '
      '%s. Give the like in the optimizer, as optax.chain(optax.adamw(1e-3), '
      'optax.keep_params_nonnegative()).',
      _listed(student.ignored),
    )
  for role, model in (('teacher', teacher), ('student', student)):
    if model.draws_constants(x):
      say(
        'The %s draws random numbers at inference, the same at every call. Run '
        'it without dropout; a student gets keys in its training mode.',
        role,
      )


def warn_of_weights(student: adapters.ModelAdapter, x: types.Input) -> None:
  """Warns of batch statistics, which examples of weight 0 are part of.

  Args:
    student: the student of a run whose batches have weights, or a mask that it
      does not see.
    x: shapes of a batch.
  """
  _warn_of_statistics(student.training, student.one, x)


def warn_of_run(spec: run_spec.RunSpec) -> None:
  """Warns of batch statistics like `warn_of_weights`, for the run of a config.

  Args:
    spec: the specification of the run.
  """
  if 'weights' in spec.held_out:
    _warn_of_statistics(spec.training, spec.student_shapes, spec.held_out['x'])


def _warn_of_statistics(
  training: types.Training | None, params: types.Params, x: types.Input
) -> None:
  """Warns of statistics of the batch that a training mode updates."""
  if training is None:
    return
  shapes = arguments.shapes('params', params), arguments.shapes('x', x)
  found = modes.batch_statistics(training, *shapes)
  if names := list(itertools.islice(found, SHOWN + 1)):
    say(
      'Examples and tokens of weight 0, as those that fill up a short batch, '
      "count in the student's batch statistics: %s. Leave them out of the "
      "batches, as last_batch='drop' does, or give the student a norm of "
      'single examples, as nn.LayerNorm.',
      _listed(names),
    )


def _listed(names: Sequence[str]) -> str:
  """The first of some names."""
  return ', '.join(names[:SHOWN]) + (', ...' if len(names) > SHOWN else '')
