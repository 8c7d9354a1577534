"""Rows from the host for the steps of a run, one chunk ahead of it."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from concurrent import futures
from typing import Any

import grain
import jax
import numpy as np

from cxjax import errors
from cxjax import mesh as mesh_lib

Rows = Any  # `[T, streams, B, ...]` in every leaf.


class Feed:
  """Chunks of `T` steps; chunk `n` is for the steps `n T` to `(n + 1) T - 1`.

  While a chunk is computed on, the next is read and put on the devices.
  """

  def __init__(
    self,
    streams: Sequence['grain.IterDataset | Stream'],
    steps: int,
    mesh: jax.sharding.Mesh,
  ):
    """Reads nothing yet.

    Args:
      streams: datasets of batches, `[B, ...]` in every leaf, without end.
      steps: `T`.
      mesh: the devices.
    """
    self._iterators = [iter(stream) for stream in streams]
    self._steps, self._mesh = steps, mesh
    self._pool = futures.ThreadPoolExecutor(1)
    self._number, self._rows, self._before = -1, None, None
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
    """What `restore` needs for a run that goes on at `step`; JSON."""
    number = self._chunk(step)
    before = self._before if number == self._number else self._ahead()[0]
    return {'chunk': number, 'iterators': before}

  def restore(self, state: dict[str, Any]) -> None:
    """Goes on where `state` was taken."""
    if self._next is not None:
      self._next.result()
    self._next = None
    for iterator, saved in zip(
      self._iterators, state['iterators'], strict=True
    ):
      iterator.set_state(saved)
    self._number = state['chunk'] - 1

  def __enter__(self) -> 'Feed':
    """Itself."""
    return self

  def __exit__(self, *error) -> None:
    """Stops reading."""
    self._pool.shutdown(cancel_futures=True)

  def _chunk(self, step):
    return step // self._steps

  def _ahead(self, wait=True):
    if self._next is None:
      self._next = self._pool.submit(self._read)
    return self._next.result() if wait else None

  def _read(self):
    before = [iterator.get_state() for iterator in self._iterators]
    batches = [
      [next(iterator) for iterator in self._iterators]
      for _ in range(self._steps)
    ]
    stack = lambda *leaves: np.stack(leaves)
    steps = [jax.tree.map(stack, *streams) for streams in batches]
    return before, mesh_lib.replicate(jax.tree.map(stack, *steps), self._mesh)


class Stream:
  """Batches of any iterable, begun again when it ends, with a state."""

  def __init__(
    self,
    batches: Iterable[Any],
    shapes: Any,
    convert: Callable[[Any], Any] = lambda batch: batch,
  ):
    """Reads nothing yet.

    Args:
      batches: what the batches are made of.
      shapes: of one batch, with its dtypes; a tree.
      convert: from an item to a batch.
    """
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
    batch = self._convert(self._item())
    self._taken += 1
    self._check(batch)
    return jax.tree.map(
      lambda leaf, like: np.asarray(leaf, like.dtype), batch, self._shapes
    )

  def get_state(self) -> dict[str, Any]:
    """How many were read, and where the iterator is, if it says so; JSON."""
    own = getattr(self._iterator, 'get_state', None)
    return {'taken': self._taken, 'own': own and own()}

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes on where `get_state` was asked."""
    self._iterator, self._taken = iter(self._batches), state['taken']
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

  def _check(self, batch):
    want: Any = jax.tree.structure(self._shapes)
    got: Any = jax.tree.structure(batch)
    errors.require(
      want == got,
      f'Batch {self._taken} is {got}, the example of the plan {want}: they '
      'must be alike.',
    )
    for (path, leaf), like in zip(
      jax.tree.leaves_with_path(batch),
      jax.tree.leaves(self._shapes),
      strict=True,
    ):
      name = jax.tree_util.keystr(path, simple=True, separator='.')
      errors.require(
        np.shape(leaf) == like.shape,
        f'{name} of batch {self._taken} has shape {list(np.shape(leaf))}, that '
        f'of the example {list(like.shape)}. Drop a last batch that is '
        'smaller, or give another example.',
      )
