"""Probabilistic context-free grammars in layers: sampler, parser, lengths.

Symbols are positive integers, and every rule of a symbol is equally likely.

References:
  Allen-Zhu, Li, 2023. https://arxiv.org/abs/2305.13673.
  Panigrahi et al., 2024. https://arxiv.org/abs/2410.05464.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from cxjax import errors


@dataclasses.dataclass(frozen=True)
class Grammar:
  """A layered grammar: all derivations of a symbol have as many levels.

  Attributes:
    rules: pairs `(symbol, its right-hand sides)`.
    start: the symbol that sentences derive from.
    terminals: the symbols that sentences consist of; they have no rule.
  """

  rules: tuple[tuple[int, tuple[tuple[int, ...], ...]], ...]
  start: int
  terminals: tuple[int, ...] = (1, 2, 3)

  def __post_init__(self):
    """Raises UserError for rules that are no layered grammar."""
    symbols = [symbol for symbol, _ in self.rules]
    for symbol in (*symbols, *self.terminals):
      errors.require(
        symbol > 0, f'Symbol {symbol} must be positive: 0 marks the end.'
      )
      errors.require(
        (*symbols, *self.terminals).count(symbol) == 1,
        f'Symbol {symbol} is defined twice: list it once, with its rules or '
        'among the terminals.',
      )
    for symbol, sides in self.rules:
      errors.require(
        bool(sides) and all(sides),
        f'Symbol {symbol} has no right-hand side, or an empty one: give it '
        'symbols to derive.',
      )
      for child in set().union(*sides):
        errors.require(
          child in self._sides or child in self.terminals,
          f'Symbol {child}, below {symbol}, is undefined: give it rules, or '
          f'list it among the terminals {self.terminals}.',
        )
    errors.require(
      self.start in self._sides,
      f'data.start={self.start} is no symbol with rules. Choose one of: '
      f'{", ".join(map(str, sorted(symbols)))}.',
    )
    self._check_layers()

  def _check_layers(self):
    heights = dict.fromkeys(self.terminals, 0)

    def height(symbol, above):
      errors.require(
        symbol not in above,
        f'Symbol {symbol} derives itself: remove the cycle, sentences must be '
        'finite.',
      )
      if symbol not in heights:
        below = {
          height(child, (*above, symbol))
          for child in set().union(*self._sides[symbol])
        }
        errors.require(
          len(below) == 1,
          f'Symbol {symbol} is not layered: what it derives must be equally '
          f'far from the terminals, not {sorted(below)} levels.',
        )
        heights[symbol] = 1 + below.pop()
      return heights[symbol]

    for symbol in self._sides:
      height(symbol, ())

  @functools.cached_property
  def _sides(self) -> dict[int, tuple[tuple[int, ...], ...]]:
    return dict(self.rules)

  @functools.cached_property
  def levels(self) -> tuple[tuple[int, ...], ...]:
    """The symbols that `start` reaches, level by level, the terminals last."""
    levels: list[tuple[int, ...]] = [(self.start,)]
    while levels[-1][0] in self._sides:
      sides = (side for symbol in levels[-1] for side in self._sides[symbol])
      levels.append(tuple(sorted(set().union(*sides))))
    return tuple(levels)

  @property
  def min_length(self) -> int:
    """Terminals of the shortest sentence."""
    return self._extreme_width(min, len(self.levels) - 1)

  @property
  def max_length(self) -> int:
    """Terminals of the longest sentence."""
    return self._extreme_width(max, len(self.levels) - 1)

  def _extreme_width(
    self, extreme: Callable[[Iterable[int]], int], level: int
  ) -> int:
    """The least or largest number of symbols that a level can hold."""
    width = dict.fromkeys(self.levels[level], 1)
    for above in reversed(self.levels[:level]):
      width = {
        symbol: extreme(
          sum(width[child] for child in side) for side in self._sides[symbol]
        )
        for symbol in above
      }
    return width[self.start]

  def length_distribution(self) -> np.ndarray:
    """Exact probability of each length of a sentence.

    Returns:
      `[max_length + 1]` float64, indexed by the length.
    """
    laws = {symbol: np.array([0.0, 1.0]) for symbol in self.levels[-1]}
    for level in reversed(self.levels[:-1]):
      laws = {
        symbol: _mean(
          functools.reduce(np.convolve, (laws[child] for child in side))
          for side in self._sides[symbol]
        )
        for symbol in level
      }
    return laws[self.start]

  @functools.cached_property
  def _tables(self) -> tuple[np.ndarray, ...]:
    """Rules as arrays; symbol 0 has the one rule 0, which derives nothing.

    Returns:
      `(first, count, size, sides)`: the first rule and the number of rules of
      a symbol, the length and the symbols of the side of a rule.
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

  def sample(self, key: jax.Array, n: int) -> dict[str, jax.Array]:
    """Sentences, and the derivation above each of their terminals.

    Compiled, what the caller does not use costs nothing. A rule is a 32-bit
    random word modulo the number of rules: uniform, up to 2^-30 where there
    are three.

    Args:
      key: typed PRNG key; consumed.
      n: number of sentences.

    Returns:
      `{'tokens': [n, T], 'length': [n], 'ancestors': [n, D, T],
      'nodes': [n, D, T]}`, all int32, for `T = max_length` and the `D` levels
      above the terminals, `start` first. `tokens` and `ancestors`, the symbol
      of a level above a terminal, are 0 after the end. `nodes`, which symbol
      of its level that is, counted from the left, is -1 after the end.
    """
    first, count, size, sides = map(jnp.asarray, self._tables)
    widths = [
      self._extreme_width(max, level) for level in range(len(self.levels))
    ]
    words = jax.random.bits(key, (n, sum(widths[:-1])))
    words = jnp.split(words, np.cumsum(widths[:-2]), axis=1)
    rows = jnp.arange(n)[:, None, None]
    child = jnp.arange(sides.shape[1])[None, None]
    symbols = jnp.full((n, 1), self.start, jnp.int32)
    above, parents = [], []
    for word, width in zip(words, widths[1:], strict=True):
      above.append(symbols)
      rule = first[symbols] + (word % count[symbols]).astype(jnp.int32)
      begin = jnp.cumsum(size[rule], axis=1) - size[rule]
      # One place past the widest that a level can get is nowhere.
      real = child < size[rule][..., None]  # [n, symbols, children]
      place = jnp.where(real, begin[..., None] + child, width)
      node = jnp.arange(symbols.shape[1], dtype=jnp.int32)[None, :, None]
      node = jnp.broadcast_to(node, place.shape)
      empty = jnp.zeros((n, width), jnp.int32)
      symbols = empty.at[rows, place].set(sides[rule], mode='drop')
      parents.append((empty - 1).at[rows, place].set(node, mode='drop'))
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

  def parse(self, tokens: Sequence[int]) -> tuple[tuple[int, int], ...] | None:
    """A derivation of a sentence, on the host; independent of `sample`.

    Bottom-up: which symbols of a level span from where to where follows from
    the spans of the level below. That is fast as few spans are ever possible.

    Args:
      tokens: terminals.

    Returns:
      The leftmost derivation: `(symbol, index of its rule)` in preorder. None
      if `start` does not derive the tokens. One of several, if ambiguous.
    """
    # By where it begins: {symbol: {where it ends: its tree}}.
    chart = [{int(t): {i + 1: ()}} for i, t in enumerate(tokens)] + [{}]
    for level in reversed(self.levels[:-1]):
      spans: list[dict] = [{} for _ in chart]
      for i, symbol in itertools.product(range(len(tokens)), level):
        if chart[i] and (ends := self._spans(symbol, i, chart)):
          spans[i][symbol] = ends
      chart = spans
    tree = chart[0].get(self.start, {}).get(len(tokens))
    return None if tree is None else tuple(_preorder(tree))

  def _spans(self, symbol, begin, chart):
    spans: dict[int, tuple] = {}
    for index, side in enumerate(self._sides[symbol]):
      ends = {begin: (symbol, index)}
      for child in side:
        ends = {
          end: (*tree, subtree)
          for middle, tree in ends.items()
          for end, subtree in chart[middle].get(child, {}).items()
        }
      spans |= ends
    return spans


