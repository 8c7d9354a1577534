"""Layers inside of loops that are not split, and the errors that say so."""

from collections.abc import Sequence

from cxjax import errors
from cxjax import types
from cxjax.models import adapters
from cxjax.models import scanned


def require_outside(
  pairs: Sequence[Sequence[str]],
  roles: Sequence[str],
  models: Sequence[adapters.ModelAdapter],
  x: types.Input,
) -> None:
  """Raises UserError for a name or a pattern of the steps of such a loop.

  Args:
    pairs: for each model a name, of no activation, or a pattern.
    roles: 'teacher' or 'student', for messages.
    models: the models.
    x: shapes of a batch.
  """
  for role, model, names in zip(
    roles, models, zip(*pairs, strict=True), strict=True
  ):
    for stack, kind in scanned.loops(model, x).items():
      for name in names:
        inside = name == stack or name.startswith(f'{stack}/')
        errors.require(not inside, _message(name, role, kind))


def require_layers(
  roles: Sequence[str],
  models: Sequence[adapters.ModelAdapter],
  x: types.Input,
  layers: Sequence[Sequence[str]],
) -> None:
  """Raises UserError for a model with such a loop and no other layers.

  Args:
    roles: 'teacher' or 'student', for messages.
    models: the models.
    x: shapes of a batch.
    layers: those of each model.
  """
  for role, model, found in zip(roles, models, layers, strict=True):
    loops = {} if found else scanned.loops(model, x)
    for stack, kind in loops.items():
      raise errors.UserError(_message(f'{stack}/*', role, kind))


def _message(name: str, role: str, kind: str) -> str:
  return (
    f'{name!r} of the {role} is inside {kind}: its steps are no activations. '
    'Compare an activation outside of the loop, or write it as jax.lax.scan '
    'over the parameters of the layers.'
  )
