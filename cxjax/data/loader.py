"""Loaders that read host data and put it on the devices ahead of the run.

A chunk holds what the host reads for at most `T` steps, called rows: the
examples of a user's batches, or packed text that a task masks on the devices.
"""

import abc
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent import futures
import math
import types as builtin_types
from typing import Any
from typing import Self
from typing import TypeAlias

import jax
import numpy as np

from cxjax import errors
from cxjax import settings
from cxjax import types
from cxjax.data import conform
from cxjax.data import reader_thread
from cxjax.data import user_loader
from cxjax.parallel import mesh as mesh_lib
from cxjax.parallel import multihost

Rows: TypeAlias = Any  # A tree of `[T, streams, B, ...]`.
State: TypeAlias = Mapping[str, Any]  # JSON values by name.


# Not grain's experimental.device_put: it takes grain datasets alone, and it
# calls jax.device_put, which in a run of several processes needs the whole
# array in each of them.
class Prefetch(abc.ABC):
  """Serves rows in chunks of at most `T` steps, one chunk ahead of the run.

  While the devices compute on a chunk, a thread reads the next one and puts it
  on the devices.
  """

  def __init__(
    self,
    steps: int,
    mesh: jax.sharding.Mesh,
    thread: reader_thread.ReaderThread | None = None,
  ):
    """Reads nothing yet.

    Args:
      steps: `T`.
      mesh: the devices.
      thread: where all is read; the caller closes it. None is one of its own.
    """
    self._steps, self._mesh = steps, mesh
    self._own_thread = thread is None
    self._thread = thread or reader_thread.ReaderThread()
    self._number, self._rows = -1, None
    self._before: State = {}
    self._next: futures.Future[tuple[State, Rows]] | None = None

  def rows(self, step: int) -> Rows:
    """The chunk that holds `step`: the current chunk or the next one."""
    number = self._chunk(step)
    if number != self._number:
      assert number == self._number + 1, (number, self._number)
      self._before, self._rows = self._ahead().result()
      self._number, self._next = number, None
      self._ahead()
    return self._rows

  def targets(self, step: int) -> types.Target:
    """Stored targets of the chunk that holds `step`; None without a cache."""
    del step

  def state(self, step: int) -> State:
    """The state from which `restore` continues at `step`.

    Args:
      step: a step of the current chunk, or its end.

    Returns:
      JSON values by name; several processes have different names.
    """
    if self._chunk(step) == self._number:
      return self._before
    return self._ahead().result()[0]

  def restore(self, step: int, read: Callable[[str], Any]) -> None:
    """Continues from a state.

    Args:
      step: the step for which `state` was called.
      read: returns the JSON value of a name in the state.
    """
    self._next, self._number = None, self._chunk(step) - 1
    self._thread.call(self._set, read)

  def __enter__(self) -> Self:
    """Returns the loader."""
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: builtin_types.TracebackType | None,
  ) -> None:
    """Stops reading."""
    if self._own_thread:
      self._thread.close()

  def _ahead(self) -> futures.Future[tuple[State, Rows]]:
    """The next chunk, being read."""
    if self._next is None:
      self._next = self._thread.submit(self._read)
    return self._next

  def _chunk(self, step: int) -> int:
    """Index of the chunk that holds `step`."""
    return step // self._steps

  @abc.abstractmethod
  def _read(self) -> tuple[State, Rows]:
    """Reads the next chunk; returns the state before it, and its arrays."""

  @abc.abstractmethod
  def _set(self, read: Callable[[str], Any]) -> None:
    """Sets the state, as `restore`."""


