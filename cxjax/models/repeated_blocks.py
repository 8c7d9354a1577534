"""Blocks of a model whose residual sums lie outside of its modules.

In `x = x + Attention()(LayerNorm()(x)); x = x + Dense()(...)` no module returns
the residual stream, and several modules make one block. A block is then what
repeats in the sequence of modules, such as norm, attention, norm, dense, dense.
The activation that stands for it is the last one before the next product of
matrices: the norm of the stream after the block, if the next block begins with
a norm, or else the last of its own.
"""

from collections.abc import Sequence
import dataclasses
import re
from typing import TypeAlias

from cxjax.models import layers as layers_lib

# Name of a module without its numbers, and the number of its axes.
Kind: TypeAlias = tuple[str, int]


@dataclasses.dataclass(frozen=True)
class Blocks:
  """The blocks of a model.

  Attributes:
    word: kinds of the activations of a block, in the order of computation.
    layers: the activation of each block that stands for it, lowest first.
  """

  word: tuple[Kind, ...]
  layers: tuple[str, ...]

  @property
  def label(self) -> str:
    """The kinds of the layers, as 'LayerNorm_*'."""
    return ', '.join(dict.fromkeys(stem(name) for name in self.layers))


def stem(name: str) -> str:
  """A name with stars for its numbers, without the number of the call."""
  return re.sub(r'\d+', '*', name.partition('#')[0])


def _kind(a: layers_lib.Activation) -> Kind:
  return stem(a.name), len(a.shape)


def find(
  activations: Sequence[layers_lib.Activation], word: Sequence[Kind] = ()
) -> Blocks | None:
  """Finds what repeats among the activations with the shortest paths.

  Args:
    activations: candidates, in the order of computation.
    word: kinds of a block of another model, which may occur only once here.

  Returns:
    The blocks; None if there are none of several modules, or if they are less
    than two thirds of the activations.
  """
  level = _level(activations)
  marks = [(*_kind(a), a.shape) for a in level]
  found = _stretch(marks)
  if found is not None:
    (start, end), period = found
    if 3 * (end - start) >= 2 * len(level):
      own = tuple(_kind(a) for a in level[end - period : end])
      return Blocks(own, _ends(level, start, end, period))
  return _alone(level, tuple(word)) if word else None


def _level(
  activations: Sequence[layers_lib.Activation],
) -> list[layers_lib.Activation]:
  """The activations with the shortest paths, if there is more than one."""
  depths = [a.name.count('/') for a in activations if a.products]
  several = [depth for depth in depths if depths.count(depth) > 1]
  least = min(several, default=-1)
  return [a for a in activations if a.name.count('/') == least]


def _stretch(marks: Sequence[object]) -> tuple[tuple[int, int], int] | None:
  """The longest part of a sequence that repeats, and its period."""
  best: tuple[tuple[int, int], int] | None = None
  for period in range(2, len(marks) // 2 + 1):
    same = [a == b for a, b in zip(marks, marks[period:], strict=False)]
    start = 0
    for i, each in enumerate([*same, False]):
      if each:
        continue
      size, end = i - start, i + period
      plain = len(set(marks[start:end])) == 1
      longer = best is None or end - start > best[0][1] - best[0][0]
      if size >= period and longer and not plain:
        best = (start, end), period
      start = i + 1
  return best


def _alone(
  level: Sequence[layers_lib.Activation], word: tuple[Kind, ...]
) -> Blocks | None:
  """The last of the activations that are one block of these kinds."""
  kinds, size = [_kind(a) for a in level], len(word)
  for start in range(len(kinds) - size, -1, -1):
    if tuple(kinds[start : start + size]) == word:
      return Blocks(word, _ends(level, start, start + size, size))
  return None


def _ends(
  level: Sequence[layers_lib.Activation], start: int, end: int, period: int
) -> tuple[str, ...]:
  """The activations that stand for the blocks of a part of a sequence."""
  found = []
  for last in range(end - 1, start + period - 2, -period):
    a = level[last]
    for b in level[last + 1 :]:
      same = a.products == b.products and a.shape == b.shape
      if not same or not a.node & b.ancestors or a.node == b.node:
        break
      a = b
    found.append(a.name)
  return tuple(reversed(found))
