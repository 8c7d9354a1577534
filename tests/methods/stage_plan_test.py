"""Tests of the plan of a stage: shapes, costs, the table, what it refuses."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import optax
import pytest

from cxjax import errors
from cxjax.methods import curricula
from cxjax.methods import stage as stage_lib
from cxjax.methods import stage_plan
from cxjax.models import mlp

Stage, Term = stage_lib.Stage, stage_lib.Term
TEACHER, STUDENT = mlp.MLP((16, 12), 3), mlp.MLP((6,), 3)
BATCH = {
  'x': jax.ShapeDtypeStruct((4, 8), jnp.float32),
  'y': jax.ShapeDtypeStruct((4,), jnp.int32),
}


def shapes(model):
  return jax.eval_shape(model.init, jax.random.key(0), BATCH['x'])


MODELS = (STUDENT.apply, shapes(STUDENT), TEACHER.apply, shapes(TEACHER))
FADE = optax.linear_schedule(1.0, 0.0, 1.0)
JOINT = Stage(
  'joint',
  30,
  (
    Term('hidden0', 'hidden1', projection='gaussian', weight=FADE),
    Term(weight=0.5),
    Term(target='labels', weight=0.25),
  ),
)


def plan(stage, batch=BATCH, models=MODELS, **options):
  return stage_plan.plan_stage(stage, batch, *models, **options)


def cost(stage, **options):
  return stage_plan.with_costs(
    plan(stage), BATCH, optax.sgd(0.1), *MODELS, **options
  )


def table(stages):
  """The cells of a plan, row by row, below its head."""
  head, _, *lines = stage_plan.format_plan(stages).splitlines()
  split = lambda line: [cell.strip() for cell in line.split('|')[1:-1]]
  return [dict(zip(split(head), split(line), strict=True)) for line in lines]


class PlanTest(parameterized.TestCase):
  @pytest.mark.slow
  def test_shapes_costs_and_table(self):
    stages = curricula.extracted((('hidden1', 'hidden0'),), (30, 70))
    planned = [plan(stage) for stage in stages]
    self.assertEqual(planned[0].projections, {'hidden0': (12, 6)})
    self.assertEqual(planned[0].regressors, {})
    self.assertEqual(planned[0].terms['hidden0'].teacher_width, 12)
    self.assertIsNone(planned[0].student_flops)
    costed = [cost(stage) for stage in stages]
    products = 2 * 4 * (8 * 16 + 16 * 12 + 12 * 6)
    self.assertBetween(costed[0].teacher_flops, products, 1.2 * products)
    first, second = table(costed)
    expected = {
      'stage': 'hidden0',
      'checkpoint': 'final',
      'teacher layer': 'hidden1',
      'teacher width': '12',
      'student layer': 'hidden0',
      'student width': '6',
      'projection': 'gaussian 12 x 6',
      'steps': '30',
      'student FLOPs a step': f'{int(costed[0].student_flops):,}',
      'teacher FLOPs a step': f'{int(costed[0].teacher_flops):,}',
    }
    self.assertEqual(first, expected)
    self.assertEqual(
      (second['stage'], second['teacher layer']), ('output', 'logits')
    )

  @pytest.mark.slow
  def test_a_stage_of_several_terms(self):
    planned = plan(JOINT)
    self.assertEqual(planned.projections, {'hidden0': (12, 6)})
    self.assertEqual(list(planned.terms), ['hidden0', 'output', 'labels'])
    widths = [t.teacher_width for t in planned.terms.values()]
    self.assertEqual(widths, [12, 3, None])
    hidden, output, labels = table([cost(JOINT)])
    self.assertEqual((hidden['stage'], hidden['weight']), ('joint', '1 to 0'))
    self.assertEqual(
      [row['term'] for row in (hidden, output, labels)], list(planned.terms)
    )
    self.assertEqual(
      [row['loss'] for row in (hidden, output, labels)],
      ['l2', 'kl', 'cross_entropy'],
    )
    self.assertEqual((output['stage'], output['weight']), ('+', '0.5'))
    self.assertEqual((labels['stage'], labels['weight']), ('+', '0.25'))
    self.assertEqual(labels['teacher layer'], 'labels')
    self.assertEqual(hidden['steps'], '30')
    for name in ('steps', 'student FLOPs a step', 'teacher FLOPs a step'):
      self.assertNotIn(output[name], ('30', hidden[name]))

  def test_one_network_is_neither_teacher_nor_student(self):
    (row,) = table([plan(curricula.supervised(5)[0])])
    self.assertEqual(
      list(row), ['stage', 'target', 'layer', 'width', 'steps', 'FLOPs a step']
    )
    self.assertEqual([*row.values()][:3], ['labels', 'labels', 'logits'])

  def test_a_column_of_weights_only_where_they_differ(self):
    self.assertNotIn('weight', table([plan(Stage('s', 1, Term()))])[0])
    self.assertIn('weight', table([plan(Stage('s', 1, Term(weight=2)))])[0])

  def test_a_regressor_frees_the_width(self):
    pairs = (('hidden1', 'hidden0'),)
    for options, projections, regressors in (
      (dict(width=9), (12, 9), (6, 9)),
      (dict(projection='identity'), (12, 12), (6, 12)),
    ):
      stage, _ = curricula.extracted(pairs, (1, 1), regressor=True, **options)
      planned = plan(stage)
      self.assertEqual(planned.projections, {'hidden0': projections})
      self.assertEqual(planned.regressors, {'hidden0': regressors})
    planned = plan(Stage('s', 1, Term('hidden0', 'hidden1', regressor=True)))
    self.assertEqual(planned.regressors, {'hidden0': (6, 12)})
    self.assertEqual(planned.projections, {})
    (row,) = table([planned])
    self.assertEqual(row['projection'], 'none, regressor 6 x 12')

  @pytest.mark.slow
  def test_costs(self):
    costed = cost(JOINT)
    self.assertEqual(
      costed.teacher_flops, stage_plan.target_flops(costed, BATCH, *MODELS[2:])
    )
    stored = cost(JOINT, stored=True)
    self.assertEqual(stored.teacher_flops, 0)
    self.assertEqual(stored.student_flops, costed.student_flops)
    labels = cost(curricula.supervised(5)[0])
    self.assertEqual(labels.teacher_flops, 0)
    counted = cost(JOINT, flops=lambda fun, *args: len(args))
    self.assertEqual((counted.student_flops, counted.teacher_flops), (4, 3))

  def test_trainable_is_in_the_mask(self):
    mask = plan(Stage('s', 1, Term()), trainable='logits').mask['params']
    self.assertEqual(
      mask,
      {
        'hidden0': {'kernel': False, 'bias': False},
        'logits': {'kernel': True, 'bias': True},
      },
    )

  def test_without_a_teacher(self):
    with self.assertRaisesRegex(
      errors.UserError,
      "'joint' compares the student with a teacher, and there is none",
    ):
      plan(JOINT, models=MODELS[:2])
    plan(curricula.supervised(5)[0], models=MODELS[:2])

  def test_nothing_is_left_to_train(self):
    with self.assertRaisesRegex(errors.UserError, 'trains no parameter'):
      plan(Stage('s', 1, Term(), frozen=('logits',)))
