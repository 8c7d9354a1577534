"""How the students of a plan are evaluated."""

from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cxjax
from cxjax import errors
from cxjax.api import held_out as held_out_lib
from cxjax.methods import losses
from small_networks import BIG
from small_networks import ONE
from small_networks import SMALL
from small_networks import B
from small_networks import C
from small_networks import X
from small_networks import Y
from small_networks import batches
from small_networks import two_layers

LABELED = cxjax.plan(BIG, SMALL, (X, Y), num_steps=20, layers=())
MORE = np.concatenate(batches(1, 3))  # Of another size than a batch.


def evaluation(plan, held_out, metrics=None):
  return held_out_lib.evaluation(plan, held_out, 'held_out', metrics)


def plan_of(*terms, x=(X, Y), **kwargs):
  stage = cxjax.Stage('last', 20, terms)
  return cxjax.plan(BIG, SMALL, x, stages=stage, **kwargs)


class ChoiceTest(parameterized.TestCase):
  """What is compared with what, unless metrics are given."""

  def test_labels_if_outputs_are_logits(self):
    found = evaluation(LABELED, (MORE, np.arange(24) % C))
    self.assertTrue(found.by_labels)
    self.assertEqual(list(found.metrics), ['accuracy', 'loss'])
    np.testing.assert_array_equal(found.held_out['y'], np.arange(24) % C)

  def test_the_teacher_without_labels(self):
    found = evaluation(ONE, MORE)
    self.assertFalse(found.by_labels)
    self.assertEqual(list(found.metrics), ['agreement', 'loss'])
    want, _ = two_layers(BIG.params, MORE)
    np.testing.assert_allclose(found.held_out['y'], want, rtol=1e-5)

  @parameterized.parameters(
    ({'loss': 'cosine'}, ['cosine', 'loss']),
    ({'loss': 'mse'}, ['loss']),
    ({'loss': 'l2'}, ['loss']),
    ({'loss': lambda a, b: jnp.abs(a - b).sum(-1)}, ['loss']),
    ({'loss': 'reverse_kl'}, ['agreement', 'loss']),
    ({'top_k': 2}, ['agreement', 'loss']),
  )
  def test_the_loss_of_the_last_stage_decides(self, options, names):
    """Whether it is an option of `plan` or stands in a term."""
    plan = cxjax.plan(BIG, SMALL, X, num_steps=9, layers=(), **options)
    same = plan_of(cxjax.Term(**options), x=X)
    for one in (plan, same):
      self.assertEqual(list(evaluation(one, MORE).metrics), names)

  @parameterized.parameters(
    ((cxjax.Term(target='labels'),), True),
    ((cxjax.Term(), cxjax.Term(target='labels')), True),
    ((cxjax.Term('low', 'low'),), True),
    ((cxjax.Term(loss='mse'), cxjax.Term(target='labels')), True),
    ((cxjax.Term(loss='mse'),), False),
  )
  def test_labels_beside_other_terms(self, terms, by_labels):
    found = evaluation(plan_of(*terms), (X, Y))
    self.assertEqual(found.by_labels, by_labels)

  def test_held_out_needs_no_labels_that_are_not_read(self):
    y = np.zeros((B, 1), np.float32)
    plan = cxjax.plan(BIG, SMALL, (X, y), num_steps=20, loss='mse', layers=())
    self.assertFalse(evaluation(plan, X).by_labels)
    with self.assertRaisesRegex(errors.UserError, 'held_out has x, .* x, y'):
      evaluation(LABELED, X)

  def test_lower_losses_are_better(self):
    for plan, data in ((ONE, X), (LABELED, (X, Y))):
      metrics = evaluation(plan, data).metrics
      self.assertFalse(metrics['loss'].higher_is_better)
    self.assertTrue(evaluation(ONE, X).metrics['agreement'].higher_is_better)


