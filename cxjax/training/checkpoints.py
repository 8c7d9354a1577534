"""Checkpoints of a run: arrays by orbax, and a record with their hashes.

`FOLDER/checkpoints/STEP/` holds a folder of arrays per item ('params' apart
from the rest of the state, so that a teacher's parameters can be read alone),
the JSON values of every process, and `record.json`. The record has what the
arrays do not say (step, score, seconds) and the SHA-256 of every file. It is
written last, once everything else is on the disk. A folder without a valid
record is no checkpoint. Nothing is pickled.

In a run of several processes, each process writes its part of the arrays and
its own JSON values; the first process writes the record and removes folders.
`checkpoint_writer` writes checkpoints.
"""

from collections.abc import Callable
import hashlib
import pathlib
import re
import shutil
from typing import Any

from absl import logging
import jax
import numpy as np

from cxjax import errors
from cxjax import files
from cxjax.parallel import multihost
from cxjax.training import metric_log

Record = dict[str, Any]
# 9 digits; `isdigit` also accepts '5' and '²'.
_NAME = re.compile('[0-9]{9}|[1-9][0-9]{9,}')


def step_folder(folder: pathlib.Path, step: int) -> pathlib.Path:
  """Returns the folder of a checkpoint."""
  return folder / 'checkpoints' / f'{step:09d}'


def fingerprint(tree: Any, read: Callable[[Any], Any] = jax.device_get) -> str:
  """Returns a hash of all arrays of a tree and of their paths in it.

  Args:
    tree: arrays.
    read: function from an array to its NumPy array.
  """
  digest = hashlib.sha256()
  for path, leaf in jax.tree.leaves_with_path(tree):
    digest.update(jax.tree_util.keystr(path).encode())
    digest.update(np.ascontiguousarray(read(leaf)).tobytes())
  return digest.hexdigest()[:16]


def file_digests(path: pathlib.Path) -> dict[str, str]:
  """Returns the SHA-256 of every file below `path` except the record."""
  digests = {}
  for file in sorted(path.rglob('*')):
    if file.is_file() and file.name != 'record.json':
      with file.open('rb') as f:
        digest = hashlib.file_digest(f, 'sha256').hexdigest()
      digests[str(file.relative_to(path))] = digest
  return digests


