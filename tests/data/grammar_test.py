"""Tests of the grammars: sampler and parser share no code, and must agree."""

import collections
import functools
import itertools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import pytest

from cxjax import errors
from cxjax.data import grammar as grammars

# One, two and three rules; '4 5' derives 1 2 1 twice.
TINY = grammars.Grammar(
  rules=(
    (6, ((4, 5), (5, 5, 4))),
    (5, ((2, 1), (1,), (3,))),
    (4, ((1, 2),)),
    (7, ((4, 4, 4, 4, 4),)),  # Out of reach: must not widen anything.
  ),
  start=6,
)
AMBIGUOUS = grammars.Grammar(
  rules=((6, ((4, 5), (4, 4))), (5, ((2, 1), (1,))), (4, ((1,), (1, 2)))),
  start=6,
)


NUM = 4096

draw = jax.jit(grammars.Grammar.sample, static_argnums=(0, 2))


@functools.cache
def sample(g):
  """A batch: `NUM` short sentences or 64 long ones."""
  num = NUM if g.max_length < 100 else 64
  return jax.tree.map(np.asarray, draw(g, jax.random.key(0), num))


def sentences(g, num):
  """The first of the batch, without their padding."""
  batch = sample(g)
  return [
    tuple(batch['tokens'][i, : batch['length'][i]].tolist()) for i in range(num)
  ]


def enumerate_all(g, symbol):
  """All `(string, derivation in preorder, probability)` of a symbol."""
  rules = dict(g.rules)
  if symbol not in rules:
    return [((symbol,), (), 1.0)]
  found = []
  for index, side in enumerate(rules[symbol]):
    for parts in itertools.product(*(enumerate_all(g, c) for c in side)):
      strings, trees, chances = zip(*parts, strict=True)
      tree = ((symbol, index), *itertools.chain(*trees))
      p = np.prod(chances) / len(rules[symbol])
      found.append((tuple(itertools.chain(*strings)), tree, p))
  return found


def expand(g, derivation):
  """The terminals of a derivation in preorder."""
  rules, todo = dict(g.rules), iter(derivation)

  def below(symbol):
    if symbol not in rules:
      return [symbol]
    head, index = next(todo)
    assert head == symbol
    return [t for child in rules[symbol][index] for t in below(child)]

  return tuple(below(g.start))


def read_tree(g, tokens, ancestors, nodes):
  """The derivation in preorder that the ancestors of one sentence spell."""
  rules = dict(g.rules)
  symbols = [*ancestors, tokens]
  node_of = [*nodes, np.arange(len(tokens))]

  def read(level, columns):
    (symbol,) = {int(symbols[level][t]) for t in columns}
    if level == len(ancestors):
      return []
    below = [
      list(own)
      for _, own in itertools.groupby(columns, lambda t: node_of[level + 1][t])
    ]
    side = tuple(int(symbols[level + 1][own[0]]) for own in below)
    uses = [(symbol, rules[symbol].index(side))]
    return uses + [use for own in below for use in read(level + 1, own)]

  return tuple(read(0, range(len(tokens))))


def length_distribution(g):
  """Exact probabilities of the length of a sentence, indexed by it."""
  rules = dict(g.rules)
  lengths = {symbol: np.array([0.0, 1.0]) for symbol in g.levels[-1]}

  def of_sides(sides):
    found = [functools.reduce(np.convolve, map(lengths.get, s)) for s in sides]
    mean = np.zeros(max(map(len, found)))
    for one in found:
      mean[: len(one)] += one / len(found)
    return mean

  for level in reversed(g.levels[:-1]):
    lengths = {symbol: of_sides(rules[symbol]) for symbol in level}
  return lengths[g.start]


class LengthTest(parameterized.TestCase):
  @parameterized.parameters(
    ('cfg3b', None, 138, 276, 432),
    ('cfg3b_panigrahi', None, 161, 294, 432),
    ('cfg3b', 17, 48, 60, 72),
  )
  def test_lengths_of_the_literature(self, name, start, least, mean, most):
    g = grammars.make(name, start)
    lengths = length_distribution(g)
    self.assertEqual(np.flatnonzero(lengths)[0], least)
    self.assertEqual(g.max_length, most)
    self.assertEqual(round(lengths @ np.arange(len(lengths))), mean)

  @parameterized.parameters(('cfg3b', 0), ('cfg3f', 0), ('cfg3f', 20))
  def test_distribution_ends_at_the_longest(self, name, start):
    g = grammars.make(name, start)
    lengths = length_distribution(g)
    self.assertEqual(np.flatnonzero(lengths)[-1], g.max_length)
    self.assertLen(lengths, g.max_length + 1)
    np.testing.assert_allclose(lengths.sum(), 1, rtol=1e-12)

  @parameterized.parameters(TINY, AMBIGUOUS)
  def test_distribution_of_an_enumerated_language(self, g):
    want = np.zeros(g.max_length + 1)
    for string, _, p in enumerate_all(g, g.start):
      want[len(string)] += p
    np.testing.assert_allclose(length_distribution(g), want)

  def test_levels(self):
    levels = ((16,), (13, 14, 15), (10, 11, 12), (7, 8, 9), (1, 2, 3))
    self.assertEqual(grammars.make('cfg3b', 16).levels, levels)
    self.assertEqual(TINY.levels, ((6,), (4, 5), (1, 2, 3)))


