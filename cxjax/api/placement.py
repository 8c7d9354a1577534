"""Parameters as a user has them: on any devices, and in any dtype.

`plan` receives them and `distill` places them, so that nothing else has to know
where they came from.
"""

from collections.abc import Mapping
import dataclasses
import itertools
from typing import Any
from typing import TypeVar

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from cxjax import arguments
from cxjax import errors
from cxjax.models import adapters
from cxjax.models import base as models
from cxjax.parallel import mesh as mesh_lib
from cxjax.parallel import multihost
from cxjax.parallel import partition
from cxjax.parallel import reception
from cxjax.training import run_spec

ROUNDED = {'float64': 'float32', 'complex128': 'complex64'}
MESH = (*mesh_lib.AXES, 'student', 'teacher')
Plan = TypeVar('Plan', bound=Any)


def received(model: adapters.ModelAdapter, role: str) -> adapters.ModelAdapter:
  """The model with parameters that any program of JAX takes.

  Numbers of Python become arrays, and arrays of numpy get the byte order of the
  machine. Numbers of 64 bits are rounded if the settings of JAX do not allow
  them, which is warned of. Explicit axes of a mesh become automatic, which
  moves nothing. What lies in the memory of the host comes to that of its
  devices.

  Args:
    model: the teacher or the student.
    role: 'teacher' or 'student', for messages.

  Returns:
    The model.

  Raises:
    UserError: an array was deleted, as by a step that donates it; or has
      integers that are too large, or of less than 8 bits.
  """
  if not isinstance(model, adapters.ModelAdapter):
    return model  # `plan` says what it must be.
  double = []

  def one(path: Any, leaf: Any) -> Any:
    name = partition.leaf_name(path)
    _require_alive(leaf, name, role)
    if type(leaf) in (bool, int, float):
      kind = jax.dtypes.canonicalize_dtype(float)
      leaf = np.asarray(leaf, kind if type(leaf) is float else None)
    _require_dtype(leaf, f'The parameter {name!r} of the {role}')
    leaf = reception.native(leaf)
    dtype = str(getattr(leaf, 'dtype', ''))
    if dtype in ROUNDED:
      double.append((name, dtype))
    return reception.computable(leaf)

  params = jax.tree.map_with_path(one, model.params)
  doubles = len(double)
  checkpoints = {
    step: jax.tree.map_with_path(one, tree)
    for step, tree in model.checkpoints.items()
  }
  if double and not getattr(jax.config, 'jax_enable_x64', False):
    name, dtype = double[0]
    logging.warning(
      'The %s has %d %s parameters, as %s, which are rounded to %s. '
      "For %s set jax.config.update('jax_enable_x64', True).",
      role,
      doubles,
      dtype,
      name,
      ROUNDED[dtype],
      dtype,
    )
  return dataclasses.replace(model, params=params, checkpoints=checkpoints)


def layout(plan: Any, mesh: Mapping[str, Any] | None) -> run_spec.Layout:
  """Mesh and shardings of a run; nothing is left unsharded silently.

  Args:
    plan: plan from `cxjax.plan`.
    mesh: the argument of `distill`.

  Returns:
    The layout.

  Raises:
    UserError: an unknown name, sizes that do not fit the devices, or several
      processes that each hold a part of the batch.
  """
  mesh = {} if mesh is None else arguments.mapping('mesh', mesh, "{'data': 8}")
  for name in mesh:
    errors.lookup('mesh', name, dict.fromkeys(MESH))
  sizes = {'data': -1, 'student': 'fsdp', 'teacher': 'fsdp', **mesh}
  batch_size = jax.tree.leaves(plan.batch)[0].shape[0]
  devices = mesh_lib.make(sizes, batch_size)
  _require_whole_batches(devices, batch_size)
  shardings = {}
  for role, model in (('student', plan.student), ('teacher', plan.teacher)):
    mode = sizes[role]
    rules = model.abilities.partition_rules
    if mode == 'tensor' and devices.shape[partition.MODEL] > 1:
      purpose = f"mesh={{'{role}': 'tensor'}}"
      rules = models.require(model, 'partition_rules', purpose)
    shardings[role] = partition.ParameterSharding(mode, rules or ())
    left = partition.unmatched(model.one, shardings[role])
    if left and devices.shape[partition.MODEL] > 1:
      logging.warning(
        'The %s has %d parameters that match no partition rule; each device '
        'holds them whole: %s.',
        role,
        len(left),
        ', '.join(left[:5]) + (', ...' if len(left) > 5 else ''),
      )
  return run_spec.Layout(devices, shardings['student'], shardings['teacher'])


