"""Tests of many steps in one dispatch: nothing but the speed may differ."""

import functools

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cxjax import errors
from cxjax.methods import curricula
from cxjax.methods import projections
from cxjax.methods import stage as stage_lib
from cxjax.methods import stage_plan
from cxjax.methods import targets as targets_lib
from cxjax.methods import train_step
from cxjax.models import mlp
from cxjax.parallel import mesh as mesh_lib
from cxjax.tasks import parity
from cxjax.training import multi_step
from tests.methods import networks

Stage, Term = stage_lib.Stage, stage_lib.Term
D, B, SEEDS = 8, 4, 3
TEACHER, STUDENT = mlp.MLP((16, 12), 2), mlp.MLP((6, 5), 2)
TASK = parity.Parity(D, ((0, 3),))
HIDDEN, OUTPUT = curricula.extracted((('hidden0', 'hidden0'),), (5, 5))
LABELS = curricula.supervised(5)[0]
FADE = optax.linear_schedule(1.0, 0.0, 1.0)
JOINT = Stage(
  'joint',
  8,
  (
    Term(target='labels', weight=0.3),
    Term(weight=optax.linear_schedule(0.0, 1.0, 1.0)),
    Term('hidden0', 'hidden1', weight=FADE, projection='gaussian'),
    Term(
      'hidden1',
      'hidden0',
      projection='gaussian',
      regressor=True,
      width=7,
      centered=True,
      norm='layer',
      weight=0.5,
    ),
  ),
)
SPAN = (0, JOINT.steps)


def draw(key, t, rows=None):
  del rows
  return TASK.batch(key, t, B)


def tx():
  return optax.adamw(1e-2, weight_decay=0.1)


@functools.cache
def stack(key):
  """`[S]` keys."""
  fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
  return fold(jax.random.key(key), jnp.arange(SEEDS))


@functools.cache
def params_of(model, seed):
  init = jax.vmap(lambda key: model.init(key, jnp.zeros((B, D))))
  return jax.jit(init)(stack(seed))


def teacher_params(seed=0):
  return jax.tree.map(lambda leaf: leaf[0], params_of(TEACHER, seed))


def params():
  return params_of(STUDENT, 1)


@functools.cache
def planned(stage):
  batch = jax.eval_shape(draw, jax.random.key(0), 0)
  one = jax.eval_shape(lambda p: jax.tree.map(lambda a: a[0], p), params())
  return stage_plan.plan_stage(
    stage, batch, STUDENT.apply, one, TEACHER.apply, teacher_params()
  )


@functools.cache
def fresh(stage):
  """States, projections and keys of all students."""
  one = planned(stage)
  init = functools.partial(
    train_step.init_stage,
    stage=stage,
    shapes=one.regressors,
    tx=tx(),
    mask=one.mask,
  )

  @jax.jit
  @jax.vmap
  def make(key, student):
    matrices = {
      name: projections.random_projection(key, 'gaussian', shape)
      for name, shape in one.projections.items()
    }
    return init(key, student), matrices, key

  return make(stack(2), params())


def begin(stage, seeds=SEEDS):
  """States, projections and keys of the first `seeds` students."""
  return jax.tree.map(lambda leaf: leaf[:seeds], fresh(stage))


def options(stage):
  """Keyword arguments of `train_many_steps` but the look-ahead."""
  return dict(
    draw=draw,
    student=STUDENT.apply,
    teacher=TEACHER.apply,
    stage=stage,
    tx=tx(),
    mask=planned(stage).mask,
  )


@functools.cache
def program(stage, lookahead=1, devices=1, microbatches=1):
  del devices  # Of the mesh in force.
  return jax.jit(
    functools.partial(
      multi_step.train_many_steps,
      **options(stage),
      lookahead=lookahead,
      microbatches=microbatches,
    )
  )


def args_of(stage, start, stop, seeds=SEEDS, keys=None):
  states, matrices, own = begin(stage, seeds)
  keys = own if keys is None else keys
  args = states, start, stop, teacher_params(), matrices, keys
  return (*args, None, None, SPAN)


