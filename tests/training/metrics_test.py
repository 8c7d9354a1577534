"""Tests of the held-out metrics and of their registry."""

import math

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax import errors
from cxjax.training import metrics

NAN = math.nan


def values(name, output, reference, weights=None):
  metric = metrics.METRICS[name]
  return float(metric.total(metric.statistics(output, reference), weights))


def data(classes=3, shape=(64,)):
  random = np.random.default_rng(0)
  logits = random.normal(size=(*shape, classes)).astype(np.float32)
  labels = random.integers(0, classes, shape)
  weights = random.integers(0, 3, shape).astype(np.float32)
  return logits, labels, weights


class DirectionTest(parameterized.TestCase):
  def test_a_function_does_not_say_if_more_is_better(self):
    (plain,) = metrics.resolve({'brier': max}).values()
    with self.assertRaisesRegex(
      errors.UserError, "'brier' decides.*higher_is_better=False if less is"
    ):
      metrics.require_direction('brier', plain)

  def test_metrics_do(self):
    for given in (metrics.Metric(max), metrics.METRICS['loss']):
      metrics.require_direction('brier', given)


@pytest.mark.slow
class ValueTest(parameterized.TestCase):
  @parameterized.parameters((64,), (16, 4))
  def test_means(self, *shape):
    logits, labels, weights = data(shape=shape)
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    hits = np.asarray(logits.argmax(-1) == labels)
    nll = -np.take_along_axis(
      np.asarray(jax.nn.log_softmax(logits)), np.asarray(labels)[..., None], -1
    )[..., 0]
    for w in (None, jnp.asarray(weights)):
      mean = lambda x, w=w: np.average(x, weights=w)
      got = {n: values(n, logits, labels, w) for n in metrics.LABEL_METRICS}
      self.assertAlmostEqual(got['accuracy'], mean(hits), places=6)
      self.assertAlmostEqual(got['loss'], mean(nll), places=5)
      self.assertAlmostEqual(got['perplexity'], math.exp(mean(nll)), places=4)

  @parameterized.parameters(2, 3)
  def test_f1_of_class_1(self, classes):
    logits, labels, weights = data(classes)
    said, true = logits.argmax(-1) == 1, labels == 1
    for w in (None, weights):
      total = lambda which, w=w: np.sum(which * (1 if w is None else w))
      hits = total(said & true)
      precision, recall = hits / total(said), hits / total(true)
      expected = 2 * precision * recall / (precision + recall)
      got = values('f1', jnp.asarray(logits), jnp.asarray(labels), w)
      self.assertAlmostEqual(got, expected, places=6)

  def test_f1_without_class_1_is_0(self):
    """Neither an example nor an output is of class 1."""
    logits = jnp.asarray([[1.0, 0.0], [2.0, 0.0]])
    for weights in (None, np.array([1.0, 0.0], np.float32)):
      self.assertEqual(values('f1', logits, jnp.zeros(2, int), weights), 0.0)
    bad = logits.at[0, 0].set(NAN)
    self.assertTrue(math.isnan(values('f1', bad, jnp.zeros(2, int))))

  def test_against_the_teacher(self):
    ours, _, weights = data()
    theirs = ours[::-1]
    p = np.asarray(jax.nn.softmax(theirs))
    log = lambda x: np.asarray(jax.nn.log_softmax(x))
    kl = (p * (log(theirs) - log(ours))).sum(-1)
    same = ours.argmax(-1) == theirs.argmax(-1)
    for name, expected in (('agreement', same), ('teacher_kl', kl)):
      got = values(name, jnp.asarray(ours), jnp.asarray(theirs), weights)
      np.testing.assert_allclose(
        got, np.average(expected, weights=weights), rtol=1e-5
      )

  def test_of_nothing_it_is_nan(self):
    logits, labels, weights = data()
    for name in (*metrics.LABEL_METRICS, 'f1'):
      self.assertTrue(math.isnan(values(name, logits, labels, 0 * weights)))

  @parameterized.parameters(
    'accuracy', 'loss', 'perplexity', 'f1', 'agreement', 'teacher_kl'
  )
  def test_nan_is_no_class(self, name):
    """Outputs of NaN do not agree; where nothing counts they may be."""
    logits, labels, weights = data()
    bad = logits.copy()
    bad[weights == 0, 1] = np.nan
    teacher = metrics.METRICS[name].reference == 'teacher'
    pairs = ((bad, bad), (logits, bad)) if teacher else ((bad, labels),)
    for pair in pairs:
      self.assertTrue(math.isnan(values(name, *pair, None)))
    found = values(name, bad, logits if teacher else labels, weights)
    expected = values(name, logits, logits if teacher else labels, weights)
    self.assertAlmostEqual(found, expected, places=6)

  @parameterized.parameters('accuracy', 'loss', 'f1')
  def test_one_hot_labels_are_classes(self, name):
    logits, labels, weights = data()
    found = values(name, logits, np.eye(3, dtype=np.float32)[labels], weights)
    want = values(name, logits, labels, weights)
    self.assertAlmostEqual(found, want, places=6)

  def test_weights_are_summed_in_float32(self):
    ones = jnp.ones(257)
    found = metrics.METRICS['loss'].total(ones, ones.astype(jnp.bfloat16))
    self.assertEqual(found, 1)

  @parameterized.parameters('perplexity', 'f1')
  def test_the_sums_of_parts_make_the_metric_of_all(self, name):
    """Which the mean of the metrics of parts does not."""
    logits, labels, _ = data()
    metric, sums, count = metrics.METRICS[name], None, 0.0
    means = []
    for part in (slice(0, 5), slice(5, 30), slice(30, 64)):
      found = metric.statistics(logits[part], labels[part])
      means.append(float(metric.total(found, None)))
      own = jax.tree.map(lambda x: jnp.sum(x.astype(jnp.float32)), found)
      sums = own if sums is None else jax.tree.map(jnp.add, sums, own)
      count += len(labels[part])
    whole = values(name, logits, labels)
    self.assertAlmostEqual(float(metric.finish(sums, count)), whole, places=5)
    self.assertNotAlmostEqual(np.mean(means), whole, places=3)


