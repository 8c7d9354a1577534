"""Tests of the train step: what it computes, what it touches, what it costs."""

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
from cxjax.methods import flops
from cxjax.methods import losses
from cxjax.methods import masks
from cxjax.methods import optimizer
from cxjax.methods import stage as stage_lib
from cxjax.methods import stage_plan
from cxjax.methods import targets as targets_lib
from cxjax.methods import train_step
from cxjax.models import mlp
from cxjax.parallel import partition
from cxjax.training import optimizers
from tests.methods import networks

Stage, Term = stage_lib.Stage, stage_lib.Term
FADE = optax.linear_schedule(1.0, 0.0, 1.0)
RISE = optax.linear_schedule(0.5, 2.0, 1.0)
SIZE = 8  # Examples, in 4 microbatches.


def log_softmax(x):
  return x - jnp.log(jnp.sum(jnp.exp(x), -1, keepdims=True))


def divergence(student, teacher):
  p = jnp.exp(log_softmax(teacher))
  return jnp.sum(p * (log_softmax(teacher) - log_softmax(student)), -1)


def nll(logits, labels):
  return -jnp.sum(
    jax.nn.one_hot(labels, logits.shape[-1]) * log_softmax(logits), -1
  )


def mean(values, weights):
  return jnp.sum(values * weights) / jnp.sum(weights)


def square(got, want):
  return jnp.sum((got - want) ** 2, -1)


def dense(params, name, x):
  layer = params['params'][name]
  return x @ layer['kernel'] + layer['bias'][None]


def perceptron(params, x):
  """The activations of an MLP, written out."""
  low = jax.nn.relu(dense(params, 'hidden0', x))
  high = jax.nn.relu(dense(params, 'hidden1', low))
  return low, high, dense(params, 'logits', high)