@pytest.mark.slow
class SampleTest(parameterized.TestCase):
  # Every string of the language against its exact probability.
  @parameterized.parameters(TINY, AMBIGUOUS)
  def test_distribution_of_the_strings(self, g):
    chances = collections.Counter()
    for string, _, p in enumerate_all(g, g.start):
      chances[string] += p
    found = collections.Counter(sentences(g, NUM))
    self.assertContainsSubset(found, chances)
    for string, p in chances.items():
      error = np.sqrt(p * (1 - p) / NUM)
      self.assertLess(abs(found[string] / NUM - p), 5 * error, string)

  @parameterized.parameters(('cfg3b', 16), ('cfg3f', 18))
  def test_histogram_of_the_lengths(self, name, start):
    g = grammars.make(name, start)
    expected = NUM * length_distribution(g)
    lengths = sample(g)['length']
    found = np.bincount(lengths, minlength=len(expected))
    self.assertLen(found, len(expected))
    self.assertEqual(found[expected == 0].sum(), 0)
    often = expected >= 8
    expected = np.append(expected[often], expected[~often].sum())
    found = np.append(found[often], found[~often].sum())
    # Chi squared of `bins - 1`: that mean, and twice that variance.
    freedom = len(expected) - 1
    self.assertGreater(freedom, 10)
    statistic = np.sum((found - expected) ** 2 / expected)
    self.assertLess(statistic, freedom + 5 * np.sqrt(2 * freedom))

  @parameterized.parameters(
    ('cfg3b', 0, 12),
    ('cfg3b', 16, 32),
    ('cfg3b_panigrahi', 0, 12),
    ('cfg3f', 0, 12),
    ('cfg3f', 18, 32),
  )
  def test_sentences_parse(self, name, start, num):
    g = grammars.make(name, start)
    for string in sentences(g, num):
      uses = g.parse(string)
      self.assertIsNotNone(uses, string)
      self.assertEqual(expand(g, uses), string)

  # Too rare or too frequent by 5 standard errors, for each rule.
  @parameterized.parameters(('cfg3b', 16, 250), ('cfg3f', 18, 250))
  def test_rules_are_equally_frequent(self, name, start, num):
    g = grammars.make(name, start)
    parses = [g.parse(string) for string in sentences(g, num)]
    uses = collections.Counter(itertools.chain(*parses))
    for symbol, sides in g.rules:
      if symbol not in itertools.chain(*g.levels):
        continue
      total = sum(uses[symbol, i] for i in range(len(sides)))
      self.assertGreaterEqual(total, num / 5)
      p = 1 / len(sides)
      for i in range(len(sides)):
        error = np.sqrt(p * (1 - p) / total)
        self.assertLess(abs(uses[symbol, i] / total - p), 5 * error, symbol)

  # No sentence of cfg3b is known to have two derivations.
  @parameterized.parameters(('cfg3b', 0, 4), ('cfg3b', 16, 32))
  def test_ancestors_spell_the_parse(self, name, start, num):
    g = grammars.make(name, start)
    batch = sample(g)
    for i, string in enumerate(sentences(g, num)):
      above = batch['ancestors'][i, :, : len(string)]
      nodes = batch['nodes'][i, :, : len(string)]
      self.assertEqual(read_tree(g, string, above, nodes), g.parse(string))

  def test_nodes_count_from_the_left(self):
    batch = sample(grammars.make('cfg3f', 18))
    for i in range(64):
      length = batch['length'][i]
      nodes = batch['nodes'][i, :, :length]
      steps = np.diff(nodes, axis=1)
      np.testing.assert_array_equal(nodes[:, 0], 0)
      self.assertContainsSubset(np.unique(steps), [0, 1])
      np.testing.assert_array_equal(nodes[0], 0)

  @parameterized.parameters(('cfg3b', 16), ('cfg3f', 0))
  def test_shapes_and_the_end(self, name, start):
    g = grammars.make(name, start)
    batch = sample(g)
    num = len(batch['length'])
    shape = (num, len(g.levels) - 1, g.max_length)
    self.assertEqual(batch['tokens'].shape, (num, g.max_length))
    self.assertEqual(batch['ancestors'].shape, shape)
    self.assertEqual(batch['nodes'].shape, shape)
    for value in batch.values():
      self.assertEqual(value.dtype, np.int32)
    real = np.arange(g.max_length) < batch['length'][:, None]
    np.testing.assert_array_equal(batch['tokens'] > 0, real)
    real = np.broadcast_to(real[:, None], shape)
    np.testing.assert_array_equal(batch['ancestors'] > 0, real)
    np.testing.assert_array_equal(batch['nodes'] >= 0, real)

  def test_widest_sentence_fits(self):
    # One derivation only: every level is as wide as it gets.
    g = grammars.Grammar(((5, ((4, 4, 4),)), (4, ((1, 2, 3, 1),))), start=5)
    self.assertEqual(sentences(g, 2), [(1, 2, 3, 1) * 3] * 2)

  def test_key_names_the_sentences(self):
    g = grammars.make('cfg3b', 16)
    first, other = sample(g), draw(g, jax.random.key(1), NUM)
    again = draw(g, jax.random.key(0), NUM)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    self.assertFalse(np.array_equal(first['tokens'], other['tokens']))
    self.assertLen(np.unique(first['tokens'][:99], axis=0), 99)


