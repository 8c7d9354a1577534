"""The plan: shapes, costs, the table, and what it refuses."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import optax

from cxjax.methods import stage as stage_lib
from cxjax import errors
from cxjax.methods import stage_plan
from cxjax.models import mlp

TEACHER, STUDENT = mlp.MLP((16, 12), 2), mlp.MLP((6,), 2)
BATCH = {
  'x': jax.ShapeDtypeStruct((4, 8), jnp.float32),
  'y': jax.ShapeDtypeStruct((4,), jnp.int32),
}


def shapes(model):
  return jax.eval_shape(model.init, jax.random.key(0), BATCH['x'])


MODELS = (STUDENT.apply, shapes(STUDENT), TEACHER.apply, shapes(TEACHER))


class PlanTest(parameterized.TestCase):
  def test_shapes_costs_and_table(self):
    stages = stage_lib.extracted((('hidden1', 'hidden0'),), (30, 70))
    planned = [stage_plan.plan_stage(stage, BATCH, *MODELS) for stage in stages]
    self.assertEqual(planned[0].projection, (12, 6))
    self.assertEqual(planned[0].teacher_width, 12)
    self.assertIsNone(planned[0].student_flops)
    costed = [
      stage_plan.with_costs(one, BATCH, optax.sgd(0.1), *MODELS)
      for one in planned
    ]
    products = 2 * 4 * (8 * 16 + 16 * 12 + 12 * 6)
    self.assertBetween(costed[0].teacher_flops, products, 1.2 * products)
    lines = stage_plan.format_plan(costed).splitlines()
    cells = [[cell.strip() for cell in line.split('|')[1:-1]] for line in lines]
    self.assertEqual(
      cells[2][:8],
      ['hidden0', 'final', 'hidden1', '12', 'hidden0', '6']
      + ['gaussian 12 x 6', '30'],
    )
    self.assertEqual(cells[3][0:3], ['output', 'final', 'logits'])

  def test_a_readout_frees_the_width(self):
    (stage, _) = stage_lib.extracted(
      (('hidden1', 'hidden0'),), (1, 1), regressor=True, width=9
    )
    planned = stage_plan.plan_stage(stage, BATCH, *MODELS)
    self.assertEqual((planned.projection, planned.readout), ((12, 9), (6, 9)))
    (stage, _) = stage_lib.extracted(
      (('hidden1', 'hidden0'),), (1, 1), regressor=True, projection='identity'
    )
    planned = stage_plan.plan_stage(stage, BATCH, *MODELS)
    self.assertEqual((planned.projection, planned.readout), ((12, 12), (6, 12)))

  @parameterized.parameters(
    (stage_lib.Stage('s', 1, target='hidden7'), "'hidden7'.*hidden0, hidden1"),
    (stage_lib.Stage('s', 1, student='hidden1'), "'hidden1'.*hidden0, logits"),
    (
      stage_lib.Stage('s', 1, student='hidden0', target='hidden1'),
      '6 wide.*12 wide.*projection law',
    ),
    (
      stage_lib.Stage(
        's', 1, student='hidden0', target='hidden1', projection='identity'
      ),
      'equal widths, got 12 and 6',
    ),
    (stage_lib.Stage('s', 1, frozen=('logits',)), 'trains no parameter'),
    (
      stage_lib.Stage('s', 1, target='labels', projection='sparse'),
      'law and readout',
    ),
    (stage_lib.Stage('s', 1, target='labels', regressor=True), 'learns labels'),
  )
  def test_refuses(self, stage, message):
    with self.assertRaisesRegex(errors.UserError, message):
      stage_plan.plan_stage(stage, BATCH, *MODELS)
