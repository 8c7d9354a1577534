"""Tests of the plan of a stage: shapes, costs, the table, what it refuses."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import optax

from cxjax import errors
from cxjax.methods import curricula
from cxjax.methods import stage as stage_lib
from cxjax.methods import stage_plan
from cxjax.models import mlp
from tests.methods import networks

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

  def test_a_stage_of_several_terms(self):
    planned = plan(JOINT)
    self.assertEqual(planned.projections, {'hidden0': (12, 6)})
    self.assertEqual(list(planned.terms), ['hidden0', 'output', 'labels'])
    widths = [t.teacher_width for t in planned.terms.values()]
    self.assertEqual(widths, [12, 3, None])
    hidden, output, labels = table([cost(JOINT)])
    self.assertEqual((hidden['stage'], hidden['weight']), ('joint', 'schedule'))
    self.assertEqual((output['stage'], output['weight']), ('+', '0.5'))
    self.assertEqual((labels['stage'], labels['weight']), ('+', '0.25'))
    self.assertEqual(labels['teacher layer'], 'labels')
    self.assertEqual(hidden['steps'], '30')
    for name in ('steps', 'student FLOPs a step', 'teacher FLOPs a step'):
      self.assertNotIn(output[name], ('30', hidden[name]))

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


def raises(fraction):
  raise RuntimeError('no such\nfraction.')


def single(**fields):
  return Stage('s', 1, Term(**fields))


HIDDEN = dict(student='hidden0', target='hidden1')


class RefusalTest(parameterized.TestCase):
  def assert_refused(self, message, stage, **options):
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      plan(stage, **options)
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(
    (
      single(target='hidden7'),
      "'hidden7'. Did you mean 'hidden.*hidden0, hidden1",
    ),
    (single(student='hidden1'), "'hidden1'. Did you mean 'hidden0'"),
    (single(student='logit'), "'logit'. Did you mean 'logits'"),
    (single(target='label'), "activation 'label'"),
    (single(**HIDDEN), "6 wide, with 'hidden1', 12 wide. Give it a proj"),
    (single(**HIDDEN, projection='identity'), 'equal widths, got 12 and 6'),
    (single(target='hidden0'), "'logits', 3 wide, with 'hidden0', 16 wide"),
    (single(top_k=4), 'top_k=4: the teacher has 3 logits'),
    (Stage('s', 1, Term(), frozen=('logits',)), 'trains no parameter'),
    # Its second term is at fault.
    (
      Stage('s', 1, (Term(), Term(**HIDDEN))),
      "'hidden0', 6 wide, with 'hidden1', 12 wide",
    ),
  )
  def test_shapes_that_do_not_fit(self, stage, message):
    self.assert_refused(message, stage)

  @parameterized.parameters(
    (lambda got, want: jnp.mean(got), r'makes \[\] of \[4, 3\].* to \[4\]'),
    (lambda got, want: got, r'makes \[4, 3\] of \[4, 3\]'),
    (lambda got, want: 1.0, 'makes '),
    (lambda got, want: (got, want), 'makes '),
    (
      lambda got: got,
      r"take the student's 'logits', \[4, 3\], and 'logits', \[4, 3\]",
    ),
    (raises, 'does not take'),
    ('cross_entropy', 'does not take'),
    ('top_k_kl', 'does not take'),
  )
  def test_a_loss_that_reduces_wrongly(self, loss, message):
    self.assert_refused(message, single(loss=loss))

  @parameterized.parameters(
    (lambda got, want: jnp.mean(got), r'makes \[\] of \[4, 3\]'),
    ('kl', 'does not take'),
  )
  def test_a_loss_with_labels(self, loss, message):
    self.assert_refused(message, single(loss=loss, target='labels'))

  @parameterized.parameters(
    (lambda t: jnp.ones(3), r'shape=\(3,\).*must return a scalar'),
    (lambda t: (t, t), 'must return a scalar'),
    (lambda t: None, 'must return a scalar'),
    (lambda t: -t, 'is -0.* after 0.*not negative'),
    (lambda t: 1 / t, 'is inf after 0.0'),
    (lambda t: 0 * t / t, 'is nan after 0.0'),
    (
      lambda t: jnp.where((t > 0.6) & (t < 0.7), -1.0, 1.0),
      'is -1 after 0.61',
    ),
    (lambda t: 1.0 if t < 0.5 else 0.0, 'is no schedule.*Attempted boolean'),
    (lambda: 1.0, 'is no schedule'),
    (raises, 'is no schedule of the fraction .* done: no such.$'),
    (lambda t: 'a', 'is no schedule|must return'),
  )
  def test_a_schedule(self, weight, message):
    stage = Stage('s', 1, (Term(weight=weight), Term(target='labels')))
    where = "The weight of 'logits' in stage 's' "
    self.assert_refused(f'{where}.*{message}', stage)

  def test_without_a_teacher(self):
    self.assert_refused(
      "'joint' compares the student with a teacher, and there is none",
      JOINT,
      models=MODELS[:2],
    )
    plan(curricula.supervised(5)[0], models=MODELS[:2])

  def test_an_activation_without_a_width(self):
    apply = lambda params, x: (x @ params, {'norm': (x @ params).sum(-1)})
    params = jax.ShapeDtypeStruct((8, 3), jnp.float32)
    models = (apply, params) * 2
    stage = single(student='norm', target='norm')
    self.assert_refused(
      r"'norm' of shape \(4,\) has no width", stage, models=models
    )


class SequenceTest(parameterized.TestCase):
  """Shapes on sequences, where axes can be compared wrongly in silence."""

  def plan(self, *terms, teacher=networks.sequence_apply, batch=None):
    return plan(
      Stage('s', 1, terms),
      batch=networks.sequence_batch() if batch is None else batch,
      models=(
        networks.sequence_apply,
        networks.sequence_params(3, 1),
        teacher,
        networks.sequence_params(5, 0),
      ),
    )

  def test_every_way_to_compare(self):
    project = dict(projection='gaussian')
    found = self.plan(
      Term(target='labels'),
      Term(),
      Term('low', 'high', **project),
      Term('low', 'high', tokens='predicted', **project),
      Term('low', 'high', pool='mean', **project),
      Term('low', 'high', pool='flatten', **project),
    )
    shapes = [term.projection for term in found.terms.values()]
    self.assertEqual(shapes, [None, None, (5, 3), (5, 3), (5, 3), (30, 18)])

  def test_lengths_that_differ(self):
    def every_other(params, x):
      logits, seen = networks.sequence_apply(params, x)
      return logits, {k: v[:, ::2] for k, v in seen.items()}

    term = dict(student='low', target='low', projection='gaussian')
    with self.assertRaisesRegex(
      errors.UserError,
      r"'low', \[4, 6, 3\], with 'low', \[4, 3, 5\]: all axes.*pool='mean'",
    ):
      self.plan(Term(**term), teacher=every_other)
    # Without a mask the mean is that of all tokens.
    self.plan(Term(**term, pool='mean'), teacher=every_other)

  def test_a_hidden_activation_with_the_logits(self):
    """The student's activation is at all tokens, the teacher's is not."""
    message = r"'low', \[4, 6, 3\], with 'logits', \[4, 2, 7\]"
    with self.assertRaisesRegex(errors.UserError, message):
      self.plan(Term('low', 'logits', projection='gaussian'))
    fields = dict(projection='gaussian', tokens='predicted')
    self.plan(Term('low', 'logits', **fields), Term('logits', 'low', **fields))

  def test_labels_of_another_shape(self):
    """Both shapes are told."""
    batch = networks.sequence_batch()
    batch['y'] = batch['y'][:, :1]
    message = r"'logits', \[4, 2, 7\], and 'labels', \[4, 1\]"
    with self.assertRaisesRegex(errors.UserError, message):
      self.plan(Term(target='labels'), batch=batch)

  def test_labels_of_a_hidden_activation_are_at_the_target_positions(self):
    self.plan(Term('low', 'labels'))
