"""Meshes and shardings.

A mesh has four axes. Students are sharded over 'seed', the examples of a batch
over 'data' and 'fsdp', parameters and their optimizer state over 'fsdp' and
'model'.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import math
from typing import Any
from typing import TypeVar

import jax
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from cxjax import arguments
from cxjax import errors
from cxjax import types
from cxjax.parallel import multihost
from cxjax.parallel import partition

T = TypeVar('T')
FSDP, MODEL = partition.FSDP, partition.MODEL
SEED, DATA, _, _ = AXES = ('seed', 'data', FSDP, MODEL)
ParameterSharding = partition.ParameterSharding
REPLICATED = partition.REPLICATED


def make(
  sizes: Mapping[str, Any],
  batch_size: int,
  devices: Sequence[Any] | None = None,
) -> jax.sharding.Mesh:
  """Makes a mesh.

  Args:
    sizes: number of devices along each axis, 1 where it is missing. Along
      'data', -1 takes the largest number that divides the batch, of those that
      remain; on a TPU it divides what remains as well.
    batch_size: number of examples in the batch of one seed.
    devices: the result of `devices.topology`; None uses the devices of this
      run.

  Returns:
    The mesh, with all four axes.

  Raises:
    UserError: the mesh needs more devices than there are, leaves a process
      without one, or does not divide the batch.
  """
  own = devices is None
  if devices is None:
    devices = jax.devices()
  shape = _shape(sizes, batch_size, devices)
  total = math.prod(shape.values())
  named = ', '.join(f'mesh.{axis}={size}' for axis, size in shape.items())
  place = 'this machine' if own else 'the topology'
  cpu = devices[0].platform == 'cpu'
  hint = ' mesh.cpu_devices splits a CPU into several devices.' if cpu else ''
  errors.require(
    total <= len(devices),
    f'{named} take {total} devices: {place} has {len(devices)}; give that '
    f'many at most, or mesh.data=-1.{hint}',
  )
  shards = shape[DATA] * shape[FSDP]
  errors.require(
    batch_size % shards == 0,
    f'batch_size={batch_size} is not a multiple of mesh.data * mesh.fsdp = '
    f'{shards}.',
  )
  used = devices[:total]
  if own:
    idle = set(range(multihost.count())) - {d.process_index for d in used}
    errors.require(
      not idle,
      f'{named} take {total} of {len(devices)} devices, none of them of '
      f'process {min(idle, default=0)}: give all, or start fewer processes.',
    )
  # The default axis type, Explicit, fails in a sharded nn.Embed.
  return jax.make_mesh(
    tuple(shape.values()),
    AXES,
    axis_types=(AxisType.Auto,) * len(AXES),
    devices=used,
  )


def _shape(
  sizes: Mapping[str, Any], batch_size: int, devices: Sequence[Any]
) -> dict[str, int]:
  """Size of the mesh along each axis, after -1 is resolved."""
  shape = {
    axis: arguments.integer(f'mesh.{axis}', sizes.get(axis, 1)) for axis in AXES
  }
  for axis, size in shape.items():
    errors.require(
      size >= 1 or (axis == DATA and size == -1),
      f'mesh.{axis}={size} must be at least 1; mesh.data may be -1.',
    )
  if shape[DATA] == -1:
    others = shape[SEED] * shape[FSDP] * shape[MODEL]
    left = max(len(devices) // others, 1)
    divided = batch_size // shape[FSDP]
    if devices[0].platform == 'tpu':  # Where a mesh is a cuboid of chips.
      divided = math.gcd(left, divided)
    fitting = (n for n in range(left, 0, -1) if divided % n == 0)
    shape[DATA] = next(fitting)
  return shape


def describe(mesh: jax.sharding.Mesh) -> str:
  """Describes a mesh: '16 devices (TPU v5 lite), data=4, fsdp=4'."""
  sizes = ', '.join(f'{axis}={n}' for axis, n in mesh.shape.items() if n > 1)
  kind = mesh.devices.flat[0].device_kind
  many = 's' if mesh.size > 1 else ''
  return f'{mesh.size} device{many} ({kind}), {sizes or "not sharded"}'


def in_use(mesh: jax.sharding.Mesh) -> str:
  """Describes a mesh of this run, and how many of its devices are idle."""
  idle = jax.device_count() - mesh.size
  return describe(mesh) + (f'; {idle} more are idle' if idle else '')


def _in_force() -> jax.sharding.AbstractMesh | None:
  """The mesh in force, or None; one with other axes is the user's own."""
  mesh = jax.sharding.get_abstract_mesh()
  return mesh if set(AXES) <= set(mesh.axis_names) else None


