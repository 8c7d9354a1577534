"""Axes of the values of a model, which operations make one of another.

Axes that are made of one another have one role. Convolutions may contract
several axes of a value, and several may have one role: a dense layer over the
positions whose result scales the channels makes one role of both. Which of them
the channels are, the nearest convolution says.

A convolution of a single position is a dense layer, and may mix tokens, as in
an MLP-Mixer. It does where it reads the positions of a wider convolution. Where
dense layers read its own positions, features are what the layers before have
made another number of, and what is left in the output where the other axis is
summed over.
"""

from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import TypeAlias

# A layer, by the order of the model, and an axis that it reads or makes.
_Start = tuple[int, int]
# Layers by axis, before and after it; `_reached`.
_Nearest: TypeAlias = tuple[
  tuple[dict[int, int], dict[int, int]], tuple[dict[int, int], dict[int, int]]
]


@dataclasses.dataclass(frozen=True)
class Layer:
  """A product or a convolution with parameters.

  Attributes:
    axis: the axis that it contracts.
    made: the axis of its features; None without one.
    sizes: numbers of features that it reads and makes.
    window: number of positions that a convolution reads; 0 of a product.
    size: the larger of the numbers of features that a filter of a convolution
      reads and that it makes; one of 1 only filters.
    grid: axes of the positions of a convolution.
  """

  axis: int
  made: int | None = None
  sizes: tuple[int, int] = (0, 0)
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
    self._picked: list[int] = []
    self._parts: list[tuple[tuple[int, ...], int]] = []
    self._found: dict[tuple[int, ...], _Nearest] = {}

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

  def pick(self, axis: int) -> None:
    """Says that a position of an axis is taken, and the others are not."""
    self._picked.append(axis)

  def divide(self, axis: int, parts: Sequence[int]) -> None:
    """Says that a reshape makes several axes of one."""
    self._parts.append((tuple(parts), axis))

  def unite(self, parts: Sequence[int], axis: int) -> None:
    """Says that a reshape makes one axis of several.

    If they are all parts of one axis, in any order as in a channel shuffle, it
    is made of that axis.
    """
    roles = sorted(map(self._role, parts))
    for others, whole in reversed(self._parts):
      if sorted(map(self._role, others)) == roles:
        self.join(whole, axis)
        return

  def add(self, layer: Layer) -> None:
    """Adds the next layer of the model; it makes its features of features."""
    self._layers.append(layer)
    if layer.made is not None:
      self._parents[self._role(layer.axis)] = self._role(layer.made)

  def channels(
    self, axes: Sequence[int], outputs: Iterable[int] = ()
  ) -> tuple[int | None, tuple[int, int] | None]:
    """The axis of a value with the channels of convolutions.

    Args:
      axes: numbers of the axes of the value.
      outputs: numbers of the axes of the outputs of the model, but the batch.

    Returns:
      The axis; None if no convolution says so. Of several it is the one of the
      last convolution before the value, and else of the first that reads it.
      And two axes, if the layers do not tell which of them it is.
    """
    said, doubt = self._saying(axes, frozenset(map(self._role, outputs)))
    for size in (2, 1):  # Filters of single channels say least.
      roles = {
        self._role(each.axis)
        for each in map(self._layers.__getitem__, said)
        if each.size >= size
      }
      found = [i for i, n in enumerate(axes) if i and self._role(n) in roles]
      if found:
        break
    if len(found) < 2:
      return (found[0] if found else None), doubt
    # Of one role, an axis that a dense layer does not lead to goes first.
    for near, far in self._nearest(said):
      best: dict[int, tuple[float, int, int]] = {}
      for i in (i for i in found if axes[i] in far):
        role = self._role(axes[i])
        key = near.get(axes[i], -math.inf), far[axes[i]], i
        best[role] = max(best.get(role, key), key)
      if best:
        return max(key[1:] for key in best.values())[-1], doubt
    return None, doubt

  def _saying(
    self, axes: Sequence[int], outputs: frozenset[int]
  ) -> tuple[tuple[int, ...], tuple[int, int] | None]:
    """Convolutions that say which axis the channels are; and axes in doubt."""
    roles = list(map(self._role, axes))
    of = lambda group: [i for i, r in enumerate(roles) if i and r in group]
    said, doubt = [], None
    for i, (role, others) in self._convolutions.items():
      if others:
        own, other = of({role}), of(others)
        clue = self._left(role, others, outputs)
        changed = lambda group: self._has_other_length(axes[k] for k in group)
        clue += changed(own) - changed(other)
        if not clue:  # A guess, as the last dense layer is mostly of features.
          clue = -self._is_read_later(role, others)
          if own and other:
            doubt = min(own[0], other[0]), max(own[0], other[0])
        if clue < 0:
          continue
      said.append(i)
    return tuple(said), doubt

  @functools.cached_property
  def _convolutions(self) -> dict[int, tuple[int, frozenset[int]]]:
    """Convolutions that do not read positions of wider ones, with their roles.

    Of one of a single position, whose positions dense layers read, their roles
    too: it may mix tokens.
    """
    wide, dense = self._positions(), self._dense
    found = {}
    for i, layer in enumerate(self._layers):
      role, others = self._role(layer.axis), set(map(self._role, layer.grid))
      if not layer.window:
        continue
      if role in wide:
        found[i] = role, frozenset[int]()
      elif not any(role in wide.get(other, ()) for other in others):
        found[i] = role, frozenset(others & dense.keys() - {role})
    return found

  @functools.cached_property
  def _dense(self) -> dict[int, int]:
    """The last dense layer that reads axes of each role."""
    return {
      self._role(each.axis): i
      for i, each in enumerate(self._layers)
      if not each.window
    }

  def _is_read_later(self, role: int, others: Iterable[int]) -> bool:
    """True if dense layers read axes of the others after those of the role."""
    last = self._dense
    return any(last[other] > last.get(role, -1) for other in others)

  def _left(
    self, role: int, others: frozenset[int], outputs: frozenset[int]
  ) -> int:
    """1 if the output has a role and none of the others, -1 if only others.

    Else 0, and where one position of what is missing is the output, as one of
    the series that are forecast.
    """
    own, other = role in outputs, bool(others & outputs)
    gone = others if own else {role}
    picked = any(self._role(axis) in gone for axis in self._picked)
    return 0 if picked else own - other

  def _has_other_length(self, axes: Iterable[int]) -> bool:
    """True if the layers before one of some axes have changed its length."""
    first, last = self._ends
    return any(
      self._layers[first[axis]].sizes[0] != self._layers[last[axis]].sizes[1]
      for axis in axes
      if axis in first
    )

  @functools.cached_property
  def _ends(self) -> tuple[dict[int, int], dict[int, int]]:
    """The first and the last of all layers before each axis."""
    every = range(len(self._layers))
    return self._made(every[::-1])[1], self._made(every)[1]

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

  def _nearest(self, said: tuple[int, ...]) -> _Nearest:
    """The last of some convolutions before each axis, and the first after."""
    if said not in self._found:
      self._found[said] = self._made(said), self._read(said)
    return self._found[said]

  def _made(self, said: Sequence[int]) -> tuple[dict[int, int], dict[int, int]]:
    """The last of some convolutions before each axis: `_reached`."""
    made = [(i, self._layers[i].made) for i in reversed(said)]
    starts = [(i, axis) for i, axis in made if axis is not None]
    dense = [
      (each.axis, each.made) for each in self._layers if each.made is not None
    ]
    return _reached(starts, self._edges, dense)

  def _read(self, said: Sequence[int]) -> tuple[dict[int, int], dict[int, int]]:
    """The first of some convolutions after each axis, negative: `_reached`."""
    starts = [(-i, self._layers[i].axis) for i in said]
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
