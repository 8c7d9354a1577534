"""Targets that a teacher computed once, for students that train without it.

`FOLDER/stageN.array_record` holds a record for each batch that stage N reads:
what the batch is made of, if that comes from the host, and its targets, so that
a target cannot meet another batch than its own. A record begins with a checksum
of its bytes, its cache, its stage and the number of its batch, and with a
digest of the batch as it was drawn. `index.json` is written last, and says what
the targets are of and how large every file is: a folder without one is no
cache. Nothing is pickled.
"""

import bisect
from collections.abc import Iterator
import contextlib
import math
import pathlib
import secrets
import struct
import time
from typing import Any
import zlib

from absl import logging
from array_record.python import array_record_module
from flax import traverse_util
import grain
import jax
import jax.numpy as jnp
import numpy as np

from cxjax.training import checkpoints as checkpoints_lib
from cxjax import errors
from cxjax.data import loader
from cxjax import files
from cxjax.parallel import devices as devices_lib
from cxjax.parallel import mesh as mesh_lib
from cxjax.methods import stage_plan
from cxjax.parallel import multihost
from cxjax.training import compiled_steps
from cxjax.training import run_spec
from cxjax.methods import train_step
from cxjax import tables

# How floats are stored, and how far the live teacher may be from them: norm of
# the difference by norm. Other devices differ by less, another teacher, batch
# or projection by more; damage is for the checksums.
TOLERANCES = {'float32': 0.01, 'bfloat16': 0.02}
SAME = 0.9  # Share of the integers that have to agree: logits may tie.
CHECKS = 2  # Batches of each stage that are compared with the live teacher.
# Every record can be read by itself. Ids shrink to a third, floats by little.
OPTIONS = 'group_size:1,zstd:1'
CHECKSUM, DIGEST = struct.Struct('<I'), 16  # What a record begins with.

Record = dict[str, Any]
# `{'rows': [streams, ...], 'want': [streams or S, B, ...]}` in every leaf;
# without rows where a batch needs none.
Stored = dict[str, Any]


def numbers(begin: int, steps: int, period: int) -> np.ndarray:
  """The batches that a stage reads, in order.

  Args:
    begin: first step of the stage.
    steps: how many it has.
    period: how many batches there are: step `n` reads `n % period`.

  Returns:
    `[min(steps, period)]` integers.
  """
  return np.sort((begin + np.arange(min(steps, period))) % period)


def stages_of(
  spec: run_spec.RunSpec,
) -> Iterator[tuple[int, stage_plan.StagePlan, np.ndarray]]:
  """Every stage of a run: its index, its plan, the batches that it reads."""
  begins = (0, *spec.ends)
  for i, planned in enumerate(spec.planned()):
    steps = planned.stage.steps
    yield i, planned, numbers(begins[i], steps, spec.period)


def _path(folder, stage):
  return folder / f'stage{stage}.array_record'


def _checksum(identity, stage, number, content):
  place = f'{identity} {stage} {number}'.encode()
  return zlib.crc32(content, zlib.crc32(place))


