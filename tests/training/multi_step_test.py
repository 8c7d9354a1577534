"""Tests of many steps in one dispatch: nothing but the speed may differ."""

import functools

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cxjax.methods import stage_plan
from cxjax.methods import targets as targets_lib
from cxjax.methods import train_step
from cxjax.models import mlp
from cxjax.parallel import mesh as mesh_lib
from cxjax.training import multi_step
from tests.training.many_steps import HIDDEN
from tests.training.many_steps import JOINT
from tests.training.many_steps import LABELS
from tests.training.many_steps import OUTPUT
from tests.training.many_steps import SEEDS
from tests.training.many_steps import SPAN
from tests.training.many_steps import STUDENT
from tests.training.many_steps import TEACHER
from tests.training.many_steps import B
from tests.training.many_steps import Stage
from tests.training.many_steps import Term
from tests.training.many_steps import args_of
from tests.training.many_steps import assert_close
from tests.training.many_steps import begin
from tests.training.many_steps import draw
from tests.training.many_steps import options
from tests.training.many_steps import pick
from tests.training.many_steps import planned
from tests.training.many_steps import program
from tests.training.many_steps import stack
from tests.training.many_steps import teacher_params
from tests.training.many_steps import train
from tests.training.many_steps import tx

pytestmark = pytest.mark.slow


class ManyStepsTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('hidden', HIDDEN), ('joint', JOINT), ('labels', LABELS)
  )
  def test_one_dispatch_is_so_many_steps(self, stage):
    got, out = train(stage, 0, 7)
    states, matrices, keys = begin(stage)

    @jax.jit
    def step(state, matrices, key, t):
      batch = draw(key, t)
      want = targets_lib.make_targets(
        TEACHER.apply, teacher_params(), matrices, batch, stage
      )
      return train_step.update(
        state,
        batch,
        want,
        t / JOINT.steps,
        apply=STUDENT.apply,
        stage=stage,
        tx=tx(),
        mask=planned(stage).mask,
      )

    for seed in range(SEEDS):
      state, total, each = pick(states, seed), 0.0, {}
      for t in range(7):
        state, loss, terms = step(state, pick(matrices, seed), keys[seed], t)
        total += loss
        each = {k: each.get(k, 0.0) + v for k, v in terms.items()}
      assert_close(state, pick(got, seed))
      assert_close(total, out['loss'][seed])
      if len(each) > 1:
        assert_close(each, pick(out['terms'], seed))
    np.testing.assert_array_equal(out['bad'], 7)
    # The loss of a single term is that of the step.
    self.assertEqual('terms' in out, stage is JOINT)

  def test_lookahead_changes_nothing(self):
    one = train(JOINT, 1, 8)
    four = train(JOINT, 1, 8, lookahead=4)  # From and to inside a block.
    assert_close(one, four)

  def test_microbatches_change_nothing(self):
    one = train(JOINT, 0, 5)
    assert_close(one, train(JOINT, 0, 5, microbatches=2))

  def test_where_it_pauses_changes_no_bit(self):
    whole, _ = train(JOINT, 0, 8, lookahead=4)
    states, _, _, *rest = args_of(JOINT, 0, 8)
    for start, stop in ((0, 2), (2, 3), (3, 8)):
      states, _ = program(JOINT, lookahead=4)(states, start, stop, *rest)
    chex.assert_trees_all_equal(whole, states)

  def test_a_seed_does_not_feel_the_others(self):
    all_seeds, _ = train(JOINT, 0, 5)
    alone, _ = train(JOINT, 0, 5, seeds=1)
    assert_close(jax.tree.map(lambda leaf: leaf[:1], all_seeds), alone)

  @parameterized.parameters(1, 3)
  def test_each_seed_is_vmapped_but_one_alone_is_not(self, seeds):
    batched = []

    def fun(x, y):
      batched.append(isinstance(x, jax.core.Tracer))
      self.assertEqual(x.shape, (4,))
      return {'sum': x + y}

    got = multi_step.each_seed(fun)(jnp.ones((seeds, 4)), jnp.ones((seeds, 4)))
    np.testing.assert_array_equal(got['sum'], np.full((seeds, 4), 2))
    self.assertEqual(batched, [seeds > 1])

  def test_sharing_batches_is_giving_all_the_same(self):
    stream = jax.random.key(5)
    given, _ = train(JOINT, 0, 5, keys=jnp.stack([stream] * SEEDS))
    shared, _ = train(JOINT, 0, 5, keys=stream[None], lookahead=2)
    assert_close(given, shared)

  def test_four_devices_are_one(self):
    one, _ = train(JOINT, 0, 5)
    with jax.set_mesh(mesh_lib.make({'data': 4}, B)):
      fun = program(JOINT, devices=4)
      compiled = fun.lower(*args_of(JOINT, 0, 5)).compile()
      four, _ = compiled(*args_of(JOINT, 0, 5))
    assert_close(jax.device_get(one), jax.device_get(four))
    # The batch was really sharded: gradients are summed over the devices.
    self.assertIn('all-reduce', compiled.as_text())

  def test_in_the_mesh_of_a_user_is_without_one(self):
    expected, _ = train(JOINT, 0, 5)
    with jax.set_mesh(jax.make_mesh((1,), ('x',))):
      found, _ = train(JOINT, 0, 5)
    assert_close(jax.device_get(expected), jax.device_get(found))

  def test_rows_from_the_host_are_those_of_the_step(self):
    """Drawing from rows of the same numbers is drawing on the device."""
    states, start, stop, *rest = args_of(OUTPUT, 5, 8)
    streams = lambda t: jax.vmap(draw, (0, None))(stack(2), t)
    rows = jax.jit(jax.vmap(streams))(4 + jnp.arange(4))
    want, _ = program(OUTPUT)(states, start, stop, *rest)
    fun = functools.partial(
      multi_step.train_many_steps,
      **{**options(OUTPUT), 'draw': lambda key, t, rows: rows},
    )
    got, _ = jax.jit(functools.partial(fun, lookahead=2))(
      states, start, stop, *rest[:3], rows, None, SPAN
    )
    assert_close(want, got)

  @parameterized.parameters('training mode', 'keys of the batches')
  def test_every_step_of_a_student_drops_by_a_key_of_its_own(self, kind):
    draws = lambda keys: jax.vmap(jax.random.uniform)(keys)[:, None]
    each = {
      'training mode': lambda key: jax.random.uniform(key, (B, 1)),
      'keys of the batches': lambda key: draws(jax.random.split(key, B)),
    }[kind]
    training = lambda params, x, key: (params['w'] + each(key), {}, {})
    apply = lambda params, x: (params['w'] + draws(x['dropout']), {})
    own = jax.random.split(jax.random.key(0), B)
    batch = {'x': {'dropout': own}, 'y': jnp.zeros(B, int)}
    first = lambda got, want: got[:, 0]
    stage = Stage('s', 5, Term(target='labels', loss=first))
    sgd = optax.sgd(0.0)
    start = lambda w: train_step.State(w, {}, sgd.init((w, {})))
    fun = functools.partial(
      multi_step.train_many_steps,
      draw=lambda key, t, rows: batch,
      student=apply,
      teacher=None,
      stage=stage,
      tx=sgd,
      mask={'w': True},
      lookahead=2,
      training=training if kind == 'training mode' else None,
    )
    states = jax.vmap(start)({'w': jnp.zeros((SEEDS, 1, 1))})
    args = states, 1, 4, None, None, stack(2)[:1], None, None, None, stack(7)
    _, out = jax.jit(fun)(*args)
    for loss, key in zip(out['loss'], stack(7), strict=True):
      keys = [jax.random.fold_in(key, step) for step in (1, 2, 3)]
      want = sum(each(key).mean() for key in keys)
      np.testing.assert_allclose(loss, want, rtol=1e-6)

  def test_names_the_first_step_that_is_not_finite(self):
    def poisoned(key, t, rows):
      batch = draw(key, t, rows)
      return {**batch, 'x': batch['x'] * jnp.where(t == 3, jnp.nan, 1.0)}

    fun = functools.partial(
      multi_step.train_many_steps,
      **{**options(LABELS), 'draw': poisoned},
      lookahead=1,
    )
    fun = jax.jit(fun)
    # Of the first steps all are good, and the next would be bad.
    for steps in ((0, 3), (0, 6), (2, 8)):
      _, out = fun(*args_of(LABELS, *steps))
      np.testing.assert_array_equal(out['bad'], 3, str(steps))

  def test_a_gradient_that_is_not_finite_is_the_last_step(self):
    """The loss may be finite where its gradient is not, of one student."""
    rooted = lambda got, want: jnp.sqrt(jnp.square(got).sum(-1))
    stage = Stage('s', 5, Term(loss=rooted))
    states, *rest = args_of(stage, 0, 1)
    zero = lambda leaf: leaf.at[1].set(0)
    states = states.replace(params=jax.tree.map(zero, states.params))
    _, out = program(stage)(states, *rest)
    self.assertTrue(np.isfinite(out['loss']).all())
    np.testing.assert_array_equal(out['bad'], [1, 0, 1])