def array_shapes(tree: Any) -> dict[str, list]:
  """Returns the shape and the dtype of every array of a tree, by its path."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): [
      list(leaf.shape),
      str(leaf.dtype),
    ]
    for path, leaf in jax.tree.leaves_with_path(tree)
  }


def steps(folder: pathlib.Path) -> list[int]:
  """Returns the steps of all checkpoints of a run, valid or not, in order."""
  found = (folder / 'checkpoints').glob('*')
  return sorted(int(p.name) for p in found if _NAME.fullmatch(p.name))


def remove(folder: pathlib.Path, step: int) -> None:
  """Removes a checkpoint; its record goes first."""
  if multihost.is_first():
    path = step_folder(folder, step)
    if path.is_symlink() or path.is_file():  # What it leads to stays.
      path.unlink()
      return
    # A removal that is interrupted leaves a folder without a record.
    (path / 'record.json').unlink(missing_ok=True)
    if path.exists():
      shutil.rmtree(path)


def fault(folder: pathlib.Path, step: int) -> str | None:
  """Compares the files of a checkpoint with its record.

  Args:
    folder: the folder of the run.
    step: the step of the checkpoint.

  Returns:
    The difference that was found, as text, or None if all is as it was saved.
  """
  path = step_folder(folder, step)
  try:
    if not path.is_dir():
      return f'{path} is ' + ('no folder' if path.exists() else 'missing')
    if not (path / 'record.json').exists():
      return f'{path} has no record.json'
    expected = files.read_with_digest(path / 'record.json')['files']
  except OSError as error:
    return f'{path} cannot be read ({error.strerror})'
  except (errors.UserError, TypeError, KeyError):
    return f'{path}/record.json is damaged'
  try:
    found = file_digests(path)
  except OSError as error:
    return f'{error.filename or path} cannot be read ({error.strerror})'
  for name in sorted(expected.keys() | found.keys()):
    if name not in found:
      return f'{path}/{name} is missing'
    if expected.get(name) != found[name]:
      return f'{path}/{name} is damaged'
  return None


def latest(folder: pathlib.Path) -> int | None:
  """Returns the step of the newest good checkpoint, or None.

  A checkpoint is good if its files are as they were saved and metrics.jsonl
  holds the records up to it. Newer checkpoints that are not good are logged. In
  a run of several processes, the first process decides.

  Args:
    folder: the folder of the run.
  """
  found = multihost.from_first(lambda: _latest_here(folder))
  return None if found < 0 else found


def _latest_here(folder: pathlib.Path) -> int:
  logged = metric_log.read(folder)
  for step in reversed(steps(folder)):
    record = valid_record(folder, step)
    problem = fault(folder, step)
    if problem is None and record is not None:
      earlier = [one for one in logged if one['step'] <= step]
      problem = metric_log.fault(folder, earlier, record)
      if problem is None:
        return step
    logging.warning('Checkpoint %d is passed over: %s.', step, problem)
  return -1


def require_best(folder: pathlib.Path, step: int, best: int | None) -> None:
  """Checks the best checkpoint of a run.

  A later checkpoint that was the best, or may have been, and is passed over is
  made again: the run then needs no other.

  Args:
    folder: the folder of the run.
    step: the step of the run.
    best: the step that was the best so far; None if no best one is kept.

  Raises:
    UserError: the checkpoint is missing or damaged.
  """
  if best is None:
    return
  if multihost.from_first(lambda: int(_is_lost(folder, step, best))):
    problem = fault(folder, best) or 'another process cannot read it'
    raise errors.UserError(
      f'Checkpoint {best} of {folder}, the best so far, cannot be used: '
      f'{problem}. Restore it, or remove {folder} to train again.'
    )


def _is_lost(folder: pathlib.Path, step: int, best: int) -> bool:
  if fault(folder, best) is None:
    return False
  later = [valid_record(folder, at) for at in steps(folder) if at > step]
  return all(record is not None and not record['best'] for record in later)


def read_record(folder: pathlib.Path, step: int) -> Record:
  """Reads the record of a checkpoint.

  Args:
    folder: the folder of the run.
    step: the step of the checkpoint.

  Returns:
    The JSON values that were saved with the arrays.

  Raises:
    UserError: the record is missing or damaged.
  """
  return files.read_with_digest(step_folder(folder, step) / 'record.json')


def valid_record(folder: pathlib.Path, step: int) -> Record | None:
  """Reads the record of a checkpoint, or returns None if it is not valid."""
  try:
    return read_record(folder, step)
  except errors.UserError:
    return None


def scheduled(folder: pathlib.Path) -> list[int]:
  """Returns the steps at which a run that keeps all has saved, in order.

  Args:
    folder: the folder of the run.

  Returns:
    The steps that the newest valid record names; none if there is none.
  """
  for step in reversed(steps(folder)):
    record = valid_record(folder, step)
    if record is not None:
      return record.get('scheduled', [])
  return []


def require(folder: pathlib.Path, step: int) -> Record:
  """Reads the record of a checkpoint that a finished run must have.

  Args:
    folder: the folder of the run.
    step: the step of the checkpoint.

  Returns:
    Its record.

  Raises:
    UserError: the checkpoint is missing, or its record cannot be read.
  """
  path = step_folder(folder, step)
  record = valid_record(folder, step)
  if record is None:
    at = path / 'record.json'
    what = f'{path} is missing'
    if path.exists():
      what = f'{at} ' + ('is damaged' if at.exists() else 'is missing')
    raise errors.UserError(
      f'{what}: checkpoint {step} belongs to {folder}. Restore it, or remove '
      f'{folder} to train it again.'
    )
  return record


def read_local(folder: pathlib.Path, step: int, name: str) -> Any:
  """Reads a JSON value that one process saved in a good checkpoint."""
  return files.read_json(step_folder(folder, step) / f'{name}.json')


def restore(
  folder: pathlib.Path, step: int, templates: dict[str, Any]
) -> dict[str, Any]:
  """Restores the arrays of a checkpoint.

  Args:
    folder: the folder of the run.
    step: the step of the checkpoint.
    templates: for each item to restore, a tree of the expected shapes, dtypes
      and shardings; a leaf without a sharding goes to one device.

  Returns:
    For each item, a tree of arrays like its template.

  Raises:
    UserError: the checkpoint does not exist, is damaged, or has arrays of other
      shapes; the message names the first that differs.
  """
  if step not in steps(folder):
    have = ', '.join(map(str, steps(folder))) or 'none'
    raise errors.UserError(
      f'{folder} has no checkpoint {step}. It has: {have}.'
    )
  problem = fault(folder, step)
  if problem is not None:
    raise errors.UserError(
      f'Checkpoint {step} of {folder} cannot be used: {problem}. Choose '
      'another checkpoint, or remove the folder to train it again.'
    )
  found, expected = read_record(folder, step)['shapes'], array_shapes(templates)
  found = {k: v for k, v in found.items() if k.split('/')[0] in templates}
  for name in sorted(found.keys() | expected.keys()):
    if found.get(name) != expected.get(name):
      raise errors.UserError(
        f'Checkpoint {step} of {folder} does not fit: {name} is '
        f'{found.get(name, "absent")}, expected {expected.get(name, "absent")}.'
      )
  # Imported here, as it is slow to import.
  import orbax.checkpoint as ocp

  path = step_folder(folder, step).absolute()
  with ocp.StandardCheckpointer() as checkpointer:
    return {
      name: _as_given(
        checkpointer.restore(path / name, _saved_as(template)), template
      )
      if jax.tree.leaves(template)
      else template
      for name, template in templates.items()
    }


def with_values(tree: Any) -> Any:
  """A tree as orbax saves it: an array without a value is one of one zero."""
  return jax.tree.map(
    lambda leaf: np.zeros(1, leaf.dtype) if leaf.size == 0 else leaf, tree
  )


def _saved_as(template: Any) -> Any:
  """The template of what `with_values` made."""
  one = lambda leaf: jax.ShapeDtypeStruct((1,), leaf.dtype)
  return jax.tree.map(
    lambda leaf: _placed(one(leaf) if leaf.size == 0 else leaf), template
  )


def _as_given(tree: Any, template: Any) -> Any:
  """The tree with its arrays without a value."""

  def one(like: Any, leaf: Any) -> Any:
    if like.size:
      return leaf
    return jax.device_put(
      np.zeros(like.shape, like.dtype), getattr(like, 'sharding', None)
    )

  return jax.tree.map(one, template, tree)


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
  """Adds a sharding to a shape without one, whatever the arrays had."""
  sharding = getattr(leaf, 'sharding', None)
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