class Cache:
  """Stored targets, read by stage and batch.

  Attributes:
    folder: where they lie.
    record: what is known of them; JSON values.
  """

  def __init__(self, folder: pathlib.Path, record: Record):
    """Opens the files.

    Args:
      folder: of `write`.
      record: of its index.

    Raises:
      UserError: a file is not what was written.
    """
    self.folder, self.record = folder, record
    self._identity = files.digest(record['identity'])
    self._numbers, self._datasets = [], []
    begin, period = 0, record['cache']['batches']
    for i, stage in enumerate(record['stages']):
      path = _path(folder, i)
      size = path.stat().st_size if path.exists() else 0
      if size != stage['bytes']:
        raise self._damaged(f'{path} has {size} bytes, not {stage["bytes"]}')
      with self._reading(f'{path}'):
        source = grain.sources.ArrayRecordDataSource(str(path))
      self._datasets.append(grain.MapDataset.source(source))
      self._numbers.append(numbers(begin, stage['steps'], period))
      begin += stage['steps']

  def _damaged(self, what):
    return errors.UserError(
      f'{what}: it is damaged. Remove {self.folder}, and make it again with '
      f'launch.py --cache_targets={self.folder}.'
    )

  @contextlib.contextmanager
  def _reading(self, what):
    try:
      yield
    except (RuntimeError, OSError) as error:
      raise self._damaged(what) from error

  @property
  def fingerprint(self) -> str:
    """Of what the targets are of, and of their bytes."""
    return files.digest(self.record)[:16]

  def require_same(self, here: Record) -> None:
    """Raises UserError unless these are the targets that `here` describes.

    Args:
      here: the identity of a run; with 'cache', how its targets are stored, or
        'parameters', digests of its teacher's, if they have to agree as well.
    """
    there = dict(self.record['identity'])
    there |= {n: self.record[n] for n in ('cache', 'parameters') if n in here}
    differ = files.differences(there, here)
    errors.require(
      not differ,
      f'{self.folder} holds the targets of another run. What differs: '
      f'{differ}. Make others with launch.py --cache_targets=DIR, or go back '
      'to that configuration.',
    )

  def require_all(self, spec: run_spec.RunSpec) -> None:
    """Raises UserError unless all that a run reads is there."""
    for index, planned, wanted in stages_of(spec):
      lacking = np.setdiff1d(wanted, self._numbers[index])
      errors.require(
        not lacking.size,
        f'Stage {planned.stage.name!r} reads {len(lacking)} batches that '
        f'{self.folder} does not hold, as number {lacking[:1]}: it was made '
        f'with cache.batches={self.record["cache"]["batches"]} and stages of '
        f'{self.record["cache"]["steps"]} steps. Use those, or make another '
        'with launch.py --cache_targets=DIR.',
      )

  def read(self, stage: int, number: int) -> tuple[Stored, str]:
    """One batch of a stage.

    Args:
      stage: its place in the curriculum.
      number: of the batch, one of `numbers`.

    Returns:
      What is stored, as numpy arrays, and the digest of the batch.

    Raises:
      UserError: the record is damaged.
    """
    what = f'Batch {number} in {_path(self.folder, stage)}'
    place = int(np.searchsorted(self._numbers[stage], number))
    with self._reading(what):
      content = self._datasets[stage][place]
    (checksum,) = CHECKSUM.unpack_from(content)
    at = CHECKSUM.size
    if checksum != _checksum(self._identity, stage, number, content[at:]):
      raise self._damaged(what)
    digest, at = content[at : at + DIGEST].decode(), at + DIGEST
    arrays = {}
    for name, (shape, kind) in self.record['stages'][stage]['arrays'].items():
      dtype, size = jnp.dtype(kind), math.prod(shape)
      arrays[name] = np.frombuffer(content, dtype, size, at).reshape(shape)
      at += size * dtype.itemsize
    return traverse_util.unflatten_dict(arrays, sep='/'), digest


def load(folder: pathlib.Path) -> Cache:
  """A finished cache, nothing of it read yet.

  Args:
    folder: of `write`.

  Returns:
    The cache.

  Raises:
    UserError: there is none, it is not finished, or it is damaged.
  """
  errors.require(
    (folder / 'index.json').exists(),
    f'{folder} holds no finished cache of targets. Make it with launch.py '
    f'--cache_targets={folder}.',
  )
  return Cache(folder, files.read_sealed(folder / 'index.json'))


