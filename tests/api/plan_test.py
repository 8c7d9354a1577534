"""Plans: which layers are matched, how stages look, what is refused."""

import functools

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cxjax
from cxjax import errors
from cxjax.methods import losses
from small_networks import JOINT_TERMS
from small_networks import STUDENT
from small_networks import TEACHER
from small_networks import B
from small_networks import Image
from small_networks import Net
from small_networks import Sequence
from small_networks import X
from small_networks import Y
from small_networks import network

JOINT = cxjax.Stage('joint', 100, terms=JOINT_TERMS)
ONE = cxjax.one_shot(5)


def pairs(plan):
  return [(term.target, term.student) for s in plan.stages for term in s.terms]


@pytest.mark.slow
class MatchTest(parameterized.TestCase):
  def test_matches_by_depth(self):
    plan = cxjax.plan(
      network(Net((7, 8, 9, 10)), X),
      network(Net((4, 5)), X),
      X,
      num_steps=100,
    )
    self.assertEqual(
      pairs(plan),
      [('Dense_1', 'Dense_0'), ('Dense_3', 'Dense_1'), ('logits', 'logits')],
    )
    self.assertEqual([stage.steps for stage in plan.stages], [20, 20, 60])
    self.assertEqual(plan.stage_plans[0].projections, {'Dense_0': (8, 4)})
    self.assertRegex(
      plan.markdown(), r'Dense_1 +\| +8 \| Dense_0 .*gaussian 8 x 4'
    )

  def test_four_layers_at_most_unless_they_are_named(self):
    deep = network(Net((4,) * 6), X)
    plan = cxjax.plan(TEACHER, deep, X, num_steps=100)
    names = [student for _, student in pairs(plan)]
    self.assertEqual(
      names, ['Dense_0', 'Dense_2', 'Dense_3', 'Dense_5', 'logits']
    )
    layers = [('Dense_0', 'Dense_4')]
    plan = cxjax.plan(
      TEACHER, deep, X, num_steps=9, layers=layers, steps=(4, 5)
    )
    self.assertEqual([stage.steps for stage in plan.stages], [4, 5])

  def test_pairs_of_an_iterator(self):
    layers = zip(['Dense_0'], ['Dense_0'], strict=True)
    plan = cxjax.plan(TEACHER, STUDENT, X, num_steps=9, layers=layers)
    self.assertEqual(
      pairs(plan), [('Dense_0', 'Dense_0'), ('logits', 'logits')]
    )

  def test_a_student_larger_than_its_teacher_is_warned_of(self):
    with self.assertLogs(level='WARNING') as logged:
      cxjax.plan(STUDENT, TEACHER, X, num_steps=10, layers=())
    self.assertIn('is this their order?', logged.output[0])

  def test_without_layers_it_is_one_shot(self):
    plan = cxjax.plan(TEACHER, STUDENT, X, num_steps=10, layers=())
    self.assertEqual(plan.stages, cxjax.one_shot(10))
    with self.assertRaisesRegex(errors.UserError, 'projection: there is no hi'):
      cxjax.plan(TEACHER, STUDENT, X, num_steps=9, layers=(), projection='none')

  def test_a_loss_of_hidden_layers_by_name(self):
    plan = cxjax.plan(TEACHER, STUDENT, X, num_steps=9, hidden_loss='cosine')
    self.assertIs(plan.stages[0].terms[0].loss, losses.cosine)


@pytest.mark.slow
class PoolTest(parameterized.TestCase):
  @parameterized.parameters(
    (1, 1, None, 'none'), (1, 2, None, 'mean'), (1, 1, 'flatten', 'flatten')
  )
  def test_grids_that_differ_are_pooled(self, theirs, ours, asked, pool):
    x = jnp.ones((2, 4, 4, 1))
    plan = cxjax.plan(
      network(Image(theirs), x),
      network(Image(ours, 2), x),
      x,
      num_steps=10,
      layers=[('Conv_0', 'Conv_0')],
      pool=asked,
    )
    self.assertEqual(plan.stages[0].terms[0].pool, pool)
    widths = {'none': (4, 2), 'mean': (4, 2), 'flatten': (64, 32)}
    self.assertEqual(plan.stage_plans[0].projections['Conv_0'], widths[pool])

  def test_an_image_with_a_vector(self):
    x = jnp.ones((2, 4, 4, 1))
    net = network(Image(1), x)
    plan = cxjax.plan(net, net, x, num_steps=9, layers=[('Conv_0', 'Dense_0')])
    self.assertEqual(plan.stage_plans[0].projections, {'Dense_0': (4, 5)})

  def test_sequences_of_other_lengths(self):
    x = jnp.ones((2, 6, 3))
    plan = functools.partial(
      cxjax.plan,
      network(Sequence(), x),
      network(Sequence(2), x),
      x,
      num_steps=9,
      layers=[('second', 'second')],
    )
    with self.assertRaisesRegex(
      errors.UserError, r"'second', \[2, 3, 5\], .*\[2, 6, 5\].*pool='mean'"
    ):
      plan()
    self.assertEqual(
      plan(pool='mean').stage_plans[0].projections, {'second': (5, 5)}
    )