def random(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


class VectorCase:
  """Four terms on vectors: labels, logits, a projection and a regressor."""

  stage = Stage(
    'joint',
    10,
    (
      Term(target='labels', weight=0.3),
      Term(weight=RISE),
      Term('hidden0', 'hidden1', weight=0.5, projection='gaussian'),
      Term(
        'hidden1',
        'hidden0',
        weight=FADE,
        projection='gaussian',
        regressor=True,
        width=7,
        norm='layer',
        centered=True,
        scale=0.5,
      ),
    ),
  )
  apply = networks.STUDENT.apply
  teacher = networks.TEACHER.apply

  def __init__(self):
    self.params = networks.params(networks.STUDENT, 1)
    self.teacher_params = networks.params(networks.TEACHER)
    self.batch = {
      **networks.batch(size=SIZE),
      'weights': jnp.array([1.0, 0, 2, 1, 0.5, 1, 0, 1]),
    }
    self.matrices = {'hidden0': random(3, 12, 6), 'hidden1': random(4, 16, 7)}
    self.regressors = {'hidden1': {'kernel': random(5, 5, 7)}}

  def losses(self, params, regressors):
    """The loss of each term before its weight."""
    x, y, weights = (self.batch[k] for k in ('x', 'y', 'weights'))
    low, high, logits = perceptron(params, x)
    theirs = perceptron(self.teacher_params, x)
    want = theirs[0] - theirs[0].mean(-1, keepdims=True)
    want = want / jnp.sqrt(jnp.var(theirs[0], -1, keepdims=True) + 1e-5)
    each = weights[:, None]
    middle = (want * each).sum(0, keepdims=True) / weights.sum()
    want = 0.5 * (want - middle) @ self.matrices['hidden1']
    return {
      'labels': mean(nll(logits, y), weights),
      'output': mean(divergence(logits, theirs[2]), weights),
      'hidden0': mean(
        square(low, theirs[1] @ self.matrices['hidden0']), weights
      ),
      'hidden1': mean(
        square(high @ regressors['hidden1']['kernel'], want), weights
      ),
    }

  def weights(self, t):
    return {
      'labels': 0.3,
      'output': 0.5 + 1.5 * t,
      'hidden0': 0.5,
      'hidden1': 1 - t,
    }


class SequenceCase:
  """Five terms on sequences: masks, target positions, weights, pooling."""

  stage = Stage(
    'joint',
    10,
    (
      Term(target='labels', weight=0.3),
      Term(weight=RISE),
      Term('low', 'high', loss='cosine', weight=FADE, projection='sparse'),
      Term('high', 'low', tokens='predicted', projection='gaussian', weight=2),
      Term(
        'low', 'low', pool='mean', regressor=True, centered=True, name='mean'
      ),
    ),
  )
  apply = staticmethod(networks.sequence_apply)
  teacher = staticmethod(networks.sequence_apply)

  def __init__(self):
    self.params = networks.sequence_params(3, 1)
    self.teacher_params = networks.sequence_params(5, 0)
    self.batch = networks.sequence_batch()
    # Nothing counts in one of the microbatches.
    weights = self.batch['weights'].at[1].set(0.0)
    self.batch = {**self.batch, 'weights': weights}
    self.matrices = {'low': random(3, 5, 3), 'high': random(4, 5, 3)}
    self.regressors = {'mean': {'kernel': random(5, 3, 5)}}

  def losses(self, params, regressors):
    x, y, weights = (self.batch[k] for k in ('x', 'y', 'weights'))
    logits, ours = networks.sequence_apply(params, x)
    want, theirs = networks.sequence_apply(self.teacher_params, x)
    mask = x['mask'].astype(jnp.float32)
    rows = np.arange(networks.B)[:, None]
    at = lambda value: value[rows, x['target_positions']]
    pooled = lambda v: (v * mask[..., None]).sum(1) / mask.sum(1)[:, None]
    unit = lambda v: v / jnp.sqrt((v**2).sum(-1, keepdims=True))
    low = theirs['high'] @ self.matrices['low']
    middle = pooled(theirs['low'])
    middle = middle - middle.mean(0, keepdims=True)
    return {
      'labels': mean(nll(logits, y), weights),
      'output': mean(divergence(logits, want), weights),
      'low': mean(1 - (unit(ours['low']) * unit(low)).sum(-1), mask),
      'high': mean(
        square(at(ours['high']), at(theirs['low']) @ self.matrices['high']),
        weights,
      ),
      'mean': square(
        pooled(ours['low']) @ regressors['mean']['kernel'], middle
      ).mean(),
    }

  def weights(self, t):
    return {
      'labels': 0.3,
      'output': 0.5 + 1.5 * t,
      'low': 1 - t,
      'high': 2.0,
      'mean': 1.0,
    }


CASES = {'vectors': VectorCase, 'sequences': SequenceCase}
TX = optax.sgd(1.0)  # An update is the gradient.


@functools.cache
def program(name, microbatches):
  """`(state, targets, progress) -> (state, loss, losses)` of a case."""
  case = CASES[name]()
  return jax.jit(
    lambda state, targets, progress: train_step.update(
      state,
      case.batch,
      targets,
      progress,
      apply=case.apply,
      stage=case.stage,
      tx=TX,
      mask=jax.tree.map(lambda _: True, case.params),
      microbatches=microbatches,
    )
  )


@functools.cache
def by_hand(name):
  """A case, its targets, and its loss and gradient at parameters."""
  case = CASES[name]()

  def total(params, regressors, progress):
    found = case.losses(params, regressors)
    weights = case.weights(progress)
    return sum(weights[k] * found[k] for k in weights), found

  make = functools.partial(
    targets_lib.make_targets, case.teacher, stage=case.stage
  )
  targets = jax.jit(make)(case.teacher_params, case.matrices, case.batch)
  grad = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
  return case, targets, jax.jit(grad)


@pytest.mark.slow
class SeveralTermsTest(parameterized.TestCase):
  """The loss and its gradient are those of the sum written out in plain JAX."""

  @parameterized.product(
    name=tuple(CASES), microbatches=(1, 4), progress=(0.0, 0.5, 1.0)
  )
  def test_loss_and_gradient_by_hand(self, name, microbatches, progress):
    case, targets, grad = by_hand(name)
    (loss, each), (grads, of_regressors) = grad(
      case.params, case.regressors, progress
    )
    learned = case.params, case.regressors
    state = train_step.State(*learned, TX.init(learned))
    after, got, terms = program(name, microbatches)(
      state, targets, jnp.float32(progress)
    )
    close = functools.partial(chex.assert_trees_all_close, rtol=2e-5, atol=2e-6)
    close(got, loss)
    close(terms, each)
    moved = lambda before, after: jax.tree.map(jnp.subtract, before, after)
    close(moved(case.params, after.params), grads)
    close(moved(case.regressors, after.regressors), of_regressors)

  def test_train_step_is_update_without_the_losses_of_the_terms(self):
    case = VectorCase()
    learned = case.params, case.regressors
    state = train_step.State(*learned, TX.init(learned))
    targets = targets_lib.make_targets(
      case.teacher, case.teacher_params, case.matrices, case.batch, case.stage
    )
    mask = jax.tree.map(lambda _: True, case.params)
    options = dict(apply=case.apply, stage=case.stage, tx=TX, mask=mask)
    step = jax.jit(functools.partial(train_step.train_step, **options))
    got = step(state, case.batch, targets, jnp.float32(0.5))
    want = program('vectors', 1)(state, targets, jnp.float32(0.5))
    chex.assert_trees_all_close(got, want[:2], rtol=1e-6)

  def test_half_and_half_is_the_mean_of_two(self):
    """And a weight of 1 alone is the loss itself, bit for bit."""
    batch, params = networks.batch(), networks.params(networks.STUDENT, 1)
    mask = jax.tree.map(lambda _: True, params)
    target = random(0, networks.B, networks.C)

    def loss(*terms):
      stage = Stage('s', 1, terms)
      every = {
        name: target if term.needs_teacher else batch['y']
        for name, term in stage.named_terms.items()
      }
      state = train_step.State(params, {}, TX.init((params, {})))
      step = functools.partial(
        train_step.train_step,
        apply=networks.STUDENT.apply,
        stage=stage,
        tx=TX,
        mask=mask,
      )
      return jax.jit(step)(state, batch, every)[1]

    logits, _ = networks.STUDENT.apply(params, batch['x'])
    alone = loss(Term(loss='mse'))
    self.assertEqual(alone, jnp.mean(losses.mse(logits, target)))
    labels = loss(Term(target='labels'))
    both = loss(Term(loss='mse', weight=0.5), Term(target='labels', weight=0.5))
    np.testing.assert_allclose(both, (alone + labels) / 2, rtol=1e-6)

    infinite = lambda got, want: jnp.log(0 * square(got, want))
    off = Term(loss=infinite, weight=0.0, name='off')
    self.assertEqual(loss(Term(loss='mse'), off), alone)

  def test_a_target_that_is_missing_is_an_error(self):
    case = VectorCase()
    state = train_step.State(case.params, case.regressors, None)
    with self.assertRaisesRegex(errors.UserError, 'labels, output, hidden0'):
      train_step.train_step(
        state,
        case.batch,
        {'labels': case.batch['y']},
        apply=case.apply,
        stage=case.stage,
        tx=TX,
        mask=jax.tree.map(lambda _: True, case.params),
      )


def planned(stage, trainable=''):
  shapes = jax.eval_shape(networks.batch)
  return stage_plan.plan_stage(
    stage, shapes, *networks.models(), trainable=trainable
  )


@functools.cache
def trained(stage, trainable=''):
  """A state before and after three steps of AdamW, and its mask."""
  one = planned(stage, trainable)
  tx = optax.adamw(1e-2, weight_decay=0.1)
  params, matrices = networks.params(networks.STUDENT, 1), {}
  for i, (name, shape) in enumerate(one.projections.items()):
    matrices[name] = random(i, *shape)
  state = train_step.init_stage(
    jax.random.key(2),
    params,
    stage=stage,
    shapes=one.regressors,
    tx=tx,
    mask=one.mask,
  )

  @jax.jit
  def step(state, batch):
    want = targets_lib.make_targets(
      networks.TEACHER.apply,
      networks.params(networks.TEACHER),
      matrices,
      batch,
      stage,
    )
    return train_step.train_step(
      state,
      batch,
      want,
      apply=networks.STUDENT.apply,
      stage=stage,
      tx=tx,
      mask=one.mask,
    )

  before = state
  for seed in range(3):
    state, _ = step(state, networks.batch(seed))
  return before, state, one.mask


PAIRS = (('hidden0', 'hidden0'), ('hidden1', 'hidden1'))
HIDDEN, TOP, OUTPUT = curricula.extracted(PAIRS, (5, 5, 5))
FROZEN = curricula.extracted(PAIRS, (5, 5, 5), freeze=True)[2]
REGRESSOR = curricula.extracted(
  (('hidden1', 'hidden0'),), (5, 5), regressor=True, width=7
)[0]
LOW_TERMS = Stage(
  's',
  5,
  (
    Term('hidden0', 'hidden0', projection='gaussian', weight=FADE),
    Term('hidden0', 'hidden1', projection='gaussian', regressor=True),
  ),
)


@pytest.mark.slow
class NotCountedTest(parameterized.TestCase):
  """NaN of weight 0 in the input, in activations and in targets."""

  terms = (
    Term('h', 'h', regressor=True, name='regressed'),
    Term('h', 'h', loss=lambda a, b: jnp.sqrt(jnp.sum((a - b) ** 2, -1))),
    Term(loss='cosine'),
  )

  @parameterized.parameters(1, 2)
  def test_changes_nothing(self, microbatches):
    weights = jnp.array([1.0, 0.0, 2.0, 0.0])
    stage = Stage('s', 1, self.terms)

    def apply(params, x):
      h = jnp.tanh(x['in'] @ params['in'])
      spoil = lambda leaf: jnp.where(x['bad'][:, None], jnp.nan, leaf)
      return spoil(h @ params['out']), {'h': spoil(h)}

    @jax.jit
    def update(x, targets):
      params = {'in': random(0, 5, 3), 'out': random(1, 3, 2)}
      regressors = {'regressed': {'kernel': random(2, 3, 3)}}
      start = TX.init((params, regressors))
      state = train_step.State(params, regressors, start)
      return train_step.update(
        state,
        {'x': x, 'weights': weights},
        targets,
        apply=apply,
        stage=stage,
        tx=TX,
        mask=jax.tree.map(lambda _: True, params),
        microbatches=microbatches,
      )

    targets = {
      name: random(3, 4, 2 if name == 'output' else 3)
      for name in stage.named_terms
    }
    bad = weights == 0
    spoil = lambda leaf: jnp.where(bad[:, None], jnp.nan, leaf)
    fine = update({'in': random(4, 4, 5), 'bad': bad & False}, targets)
    found = update(
      {'in': spoil(random(4, 4, 5)), 'bad': bad}, jax.tree.map(spoil, targets)
    )
    self.assertTrue(all(jnp.isfinite(x).all() for x in jax.tree.leaves(fine)))
    chex.assert_trees_all_close(fine, found, rtol=1e-5, atol=1e-6)


class TouchedTest(parameterized.TestCase):
  """What a stage trains, and that nothing else moves by a bit."""

  @parameterized.named_parameters(
    ('hidden', HIDDEN, '', ('hidden0',)),
    ('top', TOP, '', ('hidden0', 'hidden1')),
    ('regressor', REGRESSOR, '', ('hidden0',)),
    ('output', OUTPUT, '', ('hidden0', 'hidden1', 'logits')),
    ('frozen', FROZEN, '', ('logits',)),
    ('several', LOW_TERMS, '', ('hidden0',)),
    ('pattern', OUTPUT, 'hidden1', ('hidden1',)),
    ('expression', OUTPUT, 'hidden0|logits', ('hidden0', 'logits')),
    ('pattern and depth', TOP, 'hidden*', ('hidden0', 'hidden1')),
    ('one leaf', OUTPUT, 'logits/bias', ('logits/bias',)),
  )
  def test_parameters_and_optimizer_state(self, stage, pattern, expected):
    before, after, mask = trained(stage, pattern)
    leaves = jax.tree.leaves_with_path(before.params)
    touched = set()
    for (path, leaf), other, chosen in zip(
      leaves,
      jax.tree.leaves(after.params),
      jax.tree.leaves(mask),
      strict=True,
    ):
      name = partition.leaf_name(path).removeprefix('params/')
      self.assertEqual(chosen, not np.array_equal(leaf, other), name)
      if chosen:
        touched.add(name)
    wanted = {
      partition.leaf_name(path).removeprefix('params/')
      for path, _ in leaves
      if any(
        partition.leaf_name(path).startswith(f'params/{name}')
        for name in expected
      )
    }
    self.assertEqual(touched, wanted)
    # There is optimizer state for those parameters and for no others.
    held = lambda state: {
      partition.leaf_name(path).removeprefix('params/')
      for path, _ in jax.tree.leaves_with_path(state and state[0].mu)
    }
    self.assertEqual(held(after.opt_state.params), touched)
    self.assertEqual(
      held(after.opt_state.regressors),
      {f'{name}/kernel' for name in after.regressors},
    )

  @pytest.mark.slow
  def test_a_regressor_is_trained_from_a_key_of_its_own(self):
    stage = Stage(
      's',
      1,
      (
        Term(
          'hidden0', 'hidden0', projection='gaussian', regressor=True, width=9
        ),
        Term(
          'hidden0', 'hidden1', projection='gaussian', regressor=True, width=9
        ),
      ),
    )
    before, after, _ = trained(stage)
    one, two = (
      before.regressors[k]['kernel'] for k in ('hidden0', 'hidden0#2')
    )
    self.assertEqual(one.shape, (6, 9))
    self.assertFalse(np.allclose(one, two))
    for name, old in before.regressors.items():
      self.assertFalse(
        np.allclose(old['kernel'], after.regressors[name]['kernel'])
      )

  @parameterized.parameters(
    (Stage('s', 1, Term(), frozen=('logits',)), '', "'logits': it depends"),
    (HIDDEN, 'logits', "no parameter with 'hidden0'"),
    (
      Stage('s', 1, (Term(), Term('hidden0', 'hidden0', projection='sparse'))),
      'logits',
      "no parameter with 'hidden0'",
    ),
    (OUTPUT, 'hidden7', "trainable='hidden7' matches no parameter"),
    (Stage('s', 1, Term(), frozen=('hiden0',)), '', "'hiden0'.*'hidden0'"),
  )
  def test_nothing_is_left_to_train(self, stage, pattern, message):
    with self.assertRaisesRegex(errors.UserError, message):
      planned(stage, pattern)

  def test_split_and_merge_undo_each_other(self):
    mask = planned(HIDDEN).mask
    params = networks.params(networks.STUDENT, 1)
    chex.assert_trees_all_equal(masks.merge(*masks.split(params, mask)), params)

  @pytest.mark.slow
  def test_carry_keeps_what_both_have(self):
    _, low, _ = trained(HIDDEN)
    fresh, _, _ = trained(OUTPUT)
    carried = train_step.carry_optimizer_state(low.opt_state, fresh.opt_state)
    adam, before = carried.params[0], low.opt_state.params[0]
    mu = adam.mu['params']
    chex.assert_trees_all_equal(mu['hidden0'], before.mu['params']['hidden0'])
    self.assertEqual(float(jnp.abs(mu['logits']['kernel']).max()), 0.0)
    self.assertEqual(adam.count, 3)

  def test_carry_leaves_regressors_new(self):
    """Their iterates and their moments are of other regressors."""
    tx = optax.lookahead(optax.sgd(0.1, momentum=0.9), 2, 0.5)
    params, kernel = {'w': jnp.ones(2)}, jnp.ones((2, 3))
    old, new = (
      optimizer.init(tx, (params, {'h': {'kernel': scale * kernel}}), None)
      for scale in (1.0, 2.0)
    )
    old = jax.tree.map(lambda leaf: leaf + 1, old)
    found = train_step.carry_optimizer_state(old, new)
    chex.assert_trees_all_equal(found.params, old.params)
    self.assertEqual(found.iterates['params']['w'][0], 2)
    self.assertEqual(found.iterates['regressors']['h']['kernel'][0, 0], 2)
    chex.assert_trees_all_equal(found.regressors, new.regressors)

  @parameterized.parameters('adam', 'sgd')
  def test_a_regressor_of_the_same_shape_begins_anew(self, name):
    """In one state with the parameters, as those of configs are."""
    config = optimizers.default()
    config.name, config.momentum = name, 0.9
    tx = optimizers.make(config)
    params, kernel = {'w': jnp.ones(2)}, jnp.ones((2, 3))
    learned = params, {'h': {'kernel': kernel}}
    new = train_step.State(*learned, tx.init(learned))
    old = jax.tree.map(lambda leaf: leaf + 1, new)
    found = train_step.carry(old, new, tx, {'w': True})
    ours = jax.tree.leaves_with_path(found.opt_state)
    self.assertGreater(len(ours), 1)
    for path, leaf in ours:
      self.assertEqual(leaf.max(), leaf.shape != kernel.shape, path)


@pytest.mark.slow
class FlopsTest(parameterized.TestCase):
  """The saving is in the compiled program, not in the wish."""

  rows, bits, wide = 64, 32, 256

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.model = mlp.MLP((cls.wide,) * 4, 2)
    shape = jax.ShapeDtypeStruct
    cls.batch = {
      'x': shape((cls.rows, cls.bits), jnp.float32),
      'y': shape((cls.rows,), jnp.int32),
    }
    cls.params = jax.eval_shape(
      cls.model.init, jax.random.key(0), cls.batch['x']
    )

  def cost(self, *terms, frozen=()):
    """FLOPs of an update, as the plan of a stage tells them."""
    stage = Stage('s', 1, terms, frozen=frozen)
    models = (self.model.apply, self.params) * 2
    one = stage_plan.plan_stage(stage, self.batch, *models)
    return stage_plan.with_costs(
      one, self.batch, optax.sgd(0.1), *models
    ).student_flops

  def product(self, m, n):
    return 2 * self.rows * m * n

  def passes(self, depth):
    """Forward and backward to a hidden layer; the input has no gradient."""
    above = 3 * (depth - 1) * self.product(self.wide, self.wide)
    return 2 * self.product(self.bits, self.wide) + above

  @parameterized.parameters(1, 2, 3, 4)
  def test_one_term_costs_the_layers_up_to_its_tap(self, depth):
    cost = self.cost(Term(f'hidden{depth - 1}', f'hidden{depth - 1}'))
    # What acts element by element, and the update of the parameters.
    small = depth * (16 * self.rows * self.wide + 2 * self.wide**2)
    self.assertBetween(cost, self.passes(depth), self.passes(depth) + small)

  def test_one_term_costs_what_plain_jax_does(self):
    """Bit for bit the FLOPs of the update written out."""
    names = ('hidden0', 'hidden1')

    def plain(params, x, target):
      def loss(params):
        h = x
        for name in names:
          h = jax.nn.relu(dense({'params': params}, name, h))
        return jnp.mean(jnp.sum(jnp.square(h - target), axis=-1))

      value, grads = jax.value_and_grad(loss)(params)
      return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value

    params = {name: self.params['params'][name] for name in names}
    target = jax.ShapeDtypeStruct((self.rows, self.wide), jnp.float32)
    expected = flops.compiled(plain, params, self.batch['x'], target)
    cost = self.cost(Term('hidden1', 'hidden1'))
    self.assertEqual(cost, expected)

  def test_several_terms_cost_one_pass_to_the_deepest_tap(self):
    """And the heads: not the sum of separate passes."""
    low, high = Term('hidden0', 'hidden0'), Term('hidden1', 'hidden1')
    both = self.cost(low, high)
    heads = 16 * self.rows * self.wide
    self.assertBetween(both, self.cost(high), self.cost(high) + heads)
    self.assertLess(both, self.cost(high) + self.cost(low) / 2)

  def test_block_1_of_4_does_not_pay_for_2_and_3(self):
    both = self.cost(Term('hidden0', 'hidden0'), Term('hidden1', 'hidden1'))
    self.assertLess(both, 1.1 * self.passes(2))
    self.assertGreater(self.cost(Term('hidden3', 'hidden3')), self.passes(4))

  def test_a_regressor_costs_its_product_three_times(self):
    one, two = Term('hidden1', 'hidden1'), Term('hidden1', 'hidden0')
    regressed = Term('hidden1', 'hidden0', regressor=True)
    more = self.cost(one, regressed) - self.cost(one, two)
    self.assertBetween(more / self.product(self.wide, self.wide), 3, 3.1)

  def test_labels_beside_the_logits_cost_a_head(self):
    one = self.cost(Term())
    both = self.cost(Term(weight=0.5), Term(target='labels', weight=0.5))
    self.assertBetween(both, one, one + 100 * self.rows)

  def test_a_schedule_costs_next_to_nothing(self):
    one = self.cost(Term())
    self.assertBetween(self.cost(Term(weight=FADE)), one, one + 100)

  def test_frozen_layers_have_no_gradient(self):
    whole, square = self.cost(Term()), self.product(self.wide, self.wide)
    saved = whole - self.cost(Term(), frozen=('hidden2',))
    # Of three kernels, and of the activations below the lowest that is trained.
    expected = self.product(self.bits, self.wide) + (2 + 3) * square
    self.assertBetween(saved / expected, 1, 1.05)