class Feed(loader.Ahead):
  """Rows and targets of a run, from a cache, one chunk ahead of it.

  A chunk has the steps of one stage. What other stages do in the same `T` steps
  is zeros, which nobody reads.
  """

  def __init__(self, cache: Cache, spec: run_spec.RunSpec):
    """Reads nothing yet.

    Args:
      cache: holds all that the stages read.
      spec: of the run.
    """
    super().__init__(spec.log_every, spec.mesh)
    self._cache, self._period = cache, spec.period
    self._begins = (0, *spec.ends[:-1])
    every = range(0, spec.ends[-1], spec.log_every)
    self._cuts = sorted({*every, *spec.ends})

  def rows(self, step: int) -> loader.Rows:
    """What the batches around `step` are made of, or None."""
    return super().rows(step).get('rows')

  def wants(self, step: int) -> train_step.Target:
    """The targets of the batches around `step`."""
    return super().rows(step)['want']

  def _chunk(self, step):
    return bisect.bisect_right(self._cuts, step) - 1

  def _set(self, read):
    """Where the run is says what comes next."""

  def _read(self):
    ahead = self._number + 1
    if ahead + 1 == len(self._cuts):  # The end of the run.
      return {}, {}
    begin, end = self._cuts[ahead : ahead + 2]
    stage = bisect.bisect_right(self._begins, begin) - 1
    steps = np.arange(begin, end)
    found = [self._cache.read(stage, n)[0] for n in steps % self._period]

    def stack(*leaves):
      out = np.zeros((self._steps, *leaves[0].shape), leaves[0].dtype)
      out[steps % self._steps] = leaves
      return out

    chunk = jax.tree.map(stack, *found)  # `[T, streams or S, B, ...]`.
    return {}, mesh_lib.distribute(chunk, self._mesh, axis=2, seeds=1)


def write(
  folder: pathlib.Path,
  spec: run_spec.RunSpec,
  identity: Record,
  dtype: str,
) -> Record:
  """Runs the teacher over the batches of a run, and stores its targets.

  Args:
    folder: where they go.
    spec: of the run, with its teacher; `period` is how many batches.
    identity: all that another run must have in common with this one to be
      served; JSON values.
    dtype: of the floats, one of `TOLERANCES`.

  Returns:
    What was written and what it took, as in `FOLDER/summary.json`.

  Raises:
    UserError: the folder cannot be written, or holds other targets.
  """
  assert spec.teacher is not None
  errors.require(
    multihost.count() == 1,
    f'{folder} is written by one process, and there are {multihost.count()}. '
    'Leave --coordinator out; students may read it in several.',
  )
  steps = [stage.steps for stage in spec.stages]
  made = {'batches': spec.period, 'dtype': dtype, 'steps': steps}
  parameters = _digests(spec)
  errors.require(
    not (folder / 'config.json').exists(),
    f'{folder} holds a run: targets need a folder of their own.',
  )
  with files.lock(folder), jax.set_mesh(spec.mesh):
    if (folder / 'index.json').exists():
      load(folder).require_same(
        {**identity, 'cache': made, 'parameters': parameters}
      )
      logging.info('%s is finished.', folder)
      return files.read_json(folder / 'summary.json')
    begin = time.perf_counter()
    writer = _Writer(folder, spec, files.digest(identity), dtype)
    stages = [writer.stage(*one) for one in stages_of(spec)]
    seconds = time.perf_counter() - begin
    record = {
      'identity': identity,
      'cache': made,
      'parameters': parameters,
      'checkpoints': spec.teacher.checkpoints,
      'stages': stages,
    }
    check(Cache(folder, record), spec, writer.programs)
    summary = _summary(spec, record, seconds)
    files.write_json(folder / 'summary.json', summary)
    files.write_sealed(folder / 'index.json', record)
  return summary


def _digests(spec):
  """Of the teacher's parameters, at each checkpoint that a stage uses."""
  used = dict.fromkeys(stage.checkpoint for stage in spec.stages)
  whole, found = jax.jit(mesh_lib.whole), {}
  with jax.set_mesh(spec.mesh):
    for at in used:
      params = spec.teacher.at(at)
      params = whole(mesh_lib.place(params, spec.mesh, spec.rules[1]))
      name = 'final' if at is None else str(at)
      found[name] = checkpoints_lib.fingerprint(params)
  return found


