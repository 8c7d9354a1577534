"""Devices and shardings; the only module that knows of them."""

from collections.abc import Callable
import math
from typing import TypeVar

import jax
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from cxjax import errors

T = TypeVar('T')
DATA = 'data'


def make(num_devices: int, batch_size: int) -> jax.sharding.Mesh:
  """A mesh with the one axis 'data', over which batches are split.

  Args:
    num_devices: how many; -1 takes as many as divide the batch.
    batch_size: examples of one seed's batch.

  Returns:
    The mesh.

  Raises:
    UserError: more devices than there are, or a batch that they do not divide.
  """
  available = jax.device_count()
  if num_devices == -1:
    num_devices = math.gcd(available, batch_size)
  errors.require(
    1 <= num_devices <= available,
    f'mesh.data={num_devices} devices: this machine has {available}; give '
    'that many at most, or -1.',
  )
  errors.require(
    batch_size % num_devices == 0,
    f'batch_size={batch_size} is not a multiple of mesh.data={num_devices}.',
  )
  # Auto: the default is Explicit, where linen's Embed fails when sharded.
  return jax.make_mesh(
    (num_devices,),
    (DATA,),
    axis_types=(AxisType.Auto,),
    devices=jax.devices()[:num_devices],
  )


def split(batch: T, axis: int) -> T:
  """Splits `axis` of every leaf over the devices of the mesh in force.

  Outside `jax.set_mesh`, the batch as it is.
  """
  if jax.sharding.get_abstract_mesh().empty:
    return batch
  spec = PartitionSpec(*(None,) * axis, DATA)
  return jax.lax.with_sharding_constraint(batch, spec)


def jit(fun: Callable, mesh: jax.sharding.Mesh, **kwargs) -> Callable:
  """`jax.jit` whose inputs and outputs are whole on every device of `mesh`.

  Batches are made inside, and split there (`split`).
  """
  whole = NamedSharding(mesh, PartitionSpec())
  return jax.jit(fun, in_shardings=whole, out_shardings=whole, **kwargs)


def replicate(tree: T, mesh: jax.sharding.Mesh) -> T:
  """Arrays of `tree`, whole on every device of `mesh`."""
  return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def abstract(tree: T, mesh: jax.sharding.Mesh) -> T:
  """Shapes of `tree`, to be whole on every device of `mesh`."""
  whole = NamedSharding(mesh, PartitionSpec())
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole),
    tree,
  )


def describe() -> str:
  """The devices of this process, for a summary: 'cpu x 1 (cpu)'."""
  device = jax.devices()[0]
  return f'{device.platform} x {jax.device_count()} ({device.device_kind})'
