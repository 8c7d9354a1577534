"""Entries of weight 0 of a train step."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import pytest

from cxjax.methods import train_step
from tests.methods.stepped import TX
from tests.methods.stepped import Stage
from tests.methods.stepped import Term
from tests.methods.stepped import random

pytestmark = pytest.mark.slow


class NotCountedTest(parameterized.TestCase):
  """NaN of weight 0 in the input, in activations and in targets."""

  terms = (
    Term('h', 'h', regressor=True, name='regressed'),
    Term('h', 'h', loss=lambda a, b: jnp.sqrt(jnp.sum((a - b) ** 2, -1))),
    Term(loss='cosine'),
    Term('h', 'h', name='rows'),
    Term(loss='kl', name='kl'),
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
      name: random(3, 4, 3 if term.target == 'h' else 2)
      for name, term in stage.named_terms.items()
    }
    bad = weights == 0
    spoil = lambda leaf: jnp.where(bad[:, None], jnp.nan, leaf)
    fine = update({'in': random(4, 4, 5), 'bad': bad & False}, targets)
    found = update(
      {'in': spoil(random(4, 4, 5)), 'bad': bad}, jax.tree.map(spoil, targets)
    )
    self.assertTrue(all(jnp.isfinite(x).all() for x in jax.tree.leaves(fine)))
    chex.assert_trees_all_close(fine, found, rtol=1e-5, atol=1e-6)

  def test_weights_are_summed_in_float32(self):
    ones = jnp.ones((257, 1))
    batch = {'x': ones, 'weights': jnp.ones(257, jnp.bfloat16)}
    args = {'logits': ones}, None, batch, 0 * ones, Term(loss='mse'), batch, 1
    self.assertEqual(train_step._term_loss(*args), 1)

  @parameterized.parameters('kl', 'mse')
  def test_a_loss_of_rows_has_one_select_over_the_outputs(self, loss):
    x, logits, target = random(0, 4, 5), random(1, 5, 7), random(2, 4, 7)
    batch = {'x': x, 'weights': jnp.array([1.0, 0.0, 2.0, 0.0])}

    def selects(batch):
      def mean(kernel):
        found = {'logits': x @ kernel}
        term = Term(loss=loss)
        return train_step._term_loss(found, None, batch, target, term, batch, 1)

      lines = str(jax.make_jaxpr(jax.grad(mean))(logits)).splitlines()
      return sum('f32[4,7] = select_n' in line for line in lines)

    self.assertEqual(selects(batch) - selects({'x': x}), 1)
