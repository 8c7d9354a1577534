"""Tests of terms and stages as values."""

import dataclasses

from absl.testing import parameterized
import numpy as np
import optax

from cxjax import errors
from cxjax.methods import losses
from cxjax.methods import stage as stage_lib

Stage, Term = stage_lib.Stage, stage_lib.Term
FADE = optax.linear_schedule(1.0, 0.0, 1.0)


class TermTest(parameterized.TestCase):
  @parameterized.parameters(
    (dict(), losses.kl),
    (dict(top_k=2), losses.top_k_kl),
    (dict(target='labels'), losses.cross_entropy),
    (dict(student='a', target='labels'), losses.cross_entropy),
    (dict(student='a', target='b'), losses.l2),
    (dict(student='a'), losses.l2),
    (dict(student='a', loss='cosine'), losses.cosine),
    (dict(loss='hard_kl'), losses.hard_kl),
    (dict(loss=losses.mse), losses.mse),
  )
  def test_usual_losses(self, fields, loss):
    self.assertIs(Term(**fields).loss, loss)

  @parameterized.parameters(
    (dict(), 'output'),
    (dict(target='labels'), 'labels'),
    (dict(student='a', target='labels'), 'a'),
    (dict(student='a', target='b'), 'a'),
    (dict(student='a', name='mine'), 'mine'),
  )
  def test_label(self, fields, label):
    self.assertEqual(Term(**fields).label, label)

  def test_weight_is_a_number_or_a_schedule(self):
    self.assertEqual(Term(weight=0.5).weight_at(0.3), 0.5)
    self.assertEqual(Term(weight=np.float32(2)).weight_at(0.3), 2)
    self.assertFalse(Term(weight=0).scheduled)
    term = Term(weight=optax.linear_schedule(1.0, 0.0, 1.0))
    self.assertTrue(term.scheduled)
    for fraction in (0.0, 0.25, 0.5, 1.0):
      self.assertAlmostEqual(float(term.weight_at(fraction)), 1 - fraction)

  @parameterized.parameters(
    ('logits', 'logits', 'all', False),
    ('head_input', 'head_input', 'all', False),
    ('block0', 'block1', 'all', True),
    ('block0', 'block1', 'predicted', False),
    ('block0', 'labels', 'all', False),  # There are labels where it predicts.
  )
  def test_tokens(self, student, target, tokens, expected):
    term = Term(student, target, tokens=tokens)
    self.assertEqual(term.all_tokens, expected)

  @parameterized.parameters(
    (dict(weight=-0.5), 'weight=-0.5: it must be 0, a number in .1e-30, 1e'),
    (dict(weight=1e-50), 'weight=1e-50: it must be'),
    (dict(weight=1e39), r'weight=1e\+39: it must be'),
    (dict(weight=float('nan')), 'weight=nan'),
    (dict(weight=float('inf')), 'weight=inf'),
    (dict(weight=True), 'weight=True'),
    (dict(weight='0.5'), "weight='0.5'.*optax.linear_schedule"),
    (dict(weight=None), 'weight=None'),
    (dict(weight=[1.0]), r'weight=\[1.0\]'),
    (dict(weight=1j), 'weight=1j'),
    (dict(loss='kll'), "Unknown loss 'kll'. Did you mean 'kl'.*or give a func"),
    (dict(loss=3), "loss=3 of the term of 'logits' is no function"),
    (dict(student='a', width=3), "'a' .*width 3.*regressor=True"),
    (dict(student='a', norm='batch'), "norm 'batch'.*none, layer"),
    (dict(student='a', tokens='read'), "tokens 'read'.*all, predicted"),
    (dict(student='a', pool='max'), "pool 'max'.*none, mean, flatten"),
    (dict(scale=0.0), 'scale=0.0 must be a number in .1e-30'),
    (dict(scale=1e-50), 'scale=1e-50 must be'),
    (dict(scale=float('inf')), 'scale=inf'),
    (dict(scale=float('nan')), 'scale=nan'),
    (dict(scale='1'), "scale='1' must be"),
    (dict(student='a', top_k=2), 'top_k=2, which is for logits'),
    (dict(target='labels', top_k=2), 'top_k=2, which is for logits'),
    (dict(top_k=2, scale=3.0), 'logits as they are, without scale'),
    (dict(top_k=2, norm='layer'), 'logits as they are, without norm'),
    (dict(top_k=2, centered=True), 'logits as they are, without centered'),
    (dict(top_k=2, projection='gaussian'), 'are, without projection'),
    (dict(top_k=2, regressor=True), 'are, without regressor'),
    (dict(top_k=-1), 'top_k=-1'),
    (dict(top_k=1.5), 'top_k=1.5'),
    (dict(target='labels', projection='sparse'), 'learns labels'),
    (dict(target='labels', regressor=True), 'learns labels'),
    (dict(student='a', regressor=True, width=0), 'width=0'),
    (dict(student='a', regressor=True, width=2.5), 'width=2.5'),
    (dict(student='a', projection='gausian'), "'gausian'.*mean 'gaussian'"),
    (dict(student='a', regressor=True, width=3), 'width=3, and no projection'),
    (dict(student=3), 'student=3'),
    (dict(target=None), 'target=None'),
  )
  def test_refuses(self, fields, message):
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      Term(**fields)
    self.assertNotIn('\n', str(caught.exception))

  def test_width_with_a_regressor(self):
    term = Term('a', 'b', projection='gaussian', regressor=True, width=3)
    self.assertEqual(term.width, 3)