class HostLoader(Prefetch):
  """Loads batches from host iterators, `T` steps in every chunk.

  A batch consists of equal parts, shards, in order. A process reads the shards
  that its devices need. The number of shards changes the batches; the number of
  processes does not.
  """

  def __init__(
    self,
    shards: Sequence[Sequence[Iterable[Any]]],
    steps: int,
    mesh: jax.sharding.Mesh,
    shapes: Any,
    thread: reader_thread.ReaderThread | None = None,
  ):
    """Opens the iterators of this process; reads nothing yet.

    Args:
      shards: for each shard one endless dataset per stream, of trees of
        `[B / shards, ...]`. Their iterators have `get_state` and `set_state`.
      steps: `T`.
      mesh: the devices.
      shapes: shapes of the batch of one stream, a tree of `[B, ...]`.
      thread: thread that reads, as for `Prefetch`.

    Raises:
      UserError: several processes would have to share a shard.
    """
    super().__init__(steps, mesh, thread)
    batch_size = jax.tree.leaves(shapes)[0].shape[0]
    size = batch_size // len(shards)
    own = mesh_lib.own_rows(mesh, batch_size)
    errors.require(
      multihost.count() == 1 or len(own) % size == 0,
      f'data.shards={len(shards)}: {multihost.count()} processes cannot each '
      'read shards of their own. Set it to their number, or a multiple.',
    )
    numbers = sorted({row // size for row in own})
    read = [row for n in numbers for row in range(n * size, (n + 1) * size)]
    # Of the processes that read a shard, one alone saves its state.
    first = mesh_lib.first_holders(mesh, batch_size)
    self._saved = {n for n in numbers if first[n * size] == jax.process_index()}
    # Where this process needs less than the shards that it reads.
    self._columns = None if read == own else [read.index(row) for row in own]
    self._shapes = shapes
    self._iterators: dict[int, list[Any]] = self._thread.call(
      lambda: {n: [iter(stream) for stream in shards[n]] for n in numbers}
    )

  def _set(self, read: Callable[[str], Any]) -> None:
    for shard, iterators in self._iterators.items():
      for iterator, saved in zip(iterators, read(_name(shard)), strict=True):
        iterator.set_state(saved)

  def _read(self) -> tuple[State, Rows]:
    before, found = {}, {}
    for shard, iterators in self._iterators.items():
      if shard in self._saved:
        before[_name(shard)] = [iterator.get_state() for iterator in iterators]
      found[shard] = self._chunk_of(iterators)
    with settings.fixed():  # Those of the caller hold in its thread alone.
      return before, jax.tree.map(self._place, self._shapes, *found.values())

  def _chunk_of(self, iterators: Sequence[Any]) -> Any:
    """Reads `T` batches of all streams: a tree of `[T, streams, ...]`.

    Each batch is copied before the next one is read: an iterator may use its
    buffers again.
    """
    chunk: list[np.ndarray] = []
    structure: Any = None
    for step in range(self._steps):
      for stream, iterator in enumerate(iterators):
        batch, found = jax.tree.flatten(next(iterator))
        leaves = [np.asarray(leaf) for leaf in batch]
        if structure is None:
          structure, lead = found, (self._steps, len(iterators))
          chunk = [np.empty((*lead, *x.shape), x.dtype) for x in leaves]
        assert found == structure, (found, structure)
        for whole, x in zip(chunk, leaves, strict=True):
          assert (x.shape, x.dtype) == (whole.shape[2:], whole.dtype)
          whole[step, stream] = x
    return jax.tree.unflatten(structure, chunk)

  def _place(self, like: jax.ShapeDtypeStruct, *parts: np.ndarray) -> jax.Array:
    """Joins the shards of a leaf, `[T, streams, B / shards, ...]` each."""
    local = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
    if self._columns is not None:
      local = local[:, :, self._columns]
    shape = (*local.shape[:2], *like.shape)
    whole = jax.ShapeDtypeStruct(shape, local.dtype)
    sharding = mesh_lib.abstract_rows(whole, self._mesh).sharding
    return jax.make_array_from_process_local_data(sharding, local, shape)


def _name(shard: int) -> str:
  return f'loader-{shard:05d}'


class BatchStream:
  """Batches of a user's loader, checked, with a state."""

  def __init__(
    self,
    batches: user_loader.UserLoader | Iterable[Any],
    shapes: Any,
    convert: Callable[[Any], Any] = lambda batch: batch,
    limit: float = math.inf,
    last_batch: str = 'error',
  ):
    """Reads nothing yet.

    Args:
      batches: the items that batches are made from.
      shapes: shapes and dtypes of a batch, a tree.
      convert: makes a batch of an item.
      limit: number of batches to serve; prefetching beyond it yields zeros.
      last_batch: treatment of a batch with fewer examples, one of
        `conform.LAST_BATCH`.
    """
    if not isinstance(batches, user_loader.UserLoader):
      batches = user_loader.UserLoader(batches)
    self._loader, self._limit = batches, limit
    self._shapes, self._convert = shapes, convert
    self._last_batch = last_batch
    self._served = 0

  def __iter__(self) -> Self:
    """Returns the stream."""
    return self

  def __next__(self) -> Any:
    """The next batch, as NumPy arrays.

    Raises:
      UserError: the batch does not have the shapes, there is none, or the
        loader raises.
    """
    if self._served >= self._limit:
      zeros = lambda like: np.zeros(like.shape, like.dtype)
      return jax.tree.map(zeros, self._shapes)
    batch = self._fitted()
    if batch is None:  # One short batch may be the last of an epoch.
      batch = self._fitted()
    errors.require(
      batch is not None,
      f'Batch {self._loader.taken} and the one before it have fewer examples '
      "than the example of the plan: last_batch='drop' is for the last batch "
      'of an epoch. Give batches of its size, or another example.',
    )
    self._served += 1
    return batch

  def get_state(self) -> dict[str, Any]:
    """State as JSON.

    Returns:
      That of `user_loader.UserLoader`, and 'served', the number of batches that
      were not dropped.
    """
    return {**self._loader.state(), 'served': self._served}

  def set_state(self, state: dict[str, Any]) -> None:
    """Restores a state.

    A grain iterator restores its own state; any other is fast-forwarded.

    Args:
      state: returned by `get_state`.

    Raises:
      UserError: the batches end before the state.
    """
    self._loader.set_state(state)
    self._served = state['served']

  def _fitted(self) -> Any:
    """The next item as a batch; None if it is dropped."""
    item = self._loader.read(self._limit)
    what = f'batch {self._loader.taken}'
    with conform.reported(what):
      batch = self._convert(item)
    return conform.fit(batch, self._shapes, what, self._last_batch)
