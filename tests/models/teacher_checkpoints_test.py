"""Progressive distillation from checkpoints that the user gives."""

import dataclasses

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cxjax
from cxjax import errors
from cxjax.methods import losses
from small_networks import BIG
from small_networks import SMALL
from small_networks import X
from small_networks import batches
from small_networks import parameters
from small_networks import two_layers
from tests.api.distilled import Ended
from tests.api.distilled import FolderTest
from tests.api.distilled import end_after

EARLY = jax.tree.map(lambda leaf: 0.3 * leaf, BIG.params)
STAGES = cxjax.progressive((100, None), (4, 6))


def early(params=EARLY):
  return cxjax.from_fn(two_layers, params)


def grown(params=EARLY):
  return cxjax.with_checkpoints(BIG, {100: early(params)})


def plan(teacher=None, **options):
  teacher = grown() if teacher is None else teacher
  return cxjax.plan(teacher, SMALL, X, stages=STAGES, **options)


@pytest.mark.slow
class RunTest(FolderTest):
  def test_each_stage_learns_from_its_checkpoint(self):
    given, _ = cxjax.distill(plan(), batches(), optimizer=optax.sgd(0.5))
    params, data = SMALL.params, iter(batches())

    def loss(params, x, teacher):
      got, want = two_layers(params, x)[0], two_layers(teacher, x)[0]
      return losses.kl(got, want).mean()

    for stage, teacher in zip(STAGES, (EARLY, BIG.params), strict=True):
      for _ in range(stage.steps):
        grads = jax.grad(loss)(params, next(data), teacher)
        params = jax.tree.map(lambda p, g: p - 0.5 * g, params, grads)
    chex.assert_trees_all_close(given, params, atol=1e-6)

  def test_another_checkpoint_is_another_run(self):
    folder = self.folder() / 'run'
    train = lambda teacher, **more: cxjax.distill(
      plan(teacher), batches(), workdir=folder, save_every=2, **more
    )
    with self.assertRaises(Ended):
      train(grown(), log_every=2, on_record=end_after(1))
    other = grown(jax.tree.map(lambda leaf: 0.5 * leaf, BIG.params))
    with self.assertRaisesRegex(errors.UserError, 'stages'):
      train(other, log_every=2)
    resumed, _ = train(grown(), log_every=2)
    whole, _ = cxjax.distill(plan(), batches())
    chex.assert_trees_all_equal(resumed, whole)

  def test_checkpoints_on_other_devices(self):
    place = lambda tree, i: jax.device_put(tree, jax.devices()[i])
    teacher = cxjax.with_checkpoints(
      early(place(BIG.params, 1)), {100: early(place(EARLY, 2))}
    )
    given, _ = cxjax.distill(plan(teacher), batches())
    expected, _ = cxjax.distill(plan(), batches())
    chex.assert_trees_all_close(given, expected, atol=1e-6)

  def test_compare(self):
    found = cxjax.compare(
      cxjax.with_checkpoints(grown(), {300: early(), 100: early()}),
      SMALL,
      batches(),
      held_out=X,
      num_steps=20,
      rates=(1e-2,),
      seeds=1,
      layers=[('high', 'low')],
      report=lambda text: None,
      costs='counted',
    )
    row = next(row for row in found.rows if row['method'] == 'progressive')
    one_shot = next(row for row in found.rows if row['method'] == 'one_shot')
    self.assertEqual(row['steps'], one_shot['steps'])  # A step costs as much.
    stages = found.contenders[-1].plan.stages
    self.assertEqual([stage.checkpoint for stage in stages], [100, 300, None])


class CheckpointsTest(parameterized.TestCase):
  def test_oldest_first(self):
    found = cxjax.with_checkpoints(BIG, {np.int64(9): early(), 3: early()})
    self.assertEqual(list(found.checkpoints), [3, 9])
    self.assertEmpty(BIG.checkpoints)

  @parameterized.parameters(
    ({}, 'checkpoints={} must be a dict by steps'),
    ([early()], 'must be a dict by steps'),
    ({-1: early()}, 'step of a checkpoint=-1 must be'),
    ({'a': early()}, "step of a checkpoint='a' must be"),
    ({5: EARLY}, 'The checkpoint 5 is a dict, not a ModelAdapter'),
    ({5: early([EARLY])}, 'The checkpoint 5 is a list of models'),
    (
      {5: early(parameters(1, low=3))},
      'The parameters of the checkpoint 5 have',
    ),
    (
      {5: early(jax.tree.map(lambda x: x.astype(jnp.bfloat16), EARLY))},
      'other names, shapes or dtypes',
    ),
  )
  def test_refuses(self, checkpoints, message):
    with self.assertRaisesRegex(errors.UserError, message):
      cxjax.with_checkpoints(BIG, checkpoints)

  def test_a_teacher_that_is_none(self):
    with self.assertRaisesRegex(errors.UserError, 'The teacher is a dict'):
      cxjax.with_checkpoints(EARLY, {5: early()})
    several = cxjax.from_fn(two_layers, [parameters(4), parameters(4)])
    with self.assertRaisesRegex(errors.UserError, 'The teacher is a list'):
      cxjax.with_checkpoints(several, {5: early()})

  def test_a_checkpoint_that_is_not_there(self):
    other = dataclasses.replace(STAGES[0], checkpoint=7)
    with self.assertRaisesRegex(
      errors.UserError, 'from the checkpoint 7 of the teacher, which has 100.'
    ):
      cxjax.plan(grown(), SMALL, X, stages=(other, STAGES[1]))

  @parameterized.parameters('rule', 'scores', 'count')
  def test_a_choice_by_scores(self, option):
    with self.assertRaisesRegex(errors.UserError, f'{option} is not known'):
      cxjax.compare(
        grown(),
        SMALL,
        batches(),
        held_out=X,
        num_steps=20,
        methods={'a': {'method': 'progressive', option: 1}},
      )