def advance(stage, start, stop, *, seeds=SEEDS, keys=None, **kwargs):
  args = args_of(stage, start, stop, seeds, keys)
  return program(stage, **kwargs)(*args)


def assert_close(a, b):
  chex.assert_trees_all_close(a, b, rtol=1e-5, atol=1e-6)


def pick(tree, i):
  return jax.tree.map(lambda leaf: leaf[i], tree)


@pytest.mark.slow
class ManyStepsTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('hidden', HIDDEN), ('joint', JOINT), ('labels', LABELS)
  )
  def test_one_dispatch_is_so_many_steps(self, stage):
    got, out = advance(stage, 0, 7)
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
    one = advance(JOINT, 1, 8)
    four = advance(JOINT, 1, 8, lookahead=4)  # From and to inside a block.
    assert_close(one, four)

  def test_microbatches_change_nothing(self):
    one = advance(JOINT, 0, 5)
    assert_close(one, advance(JOINT, 0, 5, microbatches=2))

  def test_where_it_pauses_changes_no_bit(self):
    whole, _ = advance(JOINT, 0, 8, lookahead=4)
    states, _, _, *rest = args_of(JOINT, 0, 8)
    for start, stop in ((0, 2), (2, 3), (3, 8)):
      states, _ = program(JOINT, lookahead=4)(states, start, stop, *rest)
    chex.assert_trees_all_equal(whole, states)

  def test_a_seed_does_not_feel_the_others(self):
    all_seeds, _ = advance(JOINT, 0, 5)
    alone, _ = advance(JOINT, 0, 5, seeds=1)
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
    given, _ = advance(JOINT, 0, 5, keys=jnp.stack([stream] * SEEDS))
    shared, _ = advance(JOINT, 0, 5, keys=stream[None], lookahead=2)
    assert_close(given, shared)

  def test_four_devices_are_one(self):
    one, _ = advance(JOINT, 0, 5)
    with jax.set_mesh(mesh_lib.make({'data': 4}, B)):
      fun = program(JOINT, devices=4)
      compiled = fun.lower(*args_of(JOINT, 0, 5)).compile()
      four, _ = compiled(*args_of(JOINT, 0, 5))
    assert_close(jax.device_get(one), jax.device_get(four))
    # The batch was really sharded: gradients are summed over the devices.
    self.assertIn('all-reduce', compiled.as_text())

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
    """The loss may be finite where its gradient is not."""
    rooted = lambda got, want: jnp.sqrt(jnp.abs(got - got).sum(-1))
    stage = Stage('s', 5, Term(loss=rooted))
    _, out = advance(stage, 0, 1)
    np.testing.assert_array_equal(out['loss'], 0)
    np.testing.assert_array_equal(out['bad'], 0)


def ones(got, want):
  return jnp.ones(got.shape[:-1]) + 0 * got.sum(-1)


# The sum of the weights of the steps: the loss is their sum times 1.
COUNTING = Stage(
  's', 5, (Term(loss=ones, weight=lambda t: t), Term(loss=ones, weight=0))
)


@pytest.mark.slow
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


# Several terms on sequences: masks, weights, centered means of one batch each.
SEQUENCES = Stage(
  'sequences',
  5,
  (
    Term(target='labels'),
    Term(top_k=2),
    Term('low', 'high', projection='gaussian', centered=True),
    Term(
      'high', 'low', tokens='predicted', centered=True, norm='layer', scale=2.0
    ),
    Term('low', 'low', pool='mean', centered=True, name='mean'),
  ),
)


