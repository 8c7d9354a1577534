"""The task protocol, a base class for synthetic tasks, and their registry.

A task is what a model learns: it makes the training batches and the held-out
set, and names its metrics. A config names a task in `config.task` and holds its
options in the block `config.data`. A task of one's own is a file that defines
it and calls `register`; the config file imports that file.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Any
from typing import Protocol
from typing import TypeAlias
from typing import runtime_checkable

import jax

from cxjax import arguments
from cxjax import checks
from cxjax import deprecation
from cxjax import errors
from cxjax import registration
from cxjax import types
from cxjax.data import loader

METRICS = ('accuracy', 'loss', 'perplexity')
# The field of a data block with the folder that `Task.save` writes to.
FOLDER = 'folder'


@runtime_checkable
class Task(Protocol):
  """Source of the batches that models are trained and evaluated on.

  A task on sequences also has `vocab_size` and `length`, which models read.
  """

  @property
  def num_classes(self) -> int:
    """`C`, the number of classes."""

  @property
  def inputs(self) -> tuple[str, ...]:
    """Keys of the input dict of a batch; () if the input is one array."""

  @property
  def metrics(self) -> tuple[str, ...]:
    """Names of registered metrics, computed on the held-out set."""

  @property
  def primary_metric(self) -> str:
    """The metric that decides when to stop, to save, and what is best."""

  @property
  def shards(self) -> int:
    """Number of equal parts of a host batch, which are read independently."""

  @property
  def fingerprints(self) -> Mapping[str, str]:
    """Hashes of the files that the task reads, by name."""

  def batch(self, key: jax.Array, step: Any, rows: Any, /) -> types.Batch:
    """Makes the training batch of a step; compiled.

    Args:
      key: typed PRNG key of the data stream.
      step: non-negative integer; `(key, step)` determines what is random.
      rows: the batch size `B`, an int; for a task with a `host_spec`, what the
        host read, a tree of `[B, ...]`.

    Returns:
      The batch, see `cxjax.types`.
    """

  def held_out(self, key: jax.Array, size: int) -> types.Batch:
    """Makes the held-out set; not compiled by the caller.

    Args:
      key: typed PRNG key of the held-out set.
      size: number of examples; a task that reads may have fewer.

    Returns:
      The batch.
    """

  def host_spec(self, batch_size: int) -> Any:
    """Shapes of what the host reads for a batch, a tree of `[B, ...]`.

    Args:
      batch_size: `B`.

    Returns:
      The shapes; None if batches need only a key.
    """

  def host_batches(
    self, batch_size: int, seed: int, shard: tuple[int, int] = (0, 1)
  ) -> Iterable[Any]:
    """Opens what the host reads, without end.

    Args:
      batch_size: number of examples of each yielded tree.
      seed: seed of the order.
      shard: `(i, n)` reads part `i` of `n`.

    Returns:
      A dataset of trees like `host_spec(batch_size)`. Its iterators have
      `get_state` and `set_state`, as those of grain.
    """

  def check(self, batch_size: int) -> None:
    """Raises UserError if batches of that size cannot be made."""

  def save(self, folder: pathlib.Path) -> None:
    """Writes what a later run needs to find the same data."""


class SyntheticTask:
  """Base class of tasks whose batches need only a PRNG key.

  A subclass has `num_classes` and `batch`, and for sequences `inputs`,
  `vocab_size` and `length`. It should be immutable, as a frozen dataclass is.
  """

  inputs: tuple[str, ...] = ()
  metrics: tuple[str, ...] = METRICS
  primary_metric: str = METRICS[0]
  shards: int = 1

  @property
  def fingerprints(self) -> Mapping[str, str]:
    """Empty, since nothing is read."""
    return {}

  def batch(self, key: jax.Array, step: Any, batch_size: int, /) -> types.Batch:
    """Makes the batch of `(key, step)`; a subclass defines it."""
    raise NotImplementedError(f'{type(self).__name__} does not define batch.')

  def draw(self, key: jax.Array, step: Any, batch_size: int) -> types.Batch:
    """Makes a batch: the old name of `batch`, for one release."""
    deprecation.warn(f'{type(self).__name__}.draw is now batch')
    return self.batch(key, step, batch_size)

  def held_out(self, key: jax.Array, size: int) -> types.Batch:
    """Makes the held-out set, the batch of step 0 of its own key."""
    return jax.jit(lambda key: self.batch(key, 0, size))(key)

  def host_spec(self, batch_size: int) -> Any:
    """Returns None: nothing is read."""
    del batch_size

  def host_batches(
    self, batch_size: int, seed: int, shard: tuple[int, int] = (0, 1)
  ) -> Iterable[Any]:
    """Raises TypeError: nothing is read."""
    del batch_size, seed, shard
    raise TypeError(f'{type(self).__name__} reads nothing on the host.')

  def check(self, batch_size: int) -> None:
    """Accepts every batch size."""
    del batch_size

  def save(self, folder: pathlib.Path) -> None:
    """Writes nothing."""
    del folder


# Makes a task of the data block of a config and a typed PRNG key.
Factory: TypeAlias = Callable[[Any, jax.Array], Task]


@dataclasses.dataclass(frozen=True)
class Registration:
  """Entry of the registry.

  Attributes:
    make: makes the task.
    abstract: makes a task for its shapes alone; it reads no file.
    paths: fields of the data block that locate files. They do not change the
      data, whose fingerprints identify it: `config.json` leaves them out.
  """

  make: Factory
  abstract: Factory
  paths: tuple[str, ...] = ()


TASKS: dict[str, Registration] = {}


def register(
  name: str,
  make: Factory,
  abstract: Factory | None = None,
  *,
  paths: Sequence[str] = (),
) -> None:
  """Registers a task, so that `config.task = name` chooses it.

  Args:
    name: name of the task.
    make: makes the task of `(data, key)`: the data block of a config and a
      typed PRNG key.
    abstract: makes it for its shapes alone, without reading a file; None is
      `make`.
    paths: fields of the data block that locate files, '' by default. If
      'folder' is one of them, it is the folder that `Task.save` writes to, by
      default `WORKDIR/NAME`.

  Raises:
    UserError: the name is taken by another function.
  """
  if abstract is not None:
    arguments.function('abstract', abstract, 'make')
  checks.texts('paths', paths)
  entry = Registration(make, abstract or make, tuple(paths))
  registration.add('task', TASKS, name, entry, make)


def make(name: str, data: Any, key: jax.Array) -> Task:
  """Makes a task, which reads its files now and not later.

  Args:
    name: name of a registered task.
    data: data block of a config, with the paths filled in by `resolve_paths`.
    key: typed PRNG key of what the task draws once, such as a parity's support.

  Returns:
    The task.

  Raises:
    UserError: the name is unknown, the options are invalid, or the files are
      not the ones that `data.fingerprints` asks for.
  """
  _check_data(data)
  checks.key('key', key)
  task = _registration(name).make(data, key)
  _check_protocol(name, task)
  _check_fingerprints(data, task)
  return task


def make_abstract(name: str, data: Any, key: jax.Array) -> Task:
  """Makes a task for its shapes alone; no file is read.

  `jax.eval_shape` of its methods `batch` and `held_out` gives the shapes.

  Args:
    name: name of a registered task.
    data: data block of a config.
    key: typed PRNG key, as for `make`.

  Returns:
    The task.

  Raises:
    UserError: the name is unknown or the options are invalid.
  """
  _check_data(data)
  checks.key('key', key)
  task = _registration(name).abstract(data, key)
  _check_protocol(name, task)
  return task


def _check_data(data: Any) -> None:
  """Raises UserError unless the options of a task are a block of a config."""
  errors.require(
    hasattr(data, 'get') and hasattr(data, 'unlocked'),
    f'data={data!r} must be a block of a config, as of '
    'ml_collections.ConfigDict.',
  )
  asked = data.get('fingerprints', {})
  errors.require(
    isinstance(asked, Mapping) or hasattr(asked, 'unlocked'),
    f'data.fingerprints={asked!r} must be a block of fields.',
  )


def _registration(name: str) -> Registration:
  return errors.lookup('task', name, TASKS)


def _check_protocol(name: str, task: Any) -> None:
  """Raises UserError for a task that lacks a member of the protocol."""
  names = [member for member in vars(Task) if not member.startswith('_')]
  missing = [member for member in names if not hasattr(task, member)]
  errors.require(
    not missing,
    f'The task {name!r} has no {", ".join(missing)}. Define what is missing in '
    f'{type(task).__name__}, or derive it from cxjax.tasks.SyntheticTask.',
  )
  errors.require(
    task.primary_metric in task.metrics,
    f'The task {name!r} has primary_metric={task.primary_metric!r}, which is '
    f'not one of its metrics. Choose one of: {", ".join(task.metrics)}.',
  )


def _check_fingerprints(data: Any, task: Task) -> None:
  """Raises UserError if `data.fingerprints` asks for other files."""
  asked = data.get('fingerprints') or {}
  for name, found in task.fingerprints.items():
    wanted = asked.get(name, '')
    errors.require(
      wanted in ('', found),
      f'data.fingerprints.{name}={wanted}, but that of the {name} here is '
      f'{found}. Restore the {name}, or choose another workdir.',
    )


def record_fingerprints(data: Any, task: Task) -> None:
  """Writes the fingerprints of a task into a data block, for `config.json`.

  Args:
    data: data block of a config; changed in place.
    task: the task that was made of it.
  """
  if task.fingerprints:
    with data.unlocked():
      data.fingerprints = dict(task.fingerprints)


def resolve_paths(name: str, data: Any, workdir: pathlib.Path) -> None:
  """Fills in the paths of a data block that are not given.

  Args:
    name: name of a registered task.
    data: data block of a config; changed in place.
    workdir: folder of the experiment.
  """
  paths = _registration(name).paths
  for field in paths:
    if field not in data:  # It was read from the config.json of a run.
      with data.unlocked():
        data[field] = ''
  if FOLDER in paths and not data[FOLDER]:
    data[FOLDER] = str(workdir / name)


def without_paths(name: str, data: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of a data block that determine the data.

  Args:
    name: name of a registered task.
    data: the fields.

  Returns:
    The fields except paths.
  """
  paths = _registration(name).paths
  return {field: value for field, value in data.items() if field not in paths}


def open_loader(
  task: Task,
  batch_size: int,
  seeds: Sequence[int],
  steps: int,
  mesh: jax.sharding.Mesh,
) -> loader.HostLoader:
  """Opens the loader of a task that reads on the host.

  Args:
    task: a task whose `host_spec` is not None.
    batch_size: `B`, examples of a step.
    seeds: one seed for each data stream.
    steps: `T`, steps of a chunk.
    mesh: the devices.

  Returns:
    The loader, for `[T, streams, B, ...]` rows.

  Raises:
    UserError: the shards do not divide the batch, or several processes would
      have to share one.
  """
  task.check(batch_size)
  number = task.shards
  shards = [
    [
      task.host_batches(batch_size // number, int(seed), (shard, number))
      for seed in seeds
    ]
    for shard in range(number)
  ]
  return loader.HostLoader(shards, steps, mesh, task.host_spec(batch_size))
