"""Writes the checkpoints of a run in the background.

Orbax writes the arrays in a thread of ours, and a record with the hash of every
file completes the checkpoint; the layout is that of `checkpoints`. The newest
complete checkpoint stays on the disk until the next one is complete.
"""

from collections.abc import Iterator
import contextlib
import errno
import json
import os
import pathlib
import re
import shutil
import threading
from typing import TYPE_CHECKING
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from cxjax import files
from cxjax.parallel import multihost
from cxjax.training import checkpoints

if TYPE_CHECKING:
  import orbax.checkpoint as ocp

# Keys of a record that the writer sets.
RESERVED = frozenset(
  {'step', 'temporary', 'best', 'files', 'shapes', 'scheduled'}
)
# Bytes that the small files of a checkpoint take up, beside its arrays.
OVERHEAD = 2**17
# Seconds to wait for the last checkpoint of a run that ends with an exception.
PATIENCE = 60.0

# Errors that tensorstore may report by their text alone.
_DISK_ERRORS = (
  errno.ENOSPC,
  errno.EFBIG,
  errno.EDQUOT,
  errno.EIO,
  errno.EROFS,
  errno.EMFILE,
  errno.ENFILE,
  errno.EACCES,
  errno.ESTALE,
)
_OS_ERROR_CODE = re.compile(r"os_error_code='(\d+)'")


