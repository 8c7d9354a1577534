"""The plan: shapes, costs, the table, and what it refuses."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import optax

from cxjax import curriculum
from cxjax import errors
from cxjax import planning
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
    stages = curriculum.extracted((('hidden1', 'hidden0'),), (30, 70))
    planned = [planning.plan_stage(stage, BATCH, *MODELS) for stage in stages]
    self.assertEqual(planned[0].projection, (12, 6))
    self.assertEqual(planned[0].teacher_width, 12)
    self.assertIsNone(planned[0].student_flops)
    costed = [
      planning.with_costs(one, BATCH, optax.sgd(0.1), *MODELS)
      for one in planned
    ]
    products = 2 * 4 * (8 * 16 + 16 * 12 + 12 * 6)
    self.assertBetween(costed[0].teacher_flops, products, 1.2 * products)
    lines = planning.show(costed).splitlines()
    cells = [[cell.strip() for cell in line.split('|')[1:-1]] for line in lines]
    self.assertEqual(
      cells[2][:8],
      ['hidden0', 'final', 'hidden1', '12', 'hidden0', '6']
      + ['gaussian 12 x 6', '30'],
    )
    self.assertEqual(cells[3][0:3], ['output', 'final', 'logits'])

  def test_a_readout_frees_the_width(self):
    (stage, _) = curriculum.extracted(
      (('hidden1', 'hidden0'),), (1, 1), readout=True, width=9
    )
    planned = planning.plan_stage(stage, BATCH, *MODELS)
    self.assertEqual((planned.projection, planned.readout), ((12, 9), (6, 9)))
    (stage, _) = curriculum.extracted(
      (('hidden1', 'hidden0'),), (1, 1), readout=True, law='identity'
    )
    planned = planning.plan_stage(stage, BATCH, *MODELS)
    self.assertEqual((planned.projection, planned.readout), ((12, 12), (6, 12)))

  @parameterized.parameters(
    (curriculum.Stage('s', 1, target='hidden7'), "'hidden7'.*hidden0, hidden1"),
    (curriculum.Stage('s', 1, student='hidden1'), "'hidden1'.*hidden0, logits"),
    (
      curriculum.Stage('s', 1, student='hidden0', target='hidden1'),
      '6 wide.*12 wide.*projection law',
    ),
    (
      curriculum.Stage(
        's', 1, student='hidden0', target='hidden1', law='identity'
      ),
      'equal widths, got 12 and 6',
    ),
    (curriculum.Stage('s', 1, frozen=('logits',)), 'trains no parameter'),
    (
      curriculum.Stage('s', 1, target='labels', law='sparse'),
      'law and readout',
    ),
    (curriculum.Stage('s', 1, target='labels', readout=True), 'learns labels'),
  )
  def test_refuses(self, stage, message):
    with self.assertRaisesRegex(errors.UserError, message):
      planning.plan_stage(stage, BATCH, *MODELS)
