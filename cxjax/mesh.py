"""Devices and shardings; the only module that knows of them.

The devices are those of this process, or those of a topology that is compiled
for and is not here.

A mesh has four axes. Over 'seed' the students are spread, over 'data' and
'fsdp' the examples of a batch; over 'fsdp' and 'model' the parameters and what
the optimizer keeps of them, by the rules below.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import math
import os
import re
from typing import Any
from typing import TypeVar

import jax
from jax.experimental import topologies
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from cxjax import errors
from cxjax import processes

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

# What libtpu asks of a machine that has no TPU.
LIBTPU = {
  'TPU_SKIP_MDS_QUERY': '1',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-16',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_WORKER_ID': '0',
}


@dataclasses.dataclass(frozen=True)
class Chip:
  """What a device can do at most; None where it is not known.

  Attributes:
    memory: bytes.
    flops: FLOPs per second, of products in bfloat16.
    bandwidth: bytes per second, from and to its memory.
    links: bytes per second that it sends to other chips, over all its links.
  """

  memory: float | None = None
  flops: float | None = None
  bandwidth: float | None = None
  links: float | None = None


# By `device_kind`, from https://docs.cloud.google.com/tpu/docs/v4 (v5e, v5p,
# v6e alike), as read in 2025: the capacity in GiB, half of the bidirectional
# bandwidth of the links. That of the v4 is from Jouppi et al., 2023,
# https://arxiv.org/abs/2304.01433: 6 links of 50 GB/s.
CHIPS = {
  'TPU v4': Chip(32 * 2**30, 275e12, 1200e9, 300e9),
  'TPU v5 lite': Chip(16 * 2**30, 197e12, 819e9, 200e9),
  'TPU v5': Chip(95 * 2**30, 459e12, 2765e9, 600e9),
  'TPU v6 lite': Chip(32 * 2**30, 918e12, 1638e9, 400e9),
}


def topology(name: str) -> Sequence[Any]:
  """The devices of a machine to compile for; this process stays on its CPU.

  To be called before anything is computed.

  Args:
    name: 'cpu' is this machine; else as libtpu has it, as in 'v5e:4x4'.

  Returns:
    The devices. Those of a TPU hold nothing and run nothing.

  Raises:
    UserError: no such topology, or no libtpu.
  """
  jax.config.update('jax_platforms', 'cpu')
  if name == 'cpu':
    return jax.devices()
  errors.require(
    importlib.util.find_spec('libtpu') is not None,
    f"--dry_run={name} needs TPU's compiler, which is not installed. Install "
    "it: pip install 'libtpu>=0.0.52'; or give cpu.",
  )
  for variable, value in LIBTPU.items():
    os.environ.setdefault(variable, value)
  # Of this process's own compiler, which has read them once there are devices;
  # libtpu would end the process for one that it does not know.
  jax.devices()
  os.environ.pop('XLA_FLAGS', None)
  ask = functools.partial(
    topologies.get_topology_desc, platform='tpu', topology_name=name
  )
  try:
    found: Sequence[Any] = ask().devices
    if found[0].device_kind == 'TPU v4':  # Else each core is a device.
      found = ask(chip_config_name='megacore').devices
  except jax.errors.JaxRuntimeError as error:
    raise errors.UserError(
      f'{name!r} is no topology of libtpu ({error}). Give chips and how they '
      'lie, as in v5e:4x4, or cpu.'
    ) from error
  return found


def part_cpu(count: int) -> None:
  """Makes several devices of the CPU, each of which works on its own examples.

  A small network gains: its single products are too small for several cores.
  Nothing changes on an accelerator, nor where JAX_NUM_CPU_DEVICES or XLA_FLAGS
  say how many there are, nor in one of several processes, nor once anything was
  computed.

  Args:
    count: of the devices; no more are made than this process has cores.
  """
  told = jax.config.jax_num_cpu_devices >= 0  # type: ignore[attr-defined]
  flags = os.environ.get('XLA_FLAGS', '')
  known = hasattr(os, 'sched_getaffinity')
  cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
  told |= 'host_platform_device_count' in flags
  if told or jax.distributed.is_initialized() or min(count, cores) < 2:
    return
  with contextlib.suppress(RuntimeError):
    jax.config.update('jax_num_cpu_devices', min(count, cores))


def host() -> Any:
  """The CPU of this process."""
  return jax.devices('cpu')[0]


def chip(mesh: jax.sharding.Mesh) -> Chip:
  """What one device of a mesh can do; a CPU's memory is parted among them."""
  devices = list(mesh.devices.flat)
  if devices[0].platform == 'cpu':
    ram = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    return Chip(memory=ram / len(devices))
  return CHIPS.get(devices[0].device_kind, Chip())


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
    devices: from `topology`; None is those of this process.

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
    idle = set(range(processes.count())) - {d.process_index for d in used}
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


def describe() -> str:
  """The devices of this process, for a summary: 'cpu x 1 (cpu)'."""
  device = jax.devices()[0]
  return f'{device.platform} x {jax.device_count()} ({device.device_kind})'


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
