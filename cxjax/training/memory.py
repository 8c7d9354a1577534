"""A check of the memory that a run needs at least, before it starts."""

from collections.abc import Sequence
import math
import os
from typing import Any

import jax

from cxjax import errors
from cxjax.methods import stage_plan
from cxjax.training import run_spec

# Memory limits of a container, in bytes or 'max'.
LIMITS = (
  '/sys/fs/cgroup/memory.max',
  '/sys/fs/cgroup/memory/memory.limit_in_bytes',
)

FLOAT = 4  # Bytes of an element of a projection.


def require(
  spec: run_spec.RunSpec, planned: Sequence[stage_plan.StagePlan]
) -> None:
  """Raises UserError if a run cannot fit into the memory that there is.

  Counts what is certain: the students with their optimizer states, one teacher,
  the projections of a stage and the batches of one dispatch. Activations come
  on top; a dry run knows them.

  Args:
    spec: the run; nothing of it is computed.
    planned: its stages.
  """
  states = max(size(spec.state_shapes(one)) for one in planned)
  matrices = spec.num_seeds * max(
    sum(FLOAT * math.prod(shape) for shape in one.matrices.values())
    for one in planned
  )
  teacher = 0 if spec.teacher is None else size(spec.teacher.params)
  batch = jax.eval_shape(spec.batch, jax.random.key(0), 0, spec.host.rows)
  batches = size(batch) * spec.lookahead_steps
  needed = states + teacher + matrices + batches
  have = available(spec.layout.mesh)
  errors.require(
    needed <= have,
    f'The run needs {needed / 1e9:,.1f} GB: {states / 1e9:,.1f} GB for '
    f'{spec.num_seeds} students and their optimizer, {teacher / 1e9:,.1f} GB '
    f'for the teacher, {matrices / 1e9:,.1f} GB for projections, '
    f'{batches / 1e9:,.1f} GB for batches; there are {have / 1e9:,.1f} GB. '
    'Make the models, the projections, the batch or the number of seeds '
    'smaller.',
  )


def require_drawn(what: str, shapes: Any) -> None:
  """Raises UserError if a set of examples cannot be drawn on this machine.

  Args:
    what: name of the field that sets the number of examples, for the message.
    shapes: shapes of the set.
  """
  needed, have = size(shapes), _host_memory()
  errors.require(
    needed <= have,
    f'{what} asks for {needed / 1e9:,.1f} GB of examples; there are '
    f'{have / 1e9:,.1f} GB. Make it smaller.',
  )


def size(tree: Any) -> int:
  """Bytes of a tree of arrays or shapes."""
  return sum(
    math.prod(leaf.shape) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
    if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
  )


def available(mesh: jax.sharding.Mesh) -> float:
  """Bytes of memory of the devices of a mesh; infinity if unknown."""
  devices = list(mesh.devices.flat)
  if devices[0].platform == 'cpu':
    return _host_memory()
  limits = [
    (device.memory_stats() or {}).get('bytes_limit', math.inf)
    for device in devices
  ]
  return min(limits) * len(devices)


def _host_memory() -> float:
  """Bytes of memory of this machine, or of its container."""
  found = [math.inf]
  if hasattr(os, 'sysconf') and 'SC_PHYS_PAGES' in os.sysconf_names:
    found.append(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))
  for path in LIMITS:
    try:
      with open(path, encoding='utf-8') as file:
        found.append(int(file.read()))
    except (OSError, ValueError):  # No container, or no limit.
      pass
  return min(found)