def check(
  cache: Cache,
  spec: run_spec.RunSpec,
  programs: compiled_steps.CompiledSteps | None = None,
) -> None:
  """Compares a few batches of every stage, chosen at random, with live ones.

  Args:
    cache: holds all that the stages read.
    spec: of the run; with a teacher its parameters and the targets are
      compared, too.
    programs: of that spec, if there are.

  Raises:
    UserError: a batch or a target is another; names it.
  """
  if spec.teacher is not None:
    cache.require_same(
      {**cache.record['identity'], 'parameters': _digests(spec)}
    )
  if programs is None:
    programs = compiled_steps.CompiledSteps(spec)
  # The same batches in every process: they are looked at by all together.
  seed = multihost.from_first(lambda: secrets.randbits(30))
  random = np.random.default_rng(seed)
  tolerance = TOLERANCES[cache.record['cache']['dtype']]
  with jax.set_mesh(spec.mesh):
    for index, planned, wanted in stages_of(spec):
      look = _look(spec, programs, index, planned)
      for number in random.choice(wanted, CHECKS):
        stored, digest = cache.read(index, int(number))
        batches, live = look(number, stored.get('rows'))
        what = f'Batch {number} of {planned.stage.name!r} in {cache.folder}'
        again = f'Make it again with launch.py --cache_targets={cache.folder}.'
        errors.require(
          digest == checkpoints_lib.fingerprint(batches),
          f'{what} is not the one that is drawn here: it was made by other '
          f'versions of cxjax or its packages. Remove the folder. {again}',
        )
        if spec.teacher is None:
          continue
        pairs = zip(*map(jax.tree.leaves, (stored['want'], live)), strict=True)
        errors.require(
          all(_is_near(a, b, tolerance) for a, b in pairs),
          f'{what} is not what the teacher says. Remove the folder. {again}',
        )


def _is_near(stored, live, tolerance):
  live = np.asarray(live)
  if not jnp.issubdtype(live.dtype, jnp.inexact):
    return np.mean(stored == live) >= SAME
  stored, live = (np.asarray(x, np.float32) for x in (stored, live))
  finite = np.isfinite(live)
  if not np.array_equal(stored[~finite], live[~finite], equal_nan=True):
    return False
  stored, live = stored[finite], live[finite]
  far = np.linalg.norm(stored - live)
  return far <= tolerance * np.linalg.norm(live)


def _look(spec, programs, index, planned):
  """`(number, rows) -> batches, targets` of a stage."""
  params = matrices = None
  if spec.teacher is not None:
    params = spec.teacher.at(planned.stage.checkpoint)
    params = mesh_lib.place(params, spec.mesh, spec.rules[1])
    matrices = programs.matrices(planned, index)
  return lambda number, rows: programs.look(
    planned, number, rows, params, matrices
  )


def _rows(spec, wanted):
  """`(number, what the batch is made of)` of the `wanted`, in order."""
  if spec.feed is None:
    yield from ((number, None) for number in wanted)
    return
  kept = set(wanted.tolist())
  with spec.feed() as opened:
    for number in range(wanted[-1] + 1):
      rows = opened.rows(number)
      if number in kept:
        at = number % spec.log_every
        yield number, jax.tree.map(lambda leaf, at=at: leaf[at], rows)


