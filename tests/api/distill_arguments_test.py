"""Arguments of `distill` that are refused, and of other libraries."""

from absl.testing import parameterized
import chex
import numpy as np
import pytest

import cxjax
from cxjax import errors
from small_networks import BIG
from small_networks import SMALL
from small_networks import TEACHER
from small_networks import X
from small_networks import Y
from small_networks import batches
from small_networks import parameters
from small_networks import two_layers
from tests.api.distilled import FolderTest
from tests.api.distilled import distill

pytestmark = pytest.mark.slow

HIDDEN = cxjax.plan(
  BIG, SMALL, X, stages=(cxjax.Stage('low', 20, (cxjax.Term('low', 'low'),)),)
)


class ArgumentsTest(FolderTest):
  @parameterized.parameters(
    ({'plan': TEACHER}, 'plan is a ModelAdapter: make one with cxjax.plan'),
    ({'log_every': 0}, 'log_every=0'),
    ({'log_every': 2.5}, 'log_every=2.5 must be a whole number'),
    ({'eval_every': 0}, 'eval_every=0'),
    ({'save_every': 'x'}, "save_every='x' must be a whole"),
    ({'optimizer': 'adam'}, "optimizer='adam' must be one of optax"),
    ({'data': 3}, 'batches are a int'),
    ({'learning_rate': lambda step: 0.1}, 'learning_rate is.*optimizer=optax'),
    ({'learning_rate': 0.0}, 'learning_rate=0.0 must be a finite number'),
    ({'learning_rate': float('nan')}, 'learning_rate=nan must be'),
    ({'seed': -1}, 'seed=-1'),
    ({'seed': 0.5}, 'seed=0.5'),
    ({'held_out': X[:0]}, 'held_out has parts of 0 examples'),
    ({'held_out': X[:, :4]}, r'held_out has shape \[8, 4\]'),
    ({'data': [X[:, :4]]}, r'the first batch has shape \[8, 4\]'),
    ({'microbatches': 3}, 'microbatches=3 must divide'),
    ({'microbatches': 1.5}, 'microbatches=1.5 must be a whole'),
    ({'patience': 0}, 'patience=0 must be a whole number'),
    ({'patience': 1.5}, 'patience=1.5 must be a whole number'),
    ({'patience': 3}, 'patience=3 needs held_out'),
    (
      {'patience': 9, 'held_out': X},
      "patience=9 .*'output', has 10 evaluations, one every 2.*at most 8",
    ),
    (
      {'patience': 3, 'held_out': X, 'plan': HIDDEN},
      "metrics of the output, which the last stage, 'low', does not train",
    ),
    ({'on_record': 3}, 'on_record=3 must be a function'),
    ({'workdir': 3}, 'workdir=3 must be a folder'),
    ({'workdir': ''}, "workdir='' must be a folder"),
    ({'mesh': {'tensor': 2}}, "'tensor'"),
    ({'mesh': {'student': 'tenser'}}, "'tenser'.*mean 'tensor'"),
    ({'mesh': {'model': 2, 'student': 'tensor'}}, 'needs the partition_rules'),
  )
  def test_what_cannot_be(self, options, message):
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      distill(**options)
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(
    ([X, X[:5]], r'batch 2 has shape \[5, 6\].*\[8, 6\].*last_batch='),
    ([(X, X)], 'batch 1 has x, y, the example of the plan x'),
    ([], 'There is no batch'),
    (iter([]), 'There is no batch'),
    (iter(batches(number=5)), 'ended after 5.*iterated'),
  )
  def test_batches_that_cannot_be(self, data, message):
    with self.assertRaisesRegex(errors.UserError, message):
      distill(data=data, held_out=X)

  def test_parameters_that_match_no_partition_rule(self):
    rules = [('low$', 1)]
    model = cxjax.from_fn(two_layers, parameters(0, 4), partition_rules=rules)
    plan = cxjax.plan(BIG, model, X, num_steps=2, layers=())
    mesh = {'data': 1, 'model': 2, 'student': 'tensor'}
    with self.assertLogs(level='WARNING') as log:
      params, _ = distill(plan, mesh=mesh)
    self.assertRegex(
      log.output[0], 'student has 2 parameters that match no partition rule.*'
    )
    self.assertIn(': high, out.', log.output[0])
    want, _ = distill(plan, mesh={'data': 1})
    chex.assert_trees_all_close(params, want, rtol=1e-4, atol=1e-6)

  def test_arrays_and_numbers_of_other_libraries(self):
    class Tensor:
      def __init__(self, array):
        self.array = array

      def __array__(self, dtype=None, copy=None):
        return np.asarray(self.array, dtype)

    class Batches:  # Without __iter__.
      def __getitem__(self, i):
        return [Tensor(batches()[i]), Tensor(y)]

    y = Y.astype(np.int64)
    plan = cxjax.plan(
      BIG,
      SMALL,
      [Tensor(X), Tensor(y)],
      num_steps=np.int64(20),
      steps=np.array([10, 10]),
      layers=zip(['high'], ['low'], strict=True),
    )
    rate = 2**-10
    got, history = distill(
      plan,
      Batches(),
      learning_rate=np.float32(rate),
      log_every=np.int64(2),
      seed=np.int32(0),
      workdir=self.folder(),
    )
    self.assertIn('eval/accuracy', history[-1])
    layers = [('high', 'low')]
    same = cxjax.plan(
      BIG, SMALL, (X, y), num_steps=20, steps=(10, 10), layers=layers
    )
    self.assertEqual(same.stages, plan.stages)
    data = [(x, y) for x in batches()]
    want, _ = distill(same, data, learning_rate=rate, log_every=2)
    chex.assert_trees_all_equal(got, want)

  def test_numbers_of_numpy_in_terms(self):
    term = cxjax.Term(
      'low',
      'high',
      weight=np.float32(0.5),
      scale=np.float32(2),
      projection='gaussian',
      regressor=True,
      width=np.int64(3),
    )
    stage = cxjax.Stage('hidden', np.int64(2), (term,))
    plan = cxjax.plan(BIG, SMALL, X, stages=stage)
    _, history = distill(plan, workdir=self.folder())
    self.assertEqual(history[-1]['step'], 2)