def ones(got, want):
  return jnp.ones(got.shape[:-1]) + 0 * got.sum(-1)


# The sum of the weights of the steps: the loss is their sum times 1.
COUNTING = Stage(
  's', 5, (Term(loss=ones, weight=lambda t: t), Term(loss=ones, weight=0))
)


class ProgressTest(parameterized.TestCase):
  """Where the stage is, as the schedules of its terms see it."""

  def seen(self, start, stop, span, lookahead=1):
    *args, _ = args_of(COUNTING, start, stop, seeds=1)
    _, out = program(COUNTING, lookahead)(*args, span)
    np.testing.assert_allclose(out['terms']['output'], stop - start)
    return float(out['loss'][0])

  @parameterized.parameters(
    (0, 1, (0, 10), 0.0),  # The first step.
    (5, 6, (0, 10), 0.5),  # In the middle.
    (9, 10, (0, 10), 0.9),  # The last.
    (20, 21, (20, 4), 0.0),  # Of a stage that begins at 20.
    (23, 24, (20, 4), 0.75),
    (0, 10, (0, 10), 4.5),
  )
  def test_is_the_fraction_before_the_step(self, start, stop, span, expected):
    self.assertAlmostEqual(self.seen(start, stop, span), expected, places=5)

  def test_does_not_depend_on_the_lookahead(self):
    for start, stop in ((0, 10), (3, 9)):
      self.assertAlmostEqual(
        self.seen(start, stop, (0, 10)),
        self.seen(start, stop, (0, 10), lookahead=4),
        places=5,
      )

  def test_without_a_span_it_is_0(self):
    self.assertEqual(self.seen(5, 8, None), 0)


class FlopsTest(parameterized.TestCase):
  """What a stage does without is not in the compiled loop."""

  bits, wide, size = 32, 64, 32

  def flops(self, *terms):
    """FLOPs of a step; XLA counts the body of a loop once."""
    model, stage = mlp.MLP((self.wide,) * 4, 2), Stage('s', 5, terms)

    def batch(key, t, rows=None):
      del key, rows
      x = jnp.full((self.size, self.bits), t, jnp.float32)
      return {'x': x, 'y': jnp.zeros(self.size, jnp.int32)}

    shapes = jax.eval_shape(batch, None, 0)
    params = jax.eval_shape(model.init, jax.random.key(0), shapes['x'])
    one = stage_plan.plan_stage(stage, shapes, *(model.apply, params) * 2)
    init = functools.partial(
      train_step.init_stage,
      stage=stage,
      shapes=one.regressors,
      tx=optax.sgd(0.1),
      mask=one.mask,
    )
    keys = stack(0)[:1]
    add = lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype)
    states = jax.vmap(init)
    students = jax.tree.map(add, params)
    fun = functools.partial(
      multi_step.train_many_steps,
      draw=batch,
      student=model.apply,
      teacher=model.apply,
      stage=stage,
      tx=optax.sgd(0.1),
      mask=one.mask,
      lookahead=1,
    )
    args = jax.eval_shape(states, keys, students), 0, 5, params, {}, keys
    return jax.jit(fun).lower(*args).compile().cost_analysis()['flops']

  def passes(self, depth):
    """The products of the student and of the teacher, to a hidden layer."""
    low, high = self.bits * self.wide, (depth - 1) * self.wide**2
    return 2 * self.size * ((2 * low + 3 * high) + (low + high))

  def test_several_terms_cost_one_pass_to_the_deepest_tap(self):
    terms = [Term(f'hidden{i}', f'hidden{i}') for i in range(4)]
    both = self.flops(terms[0], terms[1])
    self.assertBetween(both / self.passes(2), 1, 1.25)
    deep = self.flops(terms[0], terms[3])
    self.assertBetween(deep / self.passes(4), 1, 1.25)
    one = self.flops(terms[1])
    self.assertBetween(both / one, 1, 1.1)