class StagesTest(parameterized.TestCase):
  """A curriculum that is given term by term."""

  def test_a_row_for_each_term(self):
    plan = cxjax.plan(TEACHER, STUDENT, (X, Y), stages=(JOINT,))
    header, _, *rows = [
      [cell.strip() for cell in line.split('|')[1:-1]]
      for line in plan.markdown().splitlines()
    ]
    table = [dict(zip(header, row, strict=True)) for row in rows]
    self.assertEqual(
      [
        (row['stage'], row['teacher layer'], row['student layer'])
        for row in table
      ],
      [
        ('joint', 'logits', 'logits'),
        ('+', 'Dense_1', 'Dense_0'),
        ('+', 'labels', 'logits'),
      ],
    )
    self.assertEqual([row['weight'] for row in table], ['1', '1 to 0', '0.5'])
    self.assertEqual(table[1]['projection'], 'gaussian 16 x 4')
    # Steps and costs are those of the stage: they stand once.
    self.assertEqual([row['steps'] for row in table], ['100', '-', '-'])
    column = 'student FLOPs a step (counted)'
    self.assertGreater(int(table[0][column].replace(',', '')), 0)
    self.assertEqual([row[column] for row in table[1:]], ['-', '-'])

  @pytest.mark.slow
  def test_costs_are_counted_and_compiled_on_request(self):
    make = functools.partial(cxjax.plan, TEACHER, STUDENT, X, num_steps=20)
    counted = make()
    self.assertIn('student FLOPs a step (counted)', str(counted))
    compiled = make(costs='compiled')
    self.assertIn('student FLOPs a step', str(compiled))
    for a, b in zip(
      counted.stage_plans_with_costs,
      compiled.stage_plans_with_costs,
      strict=True,
    ):
      self.assertBetween(a.student_flops / b.student_flops, 0.85, 1.15)
      self.assertBetween(a.teacher_flops / b.teacher_flops, 0.85, 1.15)
    with self.assertRaisesRegex(errors.UserError, "costs 'xla'.*counted, comp"):
      make(costs='xla')

  @pytest.mark.slow
  def test_one_stage_and_no_number_of_steps(self):
    for stages in (JOINT, (JOINT,), [JOINT]):
      plan = cxjax.plan(TEACHER, STUDENT, (X, Y), stages=stages)
      self.assertEqual(plan.stages, (JOINT,))
    same = cxjax.plan(TEACHER, STUDENT, (X, Y), num_steps=100, stages=JOINT)
    self.assertEqual(same.stages, (JOINT,))

  @parameterized.parameters(
    ({'stages': ()}, 'has no stage'),
    ({'stages': 5}, 'stages=5 must be a tuple of cxjax.Stage'),
    ({'stages': (JOINT, 5)}, 'must be a tuple of cxjax.Stage'),
    ({'stages': 'joint'}, "stages='joint' must be a tuple of cxjax.Stage"),
    ({'stages': ONE, 'num_steps': 6}, 'num_steps=6, .* have 5 steps'),
    ({'stages': ONE, 'num_steps': 4.5}, 'num_steps=4.5 must be a whole'),
    ({'stages': ONE, 'projection': 'sparse'}, 'projection: a curriculum'),
    ({'stages': ONE, 'alpha': 0.5}, 'alpha: a curriculum'),
    ({'stages': ONE, 'layers': ()}, 'layers: a curriculum'),
    ({'stages': ONE, 'share': 0.3}, 'share: a curriculum'),
    ({'stages': ONE, 'share': np.ones(2)}, 'share: a curriculum'),
    ({'stages': ONE, 'loss': np.ones(2)}, 'loss: a curriculum'),
    ({'stages': ONE, 'temperature': np.ones(2)}, 'temperature: a curriculum'),
    ({'stages': ONE, 'steps': (5,)}, 'steps: a curriculum'),
    ({'stages': ONE, 'pool': 'mean'}, 'pool: a curriculum'),
    ({'stages': ONE, 'temperature': 2.0}, 'temperature: a curriculum'),
    ({'stages': cxjax.progressive((5, None), (1, 1))}, 'has none. Give it'),
    ({'stages': cxjax.supervised(5)}, 'needs the labels'),
    ({}, 'num_steps is missing'),
  )
  def test_refuses(self, options, message):
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      cxjax.plan(TEACHER, STUDENT, X, **options)
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(
    ({'student': 'Dense_9'}, "of the student 'Dense_9'.*mean 'Dense_"),
    ({'target': 'Dens_1'}, "of the teacher 'Dens_1'.*mean 'Dense_1'"),
    ({'target': 'label'}, "activation of the teacher 'label'"),
    (
      {'student': 'Dense_0', 'target': 'Dense_1'},
      "'Dense_0', 4 wide, .*16 wid",
    ),
    ({'weight': lambda t: jnp.ones(3)}, 'returns .*must return a scalar'),
    ({'weight': lambda t: 1 - 2 * t}, 'is -0.02 after 0.51 of the stage'),
    ({'weight': lambda t: 1 / t}, 'is inf after 0.0 of the stage'),
    ({'weight': lambda: 1.0}, 'is no schedule of the fraction'),
    ({'weight': lambda t: 'much'}, 'schedule'),
    ({'loss': lambda a, b: (a - b).sum()}, r'makes \[\] of \[8, 3\]'),
    ({'target': 'labels', 'loss': lambda a, y: a}, r'must .*to \[8\]'),
  )
  def test_refuses_a_term(self, fields, message):
    stage = cxjax.Stage('joint', 5, terms=(cxjax.Term(), cxjax.Term(**fields)))
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      cxjax.plan(TEACHER, STUDENT, (X, Y), stages=stage)
    self.assertNotIn('\n', str(caught.exception))