class SetTest(parameterized.TestCase):
  """A list or a loader is evaluated as its examples together."""

  @parameterized.parameters(list, tuple, iter)
  def test_all_batches_count(self, kind):
    parts = [MORE[:8], MORE[8:21], MORE[21:]]
    for size in (2, 3):
      found = evaluation(ONE, kind(parts[:size])).held_out
      want = evaluation(ONE, np.concatenate(parts[:size])).held_out
      for name in ('x', 'y'):
        np.testing.assert_array_equal(found[name], want[name])

  def test_labels(self):
    y = np.arange(24) % C
    parts = [(MORE[i : i + 10], y[i : i + 10]) for i in (0, 10, 20)]
    found = evaluation(LABELED, parts).held_out
    np.testing.assert_array_equal(found['x'], MORE)
    np.testing.assert_array_equal(found['y'], y)

  @pytest.mark.slow
  def test_nan(self):
    x = np.where(np.arange(24)[:, None] == 13, np.nan, MORE)
    for held_out in (x, [x[:8], x[8:]]):
      with self.assertRaisesRegex(
        errors.UserError, 'NaN in 1 of 24 examples, .* is example 13'
      ):
        evaluation(ONE, held_out)
    weights = np.ones(24)
    weights[13] = 0
    evaluation(ONE, {'x': x, 'weights': weights})

  @pytest.mark.slow
  def test_a_model_may_know_missing_values(self):
    fill = lambda params, x: two_layers(params, jnp.nan_to_num(x))
    networks = (cxjax.from_fn(fill, one.params) for one in (BIG, SMALL))
    plan = cxjax.plan(*networks, X, num_steps=2, layers=())
    x = np.where(X > 1, np.nan, X)
    self.assertLen(evaluation(plan, x).held_out['y'], B)

  @pytest.mark.slow
  def test_soft_labels(self):
    soft = np.eye(C, dtype=np.float32)[Y]
    plan = cxjax.plan(BIG, SMALL, (X, soft), num_steps=2, alpha=1, layers=())
    found, hard = evaluation(plan, (X, soft)), evaluation(LABELED, (X, Y))
    self.assertEqual(list(found.metrics), ['accuracy', 'loss'])
    output, _ = two_layers(SMALL.params, X)
    for name, metric in found.metrics.items():
      np.testing.assert_allclose(
        metric.statistics(output, found.held_out['y']),
        hard.metrics[name].statistics(output, hard.held_out['y']),
        rtol=1e-5,
      )
    with self.assertRaisesRegex(errors.UserError, 'held_out: .* sum 2'):
      evaluation(plan, (X, 2 * soft))


