"""The train step: what it touches, what it costs, and what may not matter."""

import functools

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cxjax.methods import stage as stage_lib
from cxjax.training import multi_step
from cxjax.parallel import mesh as mesh_lib
from cxjax.methods import stage_plan
from cxjax.methods import projections
from cxjax.methods import train_step
from cxjax.tasks import parity
from cxjax.models import mlp

D, B, SEEDS = 8, 4, 3
TEACHER = mlp.MLP((16, 12), 2)
STUDENT = mlp.MLP((6, 5), 2)
TASK = parity.Parity(D, ((0, 3),))
HIDDEN, TOP, OUTPUT = stage_lib.extracted(
  (('hidden0', 'hidden0'), ('hidden1', 'hidden1')), (5, 5, 5)
)
LABELS = stage_lib.supervised(5)[0]
READOUT = stage_lib.extracted(
  (('hidden1', 'hidden0'),), (5, 5), regressor=True, width=7
)[0]


def draw(key, t, rows=None):
  del rows
  return TASK.draw(key, t, B)


def tx():
  return optax.adamw(1e-2, weight_decay=0.1)


@functools.cache
def params_of(model, seed):
  x = jnp.zeros((B, D))
  keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(
    jnp.arange(SEEDS)
  )
  return jax.jit(jax.vmap(lambda key: model.init(key, x)))(keys)


def teacher_params(seed=0):
  return jax.tree.map(lambda leaf: leaf[0], params_of(TEACHER, seed))


def planned(stage):
  batch = jax.eval_shape(draw, jax.random.key(0), 0)
  one = jax.eval_shape(lambda p: jax.tree.map(lambda a: a[0], p), params())
  return stage_plan.plan_stage(
    stage, batch, STUDENT.apply, one, TEACHER.apply, teacher_params()
  )


def params():
  return params_of(STUDENT, 1)


def begin(stage, seeds=SEEDS):
  """States, projections and keys of the first `seeds` students."""
  one = planned(stage)
  keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
    jax.random.key(2), jnp.arange(seeds)
  )
  students = jax.tree.map(lambda leaf: leaf[:seeds], params())
  states = jax.vmap(
    functools.partial(
      train_step.init_stage, stage=stage, shape=one.readout, tx=tx(), mask=one.mask
    )
  )(keys, students)
  matrices = None
  if one.projection:
    matrices = jax.vmap(
      lambda key: projections.random_projection(key, stage.law, one.projection)
    )(keys)
  return states, matrices, keys


@functools.cache
def program(stage, lookahead, devices=1):
  fun = functools.partial(
    multi_step.train_many_steps,
    draw=draw,
    student=STUDENT.apply,
    teacher=TEACHER.apply,
    stage=stage,
    tx=tx(),
    mask=planned(stage).mask,
    lookahead=lookahead,
  )
  del devices  # Of the mesh in force.
  return jax.jit(fun)


def advance(
  stage, start, stop, *, lookahead=1, seeds=SEEDS, keys=None, devices=1
):
  states, matrices, own = begin(stage, seeds)
  keys = own if keys is None else keys
  return program(stage, lookahead, devices)(
    states, start, stop, teacher_params(), matrices, keys
  )


def assert_close(a, b):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b
  )


STAGES = (('hidden', HIDDEN), ('output', OUTPUT))
ALL_STAGES = (*STAGES, ('labels', LABELS), ('top', TOP), ('regressor', READOUT))