@dataclasses.dataclass
class Scaled:
  """A loss that is compared by its field, so that it has no hash."""

  factor: float

  def __call__(self, student, target):
    return self.factor * (student - target).sum(-1)


class UnhashableTest(parameterized.TestCase):
  def test_a_stage_can_be_found_by_it(self):
    term = stage_lib.Term(loss=Scaled(2.0), weight=Scaled(1.0))
    stage = stage_lib.Stage('s', 1, (term,))
    self.assertIn(stage.objective, {stage.objective})
    one = np.ones((1, 3))
    np.testing.assert_array_equal(term.loss(one, 0 * one), [6.0])


class OutputTermsTest(parameterized.TestCase):
  def test_weights_add_up_to_1(self):
    teacher, labels = stage_lib.output_terms('mse', 0.25)
    self.assertEqual(teacher, Term(loss='mse', weight=0.75))
    self.assertEqual(labels, Term(target='labels', weight=0.25))

  def test_without_labels_there_is_one_term(self):
    self.assertEqual(stage_lib.output_terms(top_k=2), (Term(top_k=2),))

  @parameterized.parameters(-0.1, 1.1, float('nan'), '0.5', True)
  def test_alpha_is_a_fraction(self, alpha):
    with self.assertRaisesRegex(errors.UserError, f'alpha={alpha!r} must be'):
      stage_lib.output_terms(alpha=alpha)


