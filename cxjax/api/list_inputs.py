"""Models that read a list of arrays as one input, and examples that are lists.

As an example, `[x]` is x alone, and `[x, y]` is inputs and labels.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
from typing import Any

import jax

from cxjax import errors
from cxjax import types
from cxjax.data import user_batches
from cxjax.models import adapters


@contextlib.contextmanager
def explained(
  given: Any, batch: types.Batch, models: Sequence[adapters.ModelAdapter]
) -> Iterator[None]:
  """Explains the error of a model that reads the example itself, a list.

  Args:
    given: the example as the user gave it.
    batch: shapes of the example.
    models: teacher and student.

  Yields:
    Nothing: the models are run within.

  Raises:
    UserError: a model does not run on `x` of the batch.
  """
  try:
    yield
  except errors.UserError as error:
    found = _list(given, batch)
    if found is None:
      raise
    form, x = found
    for role, model in zip(('teacher', 'student'), models, strict=True):
      if not _runs(model, batch['x']) and _runs(model, x):
        raise errors.UserError(
          f'The {role} reads a {type(x).__name__} of arrays as its one input, '
          f"and the example {form} is read otherwise. Give {{'x': {form}}}, "
          "also in the batches, with labels as {'x': " + form + ", 'y': "
          'labels}.'
        ) from error
    raise


def _list(given: Any, batch: types.Batch) -> tuple[str, Any] | None:
  """The text of an example that is a list or tuple, and its shapes."""
  x = batch['x']
  if isinstance(x, list | tuple):
    (inner,) = x if len(x) == 1 else (None,)
    if not isinstance(inner, list | tuple):
      return None
    given = x = inner  # Given as `([x],)`.
  elif type(given) not in (list, tuple):
    return None
  elif user_batches.is_pair(given):
    x = type(given)((x, batch['y']))
  else:
    x = type(given)((x,))
  names = ', '.join(('x', 'y', 'z')[: len(x)]) + ', ...' * (len(x) > 3)
  comma = ',' * (len(x) == 1)
  return (f'[{names}]' if isinstance(x, list) else f'({names}{comma})'), x


def _runs(model: adapters.ModelAdapter, x: types.Input) -> bool:
  """True if a model runs on an input."""
  try:
    params, x = jax.eval_shape(lambda tree: tree, (model.one, x))
    jax.eval_shape(model.apply, params, x)
  except Exception:  # A model of the user may raise anything.
    return False
  return True
