"""Devices: those of this process, and those of a topology to compile for."""

from collections.abc import Sequence
import contextlib
import dataclasses
import functools
import importlib.util
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from cxjax import errors

# Environment variables that libtpu needs on a host without a TPU.
LIBTPU = {
  'TPU_SKIP_MDS_QUERY': '1',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-16',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_WORKER_ID': '0',
}


@dataclasses.dataclass(frozen=True)
class Chip:
  """Peak numbers of one device; None where we do not know them.

  Attributes:
    memory: bytes.
    flops: FLOPs per second in bfloat16 matrix products.
    bandwidth: bytes per second from and to its memory.
    links: bytes per second that it sends to other chips, over all its links.
  """

  memory: float | None = None
  flops: float | None = None
  bandwidth: float | None = None
  links: float | None = None


# By `device_kind`, from https://docs.cloud.google.com/tpu/docs/v4 (v5e, v5p and
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
  """Returns the devices of a topology; this process stays on its CPU.

  Must be called before any computation.

  Args:
    name: 'cpu' for this machine, or a topology of libtpu, as 'v5e:4x4'.

  Returns:
    The devices. Those of a TPU can be compiled for, but hold and run nothing.

  Raises:
    UserError: libtpu is not installed or does not know the topology.
  """
  jax.config.update('jax_platforms', 'cpu')
  if name == 'cpu':
    return jax.devices()
  errors.require(
    re.match(r'v\d', name) is not None,
    f'--dry_run={name} is not a known topology: give cpu, or a TPU as v5e:4x4. '
    'For a GPU run it on a machine that has one.',
  )
  errors.require(
    importlib.util.find_spec('libtpu') is not None,
    f"--dry_run={name} needs TPU's compiler, which is not installed. Install "
    "it: pip install 'libtpu>=0.0.52'; or give cpu.",
  )
  for variable, value in LIBTPU.items():
    os.environ.setdefault(variable, value)
  # The compiler of this process reads XLA_FLAGS when the devices are made, and
  # libtpu aborts on a flag that it does not know.
  jax.devices()
  os.environ.pop('XLA_FLAGS', None)
  ask = functools.partial(
    topologies.get_topology_desc, platform='tpu', topology_name=name
  )
  try:
    found: Sequence[Any] = ask().devices
    if found[0].device_kind == 'TPU v4':
      # Without megacore, each of its cores is a device.
      found = ask(chip_config_name='megacore').devices
  except jax.errors.JaxRuntimeError as error:
    raise errors.UserError(
      f'{name!r} is no topology of libtpu ({error}). Give the chip and the '
      'shape of the slice, as v5e:4x4, or cpu.'
    ) from error
  return found


def split_cpu(count: int) -> None:
  """Makes several JAX devices of the CPU, each for its own examples.

  A small network trains faster: its single matrix products are too small to use
  several cores. Has no effect on an accelerator, if JAX_NUM_CPU_DEVICES or
  XLA_FLAGS set the number of devices, in one of several processes, or after
  the first computation.

  Args:
    count: number of devices; at most one is made for each core.
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
  """Returns the CPU device of this process."""
  return jax.devices('cpu')[0]


def chip(mesh: jax.sharding.Mesh) -> Chip:
  """Returns the peak numbers of one device of a mesh.

  Devices of a CPU share its memory equally.
  """
  devices = list(mesh.devices.flat)
  if devices[0].platform == 'cpu':
    ram = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    return Chip(memory=ram / len(devices))
  return CHIPS.get(devices[0].device_kind, Chip())


def describe() -> str:
  """Describes the devices of this run for a summary: 'cpu x 1 (cpu)'."""
  device = jax.devices()[0]
  return f'{device.platform} x {jax.device_count()} ({device.device_kind})'
