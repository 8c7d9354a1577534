"""Tests of the specification of a run."""

import dataclasses
import types
from unittest import mock

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax import errors
from cxjax.methods import flops
from cxjax.methods import stage_plan
from cxjax.models import base as models
from cxjax.training import metrics
from cxjax.training import run_spec
from tests.methods import networks
from tests.training import runs


class LoopTest(parameterized.TestCase):
  @parameterized.parameters(
    (dict(log_every=0), 'log_every=0 must be at least 1'),
    (dict(eval_every=6), 'eval_every=6 must be a multiple of log_every=4'),
    (dict(save_every=10), 'save_every=10 must be a multiple of log_every=4'),
    (dict(keep=1), r'keep=1 must be 0 \(all\) or at least 2'),
    (dict(keep=-1), 'keep=-1'),
  )
  def test_refuses(self, fields, message):
    with self.assertRaisesRegex(errors.UserError, message):
      runs.loop(**fields)


class SpecTest(parameterized.TestCase):
  @parameterized.parameters(
    (dict(primary='acuracy'), "primary metric 'acuracy'.*mean 'accuracy'"),
    (dict(loop=runs.loop(keep_best='f0')), "keep_best 'f0'.*accuracy, loss"),
    (
      dict(loop=runs.loop(keep_best='bits_per_byte')),
      'is a registered metric, .* Name it among the metrics of the task',
    ),
    (
      dict(loop=runs.loop(save_at=(0.9, 0.5))),
      "from worse to better values of 'accuracy', .* when higher",
    ),
    (
      dict(loop=runs.loop(save_at=(0.5, 0.9)), primary='loss'),
      "values of 'loss', which is better when lower",
    ),
    (dict(lookahead=5), 'lookahead=5 must be .*log_every=4'),
    (dict(lookahead=-1), 'lookahead=-1'),
    (dict(microbatches=3), 'microbatches=3 must divide the batch_size=4'),
    (dict(microbatches=0), 'microbatches=0'),
  )
  def test_refuses(self, fields, message):
    with self.assertRaisesRegex(errors.UserError, message):
      runs.spec(**fields)

  def test_an_optimizer_that_cannot_be_made_is_found_at_once(self):
    with self.assertRaisesRegex(errors.UserError, "'adm'.*mean 'adam'"):
      runs.spec(optimizer=lambda **_: runs.adam(name='adm'))

  def test_ends_of_the_stages(self):
    self.assertEqual(runs.spec().ends, (6, 11, 20))
    self.assertEqual(runs.spec().num_seeds, runs.SEEDS)

  def test_the_rate_that_an_optimizer_tells_is_that_of_all_students(self):
    spec, rates = runs.spec(), {'learning_rate': np.float32([0.5, 0.5])}
    self.assertEqual(spec.learning_rate(0, 1, rates), {'learning_rate': 0.5})
    self.assertEqual(spec.learning_rate(0, 1, {}), {})

  def test_primary_metric(self):
    spec = runs.spec(primary='loss')
    self.assertIs(spec.primary_metric, metrics.METRICS['loss'])

  def test_targets_are_stored_where_a_teacher_has_no_parameters(self):
    self.assertTrue(
      runs.spec(teacher=runs.teacher(available=False)).stored_targets
    )
    self.assertFalse(runs.spec().stored_targets)
    self.assertFalse(runs.spec(teacher=None).stored_targets)


class LookaheadTest(parameterized.TestCase):
  """Batches whose targets are computed in one product: 128 rows at most."""

  @parameterized.parameters(
    # Log_every, batch, streams.
    (100, 4, 2, 10),  # 16 fit; 10 divides 100.
    (96, 4, 2, 16),
    (100, 4, 1, 25),  # Of a shared stream.
    (100, 128, 1, 1),
    (100, 1000, 1, 1),
    (7, 4, 2, 7),
  )
  def test_is_the_largest_divisor_that_fits(self, log_every, size, streams, k):
    loop = runs.loop(
      log_every=log_every, eval_every=log_every * 2, save_every=log_every
    )
    spec = runs.spec(batch_size=size, keys=runs.keys(2, streams), loop=loop)
    self.assertEqual(spec.lookahead_steps, k)

  def test_may_be_given(self):
    self.assertEqual(runs.spec(lookahead=3).lookahead_steps, 3)


class LengthTest(parameterized.TestCase):
  def test_length(self):
    self.assertEqual(runs.spec().length, 1)
    held_out = networks.sequence_batch()
    spec = dataclasses.replace(runs.spec(), held_out=held_out)
    self.assertEqual(spec.length, networks.LENGTH)


