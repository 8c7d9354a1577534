"""Reads stored targets, and refuses those of another run."""

from collections.abc import Iterator
import contextlib
import pathlib

import numpy as np

from cxjax import errors
from cxjax import files
from cxjax.methods import stored_output
from cxjax.training import run_spec
from cxjax.training.target_cache import heads
from cxjax.training.target_cache import records

_KINDS = {
  stored_output.LOGITS: 'the logits of the teacher',
  stored_output.HIDDEN: 'the last hidden states of the teacher',
}


# What makes a cache, of which the braces are the folder.
LAUNCH = 'launch.py --cache_targets={}'


class CachedTargets:
  """Stored targets, read by stage and batch.

  Attributes:
    folder: the folder of the cache.
    record: the content of index.json: the config that determines the targets,
      and the arrays of their files; JSON values.
  """

  def __init__(
    self, folder: pathlib.Path, record: records.Index, maker: str = LAUNCH
  ) -> None:
    """Opens the files.

    Args:
      folder: the folder of the cache.
      record: the content of its index.json.
      maker: call or command that makes a cache, for messages.

    Raises:
      UserError: a file is missing or has another size.
    """
    # Imported here, as it is slow to import.
    import grain

    self.folder, self.record, self._maker = folder, record, maker
    self._config_digest = files.digest(record['config'])
    self._numbers, self._datasets = [], []
    begin, period = 0, record['cache']['batches']
    for i, stage in enumerate(record['stages']):
      path = records.stage_path(folder, i)
      size = path.stat().st_size if path.exists() else 0
      if size != stage['bytes']:
        raise self._damaged(f'{path} has {size} bytes, not {stage["bytes"]}')
      with self._reading(f'{path}'):
        source = grain.sources.ArrayRecordDataSource(str(path))
      self._datasets.append(grain.MapDataset.source(source))
      numbers = records.batch_numbers(begin, stage['steps'], period)
      self._numbers.append(numbers)
      begin += stage['steps']
    for head in record.get('heads', []):
      path = records.head_path(folder, head['checkpoint'])
      size = path.stat().st_size if path.exists() else 0
      if size != head['bytes']:
        raise self._damaged(f'{path} has {size} bytes, not {head["bytes"]}')

  def _damaged(self, what: str) -> errors.UserError:
    return errors.UserError(
      f'{what}: it is damaged. Remove {self.folder}, and {self.again}.'
    )

  @property
  def again(self) -> str:
    """Advice for a folder that was removed, in the imperative."""
    return f'make it again with {self._maker.format(self.folder)}'

  @contextlib.contextmanager
  def _reading(self, what: str) -> Iterator[None]:
    try:
      yield
    except (RuntimeError, OSError) as error:
      raise self._damaged(what) from error

  @property
  def fingerprint(self) -> str:
    """Hash of the targets' config and bytes."""
    return files.digest(self.record)[:16]

  @property
  def tolerance(self) -> float:
    """Relative distance from the live targets that rounding explains."""
    return records.TOLERANCES[self.record['cache']['dtype']]

  @property
  def kind(self) -> str:
    """Kind of the stored outputs, one of `stored_output.KINDS`."""
    return records.kind(self.record)

  def require_kind(self, kind: str) -> None:
    """Raises UserError unless outputs are stored as a run asks for."""
    errors.require(
      self.kind == kind,
      f'{self.folder} holds {_KINDS[self.kind]}, and this run asks for '
      f'{_KINDS[kind]}: give cache.output={self.kind}, or another folder.',
    )

  def head(self, checkpoint: int | None) -> tuple[np.ndarray, ...]:
    """Reads the weights of the teacher's head at a checkpoint.

    Raises:
      UserError: its file is damaged.
    """
    name = records.checkpoint_name(checkpoint)
    entries = {one['checkpoint']: one for one in self.record['heads']}
    what = f'{records.head_path(self.folder, name)}'
    found = None
    if name in entries:
      with self._reading(what):
        found = heads.read(self.folder, entries[name], self._config_digest)
    if found is None:
      raise self._damaged(what)
    return found

  def require_same(self, here: records.Index) -> None:
    """Raises UserError unless the targets are those of a run.

    Args:
      here: the config that determines the run's targets; with 'cache', how
        they are stored, or 'parameters', digests of the teacher's parameters,
        to compare these as well.
    """
    there = dict(self.record['config'])
    there |= {n: self.record[n] for n in ('cache', 'parameters') if n in here}
    differ = files.differences(there, here)
    errors.require(
      not differ,
      f'{self.folder} holds the targets of another run. What differs: '
      f'{differ}. Make others with {self._maker.format("DIR")}, or go back to '
      'that configuration.',
    )

  def require_all(self, spec: run_spec.RunSpec) -> None:
    """Raises UserError unless the cache holds all batches that a run reads."""
    for index, planned, needed in records.stages_with_batches(spec):
      lacking = np.setdiff1d(needed, self._numbers[index])
      errors.require(
        not lacking.size,
        f'Stage {planned.stage.name!r} reads {len(lacking)} batches that '
        f'{self.folder} does not hold, as number {lacking[:1]}: it was made '
        f'with cache.batches={self.record["cache"]["batches"]} and stages of '
        f'{self.record["cache"]["steps"]} steps. Use those, or make another '
        f'with {self._maker.format("DIR")}.',
      )

  def read(self, stage: int, number: int) -> tuple[records.Stored, str]:
    """Reads one batch of a stage.

    Args:
      stage: the index of the stage in the curriculum.
      number: the number of the batch, one of `records.batch_numbers`.

    Returns:
      NumPy arrays, and the digest of the batch.

    Raises:
      UserError: the record is damaged.
    """
    what = f'Batch {number} in {records.stage_path(self.folder, stage)}'
    at = int(np.searchsorted(self._numbers[stage], number))
    with self._reading(what):
      content = self._datasets[stage][at]
    found = records.unpack(
      content,
      self.record['stages'][stage]['arrays'],
      records.record_id(self._config_digest, stage, number),
    )
    if found is None:
      raise self._damaged(what)
    return found


def load(folder: pathlib.Path, maker: str = LAUNCH) -> CachedTargets:
  """Opens a finished cache.

  Args:
    folder: the folder of the cache.
    maker: call or command that makes a cache, for messages.

  Returns:
    The cache; no target has been read.

  Raises:
    UserError: there is no cache, or it is not finished, or damaged.
  """
  errors.require(
    (folder / 'index.json').exists(),
    f'{folder} holds no finished cache of targets. Make it with '
    f'{maker.format(folder)}.',
  )
  record = files.read_with_digest(folder / 'index.json')
  errors.require(
    records.is_index(record),
    f'{folder}/index.json was not written by this version of cxjax. Remove '
    f'{folder}, and make it again with {maker.format(folder)}.',
  )
  return CachedTargets(folder, record, maker)
