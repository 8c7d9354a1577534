"""Names that users gave to the axes of flax parameters, on our mesh."""

from collections.abc import Iterator
from collections.abc import Mapping
import re
from typing import TYPE_CHECKING
from typing import Any
from typing import TypeAlias

from flax import linen as nn
import jax

from cxjax import arguments
from cxjax import errors
from cxjax.models import base
from cxjax.parallel import partition

if TYPE_CHECKING:
  from flax import nnx

# From names of the user to an axis of our mesh.
MeshAxes: TypeAlias = Mapping[str, str | None]
# Names of the axes of parameters, by path; None for an axis without a name.
Names: TypeAlias = dict[str, tuple[Any, ...]]
_ALLOWED = (partition.MODEL, partition.FSDP, None)
# Metadata of a variable of nnx that names its axes, the newest first.
_METADATA = ('out_sharding', 'sharding_names', 'sharding')


def _is_box(leaf: Any) -> bool:
  return isinstance(leaf, nn.meta.AxisMetadata)


def unboxed(tree: Any) -> Any:
  """The arrays of a tree that may have boxes of `nn.with_partitioning`."""
  if not any(map(_is_box, jax.tree.leaves(tree, is_leaf=_is_box))):
    return tree
  value = lambda leaf: jax.tree.leaves(leaf)[0] if _is_box(leaf) else leaf
  return jax.tree.map(value, tree, is_leaf=_is_box)


def reboxed(like: Any, tree: Any) -> Any:
  """The arrays of a tree in the boxes that another one has at their paths."""
  leaves = jax.tree.leaves_with_path(like, is_leaf=_is_box)
  boxes = {partition.leaf_name(path): leaf for path, leaf in leaves}
  boxes = {name: leaf for name, leaf in boxes.items() if _is_box(leaf)}
  if not boxes:
    return tree

  def one(path: Any, leaf: Any) -> Any:
    box = boxes.get(partition.leaf_name(path))
    return leaf if box is None else box.replace_boxed(leaf)

  return jax.tree.map_with_path(one, tree)


def of_boxes(tree: Any) -> Names:
  """Names of the axes of boxed parameters; `()` for those without a box."""
  leaves = jax.tree.leaves_with_path(tree, is_leaf=_is_box)
  return {
    partition.leaf_name(path): tuple(getattr(leaf, 'names', ()))
    for path, leaf in leaves
  }


def of_module(module: 'nnx.Module') -> Names:
  """Names of the axes of the parameters of an nnx module."""
  # Imported here, as it is slow to import.
  from flax import nnx

  found: Names = {}
  for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Param)):
    metadata = variable.get_metadata()
    known = [metadata[key] for key in _METADATA if metadata.get(key)]
    names = getattr(known[0], 'spec', known[0]) if known else ()
    found['/'.join(map(str, path))] = tuple(names)
  return found


def _flat(name: Any) -> Iterator[str]:
  """Yields the names of one axis, which may have several or none."""
  if isinstance(name, str):
    yield name
  elif name is not None:
    for part in name:
      yield from _flat(part)


def rules(
  names: Names,
  mesh_axes: MeshAxes | None,
  given: base.PartitionRules | None,
) -> base.PartitionRules | None:
  """Partition rules of parameters whose axes have names.

  Args:
    names: names of the axes of every parameter, by its path.
    mesh_axes: mesh axis of each name: 'model', or 'fsdp' or None: the sharding
      'fsdp' chooses its axes itself. None ignores the names.
    given: rules of the user, which come first.

  Returns:
    The rules; `given` if `mesh_axes` is None.

  Raises:
    UserError: a name is not mapped, or two axes of a parameter are mapped to
      'model'.
  """
  if mesh_axes is None:
    return given
  example = "{'tp': 'model', 'embed': None}"
  mesh_axes = arguments.mapping('mesh_axes', mesh_axes, example)
  for name, axis in mesh_axes.items():
    errors.require(
      axis in _ALLOWED,
      f"mesh_axes={{{name!r}: {axis!r}}} must map to 'model', 'fsdp' or None.",
    )
  found: list[tuple[str, int | None]] = []
  # A path may end as another one does; the longer one is matched first.
  for path in sorted(names, key=lambda path: -path.count('/')):
    axes = []
    for axis, each in enumerate(names[path]):
      for name in _flat(each):
        errors.require(
          name in mesh_axes,
          f'mesh_axes does not map the axis {name!r} of {path}. Map it to '
          f"'model', 'fsdp' or None, as mesh_axes={{{name!r}: 'model'}}.",
        )
        if mesh_axes[name] == partition.MODEL:
          axes.append(axis)
    errors.require(
      len(axes) < 2,
      f"mesh_axes maps two axes of {path}, {names[path]}, to 'model'. Map one "
      'of them to None.',
    )
    pattern = f'(^|/){re.escape(path)}$'
    found.append((pattern, axes[0] if axes else None))
  return (*(given or ()), *found)
