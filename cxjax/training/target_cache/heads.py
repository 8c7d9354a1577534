"""Heads of the teacher, kept beside its last hidden states."""

import pathlib
from typing import Any

from flax import traverse_util
import jax
import numpy as np

from cxjax import errors
from cxjax import files
from cxjax.methods import stored_output
from cxjax.parallel import mesh as mesh_lib
from cxjax.training import output_memory
from cxjax.training import run_spec
from cxjax.training import teacher_head
from cxjax.training.target_cache import records

_DIGEST = '0' * 16  # A head is of no batch.


def write(
  folder: pathlib.Path, spec: run_spec.RunSpec, config_digest: str
) -> list[dict[str, Any]]:
  """Writes the head of each checkpoint whose output a stage compares.

  Args:
    folder: the folder of the cache.
    spec: the run, with a teacher that is available.
    config_digest: digest of the config that determines the targets.

  Returns:
    An entry for each, for the index.
  """
  layout, entries = spec.layout, []
  assert spec.teacher is not None
  make = jax.jit(teacher_head.maker(spec))
  for checkpoint in checkpoints(spec):
    params = mesh_lib.place(
      spec.teacher.at(checkpoint), layout.mesh, layout.teacher
    )
    made = jax.device_get(make(params))
    stored = {'weights': {str(i): leaf for i, leaf in enumerate(made)}}
    name = records.checkpoint_name(checkpoint)
    content = records.pack(stored, _DIGEST, _record_id(config_digest, name))
    with files.replaced(records.head_path(folder, name)) as file:
      file.write(content)
    entries.append(
      {
        'checkpoint': name,
        'arrays': records.describe_arrays(stored),
        'bytes': len(content),
      }
    )
  return entries


def checkpoints(spec: run_spec.RunSpec) -> list[int | None]:
  """Returns the checkpoints of the teacher whose output a stage compares."""
  stages = [stage for stage in spec.stages if stored_output.terms(stage)]
  return list(dict.fromkeys(stage.checkpoint for stage in stages))


def require_hidden(spec: run_spec.RunSpec) -> None:
  """Raises UserError unless hidden states can be stored in place of logits.

  Args:
    spec: the run; shapes are enough of its teacher.
  """
  errors.require(
    bool(checkpoints(spec)),
    "cache.output=hidden is for stages that compare the teacher's output, not "
    'projected, and there is none: use cache.output=logits.',
  )
  output_memory.teacher_ending(spec)


def read(
  folder: pathlib.Path, entry: dict[str, Any], config_digest: str
) -> tuple[np.ndarray, ...] | None:
  """Reads the weights of a head; None if its file is damaged."""
  name = entry['checkpoint']
  found = records.unpack(
    records.head_path(folder, name).read_bytes(),
    entry['arrays'],
    _record_id(config_digest, name),
  )
  if found is None:
    return None
  return tuple(traverse_util.flatten_dict(found[0]).values())


def require_fit(
  shapes: Any, found: tuple[np.ndarray, ...], folder: pathlib.Path, again: str
) -> None:
  """Raises UserError unless stored weights are those that a head reads.

  Args:
    shapes: shapes and dtypes of the weights of the head.
    found: stored weights.
    folder: the folder of the cache.
    again: advice for a folder that was removed.
  """
  form = lambda leaves: [(leaf.shape, np.dtype(leaf.dtype)) for leaf in leaves]
  errors.require(
    form(shapes) == form(found),
    f'The head of the teacher in {folder} is not the one that is found here: '
    'it was made by other versions of cxjax or its packages. Remove the '
    f'folder, and {again}.',
  )


def _record_id(config_digest: str, name: str) -> str:
  """Text that identifies the head of a checkpoint."""
  return f'{config_digest} head {name}'
