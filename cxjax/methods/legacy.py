"""Keyword arguments of the previous release, for one more.

A stage had the fields of a single term. They still work, with a warning that
names what to write now.
"""

from collections.abc import Callable
from collections.abc import Mapping
import functools
from typing import Any
import warnings

from cxjax import deprecation
from cxjax import errors

# The old name of each field of a term, and the new one.
RENAMED: dict[str, deprecation.Renaming] = {
  'law': 'projection',
  'readout': 'regressor',
  'shared': 'shared_projection',
  'centred': 'centered',
  'positions': ('tokens', {'read': 'predicted'}),
}


def term_fields(
  fields: Mapping[str, Any], where: str, stacklevel: int = 3
) -> dict[str, Any]:
  """Fields of a term under their new names; warns at the caller's caller."""
  return deprecation.with_new_names(where, fields, RENAMED, stacklevel + 1)


def stage_of_one_term(make_terms: Callable[[dict[str, Any]], Any]) -> Callable:
  """Decorator of `Stage`: accepts the fields of its single term as well.

  Args:
    make_terms: from the fields of a term to the terms.

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
    return cls

  return decorate
