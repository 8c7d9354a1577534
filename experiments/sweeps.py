"""Variants of one experiment, run on shared teachers."""

from collections.abc import Mapping
import copy
import hashlib
import json
import pathlib
from typing import Any
from typing import TypeAlias

import jax
import ml_collections

from cxjax.configs import experiment
from cxjax.configs import identity
from cxjax.parallel import devices as devices_lib
from cxjax.tasks import base as tasks
from cxjax.training import summary as summary_lib

Config: TypeAlias = ml_collections.ConfigDict
# Values by the full name of a field, as in `{'data.d': 30}`.
Overrides: TypeAlias = Mapping[str, Any]


def variant(config: Config, overrides: Overrides) -> Config:
  """Returns a copy of a config with some fields changed."""
  changed = copy.deepcopy(config)
  changed.update_from_flattened_dict(overrides)
  return changed


def folder(
  config: Config, overrides: Overrides, workdir: pathlib.Path
) -> pathlib.Path:
  """Returns the folder of a variant, which holds a folder for its method."""
  changed = _resolved(config, overrides, workdir)
  return workdir / 'runs' / _digest(identity.student_config(changed))


def run(
  config: Config, overrides: Overrides, workdir: pathlib.Path
) -> summary_lib.Summary:
  """Runs one variant, or reads its summary if it is finished.

  Every distinct teacher is trained once, in `workdir/teachers`. Every run has
  its own folder in `workdir/runs`. A digest of its config names each of them.

  Args:
    config: config of the experiment.
    overrides: fields to change.
    workdir: folder of all variants.

  Returns:
    The summary of the students' run.

  Raises:
    UserError: invalid settings.
  """
  # Variants often compile the same programs.
  jax.config.update('jax_compilation_cache_dir', str(workdir / 'cache'))
  changed = _resolved(config, overrides, workdir)
  devices_lib.split_cpu(changed.mesh.cpu_devices)
  return experiment.run(changed, folder(config, overrides, workdir))


def table_cells(summary: summary_lib.Summary) -> dict[str, Any]:
  """Returns the columns of a comparison that the runs of a sweep differ in."""
  cells = summary_lib.compare_row(summary)
  cells['at 99%'] = cells['at 99%'] or f'0 of {summary["num_seeds"]}'
  del cells['method'], cells['seconds']
  return cells


def _resolved(
  config: Config, overrides: Overrides, workdir: pathlib.Path
) -> Config:
  """Returns the variant with the folders of its teacher and of its data."""
  changed = variant(config, overrides)
  teacher = _digest(identity.teacher_config(changed))
  changed.teacher.folder = str(workdir / 'teachers' / teacher)
  if tasks.FOLDER in changed.data:
    name = _digest(changed.data.to_dict())
    changed.data[tasks.FOLDER] = str(workdir / changed.task / name)
  return changed


def _digest(config: Mapping[str, Any]) -> str:
  """Returns a short hash of JSON values."""
  text = json.dumps(config, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]
