"""Meshes and shardings; the only module that knows of them.

A mesh has four axes. Over 'seed' the students are spread, over 'data' and
'fsdp' the examples of a batch; over 'fsdp' and 'model' the parameters and what
the optimizer keeps of them, by the rules below.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import math
import re
from typing import Any
from typing import TypeVar

import jax
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from cxjax import errors
from cxjax.parallel import multihost

T = TypeVar('T')
SEED, DATA, FSDP, MODEL = AXES = ('seed', 'data', 'fsdp', 'model')
# Which axis of a parameter goes over 'model' (Shoeybi et al., 2019, section 3,
# https://arxiv.org/abs/1909.08053): a product is split by its output, the one
# after it by its input, and nothing is exchanged between them.
TENSOR = (
  (r'(query|key|value|mlp_in|hidden\d+)/kernel$', 1),
  (r'(query|key|value|mlp_in|hidden\d+)/bias$', 0),
  (r'(attention_out|mlp_out)/kernel$', 0),
  (r'tokens/embedding$', 0),
  (r'logits/kernel$', 1),
  (r'logits/bias$|logits_bias$', 0),
)
# What of a network is parted: nothing; the largest axis of each parameter, over
# 'fsdp'; with 'tensor' that, and the axes above over 'model'.
RULES = ('replicated', 'fsdp', 'tensor')


def make(
  sizes: Mapping[str, int],
  batch_size: int,
  devices: Sequence[Any] | None = None,
) -> jax.sharding.Mesh:
  """A mesh.

  Args:
    sizes: devices along each axis, 1 where it is not named; along 'data' -1
      takes as many of what is left as divide the batch.
    batch_size: examples of one seed's batch.
    devices: from `machines.topology`; None is those of this process.

  Returns:
    The mesh, with all four axes.

  Raises:
    UserError: more devices than there are, or a batch that they do not divide.
  """
  sizes = {axis: sizes.get(axis, 1) for axis in AXES}
  own = devices is None
  place = 'this machine' if own else 'the topology'
  if devices is None:
    devices = jax.devices()
  available = len(devices)
  others = sizes[SEED] * sizes[FSDP] * sizes[MODEL]
  for axis in AXES:
    errors.require(
      sizes[axis] >= 1 or (axis == DATA and sizes[axis] == -1),
      f'mesh.{axis}={sizes[axis]} must be at least 1; mesh.data may be -1.',
    )
  if sizes[DATA] == -1:
    left = max(available // others, 1)
    sizes[DATA] = math.gcd(
      left, batch_size // math.gcd(batch_size, sizes[FSDP])
    )
  total = others * sizes[DATA]
  named = ', '.join(f'mesh.{axis}={size}' for axis, size in sizes.items())
  cpu = devices[0].platform == 'cpu'
  hint = ' Of a CPU mesh.cpu_devices makes several.' if cpu else ''
  errors.require(
    total <= available,
    f'{named} take {total} devices: {place} has {available}; give that '
    f'many at most, or mesh.data=-1.{hint}',
  )
  parts = sizes[DATA] * sizes[FSDP]
  errors.require(
    batch_size % parts == 0,
    f'batch_size={batch_size} is not a multiple of mesh.data * mesh.fsdp = '
    f'{parts}.',
  )
  used = devices[:total]
  if own:
    idle = set(range(multihost.count())) - {d.process_index for d in used}
    errors.require(
      not idle,
      f'{named} take {total} of {available} devices, none of them of process '
      f'{min(idle, default=0)}: give all, or start fewer processes.',
    )
  # Auto: the default is Explicit, where linen's Embed fails when sharded.
  return jax.make_mesh(
    tuple(sizes.values()),
    AXES,
    axis_types=(AxisType.Auto,) * len(AXES),
    devices=used,
  )


def parts() -> int:
  """In how many parts the mesh in force splits a batch; 1 outside of one."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else mesh.shape[DATA] * mesh.shape[FSDP]