class VocabularyTest(parameterized.TestCase):
  @pytest.mark.slow
  def test_the_first_classes_are_compared(self):
    wide = network(Net((4,), 5), X)
    plan = cxjax.plan(TEACHER, wide, X, num_steps=2, layers=(), vocab=2)
    for own, model in ((plan.teacher, TEACHER), (plan.student, wide)):
      whole = model.apply(model.params, X)[0]
      got = own.apply(own.params, X)[0]
      np.testing.assert_array_equal(got, whole[:, :2])

  @pytest.mark.slow
  def test_the_other_classes_are_not_trained(self):
    wide = network(Net((4,), 5), X)
    plan = cxjax.plan(TEACHER, wide, X, num_steps=2, layers=(), vocab=3)
    params, history = cxjax.distill(plan, [X], metrics='agreement')
    kernels = [
      tree['params']['Dense_1']['kernel']
      for tree in (wide.wrap(wide.params), params)
    ]
    changed = (kernels[0] != kernels[1]).any(axis=0)
    self.assertEqual(changed.tolist(), [True] * 3 + [False] * 2)
    self.assertIn('eval/agreement', history[-1])

  @parameterized.parameters(
    (dict(vocab=4), r"the teacher's output is \[8, 3\]"),
    (dict(vocab=0), 'vocab=0 must be a whole number, at least 1'),
    (dict(vocab=2.5), 'vocab=2.5 must be a whole number'),
    (
      dict(vocab=2, loss={'*': lambda a, b: jnp.sum(a - b, 1)}),
      'vocab=2 is of models with one output',
    ),
  )
  def test_refuses(self, options, message):
    with self.assertRaisesRegex(errors.UserError, message):
      cxjax.plan(TEACHER, STUDENT, X, num_steps=2, **options)