def num_batch_shards() -> int:
  """Number of shards of a batch on the mesh in force; 1 outside of a mesh."""
  mesh = _in_force()
  return 1 if mesh is None else mesh.shape[DATA] * mesh.shape[FSDP]


def constrain_batch(batch: T, axis: int, seeds: int | None = None) -> T:
  """Shards the examples of a batch over the mesh in force, under `jax.jit`.

  Args:
    batch: a tree of arrays.
    axis: the axis of the examples in every leaf.
    seeds: the axis of the seeds in every leaf, if there is one.

  Returns:
    The batch; unchanged outside `jax.set_mesh`.
  """
  mesh = _in_force()
  if mesh is None:
    return batch
  return jax.tree.map(
    lambda leaf: jax.lax.with_sharding_constraint(
      leaf, _batch_spec(leaf.shape, axis, seeds, mesh.shape)
    ),
    batch,
  )


def place_batch(
  batch: T, mesh: jax.sharding.Mesh, axis: int, seeds: int | None = None
) -> T:
  """Puts a batch on the devices, sharded as by `constrain_batch`.

  Args:
    batch: a tree of arrays, the same in every process.
    mesh: the devices.
    axis: the axis of the examples in every leaf.
    seeds: the axis of the seeds in every leaf, if there is one.

  Returns:
    The tree of sharded arrays.
  """

  def one(leaf: Any) -> jax.Array:
    spec = _batch_spec(leaf.shape, axis, seeds, mesh.shape)
    return _put(leaf, NamedSharding(mesh, spec))

  return jax.tree.map(one, batch)


def _batch_spec(
  shape: tuple[int, ...],
  axis: int,
  seeds: int | None,
  sizes: Mapping[str, int],
) -> PartitionSpec:
  """Partition spec of a leaf of a batch; an axis must divide to be sharded."""
  names: list[str | tuple[str, str] | None] = [None] * len(shape)
  if shape[axis] % (sizes[DATA] * sizes[FSDP]) == 0:
    names[axis] = (DATA, FSDP)
  if seeds is not None and shape[seeds] % sizes[SEED] == 0:
    names[seeds] = SEED
  return PartitionSpec(*names)


def own_rows(mesh: jax.sharding.Mesh, batch_size: int) -> list[int]:
  """Lists the rows of a batch that the devices of this process hold."""
  found = _rows(mesh).addressable_devices_indices_map((batch_size,)).values()
  ranges = (range(*index[0].indices(batch_size)) for index in found if index)
  return sorted(set(itertools.chain.from_iterable(ranges)))


def first_holders(mesh: jax.sharding.Mesh, batch_size: int) -> list[int]:
  """Lists for each row of a batch the lowest process that holds it."""
  found: Any = _rows(mesh).devices_indices_map((batch_size,))
  holders: list[set[int]] = [set() for _ in range(batch_size)]
  for device, index in found.items():
    for row in range(*index[0].indices(batch_size)):
      holders[row].add(device.process_index)
  return list(map(min, holders))


def abstract_rows(tree: T, mesh: jax.sharding.Mesh) -> T:
  """Shapes of the batches of several steps, with their shardings.

  Args:
    tree: shapes `[T, streams, B, ...]`.
    mesh: the devices.

  Returns:
    The shapes, with the axis `B` sharded.
  """
  return jax.tree.map(
    lambda leaf: types.shape_struct(
      leaf.shape, leaf.dtype, sharding=_rows(mesh, 2)
    ),
    tree,
  )


def _rows(mesh: jax.sharding.Mesh, axis: int = 0) -> NamedSharding:
  """Sharding of an array whose `axis` is the examples."""
  return NamedSharding(mesh, PartitionSpec(*(None,) * axis, (DATA, FSDP)))