class AdvanceTest(parameterized.TestCase):
  @parameterized.named_parameters(*ALL_STAGES)
  def test_one_dispatch_is_so_many_steps(self, stage):
    got, out = advance(stage, 0, 7)
    states, matrices, keys = begin(stage)
    update = jax.jit(
      functools.partial(
        train_step.train_step,
        apply=STUDENT.apply,
        stage=stage,
        tx=tx(),
        mask=planned(stage).mask,
      )
    )
    for seed in range(SEEDS):
      pick = functools.partial(jax.tree.map, lambda leaf, i=seed: leaf[i])
      state, total = pick(states), 0.0
      matrix = None if matrices is None else matrices[seed]
      for t in range(7):
        batch = draw(keys[seed], t)
        want = train_step.make_targets(
          TEACHER.apply, teacher_params(), matrix, batch, stage
        )
        state, loss = update(state, batch, want)
        total += loss
      assert_close(state, pick(got))
      assert_close(total, out['loss'][seed])
    np.testing.assert_array_equal(out['bad'], 7)

  @parameterized.named_parameters(*STAGES)
  def test_lookahead_changes_nothing(self, stage):
    one, _ = advance(stage, 1, 9)
    four, _ = advance(stage, 1, 9, lookahead=4)  # From and to inside a block.
    assert_close(one, four)

  @parameterized.named_parameters(*STAGES)
  def test_where_it_pauses_changes_no_bit(self, stage):
    whole, _ = advance(stage, 0, 9, lookahead=4)
    states, matrices, keys = begin(stage)
    for start, stop in ((0, 2), (2, 3), (3, 9)):
      states, _ = program(stage, 4)(
        states, start, stop, teacher_params(), matrices, keys
      )
    chex.assert_trees_all_equal(whole, states)

  @parameterized.named_parameters(*STAGES)
  def test_a_seed_does_not_feel_the_others(self, stage):
    all_seeds, _ = advance(stage, 0, 5)
    alone, _ = advance(stage, 0, 5, seeds=1)
    assert_close(jax.tree.map(lambda leaf: leaf[:1], all_seeds), alone)

  @parameterized.parameters((1, (4,)), (3, (4,)))
  def test_each_seed_is_vmapped_but_one_alone_is_not(self, seeds, shape):
    batched = []

    def fun(x, y):
      batched.append(isinstance(x, jax.core.Tracer))
      self.assertEqual(x.shape, shape)
      return {'sum': x + y}

    got = multi_step.each_seed(fun)(jnp.ones((seeds, 4)), jnp.ones((seeds, 4)))
    np.testing.assert_array_equal(got['sum'], np.full((seeds, 4), 2))
    self.assertEqual(batched, [seeds > 1])

  @parameterized.named_parameters(*STAGES)
  def test_sharing_batches_is_giving_all_the_same(self, stage):
    stream = jax.random.key(5)
    same = jnp.stack([stream] * SEEDS)
    given, _ = advance(stage, 0, 5, keys=same)
    shared, _ = advance(stage, 0, 5, keys=stream[None], lookahead=2)
    assert_close(given, shared)

  @parameterized.named_parameters(*STAGES)
  def test_four_devices_are_one(self, stage):
    one, _ = advance(stage, 0, 5)
    with jax.set_mesh(mesh_lib.make({'data': 4}, B)):
      four, _ = advance(stage, 0, 5, devices=4)
      text = program(stage, 1, 4).lower(*args_of(stage)).compile().as_text()
    assert_close(jax.device_get(one), jax.device_get(four))
    # The batch was really parted: gradients are summed over the devices.
    self.assertIn('all-reduce', text)

  def test_rows_from_the_host_are_those_of_the_step(self):
    """Drawing from rows of the same numbers is drawing on the device."""
    states, matrices, keys = begin(OUTPUT)
    streams = lambda t: jax.vmap(draw, (0, None))(keys, t)
    rows = jax.jit(jax.vmap(streams))(4 + jnp.arange(4))
    fun = functools.partial(
      multi_step.train_many_steps,
      student=STUDENT.apply,
      teacher=TEACHER.apply,
      stage=OUTPUT,
      tx=tx(),
      mask=planned(OUTPUT).mask,
    )
    args = (states, 5, 8, teacher_params(), matrices, keys)
    want = jax.jit(functools.partial(fun, draw=draw, lookahead=1))(*args)
    fed = functools.partial(fun, draw=lambda key, t, rows: rows)
    for lookahead in (1, 2):
      got = jax.jit(functools.partial(fed, lookahead=lookahead))(*args, rows)
      assert_close(want, got)

  def test_names_the_first_step_that_is_not_finite(self):
    def poisoned(key, t, rows):
      batch = draw(key, t, rows)
      return {**batch, 'x': batch['x'] * jnp.where(t == 3, jnp.nan, 1.0)}

    states, matrices, keys = begin(LABELS)
    fun = jax.jit(
      functools.partial(
        multi_step.train_many_steps,
        draw=poisoned,
        student=STUDENT.apply,
        teacher=None,
        stage=LABELS,
        tx=tx(),
        mask=planned(LABELS).mask,
        lookahead=1,
      )
    )
    _, out = fun(states, 0, 3, None, matrices, keys)
    np.testing.assert_array_equal(out['bad'], 3)  # All three were good.
    _, out = fun(states, 0, 6, None, matrices, keys)
    np.testing.assert_array_equal(out['bad'], 3)


def args_of(stage):
  states, matrices, keys = begin(stage)
  return states, 0, 5, teacher_params(), matrices, keys


