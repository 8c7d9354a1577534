"""Stored targets of `distill`: made by the first call, read by later ones."""

from collections.abc import Callable
from collections.abc import Mapping
import contextlib
import dataclasses
import math
import pathlib
from typing import Any

import jax
import numpy as np

from cxjax import arguments
from cxjax import checks
from cxjax import errors
from cxjax.api import held_out as held_out_lib
from cxjax.api import run_identity
from cxjax.data import loader
from cxjax.data import reader_thread
from cxjax.data import user_batches
from cxjax.data import user_loader
from cxjax.methods import stored_output
from cxjax.training import run_spec
from cxjax.training import target_cache

_EXAMPLE = "{'folder': 'runs/targets', 'output': 'hidden'}"
_MAKER = "distill(cache={{'folder': '{}'}})"
# Fields of `distill` that decide the targets, beside those of the stages.
_FIELDS = ('seed', 'batch', 'teacher', 'mask', 'fit_on', 'last_batch', 'dtype')
_FIRST = 'first batch'  # All that is known of a loader before it is read.


@dataclasses.dataclass(frozen=True)
class Cache:
  """The argument `cache` of `distill`, as `c.cache` of a config.

  Attributes:
    folder: folder of the stored targets.
    batches: number of batches, which repeat; 0 chooses.
    dtype: dtype of the stored floats.
    output: kind of the stored outputs, one of `stored_output.KINDS`.
  """

  folder: pathlib.Path
  batches: int = 0
  dtype: str = 'float32'
  output: str = stored_output.LOGITS


def checked(cache: Any, workdir: Any) -> Cache | None:
  """The argument `cache`, checked; None for no stored targets.

  Args:
    cache: a dict by the fields of `Cache`, or None.
    workdir: folder of the run, or None.

  Raises:
    UserError: an unknown field, or a value that does not work.
  """
  if cache is None:
    return None
  given = arguments.mapping('cache', cache, _EXAMPLE)
  fields = [field.name for field in dataclasses.fields(Cache)]
  for name in given:
    errors.lookup('field of cache', name, dict.fromkeys(fields))
  errors.require(
    'folder' in given,
    f'cache={cache!r} has no folder: give one, as {_EXAMPLE}.',
  )
  folder = checks.path("cache['folder']", given['folder'])
  target_cache.check_folder(folder, "cache['folder']")
  target_cache.require_no_run(folder)
  errors.require(
    workdir is None
    or not pathlib.Path(workdir).resolve().is_relative_to(folder.resolve()),
    f"cache['folder']={str(folder)!r} holds the workdir: targets need a folder "
    'of their own.',
  )
  found = Cache(**{**given, 'folder': folder})
  arguments.integer("cache['batches']", found.batches, 0)
  for name, allowed in (
    ('dtype', target_cache.TOLERANCES),
    ('output', dict.fromkeys(stored_output.KINDS)),
  ):
    errors.lookup(f"cache['{name}']", getattr(found, name), allowed)
  return found


@dataclasses.dataclass(frozen=True)
class Source:
  """The training batches of a run, as `distill` reads them.

  Attributes:
    user: their loader.
    batches: the batches, as the user gives them.
    evaluation: how items are converted.
    last_batch: treatment of a batch with fewer examples.
    workdir: folder of the run, or None.
  """

  user: user_loader.UserLoader
  batches: Any
  evaluation: held_out_lib.Evaluation
  last_batch: str
  workdir: pathlib.Path | None

  @property
  def is_listed(self) -> bool:
    """True if every batch can be read again."""
    return isinstance(self.batches, list | tuple)

  @property
  def is_begun(self) -> bool:
    """True if the workdir has a run, and so says which targets are its own."""
    return self.workdir is not None and (self.workdir / 'config.json').exists()

  def _stream(
    self, user: user_loader.UserLoader, spec: run_spec.RunSpec, limit: float
  ) -> loader.BatchStream:
    convert = self.evaluation.convert
    return loader.BatchStream(
      user, spec.host.rows, convert, limit, self.last_batch
    )

  def loader(self, spec: run_spec.RunSpec) -> Callable[[], Any]:
    """Returns what opens a loader for each stage whose targets are made."""
    rows, thread = spec.host.rows, self.user.thread
    steps, mesh = spec.loop.log_every, spec.layout.mesh
    if not self.is_listed:
      stream = self._stream(self.user, spec, spec.host.period)
      once = _Once(stream, thread, steps)
      return lambda: once
    again = lambda: user_loader.UserLoader(self.batches, thread=thread)
    return lambda: loader.HostLoader(
      [[self._stream(again(), spec, math.inf)]], steps, mesh, rows, thread
    )

  def check(
    self, folder: pathlib.Path, spec: run_spec.RunSpec
  ) -> target_cache.Check | None:
    """Returns what compares the batches of a loader with stored ones.

    Args:
      folder: folder of the stored targets.
      spec: the run.

    Returns:
      A function that raises UserError; None where there is nothing to compare:
      a list is compared as a whole, and a run that has begun reads its batches
      from the folder.
    """
    if self.is_listed or self.is_begun:
      return None
    stream = self._stream(self.user, spec, spec.host.period)
    return _Compared(stream, self.user, folder)


class _Once(contextlib.AbstractContextManager[Any]):
  """Batches that are read once, in order, by one stage after the other."""

  def __init__(
    self,
    stream: loader.BatchStream,
    thread: reader_thread.ReaderThread,
    steps: int,
  ) -> None:
    """Reads nothing yet; a chunk has `steps` steps."""
    self._stream, self._thread, self._steps = stream, thread, steps
    self._read, self._rows = 0, None

  def __exit__(self, *error: object) -> None:
    """Leaves the stream as it is, for the next stage."""

  def rows(self, number: int) -> Any:
    """The batch `number` in the form of a chunk; of earlier ones any batch."""
    while self._read <= number:
      batch = self._thread.call(lambda: next(self._stream))
      # A copy: an iterator may use its buffers again.
      self._rows = jax.tree.map(np.array, batch)
      self._read += 1
    form = lambda leaf: np.broadcast_to(leaf, (self._steps, 1, *leaf.shape))
    return jax.tree.map(form, self._rows)