def split(batch: T, axis: int, seeds: int | None = None) -> T:
  """Splits `axis` of every leaf over the devices of the mesh in force.

  Args:
    batch: any tree.
    axis: the examples.
    seeds: the axis of the seeds, if there is one.

  Returns:
    The batch; as it is outside `jax.set_mesh`.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return batch
  return jax.tree.map(
    lambda leaf: jax.lax.with_sharding_constraint(
      leaf, _split(leaf.shape, axis, seeds, mesh.shape)
    ),
    batch,
  )


def _split(shape, axis, seeds, sizes):
  names: list[str | tuple[str, str] | None] = [None] * len(shape)
  if shape[axis] % (sizes[DATA] * sizes[FSDP]) == 0:
    names[axis] = (DATA, FSDP)
  if seeds is not None and shape[seeds] % sizes[SEED] == 0:
    names[seeds] = SEED
  return PartitionSpec(*names)


def distribute(
  batch: T, mesh: jax.sharding.Mesh, axis: int, seeds: int | None = None
) -> T:
  """Arrays of `batch`, split over the devices of `mesh` as `split` does it."""

  def one(leaf):
    spec = _split(leaf.shape, axis, seeds, mesh.shape)
    return _put(leaf, NamedSharding(mesh, spec))

  return jax.tree.map(one, batch)


def check(rule: str) -> None:
  """Raises UserError for a rule that there is not."""
  errors.lookup('sharding rule', rule, dict.fromkeys(RULES))


def spec(
  path: str, shape: tuple[int, ...], rule: str, sizes: Mapping[str, int]
) -> PartitionSpec:
  """How one parameter is parted.

  Args:
    path: its name, as in 'params/block0/query/kernel'.
    shape: its shape, that of one seed.
    rule: one of `RULES`.
    sizes: of the mesh, by axis. An axis of the parameter that is no multiple
      of it stays whole.

  Returns:
    A name or None for each axis.
  """
  names: list[str | None] = [None] * len(shape)
  if rule == 'tensor':
    for pattern, axis in TENSOR:
      if re.search(pattern, path) and shape[axis] % sizes[MODEL] == 0:
        names[axis] = MODEL
        break
  if rule != 'replicated':
    free = [
      axis
      for axis, size in enumerate(shape)
      if names[axis] is None and size % sizes[FSDP] == 0
    ]
    if free:
      names[max(free, key=lambda axis: shape[axis])] = FSDP
  return PartitionSpec(*names)


def shardings(
  tree: T, mesh: jax.sharding.Mesh, rule: str, seeds: bool = False
) -> T:
  """Of every leaf of parameters, or of a state that holds parameters.

  Args:
    tree: arrays or shapes.
    mesh: the devices.
    rule: one of `RULES`.
    seeds: whether the first axis of every leaf is that of the seeds.

  Returns:
    A tree of shardings.
  """
  sizes = dict(mesh.shape)

  def one(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    shape, lead = leaf.shape, ()
    if seeds:
      lead = (SEED if shape[0] % sizes[SEED] == 0 else None,)
      shape = shape[1:]
    return NamedSharding(
      mesh, PartitionSpec(*lead, *spec(name, shape, rule, sizes))
    )

  return jax.tree.map_with_path(one, tree)


def gathered(apply: Callable, rule: str) -> Callable:
  """`apply`, with what 'fsdp' parts of the parameters made whole before use.

  Left to itself, XLA may use them in parts; on a mesh of three axes it then
  gave wrong gradients (jax 0.10.2: a hidden layer over 'model' whose next
  kernel is over ('fsdp', 'model')).

  Args:
    apply: `(params, x) -> ...`, of one seed.
    rule: how the parameters are parted.

  Returns:
    The same function; itself outside `jax.set_mesh`.
  """

  def whole(params, x):
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or rule == 'replicated':
      return apply(params, x)
    sizes = {**mesh.shape, FSDP: 1}

    def one(path, leaf):
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      names = spec(name, leaf.shape, rule, sizes)
      kept = (None if axis == FSDP else axis for axis in names)
      return jax.lax.with_sharding_constraint(leaf, PartitionSpec(*kept))

    return apply(jax.tree.map_with_path(one, params), x)

  return whole


def constrain(
  tree: T, mesh: jax.sharding.Mesh, rule: str, seeds: bool = False
) -> T:
  """`tree` of a compiled program, parted by a rule from its birth on."""
  return jax.lax.with_sharding_constraint(
    tree, shardings(tree, mesh, rule, seeds)
  )


def place(
  tree: T, mesh: jax.sharding.Mesh, rule: str, seeds: bool = False
) -> T:
  """Arrays of `tree`, which every process has, parted by a rule."""
  return jax.tree.map(_put, tree, shardings(tree, mesh, rule, seeds))


def replicate(tree: T, mesh: jax.sharding.Mesh) -> T:
  """Arrays of `tree`, which every process has, whole on every device."""
  whole = NamedSharding(mesh, PartitionSpec())
  return jax.tree.map(lambda leaf: _put(leaf, whole), tree)


def _put(leaf, sharding):
  """`jax.device_put`, also on devices of other processes."""
  there = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
  if sharding.is_fully_addressable or there:
    return jax.device_put(leaf, sharding)
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    return jax.random.wrap_key_data(_put(jax.random.key_data(leaf), sharding))
  host = np.asarray(leaf)
  return jax.make_array_from_callback(host.shape, sharding, lambda i: host[i])


def whole(tree: T) -> T:
  """`tree` of a compiled program, whole on every device that is in force."""
  if jax.sharding.get_abstract_mesh().empty:
    return tree
  return jax.lax.with_sharding_constraint(tree, PartitionSpec())


def own_rows(mesh: jax.sharding.Mesh, batch_size: int) -> list[int]:
  """Which examples of a batch are on devices of this process."""
  found = _rows(mesh).addressable_devices_indices_map((batch_size,)).values()
  parts = (_range(index[0], batch_size) for index in found if index)
  return sorted(set(itertools.chain.from_iterable(parts)))


def from_rows(
  shape: tuple[int, ...],
  read: Callable[[range], np.ndarray],
  mesh: jax.sharding.Mesh,
) -> jax.Array:
  """An array of the batches of several steps, its examples over the devices.

  Args:
    shape: `[T, streams, B, ...]`.
    read: the examples of some rows, `[T, streams, rows, ...]`; called for rows
      of this process alone.
    mesh: the devices.

  Returns:
    The array.
  """

  def part(index: tuple[slice, ...] | None) -> np.ndarray:
    assert index is not None
    return read(_range(index[2], shape[2]))

  return jax.make_array_from_callback(shape, _rows(mesh, 2), part)


def abstract_rows(tree: T, mesh: jax.sharding.Mesh) -> T:
  """Shapes of `tree`, to be parted as `from_rows` does."""
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=_rows(mesh, 2)
    ),
    tree,
  )


def _rows(mesh, axis=0):
  return NamedSharding(mesh, PartitionSpec(*(None,) * axis, (DATA, FSDP)))


def _range(rows, batch_size):
  return range(*rows.indices(batch_size))


def abstract(
  tree: T, mesh: jax.sharding.Mesh, rule: str, seeds: bool = False
) -> T:
  """Shapes of `tree`, to be parted by a rule."""
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    tree,
    shardings(tree, mesh, rule, seeds),
  )


def held(tree: Any) -> int:
  """Bytes on each device of a tree from `abstract`, or of placed arrays."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def name_of(mesh: jax.sharding.Mesh) -> str:
  """A mesh for people: '16 devices (TPU v5 lite), data=4, fsdp=4'."""
  sizes = ', '.join(f'{axis}={n}' for axis, n in mesh.shape.items() if n > 1)
  kind = mesh.devices.flat[0].device_kind
  return f'{mesh.size} devices ({kind}), {sizes or "not parted"}'
