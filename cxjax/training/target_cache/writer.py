"""Runs the teacher over the batches of a run, and stores its targets."""

from collections.abc import Iterator
import contextlib
import errno
import pathlib
import time
from typing import Any
import zlib

from absl import logging
from array_record.python import array_record_module
import jax
import jax.numpy as jnp
import numpy as np

from cxjax import errors
from cxjax import files
from cxjax import folders
from cxjax import locks
from cxjax.methods import output_split
from cxjax.methods import stage_plan
from cxjax.methods import stored_output
from cxjax.parallel import multihost
from cxjax.training import checkpoint_writer
from cxjax.training import checkpoints
from cxjax.training import compiled_steps
from cxjax.training import run_spec
from cxjax.training import summary as run_summary
from cxjax.training.target_cache import checks
from cxjax.training.target_cache import heads
from cxjax.training.target_cache import reader
from cxjax.training.target_cache import records
from cxjax.training.target_cache import summary as summary_lib

# Every record can be read by itself. Integers shrink to a third, floats hardly.
OPTIONS = 'group_size:1,zstd:1'


def write(
  folder: pathlib.Path,
  spec: run_spec.RunSpec,
  config: records.Index,
  dtype: str,
  kind: str = stored_output.LOGITS,
) -> summary_lib.Summary:
  """Stores the targets of a run.

  Args:
    folder: the folder of the cache.
    spec: the run, with a teacher that is available; `host.period` is the number
      of batches.
    config: all settings that another run must share with this one to read the
      targets; JSON values.
    dtype: dtype of the stored floats, one of `TOLERANCES`; hidden states of
      outputs keep their own.
    kind: kind of the stored outputs, one of `stored_output.KINDS`.

  Returns:
    The content of `FOLDER/summary.json`.

  Raises:
    UserError: the folder cannot be written, or holds other targets.
  """
  assert spec.teacher is not None and spec.teacher.available
  errors.require(
    multihost.count() == 1,
    f'{folder} is written by one process, and there are {multihost.count()}. '
    'Write it in one, without --coordinator; students may read it in several.',
  )
  steps = [stage.steps for stage in spec.stages]
  made = {'batches': spec.host.period, 'dtype': dtype, 'steps': steps}
  if kind != stored_output.LOGITS:
    made['output'] = kind
  parameters = checks.parameter_digests(spec)
  require_no_run(folder)
  with locks.lock(folder), jax.set_mesh(spec.layout.mesh):
    if (folder / 'index.json').exists():
      finished = reader.load(folder)
      finished.require_kind(kind)
      finished.require_same({**config, 'cache': made, 'parameters': parameters})
      logging.info('%s is finished.', folder)
      again = f'Restore it, or remove {folder} to write the targets again.'
      return run_summary.read(folder / 'summary.json', again)
    begin = time.perf_counter()
    writer = _Writer(folder, spec, files.digest(config), dtype, kind)
    stages = [writer.stage(*one) for one in records.stages_with_batches(spec)]
    head = {}
    if kind == stored_output.HIDDEN:
      head['heads'] = heads.write(folder, spec, files.digest(config))
    seconds = time.perf_counter() - begin
    index = {
      'config': config,
      'cache': made,
      'parameters': parameters,
      'checkpoints': spec.teacher.checkpoints,
      'stages': stages,
      **head,
    }
    checks.check(reader.CachedTargets(folder, index), spec, writer.steps)
    summary = summary_lib.summarize(spec, index, seconds)
    run_summary.write(folder / 'summary.json', summary)
    files.write_with_digest(folder / 'index.json', index)
  return summary


def check_folder(folder: pathlib.Path, what: str) -> None:
  """Checks a folder for targets, as `folders.check` does.

  Args:
    folder: the folder; finished targets in it are read, and need not be
      written.
    what: name of the folder in the message: a flag or a field.

  Raises:
    UserError: no targets can be there, or be written there.
  """
  folders.check(folder, what)
  if not (folder / 'index.json').exists():
    folders.check(folder, what, write=True)