class MetricsTest(parameterized.TestCase):
  """Names, functions and `cxjax.Metric`."""

  def final(self, plan, data, **kwargs):
    params, history = cxjax.distill(
      plan, data, optimizer=optax.sgd(0.1), held_out=data[0], **kwargs
    )
    got, _ = two_layers(params, X)
    want, _ = two_layers(BIG.params, X)
    return got, want, history[-1]

  @pytest.mark.slow
  def test_names(self):
    names = ('f1', 'perplexity', 'accuracy')
    got, _, last = self.final(LABELED, [(X, Y)], metrics=names)
    found = {n: last[f'eval/{n}'][0] for n in names}
    np.testing.assert_allclose(
      found['perplexity'], np.exp(losses.cross_entropy(got, Y).mean()), 1e-4
    )
    said = np.array(got).argmax(-1)
    hits = ((said == 1) & (Y == 1)).sum()
    np.testing.assert_allclose(
      found['f1'], 2 * hits / ((said == 1).sum() + (Y == 1).sum()), 1e-5
    )
    self.assertEqual(found['accuracy'], (said == Y).mean())
    # Of the last record: how near the student is to its teacher.
    self.assertIn('eval/agreement', last)

  @pytest.mark.slow
  def test_functions_and_sums(self):
    """The root of a mean, which is not the mean of roots."""
    square = lambda got, want: jnp.square(got - want).mean(-1)
    metrics = {
      'largest': lambda got, want: jnp.abs(got - want).max(-1),
      'rms': cxjax.Metric(square, lambda total, count: jnp.sqrt(total / count)),
    }
    got, want, last = self.final(ONE, [X], metrics=metrics)
    np.testing.assert_allclose(
      last['eval/largest'][0], np.abs(got - want).max(-1).mean(), 1e-4
    )
    np.testing.assert_allclose(
      last['eval/rms'][0], np.sqrt(np.square(got - want).mean()), 1e-4
    )

  @pytest.mark.slow
  def test_what_no_weight_counts_is_left_out(self):
    weights = np.array([1, 1, 1, 0, 0, 0, 0, 2], np.float32)
    data = {'x': X, 'y': Y, 'weights': weights}
    plan = cxjax.plan(BIG, SMALL, data, num_steps=20, layers=())
    got, _, last = self.final(plan, [data])
    right = np.array(got).argmax(-1) == Y
    np.testing.assert_allclose(
      last['eval/accuracy'][0], (right * weights).sum() / weights.sum(), 1e-6
    )

  @parameterized.parameters(
    ('accurcy', "metric 'accurcy'. Did you mean 'accuracy'"),
    (5, 'metrics=5 must be names'),
    ([lambda a, b: a], 'has no name: give functions by name'),
    ({'m': 5}, "metric 'm' is 5: give a function"),
    ({'m': lambda a, b: a}, r"'m' makes \[8, 3\] .* for each example, \[8\]"),
    ({'m': lambda a, b: a.mean()}, r"'m' makes \[\] of .* averaged afterwards"),
    ({'m': lambda a, b: None}, "'m' makes nothing of"),
    ({'m': lambda a, b: 1j * a[:, 0]}, 'one real number for each'),
    ({'m': lambda a: a[:, 0]}, "'m' does not take an output of"),
    ({'m': lambda a, b: 1 / 0}, "'m' does not take .*: division by zero"),
    ({'m': lambda a, b: {'a': a[:, 0]}}, "'m' cannot be made of its sums"),
  )
  def test_refuses(self, metrics, message):
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      evaluation(ONE, X, metrics)
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(
    (lambda total, count: jnp.ones(3) * total, r'finishes as .*\(3,\)'),
    (lambda total, count: None, 'finishes as None: it must be a real scalar'),
    (lambda total, count: total * 1j, 'finishes as .*complex'),
    (lambda total, count: 'a', "'m' cannot be made of its sums"),
    (lambda total: total, "'m' cannot be made of its sums"),
  )
  def test_refuses_what_finishes_as_no_number(self, finish, message):
    metric = cxjax.Metric(lambda got, want: got[:, 0], finish)
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      evaluation(ONE, X, {'m': metric})
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(
    (ONE, X, 'accuracy', 'has no labels: give'),
    (ONE, X, ('agreement', 'perplexity'), "'perplexity' .* has no labels"),
    (LABELED, (X, Y), 'agreement', 'has labels: leave the metric out'),
    (LABELED, (X, Y), ('accuracy', 'teacher_kl'), "'teacher_kl' .* has labels"),
  )
  def test_refuses_a_metric_of_the_other_reference(
    self, plan, data, metrics, message
  ):
    """Labels in place of logits would be a number, and nonsense."""
    with self.assertRaisesRegex(errors.UserError, message):
      evaluation(plan, data, metrics)

  def test_labels_are_those_of_a_metric_whatever_the_loss(self):
    y = np.arange(B) % C
    loss = lambda got, want: jnp.abs(got - want).sum(-1)
    plan = cxjax.plan(BIG, SMALL, (X, y), num_steps=9, layers=(), loss=loss)
    self.assertFalse(evaluation(plan, (X, y)).by_labels)
    own = {'right': lambda got, labels: got.argmax(-1) == labels}
    for metrics in (own, 'accuracy'):
      found = evaluation(plan, (X, y), metrics)
      np.testing.assert_array_equal(found.held_out['y'], y)
    found = evaluation(plan, (X, y), 'agreement')
    self.assertEqual(found.held_out['y'].shape, (B, C))

  @parameterized.parameters(
    ((X, Y),),
    ([X, Y],),
    ({'x': X, 'y': Y},),
    ([(X, Y)],),
    ([(X[:3], Y[:3]), (X[3:], Y[3:])],),
  )
  def test_labels_of_the_held_out_set_alone(self, held_out):
    """The example of the plan has none, and a metric reads them."""
    found = evaluation(ONE, held_out, 'accuracy')
    self.assertTrue(found.by_labels)
    np.testing.assert_array_equal(found.held_out['y'], Y)
    self.assertFalse(evaluation(ONE, held_out).by_labels)

  def test_labels_of_a_loader_need_those_of_the_plan(self):
    message = 'give .x, labels., and as the example of the plan too if it is a'
    with self.assertRaisesRegex(errors.UserError, message):
      evaluation(ONE, iter([(X, Y)]), 'accuracy')

  @pytest.mark.slow
  def test_a_run_on_inputs_is_evaluated_on_labels(self):
    options = dict(metrics='accuracy', held_out=(X, Y), log_every=9)
    found = cxjax.distill(ONE, batches(1, 3), **options)
    want = cxjax.distill(LABELED, [(x, Y) for x in batches(1, 3)], **options)
    np.testing.assert_array_equal(
      found[1][-1]['eval/accuracy'], want[1][-1]['eval/accuracy']
    )

  def test_a_function_takes_either_reference(self):
    metrics = {'m': lambda got, want: got[:, 0]}
    for plan, data in ((ONE, X), (LABELED, (X, Y))):
      self.assertEqual(list(evaluation(plan, data, metrics).metrics), ['m'])
