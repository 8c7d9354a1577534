"""Rows from the host for the steps of a run, one chunk ahead of it."""

import abc
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from concurrent import futures
import math
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from cxjax import errors
from cxjax.parallel import mesh as mesh_lib
from cxjax.parallel import multihost

Rows = Any  # `[T, streams, B, ...]` in every leaf.


class Ahead(abc.ABC):
  """Chunks of at most `T` steps, one ahead of the run.

  While a chunk is computed on, the next is read and put on the devices.
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
    self._before: dict[str, Any] = {}
    self._next: futures.Future | None = None

  def rows(self, step: int) -> Rows:
    """The chunk that `step` is in: the current one, or the one after it."""
    number = self._chunk(step)
    if number != self._number:
      assert number == self._number + 1, (number, self._number)
      self._before, self._rows = self._ahead()
      self._number, self._next = number, None
      self._ahead(wait=False)
    return self._rows

  def wants(self, step: int) -> Any:
    """Targets that are stored with the rows of a chunk; here there are none."""
    del step

  def state(self, step: int) -> dict[str, Any]:
    """What `restore` needs for a run that goes on at `step`.

    Args:
      step: in the current chunk, or at its end.

    Returns:
      JSON values by name; of several processes each has its own names.
    """
    now = self._chunk(step) == self._number
    return self._before if now else self._ahead()[0]

  def restore(self, step: int, read: Callable[[str], Any]) -> None:
    """Goes on where a state was taken.

    Args:
      step: at which it was.
      read: the JSON value of a name in the state.
    """
    if self._next is not None:
      self._next.result()
    self._next, self._number = None, self._chunk(step) - 1
    self._set(read)

  def __enter__(self) -> 'Ahead':
    """Itself."""
    return self

  def __exit__(self, *error) -> None:
    """Stops reading."""
    self._pool.shutdown(cancel_futures=True)

  def _ahead(self, wait=True):
    if self._next is None:
      self._next = self._pool.submit(self._read)
    return self._next.result() if wait else None

  def _chunk(self, step) -> int:
    """The number of the chunk that `step` is in."""
    return step // self._steps

  @abc.abstractmethod
  def _read(self) -> tuple[dict[str, Any], Rows]:
    """The state before the next chunk, and that chunk on the devices."""

  @abc.abstractmethod
  def _set(self, read: Callable[[str], Any]) -> None:
    """Sets the state."""


class Feed(Ahead):
  """Chunk `n` is for the steps `n T` to `(n + 1) T - 1`.

  A batch is made of equal parts, shards, one after the other; a process reads
  those that its devices need. How many shards there are changes the batches,
  how many processes there are does not.
  """

  def __init__(
    self,
    shards: Sequence[Sequence['grain.IterDataset | Stream']],
    steps: int,
    mesh: jax.sharding.Mesh,
    shapes: Any,
  ):
    """Reads nothing yet.

    Args:
      shards: of every shard a dataset a stream, of batches without end, `[B /
        shards, ...]` in every leaf.
      steps: `T`.
      mesh: the devices.
      shapes: of a batch of one stream, `[B, ...]`; a tree.

    Raises:
      UserError: shards that several processes would have to share.
    """
    super().__init__(steps, mesh)
    batch_size = jax.tree.leaves(shapes)[0].shape[0]
    self._size, self._shapes = batch_size // len(shards), shapes
    own = mesh_lib.own_rows(mesh, batch_size)
    errors.require(
      multihost.count() == 1 or len(own) % self._size == 0,
      f'data.shards={len(shards)}: {multihost.count()} processes cannot each '
      'read parts of its own. Set it to their number, or a multiple.',
    )
    self._iterators = {
      number: [iter(stream) for stream in shards[number]]
      for number in sorted({row // self._size for row in own})
    }

  def _set(self, read):
    for shard, iterators in self._iterators.items():
      for iterator, saved in zip(iterators, read(_name(shard)), strict=True):
        iterator.set_state(saved)

  def _read(self):
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

  def _place(self, like, *parts):
    """The parts of a leaf, `[T, streams, B / shards, ...]`, as one array."""
    by_shard = dict(zip(self._iterators, parts, strict=True))

    def read(rows):
      first, last = rows[0] // self._size, rows[-1] // self._size
      found = [by_shard[shard] for shard in range(first, last + 1)]
      joined = found[0] if len(found) == 1 else np.concatenate(found, axis=2)
      begin = first * self._size
      return joined[:, :, rows[0] - begin : rows[-1] + 1 - begin]

    shape = (*parts[0].shape[:2], *like.shape)
    return mesh_lib.from_rows(shape, read, self._mesh)


def _name(shard):
  return f'feed-{shard:05d}'


class Stream:
  """Batches of any iterable, begun again when it ends, with a state."""

  def __init__(
    self,
    batches: Iterable[Any],
    shapes: Any,
    convert: Callable[[Any], Any] = lambda batch: batch,
    limit: float = math.inf,
  ):
    """Reads nothing yet.

    Args:
      batches: what the batches are made of.
      shapes: of one batch, with its dtypes; a tree.
      convert: from an item to a batch.
      limit: how many are wanted; zeros, read ahead for nobody, come after them.
    """
    self._limit = limit
    self._batches, self._shapes, self._convert = batches, shapes, convert
    self._iterator: Any = iter(batches)  # It may have a state.
    self._taken = 0

  def __iter__(self) -> 'Stream':
    """Itself."""
    return self

  def __next__(self) -> Any:
    """The next batch, as numpy arrays.

    Raises:
      UserError: it is not of the shapes, or there is none.
    """
    if self._taken >= self._limit:
      zeros = lambda like: np.zeros(like.shape, like.dtype)
      return jax.tree.map(zeros, self._shapes)
    batch = self._convert(self._item())
    self._taken += 1
    return alike(batch, self._shapes, f'batch {self._taken}')

  def get_state(self) -> dict[str, Any]:
    """How many were read, and where the iterator is, if it says so; JSON."""
    own = getattr(self._iterator, 'get_state', None)
    return {'taken': self._taken, 'own': own and own()}

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes on where `get_state` was asked."""
    if self._taken:  # Else it is at its start, and may bear no second one.
      self._iterator = iter(self._batches)
    self._taken = state['taken']
    if state['own'] is not None:
      self._iterator.set_state(state['own'])
      return
    for _ in range(state['taken']):
      self._item()

  def _item(self):
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


