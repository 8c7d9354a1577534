"""Layered probabilistic context-free grammars: sampler, parser, lengths.

Symbols are positive integers, and all rules of a symbol are equally likely.

References:
  Allen-Zhu, Li, 2023. https://arxiv.org/abs/2305.13673.
  Panigrahi et al., 2024. https://arxiv.org/abs/2410.05464.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import itertools
from typing import Any
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from cxjax import errors
from cxjax import settings

# A derivation: `(symbol, index of its rule, *subtrees)`, () for a terminal.
Tree: TypeAlias = tuple[Any, ...]
# The spans that begin at one token: `{symbol: {end: tree}}`.
Spans: TypeAlias = dict[int, dict[int, Tree]]


@dataclasses.dataclass(frozen=True)
class Grammar:
  """A layered grammar: all derivations of a symbol have the same depth.

  Attributes:
    rules: pairs `(symbol, its right-hand sides)`.
    start: symbol that sentences are derived from.
    terminals: symbols that sentences consist of; they have no rule.
  """

  rules: tuple[tuple[int, tuple[tuple[int, ...], ...]], ...]
  start: int
  terminals: tuple[int, ...] = (1, 2, 3)

  def __post_init__(self) -> None:
    """Raises UserError if the rules are not a layered grammar."""
    self._check_symbols()
    for symbol, sides in self.rules:
      self._check_sides(symbol, sides)
    names = ', '.join(map(str, sorted(self._sides)))
    errors.require(
      isinstance(self.start, int) and self.start in self._sides,
      f'data.start={self.start} is no symbol with rules. Choose one of: '
      f'{names}.',
    )
    heights = dict.fromkeys(self.terminals, 0)
    for symbol in self._sides:
      self._height(symbol, (), heights)

  def _check_symbols(self) -> None:
    symbols = (*(symbol for symbol, _ in self.rules), *self.terminals)
    for symbol in symbols:
      errors.require(
        symbol > 0, f'Symbol {symbol} must be positive: 0 marks the end.'
      )
      errors.require(
        symbols.count(symbol) == 1,
        f'Symbol {symbol} is defined twice: list it once, with its rules or '
        'among the terminals.',
      )

  def _check_sides(
    self, symbol: int, sides: tuple[tuple[int, ...], ...]
  ) -> None:
    errors.require(
      bool(sides) and all(sides),
      f'Symbol {symbol} has no right-hand side, or an empty one: give it '
      'symbols to derive.',
    )
    for child in sorted(set().union(*sides)):
      errors.require(
        child in self._sides or child in self.terminals,
        f'Symbol {child}, below {symbol}, is undefined: give it rules, or '
        f'list it among the terminals {self.terminals}.',
      )

  def _height(
    self, symbol: int, above: tuple[int, ...], heights: dict[int, int]
  ) -> int:
    """Levels from a symbol down to the terminals; fills in `heights`."""
    errors.require(
      symbol not in above,
      f'Symbol {symbol} derives itself: remove the cycle, sentences must be '
      'finite.',
    )
    if symbol not in heights:
      below = {
        self._height(child, (*above, symbol), heights)
        for child in set().union(*self._sides[symbol])
      }
      errors.require(
        len(below) == 1,
        f'Symbol {symbol} is not layered: its children must all be equally far '
        f'from the terminals, not {sorted(below)} levels.',
      )
      heights[symbol] = 1 + below.pop()
    return heights[symbol]

  @functools.cached_property
  def _sides(self) -> dict[int, tuple[tuple[int, ...], ...]]:
    return dict(self.rules)

  @functools.cached_property
  def levels(self) -> tuple[tuple[int, ...], ...]:
    """Symbols that `start` reaches, level by level, the terminals last."""
    levels: list[tuple[int, ...]] = [(self.start,)]
    while levels[-1][0] in self._sides:
      sides = (side for symbol in levels[-1] for side in self._sides[symbol])
      levels.append(tuple(sorted(set().union(*sides))))
    return tuple(levels)

  @property
  def max_length(self) -> int:
    """Number of terminals of the longest sentence."""
    return self._most_symbols(len(self.levels) - 1)

  def _most_symbols(self, level: int) -> int:
    """Largest possible number of symbols of a level."""
    most = dict.fromkeys(self.levels[level], 1)
    for above in reversed(self.levels[:level]):
      most = {
        symbol: max(
          sum(most[child] for child in side) for side in self._sides[symbol]
        )
        for symbol in above
      }
    return most[self.start]

  @functools.cached_property
  def _tables(self) -> tuple[np.ndarray, ...]:
    """Rules as arrays; symbol 0 has one rule, 0, which derives nothing.

    Returns:
      `(first, count, size, sides)`: the first rule and the number of rules of
      each symbol, the length and the symbols of the side of each rule.
    """
    sides = [side for _, sides in self.rules for side in sides]
    most = max(map(len, sides))
    table = [(0,) * most, *(side + (0,) * (most - len(side)) for side in sides)]
    size = np.array([0, *map(len, sides)], np.int32)
    first = np.zeros(max(self._sides) + 1, np.int32)
    count = np.ones(max(self._sides) + 1, np.uint32)
    next_rule = 1
    for symbol, own in self.rules:
      first[symbol], count[symbol] = next_rule, len(own)
      next_rule += len(own)
    return first, count, size, np.array(table, np.int32)

  @settings.fixed()
  def sample(self, key: jax.Array, n: int) -> dict[str, jax.Array]:
    """Samples sentences and the derivation above each of their terminals.

    Under `jit`, outputs that the caller does not use cost nothing. A rule is a
    32-bit random word modulo the number of rules, which is uniform up to 2^-30
    for three rules.

    Args:
      key: typed PRNG key; consumed.
      n: number of sentences.

    Returns:
      `{'tokens': [n, T], 'length': [n], 'ancestors': [n, D, T],
      'nodes': [n, D, T]}`, all int32, with `T = max_length` and the `D` levels
      above the terminals, `start` first. An ancestor is the symbol of a level
      above a terminal, and its node is the index of that symbol in the level,
      counted from the left. After the end of a sentence, `tokens` and
      `ancestors` are 0 and `nodes` are -1.
    """
    widths = [self._most_symbols(level) for level in range(len(self.levels))]
    words = jax.random.bits(key, (n, sum(widths[:-1])), jnp.uint32)
    words = jnp.split(words, np.cumsum(widths[:-2]), axis=1)
    symbols = jnp.full((n, 1), self.start, jnp.int32)
    above, parents = [], []
    for word, width in zip(words, widths[1:], strict=True):
      above.append(symbols)
      symbols, parent = self._derive(symbols, word, width)
      parents.append(parent)
    nodes = parents[-1:]
    for parent in reversed(parents[:-1]):
      nodes.insert(0, _gather(parent, nodes[0], -1))
    ancestors = [_gather(*pair, 0) for pair in zip(above, nodes, strict=True)]
    return {
      'tokens': symbols,
      'length': (symbols > 0).sum(axis=1, dtype=jnp.int32),
      'ancestors': jnp.stack(ancestors, axis=1),
      'nodes': jnp.stack(nodes, axis=1),
    }

  def _derive(
    self, symbols: jax.Array, words: jax.Array, width: int
  ) -> tuple[jax.Array, jax.Array]:
    """Derives a level from the level above it.

    Args:
      symbols: `[n, W]` symbols of the level above, 0 after its end.
      words: `[n, W]` random words, which choose the rules.
      width: largest possible number of symbols of the new level.

    Returns:
      `[n, width]` symbols, 0 after the end, and the `[n, width]` indices of
      their parents, -1 after the end.
    """
    first, count, size, sides = map(jnp.asarray, self._tables)
    rows = jnp.arange(len(symbols))[:, None, None]
    child = jnp.arange(sides.shape[1])[None, None]
    rule = first[symbols] + (words % count[symbols]).astype(jnp.int32)
    begin = jnp.cumsum(size[rule], axis=1) - size[rule]
    real = child < size[rule][..., None]  # [n, W, children]
    # The index past the widest level does not exist: `mode='drop'` ignores it.
    index = jnp.where(real, begin[..., None] + child, width)
    node = jnp.arange(symbols.shape[1], dtype=jnp.int32)[None, :, None]
    node = jnp.broadcast_to(node, index.shape)
    empty = jnp.zeros((len(symbols), width), jnp.int32)
    return (
      empty.at[rows, index].set(sides[rule], mode='drop'),
      (empty - 1).at[rows, index].set(node, mode='drop'),
    )

  def parse(self, tokens: Sequence[int]) -> tuple[tuple[int, int], ...] | None:
    """Parses a sentence on the host; independent of `sample`.

    The parser works bottom-up: the spans of the symbols of a level follow from
    the spans of the level below. Few spans are ever possible, which makes it
    fast.

    Args:
      tokens: terminals.

    Returns:
      The leftmost derivation: `(symbol, index of its rule)` in preorder, or
      None if `start` does not derive the tokens. An ambiguous sentence gives
      one of its derivations.
    """
    chart: list[Spans] = [{int(t): {i + 1: ()}} for i, t in enumerate(tokens)]
    chart.append({})
    for level in reversed(self.levels[:-1]):
      spans: list[Spans] = [{} for _ in chart]
      for i, symbol in itertools.product(range(len(tokens)), level):
        if chart[i] and (ends := self._spans(symbol, i, chart)):
          spans[i][symbol] = ends
      chart = spans
    tree = chart[0].get(self.start, {}).get(len(tokens))
    return None if tree is None else tuple(_preorder(tree))

  def _spans(
    self, symbol: int, begin: int, chart: Sequence[Spans]
  ) -> dict[int, Tree]:
    """Spans of a symbol that begin at one token, as `{end: tree}`."""
    spans: dict[int, Tree] = {}
    for index, side in enumerate(self._sides[symbol]):
      ends: Mapping[int, Tree] = {begin: (symbol, index)}
      for child in side:
        ends = {
          end: (*tree, subtree)
          for middle, tree in ends.items()
          for end, subtree in chart[middle].get(child, {}).items()
        }
      spans |= ends
    return spans


def _gather(values: jax.Array, nodes: jax.Array, fill: int) -> jax.Array:
  """`values[nodes]` of each sentence, `fill` where the node is -1."""
  found = jnp.take_along_axis(values, jnp.maximum(nodes, 0), axis=1)
  return jnp.where(nodes < 0, fill, found)


def _preorder(tree: Tree) -> Iterator[tuple[int, int]]:
  if tree:
    symbol, index, *subtrees = tree
    yield symbol, index
    for subtree in subtrees:
      yield from _preorder(subtree)


def _read(text: str) -> Grammar:
  """Parses lines `symbol -> side | side`; the first symbol is the start."""
  rules = []
  for line in text.strip().splitlines():
    symbol, sides = line.split('->')
    sides = (tuple(map(int, side.split())) for side in sides.split('|'))
    rules.append((int(symbol), tuple(sides)))
  return Grammar(tuple(rules), start=rules[0][0])


_CFG3B = """
22 -> 21 20 | 20 19
21 -> 18 16 | 16 18 17
20 -> 17 16 18 | 16 17
19 -> 16 17 18 | 17 18 16
18 -> 15 14 13 | 14 13
17 -> 14 13 15 | 15 13 14
16 -> 15 13 | 13 15 14
15 -> 12 11 10 | 11 12 10
14 -> 11 10 12 | 10 11 12
13 -> 11 12 | 12 11
12 -> 8 9 7 | 9 7 8
11 -> 8 7 9 | 7 8 9
10 -> 7 9 8 | 9 8 7
9 -> 3 2 1 | 2 1
8 -> 3 2 | 3 1 2
7 -> 3 1 | 1 2 3
"""

_CFG3F = """
22 -> 20 21 | 20 19 21 | 21 19 19 | 20 20
21 -> 18 17 | 17 16 | 16 17 18 | 16 18
20 -> 16 16 | 16 17 | 17 16 18
19 -> 18 16 18 | 17 18 | 18 18
18 -> 14 15 13 | 15 13 13 | 13 15
17 -> 15 14 13 | 14 15 | 15 14
16 -> 15 15 | 13 15 13 | 14 13 | 14 14
15 -> 10 11 11 | 11 11 10 | 10 10 | 12 12 11
14 -> 10 12 | 12 10 12 | 12 11 | 10 12 12
13 -> 11 12 | 12 11 12 | 10 12 11
12 -> 7 9 7 | 9 8 | 8 8 9
11 -> 8 8 | 9 7 | 9 7 7
10 -> 8 9 9 | 9 7 9 | 7 9 9
9 -> 1 2 1 | 3 3 | 1 1
8 -> 3 1 1 | 1 2 | 3 3 1
7 -> 2 2 1 | 3 2 2 | 3 1 2 | 3 2
"""

GRAMMARS = {
  'cfg3b': _read(_CFG3B),
  # The copy of Panigrahi et al. lacks the rule 9 -> 2 1.
  'cfg3b_panigrahi': _read(_CFG3B.replace('3 2 1 | 2 1', '3 2 1')),
  'cfg3f': _read(_CFG3F),
}


def make(name: str, start: int | None = None) -> Grammar:
  """Makes a grammar of the literature.

  Args:
    name: 'cfg3b' or 'cfg3f' of Allen-Zhu and Li, or 'cfg3b_panigrahi', the copy
      of the first that Panigrahi et al. use, without the rule `9 -> 2 1`.
    start: symbol that sentences are derived from; a lower one makes sentences
      shorter. None or 0 is the grammar's own.

  Returns:
    The grammar.

  Raises:
    UserError: the name is unknown, or the start is no symbol with rules.
  """
  grammar = errors.lookup('grammar', name, GRAMMARS)
  return dataclasses.replace(grammar, start=start or grammar.start)
