"""Tests of gradients that reach no parameter."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp

from cxjax import errors
from cxjax.methods import losses
from cxjax.methods import stage as stage_lib
from cxjax.methods import stage_plan

Stage, Term = stage_lib.Stage, stage_lib.Term
WAYS = {
  'plain': lambda h: h,
  'stopped': jax.lax.stop_gradient,
  'rounded': jnp.round,
  'signs': jnp.sign,
  'integers': lambda h: (100 * h).astype(jnp.int32).astype(jnp.float32),
  'largest': lambda h: jax.nn.one_hot(jnp.argmax(h, -1), 5),
  'half': lambda h: jnp.where(h > 0, h, jax.lax.stop_gradient(h)),
}
PARAMS = {'in': jnp.ones((8, 5)), 'out': jnp.ones((5, 3))}
BATCH = {'x': jnp.ones((4, 8)), 'y': jnp.zeros(4, jnp.int32)}


def apply(params, x):
  h = jnp.tanh(x @ params['in'])
  return h @ params['out'], {name: way(h) for name, way in WAYS.items()}


def plan(*terms):
  models = apply, PARAMS
  return stage_plan.plan_stage(Stage('s', 1, terms), BATCH, *models, *models)


class GradientTest(parameterized.TestCase):
  @parameterized.parameters(*WAYS)
  def test_an_activation(self, name):
    term = Term(name, name)
    if name in ('plain', 'half'):
      plan(term, Term(target='labels'))
      return
    for terms in ((term,), (Term(), term)):
      with self.assertRaisesRegex(
        errors.UserError, f"'s' trains no parameter with '{name}'.*stop_grad"
      ):
        plan(*terms)

  def test_a_regressor_alone_does_not_teach_the_student(self):
    options = dict(projection='gaussian', regressor=True)
    plan(Term('plain', 'plain', **options))
    with self.assertRaisesRegex(errors.UserError, 'reaches none'):
      plan(Term('stopped', 'plain', **options))

  def test_a_loss(self):
    stopped = lambda got, want: losses.kl(jax.lax.stop_gradient(got), want)
    with self.assertRaisesRegex(errors.UserError, 'reaches none'):
      plan(Term(loss=stopped))
    plan(Term(top_k=2), Term(target='labels'))
