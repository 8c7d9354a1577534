"""Arguments and fields of the previous release, for one more.

A stage had the fields of a single term, and so had its plan and its state. They
still work, with a warning that names what to write now.
"""

from collections.abc import Callable
from collections.abc import Mapping
import functools
from typing import Any
import warnings

from cxjax import deprecation
from cxjax import errors
from cxjax import streams

# The old name of each field of a term, and the new one.
RENAMED: dict[str, deprecation.Renaming] = {
  'law': 'projection',
  'readout': 'regressor',
  'shared': 'shared_projection',
  'centred': 'centered',
  'positions': ('tokens', {'read': 'predicted'}),
}
# Fields of a stage that its term has under the same name.
OWN = ('student', 'target', 'loss', 'width', 'norm', 'scale', 'pool', 'top_k')


def term_fields(
  fields: Mapping[str, Any], where: str, stacklevel: int = 3
) -> dict[str, Any]:
  """Fields of a term under their new names; warns at the caller's caller."""
  return deprecation.with_new_names(where, fields, RENAMED, stacklevel + 1)


def stage_of_one_term(make_terms: Callable[[dict[str, Any]], Any]) -> Callable:
  """Decorator of `Stage`: accepts the fields of its single term as well.

  Args:
    make_terms: function from the fields of a term to the terms.

  Returns:
    The decorator.
  """

  def decorate(cls: type) -> type:
    init: Callable[..., None] = cls.__init__  # type: ignore[misc]

    @functools.wraps(init)
    def __init__(  # noqa: N807
      self: Any,
      name: str,
      steps: int,
      terms: Any = (),
      frozen: tuple[str, ...] = (),
      checkpoint: int | None = None,
      **fields: Any,
    ) -> None:
      if fields:
        errors.require(
          not terms,
          f'Stage {name!r} has terms and also {", ".join(fields)}: give those '
          'to its terms.',
        )
        with streams.with_stderr():
          warnings.warn(
            f'Stage({name!r}, {", ".join(fields)}=...) is now Stage({name!r}, '
            'steps, terms=(cxjax.Term(...),)); the old form goes with the next '
            'release.',
            DeprecationWarning,
            stacklevel=2,
          )
        terms = make_terms(term_fields(fields, f'stage {name!r}'))
      init(self, name, steps, terms, frozen, checkpoint)

    cls.__init__ = __init__  # type: ignore[misc]
    own = {name: (f'terms[0].{name}', _of_first(name)) for name in OWN}
    renamed = {
      old: (f'terms[0].{name}', _of_first(name))
      for old, new in RENAMED.items()
      for name in [new if isinstance(new, str) else new[0]]
    }
    alpha = ('the weight of the term of the labels', _alpha)
    return deprecation.old_attributes(**own, **renamed, alpha=alpha)(cls)

  return decorate


def _of_first(name: str) -> Callable[[Any], Any]:
  return lambda stage: getattr(stage.terms[0], name)


def _alpha(stage: Any) -> float:
  labels = [t.weight for t in stage.terms if not t.needs_teacher]
  return labels[0] if len(stage.terms) == 2 and labels else 0.0


def _single(field: str, key: str | None = None) -> Callable[[Any], Any]:
  """The value of a field that is a dict by term, for a single term."""

  def read(value: Any) -> Any:
    found = next(iter(getattr(value, field).values()), None)
    return found if key is None else getattr(found, key)

  return read


# A plan of a stage had the shapes of its single term, a state its regressor.
plan_of_one_term = deprecation.old_attributes(
  projection=('projections[TERM]', _single('projections')),
  readout=('regressors[TERM]', _single('regressors')),
  teacher_width=(
    'terms[TERM].teacher_width',
    _single('terms', 'teacher_width'),
  ),
  student_width=(
    'terms[TERM].student_width',
    _single('terms', 'student_width'),
  ),
)
state_of_one_term = deprecation.old_attributes(
  readout=('regressors[TERM]', lambda state: _single('regressors')(state) or {})
)