class BatchTest(parameterized.TestCase):
  key = jax.random.key(3)

  def test_is_drawn_by_its_step(self):
    spec = runs.spec()
    for at in (0, 5):
      jax.tree.map(
        np.testing.assert_array_equal,
        spec.batch(self.key, at),
        runs.draw(self.key, at),
      )

  def test_comes_again_after_a_period(self):
    host = run_spec.HostData(period=3)
    spec = runs.spec(host=host)
    for at, number in ((0, 0), (2, 2), (3, 0), (7, 1)):
      jax.tree.map(
        np.testing.assert_array_equal,
        spec.batch(self.key, at),
        runs.draw(self.key, number),
      )

  def test_rows_of_the_host(self):
    seen = []
    draw = lambda key, t, rows: seen.append(rows) or runs.draw(key, t)
    runs.spec(draw=draw).batch(self.key, 0, 'rows')
    host = run_spec.HostData(rows='shapes')
    runs.spec(draw=draw, host=host).batch(self.key, 0, 'rows')
    self.assertEqual(seen, [runs.SIZE, 'rows'])

  def test_dropout_keys_are_new_in_every_epoch(self):
    abilities = models.Abilities(inputs=(), dropout=0.1)
    student = types.SimpleNamespace(
      abilities=abilities, apply=runs.STUDENT.apply, init=runs.STUDENT.init
    )
    spec = runs.spec(student=student, host=run_spec.HostData(period=3))
    keys = lambda at: jax.random.key_data(
      spec.batch(self.key, at)['x']['dropout']
    )
    self.assertEqual(keys(1).shape[0], runs.SIZE)
    self.assertLen(np.unique(keys(1), axis=0), runs.SIZE)
    np.testing.assert_array_equal(keys(1), keys(1))
    self.assertFalse(np.array_equal(keys(1), keys(4)))
    self.assertNotIn('dropout', spec.held_out)
    self.assertEqual(runs.spec().dropout, 0.0)


class PlanTest(parameterized.TestCase):
  def test_a_plan_for_each_stage(self):
    planned = runs.spec().plan()
    self.assertEqual(
      [p.stage.name for p in planned], ['early', 'late', 'joint']
    )
    self.assertIsNone(planned[0].student_flops)

  def test_stages_that_compile_alike_are_costed_once(self):
    counted = []

    def count(fun, *args):
      counted.append(fun)
      return len(counted)

    early, late, joint = runs.spec().plan_with_costs(count)
    self.assertLen(counted, 4)  # Targets and an update, of two objectives.
    self.assertEqual(
      (early.student_flops, early.teacher_flops),
      (late.student_flops, late.teacher_flops),
    )
    self.assertNotEqual(early.student_flops, joint.student_flops)
    self.assertEqual((early.stage.name, late.stage.name), ('early', 'late'))

  @parameterized.parameters(1, 3)
  def test_stages_share_the_trace_of_the_student(self, count):
    calls = []

    def apply(params, x):
      calls.append(x)
      return runs.STUDENT.apply(params, x)

    student = types.SimpleNamespace(init=runs.STUDENT.init, apply=apply)
    spec = runs.spec(runs.STAGES[:count], student=student)
    spec.plan_with_costs(flops.counted)
    self.assertLen(calls, 2)  # The other is of the held-out set.

  @pytest.mark.slow
  def test_stored_targets_cost_nothing(self):
    spec = runs.spec(teacher=runs.teacher(available=False))
    costed = spec.plan_with_costs(flops.lowered)
    self.assertEqual({one.teacher_flops for one in costed}, {0})
    with mock.patch.object(flops, 'compiled', flops.lowered):
      self.assertGreater(spec.target_flops(costed[0]), 0)

  def test_trainable_is_in_every_mask(self):
    masks = [one.mask for one in runs.spec(trainable='hidden0').plan()]
    for mask in masks:
      self.assertFalse(any(jax.tree.leaves(mask['params']['logits'])))
      self.assertTrue(all(jax.tree.leaves(mask['params']['hidden0'])))

  @parameterized.parameters(
    (dict(trainable='hiden'), "trainable='hiden' matches no parameter"),
    (
      dict(metrics={'accuracy': metrics.Metric(lambda a, y: jnp.mean(a))}),
      "metric 'accuracy' makes",
    ),
    (dict(teacher=None), 'and there is none'),
  )
  def test_refuses(self, fields, message):
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      runs.spec(**fields).plan()
    self.assertNotIn('\n', str(caught.exception))

  def test_shapes_of_a_state_are_those_of_the_seeds(self):
    spec = runs.spec()
    early, _, joint = spec.plan()
    state = spec.state_shapes(early)
    self.assertEqual(
      state.regressors['hidden0']['kernel'].shape, (runs.SEEDS, 4, 4)
    )
    self.assertEqual(spec.state_shapes(joint).regressors, {})
    for leaf in jax.tree.leaves(state.params):
      self.assertEqual(leaf.shape[0], runs.SEEDS)

  def test_students_may_be_given(self):
    one = {'w': jnp.zeros((3, 2), jnp.bfloat16), 'n': jnp.int32(0)}
    spec = dataclasses.replace(runs.spec(), start=(one, one))
    self.assertEqual(spec.student_shapes['w'].shape, (3, 2))
    dtypes = {name: leaf.dtype for name, leaf in spec.student_shapes.items()}
    self.assertEqual(dtypes, {'w': jnp.float32, 'n': jnp.int32})


class FormatTest(parameterized.TestCase):
  def test_the_plan_of_a_run_tells_every_term(self):
    table = stage_plan.format_plan(runs.spec().plan())
    self.assertLen(table.splitlines(), 2 + 4)
    self.assertIn(' to 0', table)
