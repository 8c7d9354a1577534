"""Which parameters `distill` trains: by their paths, by type, by a function."""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
from typing import Any
from typing import TypeAlias

import jax

from cxjax import arguments
from cxjax import errors
from cxjax.methods import masks
from cxjax.models import adapters
from cxjax.parallel import partition

# A pattern of paths, a type of nnx variables, `(path, leaf) -> bool`, or
# several of these, of which one must hold.
Trainable: TypeAlias = (
  str | type[Any] | Callable[[str, Any], bool] | Sequence[Any]
)


@dataclasses.dataclass(frozen=True)
class Chosen:
  """The parameters of some paths, as of `masks.path_mask`.

  Attributes:
    paths: paths of the parameters that are trained, in order.
  """

  paths: tuple[str, ...]

  def __call__(self, path: str, _: Any) -> bool:
    """Returns whether the parameter of a path is one of them."""
    return path in self.paths


def resolved(
  trainable: Trainable, student: adapters.ModelAdapter
) -> str | Chosen:
  """The argument of `distill` as `RunSpec` takes it.

  Args:
    trainable: argument `trainable` of `distill`, as the user gave it.
    student: the student.

  Returns:
    A pattern as it is; for anything else the paths that it stands for.

  Raises:
    UserError: it is none of these, or stands for no parameter.
  """
  if isinstance(trainable, str):
    return arguments.text(
      'trainable', trainable, "'block*' or '^(embed|head)/'"
    )
  several = isinstance(trainable, tuple | list)
  parts = list(trainable) if several else [trainable]  # type: ignore[arg-type]
  errors.require(
    bool(parts) and not any(isinstance(p, str) and not p for p in parts),
    f"trainable={trainable!r} must not be empty; all parameters are ''.",
  )
  shapes = arguments.shapes('The tree of parameters', student.one)
  chosen = [masks.path_mask(shapes, _rule(part, student)) for part in parts]
  either = jax.tree.map(lambda *marks: any(marks), *chosen)
  return Chosen(
    tuple(
      partition.leaf_name(path)
      for path, marked in jax.tree.leaves_with_path(either)
      if marked
    )
  )


def _rule(part: Any, student: adapters.ModelAdapter) -> masks.Trainable:
  """A pattern or a function of one part of `trainable`."""
  # Imported here, as it is slow to import.
  from flax import nnx

  if isinstance(part, str):
    return part
  if not isinstance(part, type):
    errors.require(
      callable(part),
      f"trainable={part!r} must be a pattern of paths, as 'block*', a type of "
      'nnx variables, as nnx.LoRAParam, or a function (path, leaf) -> bool.',
    )
    return part
  name = part.__name__
  errors.require(
    issubclass(part, nnx.Variable),
    f'trainable={name}: only types of nnx variables stand for parameters, as '
    'nnx.LoRAParam.',
  )
  errors.require(
    bool(student.kinds),
    f'trainable={name} is a type of nnx, and the student is not of from_nnx. '
    "Give a pattern of the paths of its parameters, as 'lora*'.",
  )
  kinds = sorted({kind.__name__ for kind in student.kinds.values()})
  errors.require(
    any(issubclass(kind, part) for kind in student.kinds.values()),
    f'trainable={name}: the student has no such parameter, it has '
    f'{", ".join(kinds)}. from_nnx trains nnx.Param and types that inherit '
    'from it.',
  )
  return lambda path, _: issubclass(student.kinds[path], part)