def shardings(
  tree: T,
  mesh: jax.sharding.Mesh,
  sharding: ParameterSharding,
  seeds: bool = False,
) -> T:
  """Shardings of parameters, or of a training state that holds parameters.

  Args:
    tree: arrays or shapes.
    mesh: the devices.
    sharding: the sharding of the network.
    seeds: whether the first axis of every leaf is that of the seeds.

  Returns:
    A tree of shardings.
  """
  sizes = dict(mesh.shape)

  def one(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
    shape, lead = leaf.shape, ()
    if seeds:
      lead = (SEED if shape[0] % sizes[SEED] == 0 else None,)
      shape = shape[1:]
    spec = partition.partition_spec(
      partition.leaf_name(path), shape, sharding, sizes
    )
    return NamedSharding(mesh, PartitionSpec(*lead, *spec))

  return jax.tree.map_with_path(one, tree)


def constrain(
  tree: T,
  mesh: jax.sharding.Mesh,
  sharding: ParameterSharding,
  seeds: bool = False,
) -> T:
  """Shards parameters, or a training state, under `jax.jit`."""
  return jax.lax.with_sharding_constraint(
    tree, shardings(tree, mesh, sharding, seeds)
  )


def constrain_replicated(tree: T) -> T:
  """Replicates a tree over the mesh in force, under `jax.jit`."""
  if _in_force() is None:
    return tree
  return jax.lax.with_sharding_constraint(tree, PartitionSpec())


def place(
  tree: T,
  mesh: jax.sharding.Mesh,
  sharding: ParameterSharding,
  seeds: bool = False,
) -> T:
  """Puts parameters, which every process has, on the devices, sharded."""
  return put(tree, shardings(tree, mesh, sharding, seeds))


def put(tree: T, shardings: T) -> T:
  """Puts a tree, which every process has, on the devices."""
  return jax.tree.map(_put, tree, shardings)


def replicate(tree: T, mesh: jax.sharding.Mesh) -> T:
  """Puts a tree, which every process has, on every device."""
  replicated = NamedSharding(mesh, PartitionSpec())
  return jax.tree.map(lambda leaf: _put(leaf, replicated), tree)


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
  """`jax.device_put` that also reaches the devices of other processes."""
  there = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
  if sharding.is_fully_addressable or there:
    return jax.device_put(leaf, sharding)
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    return jax.random.wrap_key_data(_put(jax.random.key_data(leaf), sharding))
  host = np.asarray(leaf)
  return jax.make_array_from_callback(host.shape, sharding, lambda i: host[i])


def abstract(
  tree: T,
  mesh: jax.sharding.Mesh,
  sharding: ParameterSharding,
  seeds: bool = False,
) -> T:
  """Shapes of parameters, or of a training state, with their shardings."""
  return jax.tree.map(
    lambda leaf, placed: types.shape_struct(
      leaf.shape, leaf.dtype, sharding=placed
    ),
    tree,
    shardings(tree, mesh, sharding, seeds),
  )


def bytes_per_device(tree: Any) -> int:
  """Bytes on each device of a tree from `abstract`, or of sharded arrays."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def gathered(
  apply: Callable[..., Any], sharding: ParameterSharding
) -> Callable[..., Any]:
  """Wraps a network to gather its parameters over 'fsdp' before use.

  Without this, XLA may compute with the shards; on a mesh of three axes it then
  gave wrong gradients (jax 0.10.2: a hidden layer over 'model' whose next
  kernel is over ('fsdp', 'model')).

  Args:
    apply: `(params, x, ...) -> ...`, for one seed.
    sharding: the sharding of the parameters.

  Returns:
    A function that computes the same; `apply` itself outside `jax.set_mesh`.
  """

  def gather_and_apply(params: types.Params, *args: Any) -> Any:
    mesh = _in_force()
    if mesh is None or sharding.mode == 'replicated':
      return apply(params, *args)

    def one(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
      name = partition.leaf_name(path)
      names = partition.partition_spec(name, leaf.shape, sharding, mesh.shape)
      kept = (None if axis == FSDP else axis for axis in names)
      return jax.lax.with_sharding_constraint(leaf, PartitionSpec(*kept))

    return apply(jax.tree.map_with_path(one, params), *args)

  return gather_and_apply