class CheckpointWriter:
  """Saves checkpoints while training goes on, and removes old ones.

  A context manager; leaving it waits for the last checkpoint. In a run of
  several processes, `save` returns only once the checkpoint is complete.
  """

  def __init__(self, folder: pathlib.Path, keep: int) -> None:
    """Initializes the writer without touching the disk.

    Args:
      folder: the folder of the run.
      keep: number of checkpoints to keep, at least 2, so that a damaged one has
        another before it; 0 keeps all.
    """
    assert keep == 0 or keep >= 2, keep
    self._folder, self._keep = folder, keep
    self._manager: ocp.CheckpointManager | None = None
    # The record of every checkpoint on the disk, None where it is not valid.
    self._records: dict[int, checkpoints.Record | None] | None = None
    self._thread: threading.Thread | None = None
    self._error: BaseException | None = None
    self._abandoned = threading.Event()

  def __enter__(self) -> 'CheckpointWriter':
    """Returns the writer."""
    return self

  def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
    """Waits for the last checkpoint; raises its error unless one is raised."""
    try:
      if kind is None:
        self.wait()
      elif self._thread is not None:
        self._thread.join(PATIENCE)
    finally:
      if self._thread is not None and self._thread.is_alive():
        self._abandoned.set()
        logging.warning('The last checkpoint of %s is given up.', self._folder)
      elif self._manager is not None:
        self._manager.close()
    if self._error is not None:
      logging.warning('The last checkpoint is not saved: %s', self._error)

  def save(
    self,
    step: int,
    items: dict[str, Any],
    record: checkpoints.Record,
    local: checkpoints.Record | None = None,
    *,
    temporary: bool = False,
    best: bool = False,
  ) -> None:
    """Saves a checkpoint, in place of one of the same step.

    The call returns once the arrays are copied to host memory, so that the
    caller may donate their buffers. It waits for the previous checkpoint.

    Args:
      step: number of updates that the arrays have seen.
      items: trees of arrays, by name.
      record: JSON values to keep with them, none of them under a key of
        `RESERVED`; 'records' is the number of lines of metrics.jsonl.
      local: JSON values of this process, by name; each process has its own
        names.
      temporary: whether to remove the checkpoint once a later one is complete.
      best: whether to keep the checkpoint until a later best one is complete.

    Raises:
      UserError: this checkpoint or the previous one cannot be written.
    """
    assert not RESERVED & record.keys(), RESERVED & record.keys()
    self.wait()
    record = {'step': step, **record, 'temporary': temporary, 'best': best}
    # The caller may change these values while they are written.
    record, local = json.loads(json.dumps([record, local or {}]))
    if multihost.count() > 1:
      # Orbax synchronizes processes by collectives, which must be in the same
      # order everywhere: no thread may run them beside those of the training.
      self._write(step, items, record, local)
      return
    self._thread = threading.Thread(
      target=self._run,
      args=(step, _host_copy(items), record, local),
      name='checkpoint',
      daemon=True,
    )
    self._thread.start()

  def wait(self) -> None:
    """Blocks until the last checkpoint is complete.

    Raises:
      UserError: the checkpoint could not be written.
    """
    if self._thread is not None:
      self._thread.join()
      self._thread = None
    error, self._error = self._error, None
    if error is not None:
      raise error

  def clear_later(self, step: int) -> None:
    """Removes what a run that is at `step` does not need, after waiting.

    That is checkpoints after `step`, which a run left that was resumed before
    them, and those before it that are temporary or more than `keep`.

    Args:
      step: the step of the run.

    Raises:
      UserError: a checkpoint cannot be removed.
    """
    self.wait()
    if multihost.is_first():
      with files.written(self._folder):
        self._prune(step)

  def _run(self, *args: Any) -> None:
    """Calls `_write`, and keeps its error for `wait`."""
    try:
      self._write(*args)
    except BaseException as error:
      self._error = error

  def _write(
    self,
    step: int,
    items: dict[str, Any],
    record: checkpoints.Record,
    local: checkpoints.Record,
  ) -> None:
    path = checkpoints.step_folder(self._folder, step)
    with files.written(path), _as_os_error():
      if multihost.is_first():
        self._make_room(step, items)
      multihost.barrier()
      self._save_arrays(step, items)
    for name, value in local.items():
      files.write_json(path / f'{name}.json', value, own=True)
    multihost.barrier()  # Every process syncs what it sees of the folder.
    with files.written(path):
      _sync_all(path)
    multihost.barrier()
    if multihost.is_first() and not self._abandoned.is_set():
      with files.written(path):
        record |= {
          'files': checkpoints.file_digests(path),
          'shapes': checkpoints.array_shapes(items),
          'scheduled': self._scheduled(step, record),
        }
        if (self._folder / 'metrics.jsonl').exists():
          files.sync(self._folder / 'metrics.jsonl')
        files.write_with_digest(path / 'record.json', record)
        self._known()[step] = record
        self._prune(step)
    multihost.barrier()

  def _make_room(self, step: int, items: dict[str, Any]) -> None:
    """Removes a checkpoint of the same step; raises OSError on a full disk."""
    path = checkpoints.step_folder(self._folder, step)
    files.make_folder(path.parent)
    checkpoints.remove(self._folder, step)
    self._known()[step] = None
    # Orbax prints a traceback per array for a disk that fills up meanwhile.
    needed = OVERHEAD + sum(leaf.nbytes for leaf in jax.tree.leaves(items))
    disk = shutil.disk_usage(path.parent)
    if disk.total and disk.free < needed:  # Some network disks report zeros.
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  def _save_arrays(self, step: int, items: dict[str, Any]) -> None:
    # Imported here, as it is slow to import.
    import orbax.checkpoint as ocp

    if self._manager is None:
      options = ocp.CheckpointManagerOptions(
        step_format_fixed_length=9,
        save_root_metadata=False,
        lightweight_initialize=True,
        # Orbax's own asynchronous save blocks its caller until it has planned
        # the writes; here all of it runs in a thread, after one copy.
        enable_async_checkpointing=False,
        # Orbax applies its policy when the arrays are written, and counts every
        # folder as a checkpoint. So that a good checkpoint stays until the next
        # has its record, orbax keeps all, and `_prune` removes them after that.
        preservation_policy=ocp.checkpoint_managers.LatestN(None),
      )
      folder = checkpoints.step_folder(self._folder, step).absolute().parent
      self._manager = ocp.CheckpointManager(folder, options=options)
    if step in self._manager.all_steps():
      self._manager.reload()
    saved = {
      name: ocp.args.StandardSave(checkpoints.with_values(tree))
      for name, tree in items.items()
      if jax.tree.leaves(tree)
    }
    self._manager.save(step, args=ocp.args.Composite(**saved), force=True)

  def _known(self) -> dict[int, checkpoints.Record | None]:
    """Returns the records on the disk; reads them in the first call.

    That also removes what a killed process left of a checkpoint.
    """
    if self._records is None:
      import orbax.checkpoint as ocp

      unfinished = f'*{ocp.utils.TMP_DIR_SUFFIX}'
      for path in (self._folder / 'checkpoints').glob(unfinished):
        shutil.rmtree(path)
      self._records = {
        step: checkpoints.valid_record(self._folder, step)
        for step in checkpoints.steps(self._folder)
      }
    return self._records

  def _scheduled(
    self, step: int, record: checkpoints.Record | None = None
  ) -> list[int]:
    """Returns the checkpoints up to `step` that are kept for good.

    Every record names those before it, so that none vanishes unnoticed.

    Args:
      step: the step of the run.
      record: record of a new checkpoint at `step`.
    """
    if self._keep:
      return []
    named: set[int] = set()
    for at, known in self._known().items():
      if at <= step:
        named.update((known or {}).get('scheduled', ()))
    named.discard(step)
    if record is None:
      record = self._known().get(step)
    if record and not record['temporary']:
      named.add(step)
    return sorted(named)

  def _is_damaged(self, step: int) -> bool:
    """Returns whether a checkpoint has a record that cannot be read."""
    path = checkpoints.step_folder(self._folder, step) / 'record.json'
    return self._known()[step] is None and path.exists()

  def _prune(self, step: int) -> None:
    """Removes the checkpoints that a run at `step` does not need."""
    records = self._known()
    earlier = sorted(at for at in records if at <= step)
    best = [at for at in earlier if (records[at] or {}).get('best')]
    regular = earlier
    if records.get(step):  # Otherwise a temporary one may be the only good one.
      regular = [
        at
        for at in earlier
        if at == step or not (records[at] or {'temporary': True})['temporary']
      ]
    kept = {*best[-1:], *regular[-self._keep :]}  # All of them if `keep` is 0.
    if self._keep == 0:
      # Only a record that can be read says that a checkpoint is extra.
      kept |= records.keys() & set(self._scheduled(step))
      kept |= {at for at in earlier if self._is_damaged(at)}
    for at in sorted(records.keys() - kept):
      checkpoints.remove(self._folder, at)
      del records[at]


def _host_copy(tree: Any) -> Any:
  """Copies arrays to host memory that they share with no device buffer."""

  def copy(leaf: Any) -> Any:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return jnp.copy(leaf)
    # On a CPU, `jax.device_get` returns views of the device buffers.
    return np.array(leaf)

  for leaf in jax.tree.leaves(tree):
    if isinstance(leaf, jax.Array):
      leaf.copy_to_host_async()
  return jax.tree.map(copy, tree)


def disk_error(text: str) -> int | None:
  """Returns the number of the error of a disk that a text tells, or None."""
  for number in _DISK_ERRORS:
    if os.strerror(number).lower() in text.lower():
      return number
  return None


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
  """Turns tensorstore's ValueError about a disk into an OSError."""
  try:
    yield
  except ValueError as error:
    code = _OS_ERROR_CODE.search(str(error))
    number = int(code[1]) if code else disk_error(str(error))
    if number is None:
      raise
    raise OSError(number, os.strerror(number)) from error


def _sync_all(folder: pathlib.Path) -> None:
  """Syncs all files and folders below a folder, and the folder itself."""
  for path in folder.rglob('*'):
    files.sync(path)
  files.sync(folder)
  files.sync(folder.parent)
