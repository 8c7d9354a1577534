"""Warnings of layers that training runs at inference."""

from absl import logging

from cxjax import types
from cxjax.models import adapters


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
  listed = lambda names: (
    ', '.join(names[:4]) + (', ...' if len(names) > 4 else '')
  )
  if layers := student.unused_dropout(x):
    logging.warning(
      'The student trains without dropout: %s. For dropout %s.',
      listed(layers),
      mode,
    )
  if statistics := student.constant_statistics(x):
    logging.warning(
      'The batch statistics of the student are not updated: %s. To update them '
      '%s.',
      listed(statistics),
      mode,
    )
  if student.ignored:
    logging.warning(
      'The student trains without the constraints and regularizers of Keras: '
      '%s. Give the like in the optimizer, as optax.chain(optax.adamw(1e-3), '
      'optax.keep_params_nonnegative()).',
      listed(student.ignored),
    )
  for role, model in (('teacher', teacher), ('student', student)):
    if model.draws_constants(x):
      logging.warning(
        'The %s draws random numbers at inference, the same at every call. Run '
        'it without dropout; a student gets keys in its training mode.',
        role,
      )
