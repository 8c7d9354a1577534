"""Tests of the held-out evaluation of a student."""

import functools

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax import errors
from cxjax.methods import losses
from cxjax.methods import output_split
from cxjax.methods import relational
from cxjax.training import evaluation
from cxjax.training import metrics
from tests.methods import networks

SIZE = 12
BATCH = networks.batch(size=SIZE)
WEIGHTS = jnp.asarray(np.arange(SIZE) % 3, jnp.float32)
NAMES = (*metrics.LABEL_METRICS, 'f1')


def evaluate(batch, **options):
  fun = functools.partial(
    evaluation.evaluate, apply=networks.STUDENT.apply, **options
  )
  return jax.jit(fun)(networks.params(networks.STUDENT, 1), batch)


@pytest.mark.slow
class EvaluateTest(parameterized.TestCase):
  @parameterized.product(parts=(1, 2, 5, 12), weighted=(False, True))
  def test_is_exact_however_the_set_is_split(self, parts, weighted):
    batch = {**BATCH, 'weights': WEIGHTS} if weighted else BATCH
    found = evaluate(batch, metrics=NAMES, parts=parts)
    params = networks.params(networks.STUDENT, 1)
    logits, _ = networks.STUDENT.apply(params, batch['x'])
    logits, labels = np.asarray(logits, np.float64), np.asarray(batch['y'])
    nll = np.log(np.exp(logits).sum(-1)) - logits[np.arange(SIZE), labels]
    w = np.asarray(WEIGHTS) if weighted else np.ones(SIZE)
    loss = (nll * w).sum() / w.sum()
    said, true = logits.argmax(-1) == 1, labels == 1
    hits, wrong = (said & true) @ w, (said != true) @ w
    expected = {
      'accuracy': (logits.argmax(-1) == labels) @ w / w.sum(),
      'loss': loss,
      'perplexity': np.exp(loss),
      'f1': 2 * hits / (2 * hits + wrong),
    }
    self.assertCountEqual(found, expected)
    for name, value in expected.items():
      np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)

  @parameterized.product(rows=(1, 5), weighted=(False, True))
  def test_in_pieces_it_is_that_of_the_whole(self, rows, weighted):
    batch = {**BATCH, 'weights': WEIGHTS} if weighted else BATCH
    params, apply = networks.params(networks.STUDENT, 1), networks.STUDENT.apply
    apart = output_split.split(apply, rows, params, batch['x'])
    other = networks.params(networks.STUDENT, 2)
    run = lambda apply: (
      evaluation.evaluate(params, batch, apply=apply, metrics=NAMES),
      evaluation.agreement(params, other, batch, apply=apply, teacher=apply),
    )
    chex.assert_trees_all_close(run(apart), run(apply), atol=1e-6)

  def test_metrics_of_its_own(self):
    largest = lambda logits, labels: logits.max(-1)
    found = evaluate(BATCH, metrics={'largest': largest})
    params = networks.params(networks.STUDENT, 1)
    logits, _ = networks.STUDENT.apply(params, BATCH['x'])
    np.testing.assert_allclose(
      found['largest'], logits.max(-1).mean(), rtol=1e-6
    )

  def test_the_usual_metrics(self):
    self.assertCountEqual(evaluate(BATCH), metrics.LABEL_METRICS)

  def test_sequences(self):
    """Predicted tokens count by their weights, and nothing drops out."""
    batch = networks.sequence_batch()
    seen = []

    def apply(params, x):
      seen.append(x)
      return networks.sequence_apply(params, x)

    batch['x']['dropout'] = jax.random.split(jax.random.key(0), networks.B)
    params = networks.sequence_params(3, 1)
    found = evaluation.evaluate(params, batch, apply=apply, parts=2)
    self.assertNotIn('dropout', seen[0])
    self.assertEqual(seen[0]['tokens'].shape[0], networks.B // 2)
    logits, _ = networks.sequence_apply(params, batch['x'])
    hits = np.asarray(logits.argmax(-1) == batch['y'])
    expected = np.average(hits, weights=batch['weights'])
    np.testing.assert_allclose(found['accuracy'], expected, rtol=1e-6)

  @parameterized.parameters(1, 2)
  def test_outputs_of_padding_do_not_count(self, parts):
    """Without weights the mask says what counts."""
    batch = networks.sequence_batch()
    mask = np.asarray(batch['x']['mask'])
    params = networks.sequence_params(3, 1)

    def apply(params, x):
      _, seen = networks.sequence_apply(params, batch['x'])
      logits = x['rows'] @ params['head']
      return jnp.where(x['mask'][..., None], logits, jnp.nan), seen

    rows = np.random.default_rng(0).normal(size=(*mask.shape, 3))
    y = np.random.default_rng(1).integers(0, networks.VOCABULARY, mask.shape)
    x = {'rows': rows.astype(np.float32), 'mask': mask}
    found = evaluation.evaluate(
      params, {'x': x, 'y': y}, apply=apply, parts=parts
    )
    logits = jnp.asarray(x['rows'] @ np.asarray(params['head']))
    loss = losses.cross_entropy(logits, jnp.asarray(y))
    np.testing.assert_allclose(found['loss'], loss[mask].mean(), rtol=1e-5)
    hits = np.asarray(logits.argmax(-1)) == y
    np.testing.assert_allclose(found['accuracy'], hits[mask].mean(), rtol=1e-6)

  @parameterized.parameters(
    (lambda logits, labels: jnp.mean(logits), r"'mine' makes \[\] of an outp"),
    (lambda logits, labels: logits, r"'mine' makes \[12, 3\]"),
    (lambda logits: logits, "'mine' does not take an output"),
  )
  def test_a_metric_that_reduces_wrongly_is_one_line(self, metric, message):
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      evaluate(BATCH, metrics={'mine': metric})
    self.assertNotIn('\n', str(caught.exception))

  def test_a_metric_makes_a_value_for_each_weight(self):
    """Which may be fewer than the outputs."""
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    metric = metrics.Metric(lambda boxes, labels: boxes.mean((-2, -1)))
    batch = {'weights': shape(4, 3)}
    given = {'m': metric}, '', shape(4, 3, 5, 2), shape(4, 3, 5)
    evaluation.check(*given, batch)
    with self.assertRaisesRegex(errors.UserError, r'each example, \[4, 3, 5\]'):
      evaluation.check(*given, {})

  def test_unknown_metric(self):
    with self.assertRaisesRegex(errors.UserError, "'acuracy'.*mean 'accuracy'"):
      evaluate(BATCH, metrics=('acuracy',))


class AgreementTest(parameterized.TestCase):
  def agreement(self, student, teacher, parts=1):
    fun = functools.partial(
      evaluation.agreement,
      apply=student.apply,
      teacher=teacher.apply,
      parts=parts,
    )
    params = networks.params(student, 1), networks.params(teacher, 1)
    return jax.jit(fun)(*params, BATCH)

  @parameterized.parameters(1, 3)
  @pytest.mark.slow
  def test_by_hand(self, parts):
    found = self.agreement(networks.STUDENT, networks.TEACHER, parts)
    ours, theirs = (
      np.asarray(model.apply(networks.params(model, 1), BATCH['x'])[0])
      for model in (networks.STUDENT, networks.TEACHER)
    )
    p, q = (
      np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (theirs, ours)
    )
    expected = {
      'agreement': (ours.argmax(-1) == theirs.argmax(-1)).mean(),
      'teacher_kl': (p * np.log(p / q)).sum(-1).mean(),
    }
    self.assertCountEqual(found, expected)
    for name, value in expected.items():
      np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)

  @pytest.mark.slow
  def test_what_does_not_count_has_no_relations(self):
    batch = {**BATCH, 'weights': WEIGHTS}
    gram = {'gram': metrics.Metric(relational.gram, reference='teacher')}
    apply = lambda params, x: (jnp.sin(params['scale'] * x), {})
    params = [{'scale': jnp.float32(scale)} for scale in (1, 2)]
    fun = functools.partial(
      evaluation.agreement, apply=apply, teacher=apply, metrics=gram
    )
    few = jax.tree.map(lambda leaf: leaf[WEIGHTS > 0], batch)
    every, few = (jax.jit(fun)(*params, one) for one in (batch, few))
    np.testing.assert_allclose(every['gram'], few['gram'], rtol=1e-5)

  def test_a_model_agrees_with_itself(self):
    found = self.agreement(networks.STUDENT, networks.STUDENT)
    self.assertEqual(found['agreement'], 1)
    np.testing.assert_allclose(found['teacher_kl'], 0, atol=1e-6)
