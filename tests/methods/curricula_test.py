"""Tests of the methods as curricula."""

from absl.testing import parameterized
import optax
import pytest

from cxjax import errors
from cxjax.methods import curricula
from cxjax.methods import losses
from cxjax.methods import stage as stage_lib
from cxjax.methods import stage_plan
from tests.methods import networks

Stage, Term = stage_lib.Stage, stage_lib.Term
PAIRS = (('t0', 's0'), ('t2', 's1'))


class CurriculaTest(parameterized.TestCase):
  def test_supervised(self):
    (stage,) = curricula.supervised(7)
    expected = Stage('labels', 7, (Term(target='labels'),))
    self.assertEqual(stage, expected)
    self.assertIs(stage.terms[0].loss, losses.cross_entropy)
    self.assertFalse(stage.needs_teacher)

  def test_one_shot(self):
    (stage,) = curricula.one_shot(7, losses.mse)
    self.assertEqual(stage, Stage('output', 7, (Term(loss=losses.mse),)))
    self.assertTrue(stage.needs_teacher)
    self.assertFalse(stage.needs_labels)
    self.assertEqual(
      (stage.terms[0].student, stage.terms[0].target), ('logits',) * 2
    )

  def test_progressive(self):
    stages = curricula.progressive((10, 20, None), (1, 2, 3), losses.hard_kl)
    terms = (Term(loss=losses.hard_kl),)
    expected = (
      Stage('checkpoint 10', 1, terms, checkpoint=10),
      Stage('checkpoint 20', 2, terms, checkpoint=20),
      Stage('final', 3, terms, checkpoint=None),
    )
    self.assertEqual(stages, expected)

  def test_extracted(self):
    stages = curricula.extracted(PAIRS, (1, 2, 3), losses.hard_kl)
    hidden = dict(loss=losses.l2, projection='gaussian', shared_projection=True)
    expected = (
      Stage('s0', 1, (Term('s0', 't0', **hidden),)),
      Stage('s1', 2, (Term('s1', 't2', **hidden),)),
      Stage('output', 3, (Term(loss=losses.hard_kl),)),
    )
    self.assertEqual(stages, expected)

  def test_layers_share_a_projection_unless_it_is_rotated(self):
    for projection, want in (('sparse', True), ('pca_rotated', False)):
      for options, shared in (({}, want), ({'shared_projection': True}, True)):
        stages = curricula.extracted(
          PAIRS, (1, 2, 3), projection=projection, **options
        )
        stages += curricula.joint(PAIRS, 9, projection=projection, **options)
        terms = (stages[0].terms[0], stages[-1].terms[0])
        found = {term.shared_projection for term in terms}
        self.assertEqual(found, {shared}, projection)

  def test_extracted_options_are_those_of_the_hidden_terms(self):
    options = dict(
      projection='sparse',
      regressor=True,
      width=5,
      shared_projection=True,
      norm='layer',
      centered=True,
      scale=2.0,
      tokens='predicted',
      pool='mean',
    )
    self.assertCountEqual(options, curricula.HIDDEN_OPTIONS)
    *hidden, output = curricula.extracted(
      PAIRS, (1, 2, 3), hidden_loss='cosine', checkpoint=40, **options
    )
    for stage in hidden:
      (term,) = stage.terms
      self.assertEqual(stage.checkpoint, 40)
      self.assertIs(term.loss, losses.cosine)
      for name, value in options.items():
        self.assertEqual(getattr(term, name), value)
    self.assertEqual(output, Stage('output', 3, (Term(),)))

  def test_extracted_freezes_the_layers_whose_stage_is_over(self):
    stages = curricula.extracted(PAIRS, (1, 2, 3), freeze=True)
    frozen = [stage.frozen for stage in stages]
    self.assertEqual(frozen, [(), ('s0',), ('s0', 's1')])

  @parameterized.named_parameters(
    ('one_shot', lambda **o: curricula.one_shot(7, **o)),
    ('progressive', lambda **o: curricula.progressive((None,), (7,), **o)),
    ('extracted', lambda **o: curricula.extracted(PAIRS, (1, 2, 3), **o)),
  )
  def test_labels_beside_the_teacher(self, build):
    stage = build(loss='kl', alpha=0.25)[-1]
    teacher, labels = stage.terms
    self.assertEqual((teacher.target, teacher.weight), ('logits', 0.75))
    self.assertEqual((labels.target, labels.weight), ('labels', 0.25))
    self.assertLen(build(alpha=0.0)[-1].terms, 1)

  @parameterized.parameters(
    lambda: curricula.progressive((10, None), (1, 2, 3)),
    lambda: curricula.extracted(PAIRS, (1, 2)),
  )
  def test_each_stage_needs_a_length(self, build):
    with self.assertRaisesRegex(errors.UserError, 'one length for each'):
      build()

  def test_unknown_option_of_extracted(self):
    with self.assertRaisesRegex(errors.UserError, "'scal'.*mean 'scale'"):
      curricula.extracted(PAIRS, (1, 2, 3), scal=2.0)

  def test_the_last_stage_may_learn_from_the_labels(self):
    build = lambda **o: curricula.extracted(PAIRS, (1, 2, 3), 'mse', **o)
    self.assertEqual(build(ending='labels')[:2], build()[:2])
    self.assertEqual(build(ending='labels')[2:], curricula.supervised(3))
    self.assertEqual(build(ending='mixed'), build(alpha=0.5))
    self.assertEqual(build(ending='mixed', alpha=0.1), build(alpha=0.1))
    with self.assertRaisesRegex(errors.UserError, "alpha=0.1.*ending='mixed'"):
      build(ending='labels', alpha=0.1)
    with self.assertRaisesRegex(errors.UserError, "'label'.*output, labels"):
      build(ending='label')

  @pytest.mark.slow
  def test_without_the_teacher_the_last_stage_costs_what_labels_cost(self):
    batch = networks.batch()
    layers, steps = (('hidden1', 'hidden1'),), (1, 2)
    stages = curricula.extracted(layers, steps, ending='labels')
    flops = []
    for stage in (stages[-1], curricula.supervised(2)[0]):
      models = networks.models()
      planned = stage_plan.plan_stage(stage, batch, *models)
      costed = stage_plan.with_costs(planned, batch, optax.sgd(1.0), *models)
      flops.append((costed.student_flops, costed.teacher_flops))
    self.assertEqual(*flops)
    self.assertEqual(flops[0][1], 0)

  def test_joint(self):
    (stage,) = curricula.joint(
      PAIRS, 9, 'mse', weight=0.5, norm='layer', checkpoint=7
    )
    fields = dict(loss=losses.mse, weight=0.5, norm='layer')
    fields |= dict(
      projection='identity', regressor=True, shared_projection=True
    )
    terms = (
      Term('s0', 't0', **fields),
      Term('s1', 't2', **fields),
      Term(loss=losses.mse),
    )
    self.assertEqual(stage, Stage('joint', 9, terms, checkpoint=7))

  def test_joint_hidden_terms_fade(self):
    (stage,) = curricula.joint(PAIRS, 9, weight=4.0, fade=0.5, ending='labels')
    *hidden, labels = stage.terms
    for term in hidden:
      weights = [float(term.weight_at(f)) for f in (0.0, 0.25, 0.5, 1.0)]
      self.assertEqual(weights, [4.0, 2.0, 0.0, 0.0])
    self.assertEqual(labels, Term(target='labels'))

  def test_joint_of_nothing_is_one_shot(self):
    with self.assertRaisesRegex(errors.UserError, 'choose one_shot'):
      curricula.joint((), 9)