@pytest.mark.slow
class RefusalTest(parameterized.TestCase):
  @parameterized.parameters(
    ({'layers': [('Dense_9', 'Dense_0')]}, "'Dense_9'.*mean 'Dense_"),
    ({'layers': [('Dense_1', 'Dens_0')]}, "'Dens_0'.*mean 'Dense_0'"),
    ({'loss': 'kld'}, "loss 'kld'.*mean 'kl'"),
    ({'share': 1.5}, 'share=1.5'),
    ({'share': 'half'}, "share='half'"),
    ({'steps': (1, 2)}, 'do not add up'),
    ({'steps': 5}, 'steps=5 must be'),
    ({'temperature': 'hot'}, "temperature='hot' must be"),
    ({'temperature': 0.0}, 'temperature=0.0'),
    ({'alpha': 0.5}, r'needs the labels: give \(x, labels\)'),
    ({'checkpoint': 5}, "option 'checkpoint'"),
    ({'projectoin': 'sparse'}, "option 'projectoin'.*mean 'projection'"),
    ({'projection': 'sparce'}, "projection 'sparce'.*mean 'sparse'"),
    ({'pool': 'max'}, "pool 'max'"),
    ({'hidden_loss': 'l1'}, "hidden_loss 'l1'.*l2, cosine.*or give a function"),
    (
      {'loss': 'huber'},
      "loss 'huber'.*; or give a function of .student, teach",
    ),
    ({'layers': ('Dense_1', 'Dense_0')}, "'Dense_1' is not a pair"),
    ({'layers': [('Dense_1', 'Dense_0', 'x')]}, 'is not a pair'),
    ({'layers': 'Dense_0'}, "layers='Dense_0' must be pairs"),
    ({'layers': 5}, 'layers=5 must be pairs'),
    ({'layers': [5]}, '5 is not a pair'),
    ({'loss': lambda got, want: jnp.mean(got)}, r'makes \[\] of \[8, 3\]'),
    ({'loss': lambda got: got}, 'does not take the student'),
    ({'loss': 3}, 'loss=3.*no function'),
    ({'steps': ('a', 'b')}, "steps='a' must be a whole"),
    ({'num_steps': 9.5}, 'whole number'),
    ({'num_steps': 0}, 'num_steps=0'),
    ({'dtype': 'bf17'}, "dtype='bf17' is no floating"),
    ({'dtype': 'int32'}, "dtype='int32' is no floating-point"),
  )
  def test_options(self, options, message):
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      cxjax.plan(TEACHER, STUDENT, X, **{'num_steps': 20, **options})
    self.assertNotIn('\n', str(caught.exception))

  def test_other_classes_and_two_teachers(self):
    with self.assertRaisesRegex(errors.UserError, r'\[8, 3\].*\[8, 5\].*vocab'):
      cxjax.plan(TEACHER, network(Net((4,), 5), X), X, num_steps=9)
    with self.assertRaisesRegex(errors.UserError, 'one teacher'):
      cxjax.plan(network(Net((4,)), X, 0, 1), STUDENT, X, num_steps=9)

  def test_what_is_no_model_or_does_not_run(self):
    with self.assertRaisesRegex(errors.UserError, 'student is a Net,.*from_li'):
      cxjax.plan(TEACHER, Net((4,)), X, num_steps=9)
    with self.assertRaisesRegex(
      errors.UserError, r'teacher does not run on an x of float32\[8, 5\]: '
    ) as caught:
      cxjax.plan(TEACHER, STUDENT, X[:, :5], num_steps=9)
    self.assertNotIn('\n', str(caught.exception))
    with self.assertRaisesRegex(errors.UserError, r'has mask beside x'):
      cxjax.plan(TEACHER, STUDENT, {'x': X, 'mask': X}, num_steps=9)

  @parameterized.parameters(
    (np.zeros((B, 2), np.float32), r'float32\[8, 2\]'),
    (np.zeros((B, 1), int), r'\[8, 1\].*\[8\]'),
  )
  def test_labels_that_are_no_classes(self, y, message):
    plan = functools.partial(cxjax.plan, TEACHER, STUDENT, (X, y), num_steps=9)
    with self.assertRaisesRegex(errors.UserError, message):
      plan(alpha=0.5)
    # Without alpha only the accuracy reads them.
    with self.assertRaisesRegex(errors.UserError, message):
      cxjax.distill(plan(), [(X, y)])

  def test_nothing_is_computed(self):
    """A plan of shapes alone."""
    shapes = lambda model: jax.eval_shape(lambda p: p, model.params)
    teacher, student = (
      cxjax.from_fn(model.apply, shapes(model)) for model in (TEACHER, STUDENT)
    )
    x = jax.ShapeDtypeStruct(X.shape, X.dtype)
    plan = cxjax.plan(
      teacher, student, x, num_steps=9, layers=[('Dense_1', 'Dense_0')]
    )
    self.assertIn('gaussian 16 x 4', plan.markdown())

  def test_a_model_is_traced_a_few_times(self):
    calls = []

    def apply(params, x):
      calls.append(x.shape)
      return x @ params, {}

    student = cxjax.from_fn(apply, np.ones((X.shape[1], 3), np.float32))
    for number in (3, 4):  # Again, of what JAX and `modes` keep.
      cxjax.plan(student, student, X, num_steps=9, layers=())
      self.assertLen(calls, number)
