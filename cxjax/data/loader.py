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
from cxjax import types
from cxjax.data import user_batches
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

  def __init__(self, steps: int, mesh: jax.sharding.Mesh):
    """Reads nothing yet.

    Args:
      steps: `T`.
      mesh: the devices.
    """
    self._steps, self._mesh = steps, mesh
    self._pool = futures.ThreadPoolExecutor(1)
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
      JSON values by name; several processes have different names, or equal
      values.
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
    if self._next is not None:
      self._next.result()
    self._next, self._number = None, self._chunk(step) - 1
    self._set(read)

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
    self._pool.shutdown(cancel_futures=True)

  def _ahead(self) -> futures.Future[tuple[State, Rows]]:
    """The next chunk, being read."""
    if self._next is None:
      self._next = self._pool.submit(self._read)
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
  ):
    """Opens the iterators of this process; reads nothing yet.

    Args:
      shards: for each shard one endless dataset per stream, of trees of
        `[B / shards, ...]`. Their iterators have `get_state` and `set_state`.
      steps: `T`.
      mesh: the devices.
      shapes: shapes of the batch of one stream, a tree of `[B, ...]`.

    Raises:
      UserError: several processes would have to share a shard.
    """
    super().__init__(steps, mesh)
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
    # Where this process needs less than the shards that it reads.
    self._columns = None if read == own else [read.index(row) for row in own]
    self._shapes = shapes
    self._iterators: dict[int, list[Any]] = {
      number: [iter(stream) for stream in shards[number]] for number in numbers
    }

  def _set(self, read: Callable[[str], Any]) -> None:
    for shard, iterators in self._iterators.items():
      for iterator, saved in zip(iterators, read(_name(shard)), strict=True):
        iterator.set_state(saved)

  def _read(self) -> tuple[State, Rows]:
    before, found = {}, {}
    for shard, iterators in self._iterators.items():
      before[_name(shard)] = [iterator.get_state() for iterator in iterators]
      batches = [
        [next(iterator) for iterator in iterators] for _ in range(self._steps)
      ]
      stack = lambda *leaves: np.stack(leaves)
      steps = [jax.tree.map(stack, *streams) for streams in batches]
      found[shard] = jax.tree.map(stack, *steps)
    return before, jax.tree.map(self._place, self._shapes, *found.values())

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
  """Batches of an iterable, restarted when it ends, with a state."""

  def __init__(
    self,
    batches: Iterable[Any],
    shapes: Any,
    convert: Callable[[Any], Any] = lambda batch: batch,
    limit: float = math.inf,
  ):
    """Reads nothing yet.

    Args:
      batches: the items that batches are made from.
      shapes: shapes and dtypes of a batch, a tree.
      convert: makes a batch of an item.
      limit: number of batches to serve; prefetching beyond it yields zeros.
    """
    self._limit = limit
    self._batches, self._shapes, self._convert = batches, shapes, convert
    self._iterator: Any = iter(batches)  # It may have a state.
    self._taken = 0

  def __iter__(self) -> Self:
    """Returns the stream."""
    return self

  def __next__(self) -> Any:
    """The next batch, as NumPy arrays.

    Raises:
      UserError: the batch does not have the shapes, or there is none.
    """
    if self._taken >= self._limit:
      zeros = lambda like: np.zeros(like.shape, like.dtype)
      return jax.tree.map(zeros, self._shapes)
    batch = self._convert(self._item())
    self._taken += 1
    return user_batches.conform(batch, self._shapes, f'batch {self._taken}')

  def get_state(self) -> dict[str, Any]:
    """State as JSON: the number of batches read, and the iterator's own state.

    Returns:
      `{'taken': int, 'own': ...}`; 'own' is None if the iterator has no
      `get_state`.
    """
    own = getattr(self._iterator, 'get_state', None)
    return {'taken': self._taken, 'own': own and own()}

  def set_state(self, state: dict[str, Any]) -> None:
    """Restores a state.

    A grain iterator restores its own state; any other is fast-forwarded.

    Args:
      state: returned by `get_state`.

    Raises:
      UserError: the batches end before the state.
    """
    if self._taken:  # An iterator at its start may not allow a second one.
      self._iterator = iter(self._batches)
    self._taken = state['taken']
    if state['own'] is not None:
      self._iterator.set_state(state['own'])
      return
    for _ in range(state['taken']):
      self._item()

  def _item(self) -> Any:
    try:
      return next(self._iterator)
    except StopIteration:
      self._iterator = iter(self._batches)
    try:
      return next(self._iterator)
    except StopIteration as error:
      raise errors.UserError(
        f'The batches ended after {self._taken}. Give as many as there are '
        'steps, or something that can be iterated again, as a list.'
      ) from error