class _Writer:
  """Writes the stages of a run."""

  def __init__(self, folder, spec, identity, dtype):
    self._folder, self._spec = folder, spec
    self._identity, self._dtype = identity, dtype
    self.programs = compiled_steps.CompiledSteps(spec)

  def stage(self, index, planned, wanted):
    """Writes the file of a stage; its entry in the index."""
    path, arrays, total = _path(self._folder, index), {}, 0
    path.unlink(missing_ok=True)
    with _written(path):
      writer = array_record_module.ArrayRecordWriter(str(path), OPTIONS)
    for number, rows, batches, want in self._looks(index, planned, wanted):
      found = {'rows': rows or {}, 'want': jax.tree.map(self._cast, want)}
      found = traverse_util.flatten_dict(jax.device_get(found), sep='/')
      arrays = {k: [list(v.shape), str(v.dtype)] for k, v in found.items()}
      digest = checkpoints_lib.fingerprint(batches).encode()
      content = digest + b''.join(v.tobytes() for v in found.values())
      checksum = _checksum(self._identity, index, number, content)
      total = zlib.crc32(content, total)
      with _written(path):
        writer.write(CHECKSUM.pack(checksum) + content)
        if not writer.ok():
          writer.close()  # Raises what it was.
    with _written(path):
      writer.close()
    stage, size = planned.stage, path.stat().st_size
    logging.info('%s: %.1f MB for %r.', path, size / 1e6, stage.name)
    return {
      'name': stage.name,
      'steps': stage.steps,
      'arrays': arrays,
      'bytes': size,
      'checksum': total,
    }

  def _looks(self, index, planned, wanted):
    """`(number, rows, batches, targets)` of every batch of a stage."""
    look = _look(self._spec, self.programs, index, planned)
    last: list[tuple] = []
    for number, rows in _rows(self._spec, wanted):
      # One is written while the next is computed.
      this = [(number, rows, *look(number, rows))]
      yield from last
      last = this
    yield from last

  def _cast(self, leaf):
    floats = jnp.issubdtype(leaf.dtype, jnp.inexact)
    return leaf.astype(self._dtype) if floats else leaf


@contextlib.contextmanager
def _written(path):
  """What ArrayRecord says of a disk, in one line; often not before the end."""
  try:
    yield
  except RuntimeError as error:
    reason = str(error).partition(';')[0]
    raise errors.UserError(
      f'Cannot write {path}: {reason}. Make room there, or choose another '
      '--cache_targets.'
    ) from error


def _raw(stage):
  """Bytes of a batch before they are compressed."""
  return sum(
    math.prod(shape) * jnp.dtype(kind).itemsize
    for shape, kind in stage['arrays'].values()
  )


def _summary(spec, record, seconds):
  """What the targets of a run take up, and what they took."""
  streams = spec.data_keys.shape[0]
  batch = streams * spec.batch_size * spec.length
  flops: dict[Any, float] = {}
  stages = []
  for index, planned, wanted in stages_of(spec):
    objective = planned.stage.objective
    if objective not in flops:
      flops[objective] = spec.target_flops(planned)
    stages.append(
      {
        'name': planned.stage.name,
        'batches': len(wanted),
        'tokens': len(wanted) * batch,
        'bytes': record['stages'][index]['bytes'],
        'raw_bytes': len(wanted) * _raw(record['stages'][index]),
        'teacher_flops': len(wanted) * streams * flops[objective],
      }
    )
  total = {
    name: sum(stage[name] for stage in stages)
    for name in ('tokens', 'bytes', 'raw_bytes', 'teacher_flops')
  }
  return {
    **record['cache'],
    **total,
    'bytes_per_token': total['bytes'] / total['tokens'],
    'seconds': round(seconds, 3),
    'stages': stages,
    'device': devices_lib.describe(),
  }


def show(summary: Record) -> str:
  """The summary of a cache as a table, a row for each stage."""
  rows = [*summary['stages'], {**summary, 'name': 'all', 'batches': None}]
  return tables.markdown(
    {
      'stage': row['name'],
      'batches': row['batches'],
      'tokens': row['tokens'],
      'MB': round(row['bytes'] / 1e6, 1),
      'bytes a token': round(row['bytes'] / row['tokens'], 1),
      'before zstd': round(row['raw_bytes'] / row['tokens'], 1),
      'teacher GFLOP': round(row['teacher_flops'] / 1e9, 1),
      'seconds': row.get('seconds'),
    }
    for row in rows
  )