class OrderTest(parameterized.TestCase):
  higher = metrics.METRICS['accuracy']
  lower = metrics.METRICS['loss']

  def test_higher_is_better(self):
    self.assertTrue(self.higher.better(0.5, 0.4))
    self.assertFalse(self.higher.better(0.5, 0.5))
    self.assertTrue(self.higher.reaches(0.5, 0.5))
    self.assertFalse(self.higher.reaches(0.4, 0.5))
    self.assertEqual(self.higher.worst([0.5, 0.3, 0.4]), 0.3)

  def test_lower_is_better(self):
    self.assertTrue(self.lower.better(0.4, 0.5))
    self.assertFalse(self.lower.better(0.5, 0.5))
    self.assertTrue(self.lower.reaches(0.5, 0.5))
    self.assertFalse(self.lower.reaches(0.6, 0.5))
    self.assertEqual(self.lower.worst([0.5, 0.3, 0.4]), 0.5)

  @parameterized.parameters('accuracy', 'loss')
  def test_nan_is_worse_than_any_other(self, name):
    metric = metrics.METRICS[name]
    for score in (-math.inf, 0.0, math.inf):
      self.assertTrue(metric.better(score, NAN))
      self.assertFalse(metric.better(NAN, score))
      self.assertFalse(metric.reaches(NAN, score))
    self.assertFalse(metric.better(NAN, NAN))
    for scores in ([NAN, 1.0, 2.0], [1.0, NAN, 2.0], [2.0, 1.0, NAN]):
      self.assertTrue(math.isnan(metric.worst(scores)))

  @parameterized.parameters(
    ('accuracy', 1.0, True),
    ('accuracy', 1.01, False),
    ('f1', 2.0, False),
    ('agreement', 2.0, False),
    ('loss', 0.0, True),
    ('loss', -0.1, False),
    ('loss', 99.0, True),
    ('perplexity', 1.0, True),
    ('perplexity', 0.9, False),
    ('teacher_kl', -1.0, False),
  )
  def test_scores_that_are_possible(self, name, threshold, expected):
    metric = metrics.METRICS[name]
    self.assertEqual(metric.is_possible(threshold), expected)

  def test_any_score_of_a_metric_without_a_limit(self):
    metric = metrics.Metric(lambda output, labels: output[..., 0])
    self.assertTrue(metric.is_possible(1e9))

  def test_of_the_registry(self):
    ours = ('accuracy', 'loss', 'perplexity', 'f1', 'agreement', 'teacher_kl')
    lower = {n for n in ours if not metrics.METRICS[n].higher_is_better}
    self.assertEqual(lower, {'loss', 'perplexity', 'teacher_kl'})


