"""Arrays of a user, made such that one program of JAX takes them."""

from typing import Any
from typing import TypeVar

import jax
from jax.sharding import AxisType
from jax.sharding import NamedSharding
import numpy as np

from cxjax import arguments
from cxjax import errors
from cxjax.parallel import partition

T = TypeVar('T')


def received(name: str, tree: T) -> T:
  """A tree of arrays on the same devices, in their memory.

  Explicit axes of a mesh become automatic. Arrays that are committed to
  different devices come to the first one.

  Args:
    name: the name of the argument, for messages.
    tree: arrays of JAX or numpy.

  Returns:
    The tree; arrays that any program takes are the ones that were given.

  Raises:
    UserError: a leaf is no array, was deleted, or has no values.
  """
  tree = jax.tree.map(computable, with_values(name, tree))
  bound = [leaf for leaf in jax.tree.leaves(tree) if _is_committed(leaf)]
  if len({frozenset(leaf.sharding.device_set) for leaf in bound}) < 2:
    return tree
  first = jax.local_devices()[0]
  move = lambda leaf: (
    jax.device_put(leaf, first) if _is_committed(leaf) else leaf
  )
  return jax.tree.map(move, tree)


def with_values(name: str, tree: T) -> T:
  """A tree of arrays that can be read, in the byte order of the machine.

  Args:
    name: the name of the argument, for messages.
    tree: arrays of JAX or numpy.

  Returns:
    The tree; what lies on devices stays there.

  Raises:
    UserError: a leaf is no array, was deleted, or has no values.
  """
  arguments.require_tree(name, tree)
  tree = jax.tree.map(native, tree)
  arguments.shapes(name, tree)
  for path, leaf in jax.tree.leaves_with_path(tree):
    require_values(leaf, f'{partition.leaf_name(path)!r} of {name}')
  return tree


def portable(tree: T) -> T:
  """The constants of a model, of which any program takes each; others stay."""
  return jax.tree.map(lambda leaf: computable(native(leaf)), tree)


def native(leaf: Any) -> Any:
  """An array of numpy in the byte order of the machine; else the leaf."""
  if type(leaf) is np.ndarray and not leaf.dtype.isnative:
    return leaf.astype(leaf.dtype.newbyteorder('='))
  return leaf


def require_values(leaf: Any, what: str) -> None:
  """Raises UserError for a shape, and for a tracer.

  Args:
    leaf: an array, most often.
    what: name of the array, for messages.
  """
  errors.require(
    not isinstance(leaf, jax.ShapeDtypeStruct),
    f'{what} has a shape and no values, as of jax.eval_shape. Give arrays.',
  )
  errors.require(
    not isinstance(leaf, jax.core.Tracer),
    f'{what} is traced by jax.jit, jax.grad or jax.vmap, and has no values '
    'yet. Make this call outside of them; it compiles what it runs.',
  )


def require_same_mesh(what: str, made: Any) -> None:
  """Raises UserError for results on another mesh than the one in force.

  A constant that a function closes over brings its mesh along, if that has
  explicit axes.

  Args:
    what: name of the function, for messages, as in 'The teacher'.
    made: shapes of what it makes.
  """
  here = jax.sharding.get_abstract_mesh()
  for leaf in jax.tree.leaves(made):
    mesh = getattr(getattr(leaf, 'sharding', None), 'mesh', here)
    errors.require(
      mesh.empty or AxisType.Explicit not in mesh.axis_types or mesh == here,
      f'{what} computes on a mesh of yours, with the explicit axes '
      f'{", ".join(mesh.axis_names)}, and a run has its own mesh. Leave yours '
      'out: make a constant that lies there a NumPy array, by jax.device_get, '
      'or a parameter.',
    )


def computable(leaf: Any) -> Any:
  """An array in its devices' memory, on a mesh with automatic axes alone.

  Numbers of 64 bits, which `jax.enable_x64` makes, are rounded to those of the
  settings in force.

  Args:
    leaf: any leaf.

  Returns:
    The leaf itself if it is so already: an array that stays where it is must
    not become committed to it.

  Raises:
    UserError: the leaf has integers that are too large.
  """
  if not isinstance(leaf, jax.Array):
    return leaf
  sharding = leaf.sharding
  device: Any = next(iter(sharding.addressable_devices), None)
  if device is not None and sharding.memory_kind is not None:
    kind = device.default_memory().kind
    if sharding.memory_kind != kind:
      sharding = sharding.with_memory_kind(kind)
  if isinstance(sharding, NamedSharding):
    sharding = _automatic(sharding)
  if sharding is not leaf.sharding:
    leaf = jax.device_put(leaf, sharding)
  return _rounded(leaf)


def require_integers(leaf: Any, what: str) -> None:
  """Raises UserError for integers that the settings in force would change.

  Args:
    leaf: an array of JAX or numpy.
    what: name of the array, for messages.
  """
  kept = jax.dtypes.canonicalize_dtype(leaf.dtype)
  whole = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
  integer = np.issubdtype(leaf.dtype, np.integer)
  if kept == leaf.dtype or not integer or not leaf.size or not whole:
    return
  host, info = np.asarray(leaf), np.iinfo(kept)
  errors.require(
    info.min <= int(host.min()) and int(host.max()) <= info.max,
    f'{what} has integers that {kept} does not hold. Make them smaller, or '
    "set jax.config.update('jax_enable_x64', True).",
  )


def _rounded(leaf: jax.Array) -> jax.Array:
  """An array in a dtype of the settings in force, where it lies."""
  if not isinstance(leaf.dtype, np.dtype):
    return leaf  # Keys.
  kept = jax.dtypes.canonicalize_dtype(leaf.dtype)
  if kept == leaf.dtype:
    return leaf
  require_integers(leaf, f'An array of shape {list(leaf.shape)}')
  with jax.enable_x64(True):  # Else JAX takes 64 bits for 32.
    return leaf.astype(kept)


def _automatic(sharding: NamedSharding) -> NamedSharding:
  """The same sharding on a mesh whose axes are automatic."""
  mesh = sharding.mesh
  kinds = (AxisType.Auto,) * len(mesh.axis_names)
  if not isinstance(mesh, jax.sharding.Mesh) or mesh.axis_types == kinds:
    return sharding
  mesh = jax.sharding.Mesh(mesh.devices, mesh.axis_names, axis_types=kinds)
  return NamedSharding(mesh, sharding.spec, memory_kind=sharding.memory_kind)


def _is_committed(leaf: Any) -> bool:
  return bool(getattr(leaf, 'committed', False))