class StageTest(parameterized.TestCase):
  @parameterized.parameters(HIDDEN, READOUT)
  def test_a_hidden_stage_leaves_the_layers_above_alone(self, stage):
    states, _, _ = begin(stage)
    before = states.params['params']
    after, _ = advance(stage, 0, 5)
    for layer in ('hidden1', 'logits'):
      chex.assert_trees_all_equal(before[layer], after.params['params'][layer])
    moved = after.params['params']['hidden0']['kernel']
    self.assertFalse(np.allclose(before['hidden0']['kernel'], moved))
    # Nor is there optimizer state for them.
    paths = [str(p) for p, _ in jax.tree.leaves_with_path(after.opt_state)]
    self.assertTrue(any('hidden0' in path for path in paths))
    self.assertFalse(any('hidden1' in p or 'logits' in p for p in paths))

  def test_frozen_layers_stay(self):
    stages = stage_lib.extracted(
      (('hidden0', 'hidden0'), ('hidden1', 'hidden1')), (5, 5, 5), freeze=True
    )
    after, _ = advance(stages[2], 0, 5)
    for layer in ('hidden0', 'hidden1'):
      chex.assert_trees_all_equal(
        params()['params'][layer], after.params['params'][layer]
      )
    self.assertFalse(
      np.allclose(
        params()['params']['logits']['kernel'],
        after.params['params']['logits']['kernel'],
      )
    )

  def test_reach_sees_through_jit_and_scan(self):
    def apply(p, x):
      low = jax.jit(lambda p, x: x @ p['a'])(p, x)
      high, _ = jax.lax.scan(lambda c, w: (c @ w, None), low, p['stack'])
      return high @ p['b'], {'low': low, 'high': high}

    p = {
      'a': jnp.ones((2, 2)),
      'b': jnp.ones((2, 2)),
      'stack': jnp.ones((3, 2, 2)),
    }
    x = jnp.ones((1, 2))
    self.assertEqual(
      train_step.dependency_mask(apply, p, x, 'low'), {'a': True, 'b': False, 'stack': False}
    )
    self.assertEqual(
      train_step.dependency_mask(apply, p, x, 'high'), {'a': True, 'b': False, 'stack': True}
    )

  def test_split_and_merge_undo_each_other(self):
    mask = planned(HIDDEN).mask
    chex.assert_trees_all_equal(
      train_step.merge(*train_step.split(params(), mask)), params()
    )

  def test_carry_keeps_what_both_have(self):
    low, _, _ = begin(HIDDEN)
    low, _ = advance(HIDDEN, 0, 2)
    fresh, _, _ = begin(OUTPUT)
    carried = train_step.carry_optimizer_state(low.opt_state, fresh.opt_state)
    mu = carried[0].mu[0]['params']
    chex.assert_trees_all_equal(
      mu['hidden0'], low.opt_state[0].mu[0]['params']['hidden0']
    )
    self.assertEqual(float(jnp.abs(mu['logits']['kernel']).max()), 0.0)

  def test_an_activation_that_is_not_there_lists_those_that_are(self):
    with self.assertRaisesRegex(ValueError, "'hiden0'.*'hidden0'.*logits"):
      x = jnp.zeros((B, D))
      train_step.activation(TEACHER.apply, teacher_params(), x, 'hiden0')


class FlopsTest(parameterized.TestCase):
  """The saving is in the compiled program, not in the wish."""

  wide = mlp.MLP((256, 256, 256, 256), 2)
  batch = {'x': jnp.zeros((64, 32)), 'y': jnp.zeros(64, jnp.int32)}

  def test_a_target_costs_the_layers_up_to_its_tap(self):
    variables = self.wide.init(jax.random.key(0), self.batch['x'])
    rows, width = 64, 256
    products = 2 * rows * 32 * width  # hidden0
    for i in range(4):
      stage = stage_lib.Stage('s', 1, target=f'hidden{i}', projection='gaussian')
      want = functools.partial(train_step.make_targets, self.wide.apply, stage=stage)
      got = train_step.flops(want, variables, jnp.zeros((width, 8)), self.batch)
      expected = products + 2 * rows * width * 8
      # Biases and ReLUs are the rest: at most 2 an activation.
      self.assertBetween(got - expected, 0, 2 * (i + 1) * rows * width)
      products += 2 * rows * width * width

  def test_an_update_costs_the_layers_up_to_its_tap(self):
    variables = self.wide.init(jax.random.key(0), self.batch['x'])
    cost = {}
    for tap in ('hidden0', 'hidden1', 'logits'):
      stage = stage_lib.Stage('s', 1, student=tap)
      width = 2 if tap == 'logits' else 256
      mask = train_step.trainable_mask(self.wide.apply, variables, self.batch['x'], stage)
      tx = optax.sgd(0.1)
      state = train_step.init_stage(
        jax.random.key(0), variables, stage=stage, shape=None, tx=tx, mask=mask
      )
      update = functools.partial(
        train_step.train_step, apply=self.wide.apply, stage=stage, tx=tx, mask=mask
      )
      want = jnp.zeros((64, width))
      cost[tap] = train_step.flops(update, state, self.batch, want)
    square = 2 * 64 * 256 * 256
    first = 2 * 2 * 64 * 32 * 256  # Forward, and the kernel's gradient.
    # What acts element by element is far less than one more layer's product.
    self.assertBetween(cost['hidden0'], first, first + 64 * 256 * 32)
    # One more layer: forward, kernel's gradient, activation's gradient.
    self.assertBetween((cost['hidden1'] - cost['hidden0']) / square, 3, 3.2)
    self.assertGreater(cost['logits'], cost['hidden1'] + 2 * 3 * square)

  def test_the_loop_is_pruned_as_well(self):
    def flops(stage):
      compiled = program(stage, 1).lower(*args_of(stage)).compile()
      return compiled.cost_analysis()['flops']

    # The products that the stage `hidden0` has no need of, per seed.
    above = 2 * B * (16 * 12 + 12 * 2) + 3 * 2 * B * (6 * 5 + 5 * 2)
    project = 2 * B * (16 * 6 + 6 * 5)
    self.assertLess(flops(HIDDEN), flops(OUTPUT) - (above - project) / 2)