class ResolveTest(parameterized.TestCase):
  def test_names(self):
    expected = {n: metrics.METRICS[n] for n in ('loss', 'f1')}
    self.assertEqual(metrics.resolve(('loss', 'f1')), expected)
    self.assertEqual(list(metrics.resolve('loss')), ['loss'])
    self.assertEqual(metrics.resolve(()), {})

  def test_functions_and_metrics(self):
    largest = lambda output, labels: output.max(-1)
    own = metrics.Metric(largest, higher_is_better=False)
    found = metrics.resolve({'a': largest, 'b': own})
    self.assertEqual(found, {'a': metrics.Plain(largest), 'b': own})

  @parameterized.parameters(
    (('accurracy',), "'accurracy'. Did you mean 'accuracy'"),
    (('huber',), r"'huber'.*; or give functions of \(output, labels\) by name"),
    ('los', "'los'. Did you mean 'loss'"),
    (({'a': 3},), "'a' is 3: give a function"),
    ((3,), 'metrics=3 must be names'),
    (([len],), 'has no name'),
  )
  def test_refuses(self, given, message):
    given = given[0] if isinstance(given, tuple) else given
    with self.assertRaisesRegex(errors.UserError, message):
      metrics.resolve(given)

  def test_register(self):
    with self.assertRaisesRegex(errors.UserError, "'loss' already"):
      metrics.register('loss', metrics.METRICS['loss'])
    self.addCleanup(metrics.METRICS.pop, 'mine')
    own = metrics.Metric(lambda output, labels: output[..., 0])
    metrics.register('mine', own)
    self.assertEqual(metrics.resolve('mine'), {'mine': own})

  @parameterized.parameters(
    (dict(statistics=3), 'statistics=3 of a metric must be a function'),
    (dict(statistics=len, finish='mean'), "finish='mean' of a metric"),
    (dict(statistics=len, reference='label'), "'label'.*mean 'labels'"),
  )
  def test_a_metric_that_cannot_be_computed(self, fields, message):
    with self.assertRaisesRegex(errors.UserError, message):
      metrics.Metric(**fields)

  def test_the_other_reference(self):
    found = metrics.resolve(('loss', 'agreement'))
    with self.assertRaisesRegex(
      errors.UserError, "'loss' compares with the labels, .* has no labels"
    ):
      metrics.require_reference(found, 'teacher')
    with self.assertRaisesRegex(
      errors.UserError, "'agreement' compares with the teacher, .* has labels"
    ):
      metrics.require_reference(found, 'labels')
    metrics.require_reference(metrics.resolve('loss'), 'labels')


class CheckTest(parameterized.TestCase):
  output = jax.ShapeDtypeStruct((8, 3), jnp.float32)
  labels = jax.ShapeDtypeStruct((8,), jnp.int32)

  def check(self, metric):
    metrics.check(
      metrics.resolve({'mine': metric}), self.output, self.labels, (8,)
    )

  @parameterized.parameters(
    (lambda a, y: jnp.mean(a), r'makes \[\] of an output of \[8, 3\].*\[8\]'),
    (lambda a, y: a, r'makes \[8, 3\] of an output'),
    (lambda a, y: {'a': a[:, 0], 'b': a}, r'makes \[8'),
    (lambda a, y: {}, 'makes nothing'),
    (lambda a, y: a[:, 0] * 1j, 'one real number'),
    (lambda a, y: a @ y, r'output of \[8, 3\] and a reference of \[8\]: '),
    (lambda a: a, 'does not take'),
    (lambda a, y: 1 / 0, 'does not take .*: division by zero.$'),
    (
      metrics.Metric(lambda a, y: a[:, 0], lambda sums, count: sums['a']),
      'cannot be made of its sums',
    ),
    (
      metrics.Metric(lambda a, y: a[:, 0], lambda s, n: jnp.ones(2)),
      'finishes as .*must be a real scalar',
    ),
    (metrics.Metric(lambda a, y: a[:, 0], lambda s, n: 'x'), "mine'"),
  )
  def test_refuses(self, metric, message):
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      self.check(metric)
    self.assertNotIn('\n', str(caught.exception))

  def test_accepts(self):
    for metric in metrics.METRICS.values():
      if metric.reference == 'labels':
        self.check(metric)
    self.check(lambda output, labels: output[:, 0])

  @parameterized.parameters(((8, 8), (8,)), ((4, 3, 3), (4, 3)))
  def test_a_mean_over_another_axis_of_the_same_length(self, shape, counted):
    output = jax.ShapeDtypeStruct(shape, jnp.float32)
    labels = jax.ShapeDtypeStruct(counted, jnp.int32)
    check = lambda fun: metrics.check(
      metrics.resolve({'mine': fun}), output, labels, counted
    )
    check(lambda a, y: a.mean(-1) + y)
    with self.assertRaisesRegex(errors.UserError, 'makes .* of an output of'):
      check(lambda a, y: a.mean(-2))
