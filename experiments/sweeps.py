"""Runs of one experiment with some fields changed, on shared teachers."""

from collections.abc import Mapping
import copy
import hashlib
import json
import pathlib
from typing import Any

import jax
import ml_collections

from cxjax.configs import builders
from cxjax.configs import experiment
from cxjax.parallel import devices as devices_lib
from cxjax.training import summary as summary_lib

Config = ml_collections.ConfigDict
Overrides = Mapping[str, Any]


def variant(config: Config, overrides: Overrides) -> Config:
  """A copy of `config` with fields changed, as `{'data.d': 30}`."""
  changed = copy.deepcopy(config)
  changed.update_from_flattened_dict(overrides)
  return changed


def folder(
  config: Config, overrides: Overrides, workdir: pathlib.Path
) -> pathlib.Path:
  """Where `run` puts a variant; the students' files are in a folder there."""
  changed = _located(config, overrides, workdir)
  return workdir / 'runs' / _digest(builders.student_config(changed))


def run(
  config: Config, overrides: Overrides, workdir: pathlib.Path
) -> summary_lib.Summary:
  """Runs one variant, or reads its summary if it is finished.

  Every distinct teacher is trained once, in `workdir/teachers`, and every run
  goes to a folder of its own in `workdir/runs`, both named by a digest of the
  configuration.

  Args:
    config: of the experiment.
    overrides: fields to change.
    workdir: of the sweep.

  Returns:
    The summary of the students' run.
  """
  # Variants often compile the same programs.
  jax.config.update('jax_compilation_cache_dir', str(workdir / 'cache'))
  changed = _located(config, overrides, workdir)
  devices_lib.part_cpu(changed.mesh.cpu_devices)
  return experiment.run(changed, folder(config, overrides, workdir))


def _located(config, overrides, workdir):
  """The variant, with the folder of its teacher."""
  changed = variant(config, overrides)
  teacher = _digest(builders.teacher_config(changed))
  changed.teacher.folder = str(workdir / 'teachers' / teacher)
  if 'folder' in changed.data:
    changed.data.folder = str(
      workdir / 'text' / _digest(changed.data.to_dict())
    )
  return changed


def _digest(config: Mapping[str, Any]) -> str:
  text = json.dumps(config, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]
