"""Checkpoints: orbax for the arrays, and a record that seals them.

`FOLDER/checkpoints/STEP/` holds a folder of arrays per item ('params' and the
rest of the state apart, so that a teacher's parameters can be read alone) and
`record.json`, with what the arrays do not say (step, accuracy, time spent) and
the digest of every file. The record is written last: a folder without one, or
whose files do not match it, is no checkpoint. Nothing is pickled.

Of several processes each writes the arrays and the own values that it has, and
all read all of them; the first makes the folders, and seals them.
"""

import contextlib
import errno
import hashlib
import os
import pathlib
import shutil
from typing import Any

from absl import logging
import jax
import numpy as np
import orbax.checkpoint as ocp

from cxjax import errors
from cxjax import files
from cxjax.training import metric_log
from cxjax.parallel import multihost

Record = dict[str, Any]
_DISK = {
  'RESOURCE_EXHAUSTED': errno.ENOSPC,
  'PERMISSION_DENIED': errno.EACCES,
}


def _path(folder: pathlib.Path, step: int) -> pathlib.Path:
  return folder / 'checkpoints' / f'{step:09d}'


def fingerprint(tree: Any) -> str:
  """Of all arrays of a tree, with their paths."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree.leaves_with_path(jax.device_get(tree)):
    digest.update(jax.tree_util.keystr(path).encode())
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()[:16]


def _digests(path: pathlib.Path) -> dict[str, str]:
  return {
    str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest()
    for p in sorted(path.rglob('*'))
    if p.is_file() and p.name != 'record.json'
  }


def _shapes(tree: Any) -> dict[str, list]:
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): [
      list(leaf.shape),
      str(leaf.dtype),
    ]
    for path, leaf in jax.tree.leaves_with_path(tree)
  }


def steps(folder: pathlib.Path) -> list[int]:
  """Steps of the checkpoints of `folder`, good or not, in order."""
  found = (folder / 'checkpoints').glob('*')
  return sorted(int(p.name) for p in found if p.name.isdigit())


def save(
  folder: pathlib.Path,
  step: int,
  items: dict[str, Any],
  record: Record,
  own: Record | None = None,
) -> None:
  """Saves `items` as the checkpoint `step`, in place of one that is there.

  Args:
    folder: of the run.
    step: number of updates behind the arrays.
    items: trees of arrays, by name.
    record: JSON values to keep with them.
    own: JSON values that this process alone may have, by names of files.

  Raises:
    UserError: the folder cannot be written.
  """
  path = _path(folder, step)
  if multihost.is_first():
    shutil.rmtree(path, ignore_errors=True)
    with files.written(path):  # Orbax would wait ten minutes for a folder.
      path.mkdir(parents=True)
  multihost.barrier()
  for name, value in (own or {}).items():
    files.write_json(path / f'{name}.json', value, own=True)
  with (
    files.written(path),
    _as_os_error(),
    ocp.StandardCheckpointer() as checkpointer,
  ):
    for name, tree in items.items():
      if jax.tree.leaves(tree):
        checkpointer.save(path.absolute() / name, tree)
  multihost.barrier()
  if multihost.is_first():
    seal = {'files': _digests(path), 'shapes': _shapes(items)}
    files.write_sealed(path / 'record.json', {'step': step, **record, **seal})
  multihost.barrier()


@contextlib.contextmanager
def _as_os_error():
  """Tensorstore's report of a disk, a ValueError, as what it is."""
  try:
    yield
  except ValueError as error:
    reason = str(error).partition(':')[0]
    if reason not in _DISK:
      raise
    raise OSError(_DISK[reason], os.strerror(_DISK[reason])) from error


def remove(folder: pathlib.Path, step: int) -> None:
  """Removes the checkpoint `step`."""
  if multihost.is_first():
    shutil.rmtree(_path(folder, step))


def is_scheduled(folder: pathlib.Path, step: int) -> bool:
  """Whether the checkpoint `step` has a record, and is of the schedule."""
  try:
    return not read_record(folder, step).get('extra')
  except (errors.UserError, KeyError, TypeError):
    return False


def prune(folder: pathlib.Path, keep: int) -> None:
  """Removes all checkpoints of `folder` but the last `keep`."""
  for step in steps(folder)[:-keep]:
    remove(folder, step)


def fault(folder: pathlib.Path, step: int) -> str | None:
  """What is wrong with the checkpoint `step`; None if it is as it was saved."""
  path = _path(folder, step)
  if not (path / 'record.json').exists():
    return f'{path} has no record.json'
  try:
    sealed = files.read_sealed(path / 'record.json')['files']
  except errors.UserError:
    return f'{path}/record.json is damaged'
  found = _digests(path)
  for name in sorted(sealed.keys() | found.keys()):
    if name not in found:
      return f'{path}/{name} is missing'
    if sealed.get(name) != found[name]:
      return f'{path}/{name} is damaged'
  return None


def read_own(folder: pathlib.Path, step: int, name: str) -> Any:
  """What a process saved as its own under `name`, in a good checkpoint."""
  return files.read_json(_path(folder, step) / f'{name}.json')


def latest(folder: pathlib.Path) -> int | None:
  """Step of the newest good checkpoint, or None; warns of newer bad ones.

  Of several processes the first looks.
  """
  found = multihost.from_first(lambda: _latest(folder))
  return None if found < 0 else found


def _latest(folder):
  rows = [row['step'] for row in metric_log.read(folder)]
  for step in reversed(steps(folder)):
    problem = fault(folder, step)
    if problem is None:
      kept = sum(row <= step for row in rows)
      wanted = read_record(folder, step).get('rows', kept)
      if kept == wanted:
        return step
      problem = f'{folder}/metrics.jsonl lacks some of its {wanted} rows'
    logging.warning('Checkpoint %d is passed over: %s.', step, problem)
  return -1


def read_record(folder: pathlib.Path, step: int) -> Record:
  """The record of a checkpoint.

  Raises:
    UserError: it is damaged.
  """
  return files.read_sealed(_path(folder, step) / 'record.json')


def restore(
  folder: pathlib.Path, step: int, templates: dict[str, Any]
) -> dict[str, Any]:
  """Arrays of a checkpoint.

  Args:
    folder: of the run.
    step: which checkpoint.
    templates: for each item that is wanted, a tree of the shapes, dtypes and
      shardings expected.

  Returns:
    A tree like the template for each item.

  Raises:
    UserError: there is no such checkpoint, it is damaged, or its shapes are
      others; names the first that differs.
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
  found, expected = read_record(folder, step)['shapes'], _shapes(templates)
  found = {k: v for k, v in found.items() if k.split('/')[0] in templates}
  for name in sorted(found.keys() | expected.keys()):
    if found.get(name) != expected.get(name):
      raise errors.UserError(
        f'Checkpoint {step} of {folder} does not fit: {name} is '
        f'{found.get(name, "absent")}, expected {expected.get(name, "absent")}.'
      )
  path = _path(folder, step).absolute()
  with ocp.StandardCheckpointer() as checkpointer:
    return {
      name: checkpointer.restore(path / name, template)
      if jax.tree.leaves(template)
      else template
      for name, template in templates.items()
    }
