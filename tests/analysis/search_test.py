"""Tests of the search."""

from absl.testing import absltest
from absl.testing import parameterized

from cxjax.analysis import search as search_lib


class SearchTest(absltest.TestCase):
  def search(self, rounds):
    ran = []

    def run(settings):
      ran.append(settings)
      return [one['a'] + one.get('b', 0) for one in settings]

    return search_lib.search(rounds, run, lambda found: found), ran

  def test_a_round_goes_on_from_the_best(self):
    best = lambda tried: tried[0].setting
    found, ran = self.search(
      [
        lambda tried: [{'a': 3}, {'a': 2}],
        lambda tried: [
          best(tried),
          *({**best(tried), 'b': b} for b in (1, -1)),
        ],
      ]
    )
    self.assertEqual(
      ran, [[{'a': 3}, {'a': 2}], [{'a': 2, 'b': 1}, {'a': 2, 'b': -1}]]
    )
    self.assertEqual([one.found for one in found], [1, 2, 3, 3])
    self.assertEqual(found[0].setting, {'a': 2, 'b': -1})
    # Of equal ones the first that was tried.
    self.assertEqual(found[2].setting, {'a': 3})

  def test_nothing_is_run_twice(self):
    again = lambda tried: [{'a': 1, 'b': 2}, {'b': 2, 'a': 1}]
    _, ran = self.search([again, again])
    self.assertEqual(ran, [[{'b': 2, 'a': 1}]])

  def test_what_failed_comes_last(self):
    found, _ = self.search(
      [lambda tried: [{'a': float('nan')}, {'a': 2}, {'a': 1}]]
    )
    self.assertEqual([one.found for one in found[:2]], [1, 2])

  def test_settings_may_hold_lists(self):
    again = lambda tried: [{'a': 1, 'layers': [1, {'b': [2]}]}]
    _, ran = self.search([again, again])
    self.assertLen(ran, 1)


class HalvingTest(parameterized.TestCase):
  @parameterized.parameters(
    (1, ()),
    (2, ((2, 1 / 2),)),
    (3, ((3, 1 / 4), (2, 1 / 2))),
    (4, ((4, 1 / 4), (2, 1 / 2))),
    (5, ((5, 1 / 8), (3, 1 / 4), (2, 1 / 2))),
  )
  def test_rounds(self, count, expected):
    found = [(one.settings, one.share) for one in search_lib.rounds_of(count)]
    self.assertEqual(found, list(expected))

  def test_the_best_of_a_round_go_on(self):
    ran = []

    def run(settings, one):
      ran.append((settings, one.share))
      # The best at a short budget is not the best at a longer one.
      return [-setting if one.share < 0.5 else setting for setting in settings]

    found = search_lib.halving([1, 5, 3, 2], run, lambda found: found)
    self.assertEqual(ran, [([1, 5, 3, 2], 0.25), ([5, 3], 0.5)])
    self.assertEqual([one.setting for one in found[-1][1]], [3, 5])
    self.assertEqual(search_lib.halving([7], run, lambda found: found), [])
