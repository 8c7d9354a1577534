"""Tests of the methods of a comparison, by their names."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from cxjax import errors
from cxjax.api import named_plans
from cxjax.methods import curricula
from cxjax.methods import layer_matching
from cxjax.methods import registry
from small_networks import BIG
from small_networks import SMALL
from small_networks import X

LABELS = np.zeros(len(X), np.int32)


class PlannerTest(parameterized.TestCase):
  @parameterized.parameters(
    ({'method': 'extracted'}, 40),
    ({'method': 'extracted_centered'}, 40),
    ({'method': 'extracted_labels'}, 10),
    ({'method': 'extracted_centered_labels'}, 10),
    ({'method': 'extracted_labels', 'share': 0.3}, 30),
  )
  def test_share_of_the_hidden_stages(self, entry, hidden):
    pairs = [('high', 'low')]
    planner = named_plans.Planner(
      BIG, SMALL, (X, LABELS), pairs, named_plans.Output()
    )
    first, last = planner.plan('some', entry, 100).stages
    self.assertEqual((first.steps, last.steps), (hidden, 100 - hidden))

  def test_a_method_of_the_users(self):
    def build(block, context):
      steps = layer_matching.split_steps(context.num_steps, 1, block.share)
      return curricula.extracted(context.matched(), steps, **context.output)

    method = registry.Method(build, {'share': 0.2})
    self.enter_context(mock.patch.dict(registry.METHODS, mine=method))
    of = lambda layers: named_plans.Planner(
      BIG, SMALL, X, layers, named_plans.Output()
    ).plan('mine', {'method': 'mine'}, 100)
    first, last = of([('high', 'low')]).stages
    self.assertEqual((first.steps, last.steps), (20, 80))
    self.assertEqual(first.terms[0].target, 'high')
    with self.assertRaisesRegex(errors.UserError, "'mine': .*leaves none"):
      of(())


class Reversing:
  """A loader that gives the batches behind the first in turning order."""

  def __init__(self, batches, turns=True):
    self.batches, self.turns = batches, turns

  def __iter__(self):
    first, *others = self.batches
    if self.turns:
      self.batches = [first, *others[::-1]]
    yield first
    yield from others


class ExampleTest(parameterized.TestCase):
  @parameterized.parameters(
    list, tuple, np.stack, lambda batches: Reversing(batches, turns=False)
  )
  def test_batches_that_begin_anew(self, kind):
    example = named_plans.example_of(kind([X, X + 1, X + 2]))
    self.assertEqual(example.shape, X.shape)

  def test_batches_that_do_not(self):
    batches = Reversing([X, X + 1, X + 2])
    with self.assertRaisesRegex(errors.UserError, 'a Reversing .* other batch'):
      named_plans.example_of(batches)


if __name__ == '__main__':
  absltest.main()