class ParseTest(parameterized.TestCase):
  @parameterized.parameters(TINY, AMBIGUOUS)
  def test_agrees_with_enumeration(self, g):
    trees = collections.defaultdict(list)
    for string, tree, _ in enumerate_all(g, g.start):
      trees[string].append(tree)
    for length in range(g.max_length + 2):
      for string in itertools.product((1, 2, 3), repeat=length):
        parse = g.parse(string)
        if string in trees:
          self.assertIn(parse, trees[string])
        else:
          self.assertIsNone(parse, string)

  def test_by_hand(self):
    g = grammars.make('cfg3b', 10)  # 7 9 8 | 9 8 7
    self.assertEqual(
      g.parse([3, 1, 2, 1, 3, 2]), ((10, 0), (7, 0), (9, 1), (8, 0))
    )
    self.assertEqual(
      g.parse(np.array([2, 1, 3, 1, 2, 1, 2, 3])),
      ((10, 1), (9, 1), (8, 1), (7, 1)),
    )
    for string in ([], [3, 1], [3, 1, 3, 2, 2, 1], [4, 0]):
      self.assertIsNone(g.parse(string))
    # The rule that the copy lacks.
    self.assertIsNone(
      grammars.make('cfg3b_panigrahi', 10).parse([3, 1, 2, 1, 3, 2])
    )

  def test_refuses_most_corrupted_sentences(self):
    g = grammars.make('cfg3b', 16)
    rng = np.random.default_rng(0)
    refused = total = 0
    for string in sentences(g, 40):
      cut = rng.integers(1, len(string))
      left, right = string[: cut - 1], string[cut + 1 :]
      a, b = string[cut - 1 : cut + 1]
      dropped = (*left, b, *right)
      swapped = (*left, b, a, *right)
      for wrong in (dropped, swapped) if a != b else (dropped,):
        refused += g.parse(wrong) is None
        total += 1
    self.assertGreater(refused, 0.8 * total)


def rules(**sides):
  """Rules of symbols `s<number>`."""
  return tuple((int(name[1:]), value) for name, value in sides.items())


class ErrorTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('undefined', rules(s5=((1, 4),)), 'Symbol 4, below 5, is undefined'),
    ('no_side', rules(s5=()), 'Symbol 5 has no right-hand side'),
    ('empty_side', rules(s5=((1,), ())), 'Symbol 5 has no right-hand side'),
    ('cycle', rules(s5=((6,),), s6=((5,),)), 'Symbol 5 derives itself'),
    ('layers', rules(s5=((4, 1),), s4=((1,),)), r'5 is not .* \[0, 1\]'),
    ('unreached', rules(s5=((1,),), s6=((5, 1),)), '6 is not layered'),
    ('terminal', rules(s5=((1,),), s3=((1,),)), '3 is defined twice'),
    ('zero', rules(s5=((1,),), s0=((1,),)), '0 must be positive'),
    ('start', rules(s4=((1,),)), 'data.start=5 .* Choose one of: 4'),
  )
  def test_refuses(self, sides, message):
    with self.assertRaisesRegex(errors.UserError, message):
      grammars.Grammar(sides, start=5)

  def test_make_refuses(self):
    with self.assertRaisesRegex(errors.UserError, "'cfg3'.*cfg3b, .*cfg3f"):
      grammars.make('cfg3')
    with self.assertRaisesRegex(errors.UserError, 'start=3 .*: 7, 8, .*22'):
      grammars.make('cfg3b', 3)

  def test_own_start(self):
    self.assertEqual(grammars.make('cfg3f'), grammars.make('cfg3f', 0))
    self.assertEqual(grammars.make('cfg3f').start, 22)
    self.assertEqual(grammars.make('cfg3f', 18).start, 18)
    self.assertLen({grammars.make('cfg3f'), grammars.make('cfg3f', 0)}, 1)


if __name__ == '__main__':
  absltest.main()
