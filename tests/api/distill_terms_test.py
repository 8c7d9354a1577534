"""`distill` of stages of several terms."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cxjax
from cxjax.methods import losses
from small_networks import BIG
from small_networks import JOINT_TERMS
from small_networks import SMALL
from small_networks import STUDENT
from small_networks import TEACHER
from small_networks import X
from small_networks import Y
from small_networks import batches
from small_networks import two_layers
from tests.api.distilled import FADING
from tests.api.distilled import Ended
from tests.api.distilled import FolderTest
from tests.api.distilled import distill
from tests.api.distilled import end_after
from tests.api.distilled import whole

pytestmark = pytest.mark.slow

# Equal widths: what is compared needs no projection, and can be recomputed.
JOINT = cxjax.Stage(
  'joint',
  10,
  terms=(
    cxjax.Term('logits', 'logits'),
    cxjax.Term('low', 'low', weight=FADING),
    cxjax.Term('high', 'high', weight=2.0),
    cxjax.Term('logits', 'labels', weight=0.25),
  ),
)


def by_hand(data, y, rate):
  """The joint stage written out as a loop; losses of each step."""

  def objective(params, x, weight):
    got, ours = two_layers(params, x)
    want, theirs = two_layers(BIG.params, x)
    terms = {
      'output': losses.kl(got, want).mean(),
      'low': losses.l2(ours['low'], theirs['low']).mean(),
      'high': losses.l2(ours['high'], theirs['high']).mean(),
      'labels': losses.cross_entropy(got, y).mean(),
    }
    weights = {'output': 1.0, 'low': weight, 'high': 2.0, 'labels': 0.25}
    return sum(weights[name] * terms[name] for name in terms), terms

  params, records = SMALL.params, []
  step = jax.jit(jax.value_and_grad(objective, has_aux=True))
  for i, x in enumerate(data):
    weight = max(1 - i / len(data) / 0.5, 0.0)
    (loss, terms), grads = step(params, x, weight)
    params = jax.tree.map(lambda p, g: p - rate * g, params, grads)
    records.append({'loss': loss} | {f'loss/{k}': v for k, v in terms.items()})
  return params, records


class TermsTest(FolderTest):
  """A stage of several terms: labels beside the teacher, several layers."""

  def test_is_the_weighted_sum(self):
    data = batches(number=10)
    plan = cxjax.plan(BIG, SMALL, (X, Y), stages=(JOINT,))
    params, history = distill(
      plan, [(x, Y) for x in data], optimizer=optax.sgd(0.1), log_every=1
    )
    want, records = by_hand(data, Y, 0.1)
    chex.assert_trees_all_close(params, want, rtol=1e-4, atol=1e-6)
    for found, record in zip(history, records, strict=True):
      for name, value in record.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)

  def test_several_students_and_devices(self):
    students = cxjax.from_fn(two_layers, [SMALL.params, BIG.params])
    plan = cxjax.plan(BIG, students, (X, Y), stages=JOINT)
    data = batches(number=10)
    (one, two), history = distill(
      plan,
      [(x, Y) for x in data],
      optimizer=optax.sgd(0.1),
      mesh={'data': 2},
      microbatches=2,
    )
    want, _ = by_hand(data, Y, 0.1)
    chex.assert_trees_all_close(one, want, rtol=1e-4, atol=1e-6)
    # The teacher itself has nothing to learn but the labels.
    self.assertLess(history[-1]['loss/high'], history[0]['loss/high'])
    self.assertFalse(jnp.array_equal(two['out'], BIG.params['out']))

  def test_learns_with_projections(self):
    """The three lines of the issue: joint losses, one of which fades out."""
    stage = cxjax.Stage('joint', 300, terms=JOINT_TERMS)
    plan = cxjax.plan(TEACHER, STUDENT, (X, Y), stages=(stage,))
    _, history = distill(plan, [(x, Y) for x in batches()], learning_rate=0.02)
    first, last = history[0], history[-1]
    # Random labels pull away from the teacher's output.
    self.assertLess(last['loss/output'], 0.8 * first['loss/output'])
    self.assertLess(last['loss/Dense_0'], 0.5 * first['loss/Dense_0'])
    self.assertLess(last['loss/labels'], first['loss/labels'])
    self.assertEqual(last['stage'], 'joint')

  def test_a_single_term_has_no_loss_of_its_own(self):
    _, history = whole()
    names = {name for record in history for name in record if '/' in name}
    self.assertEqual(names, {'eval/loss', 'eval/agreement'})

  def test_resumes(self):
    """Its projections and where it is in its schedule come back."""
    stage = cxjax.Stage(
      'joint',
      20,
      terms=(
        cxjax.Term('logits', 'logits'),
        cxjax.Term('low', 'high', projection='gaussian', weight=FADING),
        cxjax.Term('high', 'low', projection='gaussian', regressor=True),
      ),
    )
    plan = cxjax.plan(BIG, SMALL, X, stages=stage)
    want, history = distill(plan, log_every=2)
    again = functools.partial(distill, plan, log_every=2, workdir=self.folder())
    with self.assertRaises(Ended):
      again(on_record=end_after(4))
    params, same = again()
    chex.assert_trees_all_equal(params, want)
    self.assertEqual(same, history)
