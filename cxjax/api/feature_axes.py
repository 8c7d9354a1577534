"""The axis of the features of hidden activations, as the user says it.

Losses, projections and regressors read the last axis. `cxjax.models.channels`
finds where convolutions have their features, and moves it there; what the user
says takes precedence.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import TypeAlias

from cxjax import arguments
from cxjax import errors
from cxjax import types
from cxjax.api import matching
from cxjax.api import patterns
from cxjax.methods import stage as stage_lib
from cxjax.models import adapters
from cxjax.models import channels

# In one model: of all hidden activations, or of each by its name or a pattern.
Side: TypeAlias = int | Mapping[str, int] | None
# The argument of `plan`: of both models, or the teacher's and the student's.
FeatureAxis: TypeAlias = Side | Sequence[Side]
Models: TypeAlias = tuple[adapters.ModelAdapter, adapters.ModelAdapter]


def sides(feature_axis: Any) -> tuple[Side, Side]:
  """The argument of `plan` for the teacher and for the student.

  Args:
    feature_axis: the argument.

  Returns:
    Axes that are no axis of the batch, of each.

  Raises:
    UserError: it is none of these, or 0.
  """
  if not isinstance(feature_axis, tuple | list):
    feature_axis = _side(feature_axis)
    return feature_axis, feature_axis
  errors.require(
    len(feature_axis) == 2,
    lambda: f'feature_axis={feature_axis!r} {_ALLOWED}',
  )
  return _side(feature_axis[0]), _side(feature_axis[1])


_ALLOWED = (
  'must be an axis, as 1, a dict of axes by activation, as '
  "{'blocks/*': 1}, or a pair of these, the teacher's and the student's."
)


def _side(given: Any) -> Side:
  """The axes of one model, checked."""
  if given is None:
    return None
  if not isinstance(given, Mapping):
    return _axis(given)
  errors.require(
    all(isinstance(name, str) for name in given),
    lambda: f'feature_axis={given!r} {_ALLOWED}',
  )
  return {name: _axis(axis) for name, axis in given.items()}


def _axis(given: Any) -> int:
  """An axis that is not the first."""
  axis = arguments.plain(given)
  errors.require(
    isinstance(axis, int) and not isinstance(axis, bool),
    lambda: f'feature_axis={given!r} {_ALLOWED}',
  )
  errors.require(
    axis != 0,
    'feature_axis=0 is the axis of the batch. Give that of the features, as 1, '
    'or -1 for the last.',
  )
  return axis


def by_name(
  side: Side, model: adapters.ModelAdapter, x: types.Input
) -> dict[str, int]:
  """The axes of the hidden activations of a model that the user says.

  Args:
    side: the axes of this model.
    model: a model that runs on the batch.
    x: shapes of a batch.

  Returns:
    Axes from 1, of the activations that have them.
  """
  if side is None:
    return {}
  found = {}
  for name, leaf in matching.shapes(model, x).items():
    axis, rank = _said(side, name), len(leaf.shape)
    if axis is not None and _is_axis(axis, rank):
      found[name] = axis % rank
  return found


def check(
  both: tuple[Side, Side],
  models: Models,
  x: types.Input,
  stages: stage_lib.Curriculum,
) -> None:
  """Checks the axes that the user says against what is compared.

  Args:
    both: the axes of teacher and student; one dict may name activations of
      either.
    models: teacher and student, with all their layers.
    x: shapes of a batch.
    stages: the stages of a plan.

  Raises:
    UserError: a name or a pattern of no hidden activation, or an activation
      that is compared and has no such axis.
  """
  if both == (None, None):
    return
  shapes = [matching.shapes(model, x) for model in models]
  terms = [term for stage in stages for term in stage.terms]
  compared = (
    [term.target for term in terms if term.needs_teacher],
    [term.student for term in terms],
  )
  shared = both[0] is both[1]
  for i, role in enumerate(matching.ROLES):
    side = both[i]
    named = list(side) if isinstance(side, Mapping) else []
    known = {**shapes[0], **shapes[1]} if shared else shapes[i]
    for pattern in named:
      _require_known(
        pattern, known, 'either model' if shared else f'the {role}'
      )
    for name in filter(shapes[i].__contains__, [*compared[i], *named]):
      shape = list(shapes[i][name].shape)
      axis, rank = _said(side, name), len(shape)
      errors.require(
        axis is None or rank < 2 or _is_axis(axis, rank),
        f'feature_axis={axis}: {name!r} of the {role} is {shape}, whose '
        f'features may be axis 1 to {rank - 1}, or -1 for the last; axis 0 is '
        "the batch. A dict says it for some activations, as {'blocks/*': 1}.",
      )


def _require_known(pattern: str, shapes: Mapping[str, Any], where: str) -> None:
  """Raises UserError for a name or a pattern of no hidden activation."""
  errors.require(
    not channels.is_output(pattern),
    f'feature_axis: {pattern!r} is an output, which is compared by its last '
    'axis. Move its features there, as by output=lambda y: jnp.moveaxis(y, 1, '
    '-1) of from_linen and the others.',
  )
  hidden = [name for name in shapes if not channels.is_output(name)]
  if not any(_fits(name, pattern) for name in hidden):
    known = dict.fromkeys([*patterns.forms(hidden), *hidden])
    errors.lookup(f'activation of {where} in feature_axis', pattern, known)


def _said(side: Side, name: str) -> int | None:
  """The axis that the user says for an activation, if any."""
  if channels.is_output(name):
    return None
  if isinstance(side, Mapping):
    return next((side[each] for each in side if _fits(name, each)), None)
  return side


def _fits(name: str, pattern: str) -> bool:
  return name == pattern or patterns.fits(name, pattern)


def _is_axis(axis: int, rank: int) -> bool:
  """True for an axis of an array of this rank that is not the first."""
  return axis != -rank and -rank <= axis < rank
