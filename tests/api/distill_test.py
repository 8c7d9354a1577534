"""From two models and an example to a trained student."""

import dataclasses
import functools
from unittest import mock

from absl.testing import parameterized
import chex
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cxjax
from cxjax import errors
from cxjax.methods import flops
from cxjax.methods import losses
from small_networks import BIG
from small_networks import PLAN
from small_networks import SMALL
from small_networks import TEACHER
from small_networks import B
from small_networks import C
from small_networks import D
from small_networks import Image
from small_networks import Net
from small_networks import X
from small_networks import Y
from small_networks import batches
from small_networks import network
from small_networks import parameters
from small_networks import two_layers
from tests.api.distilled import FolderTest
from tests.api.distilled import distill
from tests.api.distilled import whole


@pytest.mark.slow
class LearnTest(FolderTest):
  def test_learns_its_teacher(self):
    student = network(Net((16,)), X, 1, 2)
    plan = cxjax.plan(TEACHER, student, X, num_steps=600)
    held_out = np.concatenate(batches(1, 20))
    params, history = cxjax.distill(
      plan,
      batches(2, 300),
      held_out=held_out,
      learning_rate=0.01,
    )
    first, last = history[0], history[-1]
    self.assertEqual([last['step'], last['stage']], [600, 'output'])
    self.assertLess(max(last['eval/loss']), 0.05)
    self.assertGreater(min(last['eval/agreement']), 0.75)
    self.assertLess(max(last['eval/loss']), 0.2 * min(first['eval/loss']))
    # The parameters that come back are those that were evaluated.
    for seed in range(2):
      got = Net((16,)).apply(params[seed], held_out)
      want, _ = TEACHER.apply(TEACHER.params, held_out)
      np.testing.assert_allclose(
        losses.kl(got, want).mean(), last['eval/loss'][seed], rtol=1e-3
      )

  def test_costs_are_found_once_for_the_plan_and_its_run(self):
    for costs, number in (('counted', 0), ('compiled', 2)):
      plan = cxjax.plan(BIG, SMALL, X, num_steps=2, layers=(), costs=costs)
      compiled = mock.Mock(side_effect=flops.compiled)
      with mock.patch.dict(flops.COUNTS, compiled=compiled):
        str(plan)
        distill(plan)
      self.assertEqual(compiled.call_count, number, costs)

  def test_evaluates_as_often_as_asked(self):
    plan = cxjax.plan(BIG, SMALL, X, num_steps=40, layers=())
    _, history = cxjax.distill(plan, batches(), eval_every=2)
    evaluated = [r['step'] for r in history if 'eval/loss' in r]
    self.assertEqual(evaluated, list(range(2, 41, 2)))

  def test_the_student_that_went_in_is_as_it_was(self):
    before = {name: leaf.copy() for name, leaf in SMALL.params.items()}
    params, _ = whole()
    chex.assert_trees_all_equal(SMALL.params, before)
    self.assertGreater(
      float(jnp.abs(params['low'] - before['low']).max()), 1e-4
    )

  def test_several_are_each_as_alone(self):
    several = cxjax.from_fn(two_layers, [SMALL.params, parameters(2)])
    layers = [('high', 'low')]
    plan = cxjax.plan(BIG, several, X, num_steps=20, layers=layers)
    both, history = distill(plan, log_every=2, held_out=X)
    one, alone = whole(2)
    chex.assert_trees_all_close(both[0], one, rtol=1e-4, atol=1e-6)
    self.assertLen(history[-1]['eval/loss'], 2)
    np.testing.assert_allclose(
      history[-1]['eval/loss'][0], alone[-1]['eval/loss'][0], rtol=1e-4
    )

  @pytest.mark.slow
  def test_images_and_nnx(self):
    class Small(nnx.Module):
      def __init__(self, rngs):
        self.conv = nnx.Conv(1, 2, (3, 3), strides=2, rngs=rngs)
        self.head = nnx.Linear(2, C, rngs=rngs)

      def __call__(self, x):
        return self.head(nnx.relu(self.conv(x)).mean((1, 2)))

    x = batches(shape=(B, 4, 4, 1))
    model = Small(nnx.Rngs(0))
    plan = cxjax.plan(
      network(Image(1), x[0]), cxjax.from_nnx(model), x[0], num_steps=20
    )
    self.assertEqual(plan.stages[0].terms[0].student, 'conv')
    new, history = distill(plan, x)
    self.assertIsInstance(new, Small)
    self.assertLess(history[-1]['loss'], history[0]['loss'])
    self.assertEqual(new(x[0]).shape, (B, C))

  @pytest.mark.slow
  def test_bfloat16_and_parts_of_a_batch(self):
    plan = cxjax.plan(
      BIG, SMALL, X, num_steps=20, layers=(), dtype=jnp.bfloat16
    )
    params, _ = distill(plan, microbatches=2)
    chex.assert_trees_all_equal_dtypes(params, whole()[0])
    chex.assert_trees_all_close(params, whole()[0], atol=0.02)

  @pytest.mark.slow
  def test_devices(self):
    got, _ = distill(PLAN, mesh={'data': 2, 'fsdp': 2}, held_out=X)
    want, _ = whole(2)
    chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-5)

  def test_the_largest_logits_alone(self):
    found = []
    for top in (C, 0):  # All of them, either way.
      plan = cxjax.plan(
        BIG, SMALL, X, num_steps=9, layers=(), temperature=2.0, top_k=top
      )
      params, history = distill(plan)
      found.append((params, history[-1]['eval/loss']))
    chex.assert_trees_all_close(*found, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
class LabelsTest(FolderTest):
  @parameterized.parameters(7, -100)
  def test_labels_of_no_class(self, label):
    y = np.full(B, label)
    plan = cxjax.plan(BIG, SMALL, (X, y), num_steps=20, layers=(), alpha=0.5)
    with self.assertRaisesRegex(errors.UserError, f'{label}: the output has 3'):
      distill(plan, [(X, y)], held_out=(X, y * 0))
    with self.assertRaisesRegex(errors.UserError, f'{label}: the output has 3'):
      distill(plan, [(X, y * 0)], held_out=(X, y))

  def test_labels_that_no_weight_counts(self):
    weights = np.array([1] * (B - 2) + [0] * 2, np.float32)
    data = {'x': X, 'y': Y, 'weights': weights}
    plan = cxjax.plan(BIG, SMALL, data, num_steps=20, layers=(), alpha=0.5)
    optimizer = optax.MultiSteps(optax.adam(1e-3), 2)
    want, history = distill(plan, [data], optimizer=optimizer)
    ignored = {**data, 'y': np.where(weights == 0, -100, Y)}
    got, same = distill(plan, [ignored], optimizer=optimizer)
    chex.assert_trees_all_equal(got, want)
    self.assertEqual(history[-1], same[-1])
    with self.assertRaisesRegex(
      errors.UserError, r"'weights' of shape \[8, 2\]"
    ):
      bad = {**data, 'weights': np.ones((B, 2))}
      cxjax.plan(BIG, SMALL, bad, num_steps=20, layers=(), alpha=0.5)

  def test_supervised(self):
    stages = cxjax.supervised(20)
    plan = cxjax.plan(BIG, SMALL, {'x': X, 'y': Y}, stages=stages)
    params, history = distill(plan, [{'x': X, 'y': Y}])
    got, _ = two_layers(params, X)
    np.testing.assert_allclose(
      losses.cross_entropy(got, Y).mean(),
      history[-1]['eval/loss'][0],
      rtol=1e-5,
    )

  def test_labels_that_are_read_by_nothing_may_be_missing(self):
    plan = cxjax.plan(BIG, SMALL, (X, None), num_steps=20)
    self.assertNotIn('y', plan.batch)


class EachStudentTest(parameterized.TestCase):
  """Students side by side, each with a rate and a seed of its own."""

  def plan(self, *seeds):
    """One hidden stage of students whose starts have these seeds."""
    students = cxjax.from_fn(two_layers, list(map(parameters, seeds)))
    term = cxjax.Term('low', 'high', projection='gaussian')
    stage = cxjax.Stage('hidden', 10, term)
    return cxjax.plan(BIG, students, X, stages=stage)

  @pytest.mark.slow
  def test_each_is_as_alone_and_outlives_one_that_diverges(self):
    with self.assertLogs(level='WARNING') as logged:
      together, history = distill(
        self.plan(1, 2, 2),
        learning_rate=[1e-3, 1e38, 3e-2],
        seed=[5, 6, 6],
        diverged='keep',
      )
    self.assertIn('seed 1 is not finite', logged.output[0])
    (alone,), _ = distill(self.plan(2), learning_rate=3e-2, seed=[6])
    chex.assert_trees_all_close(together[2], alone, rtol=1e-5, atol=1e-6)
    self.assertTrue(np.isnan(together[1]['low']).all())
    self.assertTrue(np.isfinite(history[-1]['eval/agreement'])[[0, 2]].all())

  @pytest.mark.slow
  def test_dropout_of_the_batches_is_that_of_each_student_alone(self):
    def dropping(params, x):
      if isinstance(x, dict):
        draw = functools.partial(jax.random.bernoulli, shape=(D,))
        x = x['tokens'] * jax.vmap(draw)(x['dropout'])
      return two_layers(params, x)

    def train(*seeds):
      students = cxjax.from_fn(dropping, [parameters(1) for _ in seeds])
      abilities = cxjax.Abilities(inputs=(), dropout=0.5)
      students = dataclasses.replace(students, abilities=abilities)
      plan = cxjax.plan(BIG, students, X, num_steps=20, layers=())
      return distill(plan, learning_rate=3e-2, seed=seeds)[0]

    together = train(5, 6, 5)
    for seed, one in zip((5, 6, 5), together, strict=True):
      chex.assert_trees_all_close(one, train(seed)[0], rtol=1e-5, atol=1e-6)
    self.assertGreater(
      np.abs(together[0]['low'] - together[1]['low']).max(), 0.01
    )

  @parameterized.parameters(
    (dict(learning_rate=[1e-3]), r'=\[0.001\] has 1, .* 2 students: give one'),
    (dict(learning_rate=[1e-3, -1.0]), 'learning_rate=-1.0'),
    (dict(seed=[1, 2, 3]), r'seed=\[1, 2, 3\] has 3, .* 2 students'),
    (dict(diverged='ignore'), "'ignore'.*error, keep"),
  )
  def test_refuses(self, arguments, message):
    with self.assertRaisesRegex(errors.UserError, message):
      distill(self.plan(1, 2), **arguments)