class StageTest(parameterized.TestCase):
  def test_a_single_term_or_frozen_activation_needs_no_tuple(self):
    self.assertEqual(
      Stage('s', 1, Term(), frozen='a'), Stage('s', 1, (Term(),), ('a',))
    )

  def test_can_be_compared_and_hashed(self):
    """It is the key of what is compiled."""
    make = lambda kind: Stage(
      's', 1, kind([Term('a', 'b'), Term(weight=FADE)]), frozen=kind(['a'])
    )
    self.assertEqual(make(list), make(tuple))
    self.assertEqual(hash(make(list)), hash(make(tuple)))

  def test_names_of_terms_are_unique(self):
    stage = Stage(
      's',
      1,
      (
        Term('a', 'b'),
        Term('a', 'c'),
        Term(target='labels'),
        Term(),
        Term('a', 'd'),
        Term('e', 'f', name='a'),
      ),
    )
    names = list(stage.named_terms)
    self.assertEqual(names, ['a', 'a#2', 'labels', 'output', 'a#3', 'a#4'])
    self.assertEqual(tuple(stage.named_terms.values()), stage.terms)
    self.assertNotIn('labels', stage.teacher_terms)
    self.assertLen(stage.teacher_terms, 5)

  def test_a_name_that_looks_like_a_number_hides_no_term(self):
    stage = Stage(
      's', 1, (Term('a', 'b', name='a#2'), Term('a', 'c'), Term('a', 'd'))
    )
    self.assertLen(stage.named_terms, 3)

  @parameterized.parameters(
    ((Term(),), True, False),
    ((Term(target='labels'),), False, True),
    ((Term(), Term(target='labels')), True, True),
  )
  def test_needs(self, terms, teacher, labels):
    stage = Stage('s', 1, terms)
    self.assertEqual(
      (stage.needs_teacher, stage.needs_labels), (teacher, labels)
    )

  def test_objective_is_shared_by_stages_that_compile_alike(self):
    terms = Term('a', 'b', projection='sparse', shared_projection=True)
    stage = Stage('a', 1, terms, checkpoint=10)
    other = Stage('b', 2, dataclasses.replace(terms, shared_projection=False))
    self.assertEqual(stage.objective, other.objective)
    self.assertEqual(hash(stage.objective), hash(other.objective))

  @parameterized.parameters(
    *(
      {name: value}
      for name, value in dict(
        student='s1',
        target='t1',
        loss=losses.cosine,
        weight=0.5,
        projection='sparse',
        regressor=True,
        norm='layer',
        centered=True,
        scale=2.0,
        tokens='predicted',
        pool='mean',
      ).items()
    ),
    {'projection': 'gaussian', 'regressor': True, 'width': 3},
    {'weight': FADE},
  )
  def test_objective_keeps_everything_else(self, **fields):
    plain = Stage('a', 1, Term('s0', 't0', projection='gaussian'))
    term = Term(
      **{'student': 's0', 'target': 't0', 'projection': 'gaussian'} | fields
    )
    (kept,) = Stage('a', 1, term).objective.terms
    for name, value in fields.items():
      self.assertEqual(getattr(kept, name), value)
    self.assertNotEqual(Stage('a', 1, term).objective, plain.objective)

  def test_objective_keeps_what_is_frozen_and_the_number_of_terms(self):
    one = Stage('a', 1, Term())
    frozen = Stage('a', 1, Term(), frozen=('s1',))
    two = Stage('a', 1, (Term(), Term(target='labels')))
    self.assertLen({s.objective for s in (one, frozen, two)}, 3)

  @parameterized.parameters(
    (dict(steps=0), "Stage 's': steps=0 must"),
    (dict(steps=1.5), "Stage 's': steps=1.5 must"),
    (dict(steps='5'), "Stage 's': steps='5' must"),
    (dict(steps=True), "Stage 's': steps=True must"),
    (dict(terms=()), "'s' has no terms.*terms=.cxjax.Term"),
    (dict(terms=None), "'s' has no terms"),
    (dict(terms=(Term(), 'labels')), "'labels' among its terms"),
    (dict(terms='logits'), 'among its terms'),
    (dict(terms=3), 'terms=3'),
    (dict(terms=({'student': 'a'},)), 'must be a cxjax.Term'),
    (dict(terms=(Term(weight=0), Term(weight=0.0))), 'have weight 0'),
    (dict(frozen=3), 'frozen=3'),
    (dict(frozen=(1,)), r'frozen=\(1,\)'),
    (dict(checkpoint='final'), "checkpoint='final'"),
  )
  def test_refuses(self, fields, message):
    fields = {'name': 's', 'steps': 1, 'terms': (Term(),), **fields}
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      Stage(**fields)
    self.assertNotIn('\n', str(caught.exception))

  def test_a_weight_of_0_beside_others_is_allowed(self):
    Stage('s', 1, (Term(), Term(target='labels', weight=0)))
    Stage('s', 1, Term(weight=FADE))


class AsDictTest(parameterized.TestCase):
  def test_the_target_of_a_single_term_may_come_by_itself(self):
    stage = Stage('s', 1, Term())
    self.assertEqual(stage_lib.as_dict(stage, 3), {'output': 3})
    self.assertEqual(stage_lib.as_dict(stage, {'output': 3}), {'output': 3})
    top = {'values': 1, 'classes': 2}
    self.assertEqual(stage_lib.as_dict(stage, top), {'output': top})

  @parameterized.parameters(
    3, [{'output': 3}], [{'output': 1, 'labels': 2, 'a': 3}]
  )
  def test_several_terms_need_a_dict_of_theirs(self, targets):
    stage = Stage('s', 1, (Term(), Term(target='labels')))
    with self.assertRaisesRegex(errors.UserError, 'keys output, labels'):
      stage_lib.as_dict(stage, targets)