def require_no_run(folder: pathlib.Path) -> None:
  """Raises UserError if a folder for targets holds a run."""
  errors.require(
    not (folder / 'config.json').exists(),
    f'{folder} holds a run: targets need a folder of their own.',
  )


class _Writer:
  """Writes the stages of a run, one file each."""

  def __init__(
    self,
    folder: pathlib.Path,
    spec: run_spec.RunSpec,
    config_digest: str,
    dtype: str,
    kind: str,
  ) -> None:
    self._folder, self._spec = folder, spec
    self._config_digest = config_digest
    self._dtype, self._kind = dtype, kind
    self.steps = compiled_steps.CompiledSteps(spec)

  def stage(
    self, index: int, planned: stage_plan.StagePlan, numbers: np.ndarray
  ) -> dict[str, Any]:
    """Writes the file of a stage; returns its entry in the index."""
    path, total = records.stage_path(self._folder, index), 0
    arrays: list[dict[str, Any]] = []
    with files.written(path, 'folder'):
      path.unlink(missing_ok=True)
    with _written(path):
      writer = array_record_module.ArrayRecordWriter(str(path), OPTIONS)
    for number, rows, batches, targets in self._batches(
      index, planned, numbers
    ):
      stored = jax.device_get({'rows': rows or {}, 'targets': targets})
      arrays = records.describe_arrays(stored)
      record_id = records.record_id(self._config_digest, index, number)
      record = records.pack(stored, checkpoints.fingerprint(batches), record_id)
      total = zlib.crc32(record, total)
      with _written(path):
        writer.write(record)
        if not writer.ok():
          writer.close()  # Raises the error.
    with _written(path):
      writer.close()
    with files.written(path, 'folder'):
      files.sync(path)
    stage, size = planned.stage, path.stat().st_size
    logging.info('%s: %.1f MB for %r.', path, size / 1e6, stage.name)
    return {
      'name': stage.name,
      'steps': stage.steps,
      'arrays': arrays,
      'bytes': size,
      'checksum': total,
    }

  def _batches(
    self, index: int, planned: stage_plan.StagePlan, numbers: np.ndarray
  ) -> Iterator[tuple[int, Any, Any, Any]]:
    """Yields `(number, rows, batches, targets)` of every batch of a stage."""
    compute = checks.live_targets(
      self._spec, self.steps, index, planned, self._kind
    )
    terms = stored_output.stored_stage(planned.stage, self._kind).named_terms
    last: list[tuple[int, Any, Any, Any]] = []
    for number, rows in _rows(self._spec, numbers):
      # One batch is written while the devices compute the next.
      batches, targets = compute(number, rows)
      cast = {
        name: jax.tree.map(self._cast, target)
        if terms[name].target != output_split.FEATURES
        else target
        for name, target in (targets or {}).items()
      }
      this = [(number, rows, batches, cast)]
      yield from last
      last = this
    yield from last

  def _cast(self, leaf: jax.Array) -> jax.Array:
    floats = jnp.issubdtype(leaf.dtype, jnp.inexact)
    return leaf.astype(self._dtype) if floats else leaf


def _rows(
  spec: run_spec.RunSpec, numbers: np.ndarray
) -> Iterator[tuple[int, Any]]:
  """Yields `(number, rows)` of the batches `numbers`, in order."""
  if spec.host.loader is None:
    yield from ((number, None) for number in numbers.tolist())
    return
  kept = set(numbers.tolist())
  with spec.host.loader() as loader:
    for number in range(numbers[-1] + 1):
      rows = loader.rows(number)
      if number in kept:
        at = number % spec.loop.log_every
        yield number, jax.tree.map(lambda leaf, at=at: leaf[at], rows)


@contextlib.contextmanager
def _written(path: pathlib.Path) -> Iterator[None]:
  """Turns an error of ArrayRecord about the disk into a UserError.

  ArrayRecord often notices a full disk at the end alone.
  """
  try:
    yield
  except RuntimeError as error:
    reason = str(error).partition(';')[0]
    number = checkpoint_writer.disk_error(reason) or errno.ENOSPC
    with files.written(path, 'folder'):
      raise OSError(number, reason) from error