class _Compared:
  """Compares the batches of a loader with stored ones, each once, in order."""

  def __init__(
    self,
    stream: loader.BatchStream,
    user: user_loader.UserLoader,
    folder: pathlib.Path,
  ) -> None:
    """Reads nothing yet; `stream` reads `user`."""
    self._stream, self._user, self._folder = stream, user, folder
    self._next = 0

  def __call__(self, number: int, rows: Any) -> None:
    """Raises UserError if the batch `number` is not the one of `rows`."""
    while self._next <= number:
      batch = self._user.thread.call(lambda: next(self._stream))
      self._next += 1
      errors.require(
        self._next <= number or _is_same(batch, rows),
        f'Batch {self._user.taken} of the loader is not the one whose targets '
        f'{self._folder} holds. Give the same batches in the same order, or '
        'another folder.',
      )


def _is_same(batch: Any, rows: Any) -> bool:
  """Compares a batch with its stored rows, of one stream, bit by bit."""
  leaves, stored = jax.tree.leaves(batch), jax.tree.leaves(rows)
  return len(leaves) == len(stored) and all(
    np.asarray(leaf, one.dtype).tobytes() == one.tobytes()
    for leaf, one in zip(leaves, stored, strict=True)
  )


def applied(
  cache: Cache | None,
  spec: run_spec.RunSpec,
  describe: Callable[[run_spec.RunSpec], Mapping[str, Any]],
  source: Source,
) -> tuple[run_spec.RunSpec, Callable[[], Any]]:
  """The run, on stored targets if it has them, and its first batch.

  Args:
    cache: the stored targets, or None.
    spec: the run, with its teacher.
    describe: returns the fields of `run_identity.describe`.
    source: the training batches.

  Returns:
    The specification of the run, and a function that returns the first batch
    although the others may have been read.

  Raises:
    UserError: no stage has a target to store, or the folder holds the targets
      of another run.
  """
  if cache is None:
    return spec, source.user.first
  first = user_batches.checked(source.user.first(), None)
  first = jax.tree.map(np.array, first)
  config = {**describe(spec), _FIRST: run_identity.batch_digest(first)}
  return _served(cache, spec, config, source), lambda: first


def _served(
  cache: Cache,
  spec: run_spec.RunSpec,
  described: Mapping[str, Any],
  source: Source,
) -> run_spec.RunSpec:
  """The run on stored targets, which are made if the folder has none."""
  errors.require(
    any(stage.needs_teacher for stage in spec.stages),
    'The stages learn the labels: there are no targets to store. Leave cache '
    'out.',
  )
  if cache.output == stored_output.HIDDEN:
    target_cache.require_hidden(spec)
  host = dataclasses.replace(spec.host, period=_period(cache, spec, source))
  spec = dataclasses.replace(spec, host=host)
  config, check = _config(cache, spec, described, source.batches), None
  if (cache.folder / 'index.json').exists():
    check = source.check(cache.folder, spec)
  else:
    host = dataclasses.replace(host, loader=source.loader(spec))
    made = dataclasses.replace(spec, host=host)
    target_cache.write(cache.folder, made, config, cache.dtype, cache.output)
  found = target_cache.load(cache.folder, _MAKER)
  found.require_kind(cache.output)
  if source.is_begun:  # A loader that shuffles now begins with another one.
    config = {**config, _FIRST: found.record['config'].get(_FIRST)}
  found.require_same(config)
  found.require_all(spec)
  target_cache.check(found, spec)
  assert spec.teacher is not None
  stored = f'{cache.output} {found.fingerprint}'
  teacher = dataclasses.replace(spec.teacher, stored=stored)
  plan_costs = spec.plan_costs
  spec = dataclasses.replace(spec, teacher=teacher)
  spec = target_cache.served(found, spec, check)
  return dataclasses.replace(spec, plan_costs=plan_costs)


def _period(cache: Cache, spec: run_spec.RunSpec, source: Source) -> int:
  """Number of batches that are stored; those of a list come again anyway."""
  steps = spec.ends[-1]
  errors.require(
    cache.batches <= steps,
    f"cache['batches']={cache.batches} must be at most the {steps} steps of "
    'the plan; 0 chooses.',
  )
  if not cache.batches:
    again = source.is_listed and source.last_batch != 'drop'
    return min(len(source.batches), steps) if again else steps
  read = sum(min(stage.steps, cache.batches) for stage in spec.stages)
  errors.require(
    source.is_listed or read <= cache.batches,
    f"cache['batches']={cache.batches}: several stages read the same batches, "
    'which only a list can give again. Give a list, or leave cache out.',
  )
  return cache.batches


def _config(
  cache: Cache,
  spec: run_spec.RunSpec,
  described: Mapping[str, Any],
  batches: Any,
) -> dict[str, Any]:
  """All settings that another run must share to read the targets."""
  stages, rotated = target_cache.stages(spec, cache.output)
  listed = run_identity.listed(batches)
  names = (
    *_FIELDS,
    *(('student',) if rotated else ()),
    *(() if listed else (_FIRST,)),
  )
  return {
    **{name: described[name] for name in names if name in described},
    'batches': listed or 'those of a loader',
    'students': spec.num_seeds,
    'stages': stages,
  }