def alike(batch: Any, shapes: Any, what: str, *, sized: bool = True) -> Any:
  """A batch as the example of a plan: the same tree, the same dtypes.

  Args:
    batch: a tree of arrays.
    shapes: of the example.
    what: what the batch is, for the message.
    sized: whether it must have as many examples.

  Returns:
    The batch, as numpy arrays.

  Raises:
    UserError: it has other parts or shapes, or would be rounded.
  """
  leaves, wanted = jax.tree.leaves_with_path(batch), jax.tree.leaves(shapes)
  errors.require(
    _names(batch) == _names(shapes),
    f'{what} has {_names(batch)}, the example of the plan {_names(shapes)}: '
    'they must be alike.',
  )
  cast = []
  for (path, leaf), like in zip(leaves, wanted, strict=True):
    name = jax.tree_util.keystr(path, simple=True, separator='.')
    kinds = (np.asarray(leaf).dtype, like.dtype)
    real = [jnp.issubdtype(kind, jnp.inexact) for kind in kinds]
    errors.require(
      real != [True, False],
      f'{name} of {what} is {kinds[0]}, that of the example {kinds[1]}: it '
      'would be rounded. Give an example of the same kind.',
    )
    cast.append(np.asarray(leaf, like.dtype))
    errors.require(
      any(real) or np.array_equal(cast[-1], leaf),
      f'{name} of {what} has numbers that {kinds[1]}, the kind of the example, '
      'does not hold. Give an example of another kind.',
    )
    shape = np.shape(leaf)
    errors.require(
      shape == like.shape
      or (not sized and len(shape) > 0 and shape[1:] == like.shape[1:]),
      f'{name} of {what} has shape {list(shape)}, that of the example '
      f'{list(like.shape)}. '
      + (
        'Drop a last batch that is smaller, or give another example.'
        if sized
        else 'Only the number of examples may be another.'
      ),
    )
  return jax.tree.unflatten(jax.tree.structure(shapes), cast)


def _names(tree):
  names = (
    jax.tree_util.keystr(path, simple=True, separator='.')
    for path, _ in jax.tree.leaves_with_path(tree)
  )
  return ', '.join(names) or 'nothing'