@pytest.mark.slow
class ManyTargetsTest(parameterized.TestCase):
  """The targets of K batches are those of each of them."""

  @parameterized.parameters((SEEDS, 2, 1), (1, 2, 4))
  def test_are_those_of_each_batch(self, streams, microbatches, devices):
    every = [
      [networks.sequence_batch(10 * s + k) for k in range(2)]
      for s in range(streams)
    ]
    join = lambda *leaves: jnp.stack(leaves)
    batches = jax.tree.map(join, *[jax.tree.map(join, *one) for one in every])
    batches['x']['dropout'] = jax.random.split(
      jax.random.key(0), (streams, 2, networks.B)
    )
    teacher = networks.sequence_params(5, 0)
    matrices = {'low': jax.random.normal(jax.random.key(1), (SEEDS, 5, 3))}

    def fun(batches):
      return multi_step.many_targets(
        networks.sequence_apply,
        teacher,
        matrices,
        batches,
        SEQUENCES,
        microbatches,
      )

    with jax.set_mesh(mesh_lib.make({'data': devices}, networks.B)):
      found = jax.device_get(jax.jit(fun)(batches))
    self.assertCountEqual(found, SEQUENCES.named_terms)
    one = jax.jit(
      lambda matrices, batch: targets_lib.make_targets(
        networks.sequence_apply, teacher, matrices, batch, SEQUENCES
      )
    )
    for seed in range(SEEDS):
      for k in range(2):
        stream = seed % streams
        want = one(pick(matrices, seed), every[stream][k])
        for name, value in want.items():
          # A projection belongs to a seed, other targets to a stream.
          lead = seed if name == 'low' else stream
          got = jax.tree.map(lambda leaf, i=lead, j=k: leaf[i, j], found[name])
          chex.assert_trees_all_close(got, value, rtol=1e-5, atol=1e-5)

  def test_labels_alone_need_no_teacher(self):
    batches = {'x': jnp.zeros((1, 2, B, D)), 'y': jnp.zeros((1, 2, B), int)}
    found = multi_step.many_targets(None, None, None, batches, LABELS)
    self.assertIs(found['labels'], batches['y'])


@pytest.mark.slow
class StoredTargetsTest(parameterized.TestCase):
  @parameterized.parameters((HIDDEN, True, 1), (JOINT, False, 2))
  def test_are_as_good_as_the_teacher(self, stage, shared, lookahead):
    start, stop = 4, 8
    keys = stack(2)[:1] if shared else stack(2)
    want = advance(stage, start, stop, keys=keys)
    states, _, _, _, matrices, *_ = args_of(stage, start, stop)
    steps = start + jnp.arange(4)
    make = lambda steps: multi_step.many_targets(
      TEACHER.apply,
      teacher_params(),
      matrices,
      multi_step.draw_batches(draw, keys, steps, None),
      stage,
    )
    found = jax.jit(make)(steps)
    stored = {
      name: found[name].swapaxes(0, 1)  # `[T, streams, ...]`.
      for name in stage.teacher_terms
    }
    fun = functools.partial(
      multi_step.train_many_steps,
      **{**options(stage), 'teacher': None},
      lookahead=lookahead,
    )
    args = states, start, stop, None, None, keys, None, stored, SPAN
    assert_close(jax.jit(fun)(*args), want)

  def test_those_of_another_stage_are_refused(self):
    """No term learns labels in place of a target that is missing."""
    states, start, stop, *_ = args_of(JOINT, 4, 8)
    stored = {'output': jnp.zeros((4, SEEDS, B, 2))}
    fun = functools.partial(
      multi_step.train_many_steps,
      **{**options(JOINT), 'teacher': None},
      lookahead=1,
    )
    with self.assertRaisesRegex(errors.UserError, 'keys labels, output, hid'):
      fun(states, start, stop, None, None, stack(2), None, stored, SPAN)


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

  @pytest.mark.slow
  def test_several_terms_cost_one_pass_to_the_deepest_tap(self):
    terms = [Term(f'hidden{i}', f'hidden{i}') for i in range(4)]
    both = self.flops(terms[0], terms[1])
    self.assertBetween(both / self.passes(2), 1, 1.25)
    deep = self.flops(terms[0], terms[3])
    self.assertBetween(deep / self.passes(4), 1, 1.25)
    one = self.flops(terms[1])
    self.assertBetween(both / one, 1, 1.1)
