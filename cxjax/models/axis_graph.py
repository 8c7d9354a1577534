"""Axes of the values of a model, which operations make one of another.

Axes that are made of one another have one role. Convolutions may contract
several axes of a value, and several may have one role: a dense layer over the
positions whose result scales the channels makes one role of both. Which of them
the channels are, the nearest convolution says.
"""

from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import functools
import math

# A layer, by the order of the model, and an axis that it reads or makes.
_Start = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Layer:
  """A product or a convolution with parameters.

  Attributes:
    axis: the axis that it contracts.
    made: the axis of its features; None without one.
    window: number of positions that a convolution reads; 0 of a product.
    size: the larger of the numbers of features that a convolution reads and
      makes; one of 1 only filters.
    grid: axes of the positions of a convolution.
  """

  axis: int
  made: int | None = None
  window: int = 0
  size: int = 0
  grid: tuple[int, ...] = ()


class Graph:
  """Axes by number, and those that each is made of."""

  def __init__(self) -> None:
    """Starts without axes."""
    self._parents: list[int] = []
    self._edges: list[tuple[int, int]] = []
    self._cuts: list[tuple[int, int]] = []
    self._layers: list[Layer] = []

  def fresh(self, count: int) -> tuple[int, ...]:
    """Numbers of so many new axes."""
    first = len(self._parents)
    self._parents.extend(range(first, first + count))
    return tuple(range(first, first + count))

  def join(self, below: int, above: int) -> None:
    """Says that one axis is made of another."""
    self._parents[self._role(below)] = self._role(above)
    self._edges.append((below, above))

  def cut(self, below: int, above: int) -> None:
    """Says that a reshape makes one axis of a part of another."""
    self._cuts.append((below, above))

  def add(self, layer: Layer) -> None:
    """Adds the next layer of the model; it makes its features of features."""
    self._layers.append(layer)
    if layer.made is not None:
      self._parents[self._role(layer.axis)] = self._role(layer.made)

  def channels(self, axes: Sequence[int]) -> int | None:
    """The axis of a value with the channels of convolutions.

    Args:
      axes: numbers of the axes of the value.

    Returns:
      The axis; None if no convolution says so. Of several it is the one of the
      last convolution before the value, and else of the first that reads it.
    """
    said = [self._layers[i] for i in self._convolutions]
    for size in (2, 1):  # Filters of single channels say least.
      roles = {self._role(each.axis) for each in said if each.size >= size}
      found = [i for i, n in enumerate(axes) if i and self._role(n) in roles]
      if found:
        break
    if len(found) < 2:
      return found[0] if found else None
    # Of one role, an axis that a dense layer does not lead to goes first.
    for near, far in (self._made, self._read):
      best: dict[int, tuple[float, int, int]] = {}
      for i in (i for i in found if axes[i] in far):
        role = self._role(axes[i])
        key = near.get(axes[i], -math.inf), far[axes[i]], i
        best[role] = max(best.get(role, key), key)
      if best:
        return max(key[1:] for key in best.values())[-1]
    return None

  @functools.cached_property
  def _convolutions(self) -> list[int]:
    """The convolutions that say which axis the channels are.

    A convolution of a single position is a dense layer, and may mix tokens. It
    does not say so where it reads the positions of wider convolutions over
    another axis, or where later dense layers read another.
    """
    wide = self._positions()
    dense = {
      self._role(each.axis): i
      for i, each in enumerate(self._layers)
      if not each.window
    }
    last = lambda role: dense.get(role, -1)
    found = []
    for i, layer in enumerate(self._layers):
      role, others = self._role(layer.axis), list(map(self._role, layer.grid))
      mixes = role not in wide and any(
        role in wide.get(other, ()) or last(other) > last(role)
        for other in others
      )
      if layer.window and not mixes:
        found.append(i)
    return found

  def _positions(self) -> dict[int, set[int]]:
    """Roles of the positions of wider convolutions, by that of channels."""
    cuts = [(self._role(a), self._role(b)) for a, b in self._cuts]
    grids: dict[int, set[int]] = {}
    for layer in self._layers:
      if layer.window > 1:
        grid = grids.setdefault(self._role(layer.axis), set())
        grid.update(map(self._role, layer.grid))
    return {
      role: set(_reached([(0, axis) for axis in grid], cuts, ())[0])
      for role, grid in grids.items()
    }

  @functools.cached_property
  def _made(self) -> tuple[dict[int, int], dict[int, int]]:
    """The last convolution before each axis: `_reached`."""
    made = [(i, self._layers[i].made) for i in reversed(self._convolutions)]
    starts = [(i, axis) for i, axis in made if axis is not None]
    dense = [
      (each.axis, each.made) for each in self._layers if each.made is not None
    ]
    return _reached(starts, self._edges, dense)

  @functools.cached_property
  def _read(self) -> tuple[dict[int, int], dict[int, int]]:
    """The first convolution after each axis, negative: `_reached`."""
    starts = [(-i, self._layers[i].axis) for i in self._convolutions]
    dense = [
      (each.made, each.axis) for each in self._layers if each.made is not None
    ]
    return _reached(starts, [(b, a) for a, b in self._edges], dense)

  def _role(self, axis: int) -> int:
    while self._parents[axis] != axis:
      self._parents[axis] = self._parents[self._parents[axis]]
      axis = self._parents[axis]
    return axis


def _reached(
  starts: Sequence[_Start],
  edges: Iterable[tuple[int, int]],
  layers: Iterable[tuple[int, int]],
) -> tuple[dict[int, int], dict[int, int]]:
  """The first of the layers that leads to each axis, without and with others.

  Args:
    starts: layers, with their axes.
    edges: pairs of an axis and one that it leads to.
    layers: the same through a layer.
  """
  following: dict[int, list[int]] = {}
  results = []
  for more in (edges, layers):
    for one, other in more:
      following.setdefault(one, []).append(other)
    found: dict[int, int] = {}
    for layer, axis in starts:
      left = [axis]
      while left:
        if (axis := left.pop()) not in found:
          found[axis] = layer
          left.extend(following.get(axis, ()))
    results.append(found)
  return results[0], results[1]
