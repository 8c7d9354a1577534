"""The first batch of a run, where it is held-out data or fits projections.

A loader that shuffles gives another first batch when the run resumes. Its
workdir keeps the one that it began with.
"""

import json
import pathlib
from typing import Any
import zipfile

import jax
import numpy as np

from cxjax import errors
from cxjax import files
from cxjax import folders
from cxjax import locks
from cxjax import settings
from cxjax import types
from cxjax.api import run_identity
from cxjax.data import conform
from cxjax.data import user_batches
from cxjax.data import user_loader

FILE = 'first_batch.npz'
INDEX = 'index'  # JSON of the path, dtype and shape of each array.
# Files of a folder in which a run has begun.
BEGUN = ('config.json', 'checkpoints', 'summary.json')


def read(
  folder: pathlib.Path | None, user: user_loader.UserLoader, shapes: types.Batch
) -> Any:
  """The first batch that a run began with, or that of its loader.

  Args:
    folder: folder of the run, or None.
    user: the training batches.
    shapes: shapes of the example batch of the plan.

  Returns:
    The batch, as the user gives it or as `user_batches.checked` does.

  Raises:
    UserError: the folder cannot be used, its file is damaged, or the loader
      raises.
  """
  if folder is not None:
    folders.check(folder)
    # Without a config the file is of a start that was cut off.
    if (folder / BEGUN[0]).exists() and (folder / FILE).exists():
      kept = _restored(_load(folder / FILE), shapes)
      if kept is not None:
        return kept
  return user.first()


def keep(folder: pathlib.Path, first: Any) -> None:
  """Writes the first batch of a run, atomically, unless the run has begun.

  To be called before the folder gets its config: a run that has one has this
  file too, however it ends.

  Args:
    folder: folder of the run.
    first: the batch, as the user gives it.

  Raises:
    UserError: the folder cannot be written, or the batch is none.
  """
  begun = any((folder / name).exists() for name in BEGUN)
  if begun or jax.process_index() != 0:
    return
  leaves = {
    conform.path_name(path): np.asarray(leaf)
    for path, leaf in jax.tree.leaves_with_path(
      user_batches.checked(first, None)
    )
  }
  index = [[name, x.dtype.name, x.shape] for name, x in leaves.items()]
  # As bytes, for NumPy's format does not know bfloat16.
  plain = {
    str(i): np.frombuffer(leaf.tobytes(), np.uint8)
    for i, leaf in enumerate(leaves.values())
  }
  with files.replaced(folder / FILE) as file:
    plain[INDEX] = np.array(json.dumps(index))
    np.savez(file, **plain)  # type: ignore[arg-type]


def claim(
  folder: pathlib.Path,
  identity: dict[str, Any],
  batches: Any,
  first: Any,
  again: bool,
) -> None:
  """Reserves a workdir; keeps the first batch of a loader if needed `again`."""
  with locks.lock(folder):  # Another start would replace the batch of this one.
    if again and not isinstance(batches, list | tuple):  # A list is known.
      keep(folder, first)
    settings.claim_workdir(folder, identity)
  run_identity.claim_batches(folder, batches, first)


def _load(path: pathlib.Path) -> dict[str, np.ndarray]:
  """The arrays of a file by their paths in the batch."""
  try:
    with path.open('rb') as file, np.load(file) as found:
      index = json.loads(str(found[INDEX]))
      return {
        name: np.frombuffer(found[str(i)], np.dtype(dtype)).reshape(shape)
        for i, (name, dtype, shape) in enumerate(index)
      }
  except (
    OSError,
    EOFError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
  ) as error:
    raise errors.UserError(
      f'{path} is damaged ({conform.reason(error)}) Restore it, or choose '
      'another workdir.'
    ) from error


def _restored(
  leaves: dict[str, np.ndarray], shapes: types.Batch
) -> types.Batch | None:
  """The batch of some leaves; None if it is none of the plan's."""
  batch: types.Batch = {}
  for part in user_batches.BATCH:
    found = [n for n in leaves if n == part or n.startswith(f'{part}.')]
    like = shapes.get(part, leaves.get(part))
    if not found or like is None:
      continue
    wanted = {
      conform.path_name(path): leaf.shape[1:]
      for path, leaf in jax.tree.leaves_with_path({part: like})
    }
    if wanted != {name: leaves[name].shape[1:] for name in found}:
      return None
    ordered = [leaves[name] for name in wanted]
    batch[part] = jax.tree.unflatten(jax.tree.structure(like), ordered)
  return batch if 'x' in batch else None