def _require_whole_batches(mesh: jax.sharding.Mesh, batch_size: int) -> None:
  """Raises UserError if a process does not hold all examples of a batch."""
  processes, sizes = multihost.count(), mesh.shape
  errors.require(
    processes == 1 or len(mesh_lib.own_rows(mesh, batch_size)) == batch_size,
    f'A mesh of data={sizes[mesh_lib.DATA]}, fsdp={sizes[mesh_lib.FSDP]} '
    f'splits a batch over {processes} processes, but each reads whole batches. '
    "Use one process, a mesh as {'data': 1, 'model': "
    f'{jax.device_count()}}}, or launch.py with a text.',
  )


def placed(plan: Plan, layout: run_spec.Layout) -> Plan:
  """The plan with its parameters on the devices of a run.

  Only parameters that are bound to devices move here. Those of numpy, or on the
  default device, go where the run computes.

  Args:
    plan: plan from `cxjax.plan`.
    layout: layout of the run.

  Returns:
    The plan.

  Raises:
    UserError: an array was deleted, or there are only shapes.
  """
  moved = {}
  shardings = {'teacher': layout.teacher, 'student': layout.student}
  for role, sharding in shardings.items():
    model = getattr(plan, role)
    kept = dict(model.checkpoints)
    found = map(jax.tree.leaves_with_path, (model.params, kept))
    leaves = list(itertools.chain.from_iterable(found))
    for path, leaf in leaves:
      name = partition.leaf_name(path)
      _require_alive(leaf, name, role)
      reception.require_values(leaf, f'The parameter {name!r} of the {role}')
    if any(getattr(leaf, 'committed', False) for _, leaf in leaves):
      place = lambda tree, how=sharding: mesh_lib.place(tree, layout.mesh, how)
      params = model.params
      params = [place(p) for p in params] if model.several else place(params)
      moved[role] = dataclasses.replace(
        model,
        params=params,
        checkpoints={step: place(tree) for step, tree in kept.items()},
      )
  return dataclasses.replace(plan, **moved)


def _require_alive(leaf: Any, name: str, role: str) -> None:
  errors.require(
    not (isinstance(leaf, jax.Array) and leaf.is_deleted()),
    f'The parameter {name!r} of the {role} was deleted, as by a step that '
    'donates its arguments. Give a copy that was made before.',
  )


def _require_dtype(leaf: Any, what: str) -> None:
  """Raises UserError for numbers that would change, or that cannot be placed.

  Args:
    leaf: a parameter.
    what: name of the parameter, for messages.
  """
  dtype = getattr(leaf, 'dtype', None)
  if not isinstance(dtype, np.dtype):
    return  # Of another library; `plan` says that it is no array.
  integer = jnp.issubdtype(dtype, jnp.integer)
  if not integer and not jnp.issubdtype(dtype, jnp.floating):
    return
  info: Any = jnp.iinfo(dtype) if integer else jnp.finfo(dtype)
  errors.require(
    info.bits >= 8,
    f'{what} is {dtype}, and numbers of less than 8 bits cannot be placed on '
    'the devices of a run. Give int8, which the model converts.',
  )
  if isinstance(leaf, jax.Array | np.ndarray | np.generic):
    reception.require_integers(leaf, what)
