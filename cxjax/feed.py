"""Rows from the host for the steps of a run, one chunk ahead of it."""

from collections.abc import Sequence
from concurrent import futures
from typing import Any

import grain
import jax
import numpy as np

from cxjax import mesh as mesh_lib

Rows = Any  # `[T, streams, B, ...]` in every leaf.


class Feed:
  """Chunks of `T` steps; chunk `n` is for the steps `n T` to `(n + 1) T - 1`.

  While a chunk is computed on, the next is read and put on the devices.
  """

  def __init__(
    self,
    streams: Sequence[grain.IterDataset],
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
    self._next = None

  def rows(self, step: int) -> Rows:
    """The chunk that `step` is in: the current one, or the one after it."""
    number = step // self._steps
    if number != self._number:
      assert number == self._number + 1, (number, self._number)
      self._before, self._rows = self._ahead()
      self._number, self._next = number, None
      self._ahead(wait=False)
    return self._rows

  def state(self, step: int) -> dict[str, Any]:
    """What `restore` needs for a run that goes on at `step`; JSON."""
    number = step // self._steps
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
