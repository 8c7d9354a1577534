"""Layouts of a config: the devices of its models and their shardings."""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

from absl import logging
import ml_collections

from cxjax import errors
from cxjax.models import base as models
from cxjax.parallel import mesh as mesh_lib
from cxjax.parallel import partition
from cxjax.training import run_spec


def make(
  config: ml_collections.ConfigDict,
  role: str,
  model: Callable[[str], Any],
  devices: Sequence[Any] | None,
) -> run_spec.Layout:
  """Returns the layout of the run of 'teacher' or 'student'.

  Args:
    config: config of the experiment.
    role: role of the model that is trained, 'teacher' or 'student'.
    model: returns the model of a role.
    devices: devices from `devices.topology`; None is those of this process.

  Raises:
    UserError: the mesh does not fit the devices or the batch, or a model cannot
      be sharded so.
  """
  block = config.teacher if role == 'teacher' else config
  mesh = mesh_lib.make(config.mesh, block.batch_size, devices)
  shardings = {
    name: _sharding(model(name), config.mesh[name], mesh, name)
    for name in {role, 'teacher'}
  }
  return run_spec.Layout(mesh, shardings[role], shardings['teacher'])


def _sharding(model: Any, mode: str, mesh: Any, role: str) -> Any:
  """Returns the sharding of the parameters of a model."""
  errors.lookup(f'mesh.{role}', mode, dict.fromkeys(partition.MODES))
  rules = models.declared(model).partition_rules
  if mode == 'tensor' and mesh.shape[partition.MODEL] > 1:
    rules = models.require(model, 'partition_rules', f'mesh.{role}={mode}')
  return partition.ParameterSharding(mode, rules or ())


def warn_unmatched(spec: run_spec.RunSpec, role: str) -> None:
  """Warns of parameters that tensor parallelism leaves whole."""
  if spec.layout.mesh.shape[partition.MODEL] == 1:
    return
  left = partition.unmatched(spec.student_shapes, spec.layout.student)
  if left:
    logging.warning(
      'The %s has %d parameters that match no partition rule; each device '
      'holds them whole: %s.',
      role,
      len(left),
      ', '.join(left[:5]) + (', ...' if len(left) > 5 else ''),
    )
