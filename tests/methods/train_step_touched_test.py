"""Parameters and optimizer state that a train step touches, and its FLOPs."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cxjax import errors
from cxjax.methods import flops
from cxjax.methods import masks
from cxjax.methods import optimizer
from cxjax.methods import stage_plan
from cxjax.methods import train_step
from cxjax.models import mlp
from cxjax.parallel import partition
from cxjax.training import optimizers
from tests.methods import networks
from tests.methods.stepped import FADE
from tests.methods.stepped import FROZEN
from tests.methods.stepped import HIDDEN
from tests.methods.stepped import LOW_TERMS
from tests.methods.stepped import OUTPUT
from tests.methods.stepped import REGRESSOR
from tests.methods.stepped import TOP
from tests.methods.stepped import Stage
from tests.methods.stepped import Term
from tests.methods.stepped import dense
from tests.methods.stepped import planned
from tests.methods.stepped import trained

SIZE = 8  # Examples, in 4 microbatches.


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
  @pytest.mark.slow
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
      for scale in (1.0, 5.0)
    )
    old = jax.tree.map(lambda leaf: leaf + 1, old)
    found = train_step.carry_optimizer_state(old, new)
    chex.assert_trees_all_equal(found.params, old.params)
    self.assertEqual(found.iterates['params']['w'][0], 2)
    self.assertEqual(found.iterates['regressors']['h']['kernel'][0, 0], 5)
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