def _gather(values, nodes, fill):
  """`values[nodes]` of each row, `fill` where the node is -1."""
  found = jnp.take_along_axis(values, jnp.maximum(nodes, 0), axis=1)
  return jnp.where(nodes < 0, fill, found)


def _mean(laws):
  laws = list(laws)
  total = np.zeros(max(map(len, laws)))
  for law in laws:
    total[: len(law)] += law / len(laws)
  return total


def _preorder(tree):
  if tree:
    symbol, index, *subtrees = tree
    yield symbol, index
    for subtree in subtrees:
      yield from _preorder(subtree)


def _read(text: str) -> Grammar:
  """The grammar of lines `symbol -> side | side`; the first is the start."""
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
  # The copy of Panigrahi et al. lacks a rule.
  'cfg3b_panigrahi': _read(_CFG3B.replace('3 2 1 | 2 1', '3 2 1')),
  'cfg3f': _read(_CFG3F),
}


def make(name: str, start: int | None = None) -> Grammar:
  """A grammar of the literature.

  Args:
    name: 'cfg3b' or 'cfg3f' of Allen-Zhu and Li; 'cfg3b_panigrahi', the copy
      of the first that Panigrahi et al. use, without the rule `9 -> 2 1`.
    start: the symbol that sentences derive from; a lower one makes them
      shorter. None or 0 is the grammar's own.

  Returns:
    The grammar.

  Raises:
    UserError: an unknown name, or a start that is no symbol with rules.
  """
  grammar = errors.lookup('grammar', name, GRAMMARS)
  return dataclasses.replace(grammar, start=start or grammar.start)
