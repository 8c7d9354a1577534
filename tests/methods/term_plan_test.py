"""Tests of the shapes of a term, and of what does not fit."""

import functools
import re

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax import errors
from cxjax.methods import losses
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


def plan(stage, batch=BATCH, models=MODELS):
  return stage_plan.plan_stage(stage, batch, *models)


def models(student, teacher):
  return student.apply, shapes(student), teacher.apply, shapes(teacher)


SPECTRUM = lambda params, x: (STUDENT.apply(params, x)[0] + 0j, {})
ONE = models(mlp.MLP((6,), 1), mlp.MLP((16, 12), 1))


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
    ({}, lambda got, want: jnp.square(got - want).mean(0)),
    ({'top_k': 4}, lambda got, want: want['values'].mean(0)),
    ({'target': 'labels'}, lambda got, want: got.mean(0) + want.mean()),
  )
  @pytest.mark.slow
  def test_a_loss_over_the_batch_with_as_many_classes(self, fields, loss):
    # The result has the right shape, and weights would fall on classes.
    model = mlp.MLP((6,), 4)
    message = r'makes \[4\] of \[5, 4\].*the last axis alone, to \[5\]'
    stage = single(loss=loss, **fields)
    self.assert_refused(message, stage, models=models(model, model))

  @parameterized.parameters(
    'kl',
    'gram',
    'cka',
    # Of its own batch size alone, so that nothing else can be tried.
    lambda got, want: jnp.square(got - want).mean(-1) * jnp.arange(1.0, 5.0),
  )
  @pytest.mark.slow
  def test_a_loss_with_as_many_classes_as_examples(self, loss):
    model = mlp.MLP((6,), 4)
    plan(single(loss=loss), models=models(model, model))

  @parameterized.parameters(
    (lambda got, want: jnp.mean(got), r'makes \[\] of \[4, 3\]'),
    ('kl', 'does not take'),
  )
  @pytest.mark.slow
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
    where = "The weight of 'logits' in stage 's' "
    for others in ((Term(target='labels'),), ()):
      stage = Stage('s', 1, (Term(weight=weight), *others))
      self.assert_refused(f'{where}.*{message}', stage)

  @parameterized.parameters(
    (lambda got, want: jnp.argmax(got, -1), 'makes int32 values, which have'),
    (lambda got, want: got[:, 0] > 0, 'makes bool values'),
    (lambda got, want: got[:, 0] * 1j, 'makes complex64 values'),
  )
  def test_a_loss_of_no_real_numbers(self, loss, message):
    self.assert_refused(message, single(loss=loss))

  @parameterized.parameters(
    *('kl', 'reverse_kl', 'jensen_shannon', 'hard_kl', 'cosine'),
    functools.partial(losses.kl, temperature=1e3),
    lambda got, want: losses.kl(got, want) + 3,
  )
  @pytest.mark.slow
  def test_a_loss_of_one_class_is_constant(self, loss):
    message = r"constant for 'logits' of shape \[4, 1\].*'mse', or two of"
    self.assert_refused(message, single(loss=loss), models=ONE)

  @parameterized.parameters(dict(target='labels'), dict(top_k=1))
  @pytest.mark.slow
  def test_labels_and_the_largest_of_one_class(self, **fields):
    self.assert_refused('is constant', single(**fields), models=ONE)
    plan(single(**fields))

  @parameterized.parameters('gram', 'cka')
  @pytest.mark.slow
  def test_relations_of_one_example_are_constant(self, loss):
    one = {'x': jax.ShapeDtypeStruct((1, 8), jnp.float32)}
    fields = {**HIDDEN, 'loss': loss, 'regressor': True}
    self.assert_refused('the relations of one', single(**fields), batch=one)
    plan(single(**fields))
    plan(single(**{**fields, 'loss': 'cosine'}), batch=one)

  def test_a_loss_is_tried_as_one_program(self):
    events = []
    listen = lambda event, *_, **__: events.append(event)
    loss = lambda got, want: jnp.sin(got - want).sum(-1) ** 2
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
      plan(single(loss=loss), models=ONE)
    finally:
      jax.monitoring.unregister_event_duration_listener(listen)
    self.assertLen([e for e in events if 'backend_compile' in e], 1)

  def test_values_of_width_1_can_teach(self):
    for loss in ('mse', 'l2', lambda got, want: jnp.abs(got - want)[:, 0]):
      plan(single(loss=loss), models=ONE)

  @parameterized.parameters(
    (dict(norm='layer'), "normalizes 'logits' of width 1 by norm='layer'"),
  )
  def test_a_target_of_one_value(self, fields, message):
    self.assert_refused(message, single(loss='mse', **fields), models=ONE)

  def test_a_target_that_is_centered_alone(self):
    one = {
      name: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype)
      for name, leaf in BATCH.items()
    }
    stage = single(loss='mse', centered=True)
    message = "centers 'logits', of which a batch has one"
    self.assert_refused(message, stage, batch=one)
    plan(stage)

  def test_weights_that_are_always_0(self):
    nothing = Term(weight=lambda t: 0.0 * t)
    for terms in (nothing, (nothing, Term(target='labels', weight=0.0))):
      self.assert_refused('from its beginning to its end', Stage('s', 1, terms))
    plan(Stage('s', 1, (nothing, Term(target='labels'))))

  @parameterized.parameters(
    ('student', {'loss': 'kl'}),
    ('teacher', {'loss': 'kl'}),
    ('student', {'loss': 'cross_entropy', 'target': 'labels'}),
  )
  def test_complex_outputs(self, role, fields):
    ours, theirs = (SPECTRUM, MODELS[1]), MODELS[2:]
    self.assert_refused(
      f"The {role}'s output is complex64.*'s' makes no real.*output=jnp.real",
      single(**fields),
      models=(*ours, *theirs) if role == 'student' else (*MODELS[:2], *ours),
    )

  def test_a_loss_of_complex_outputs(self):
    distance = lambda got, want: jnp.abs(got - want).sum(-1)
    plan(single(loss=distance), models=(SPECTRUM, MODELS[1]) * 2)

  def test_an_empty_activation(self):
    apply = lambda params, x: (x @ params, {'none': (x @ params)[:, :0]})
    models = (apply, jax.ShapeDtypeStruct((8, 3), jnp.float32)) * 2
    stage = single(student='none', target='none')
    message = r"'none' of shape \[4, 0\] is empty"
    self.assert_refused(message, stage, models=models)

  def test_an_activation_without_a_width(self):
    apply = lambda params, x: ((x @ params).sum(-1), {})
    models = (apply, jax.ShapeDtypeStruct((8, 3), jnp.float32)) * 2
    message = r"'logits' of shape \(4,\) has no width"
    self.assert_refused(message, single(), models=models)


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

  @pytest.mark.slow
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

  @parameterized.parameters(
    dict(student='low', target='high', tokens='predicted'),
    dict(),
    dict(target='labels'),
    dict(student='low', target='labels'),
  )
  def test_target_positions_are_not_pooled(self, **fields):
    """Nor is `pool` ignored."""
    term = Term(**fields, pool='mean')
    with self.assertRaisesRegex(errors.UserError, "pool='mean', which is for"):
      self.plan(term)

  def test_weights_of_another_shape(self):
    batch = networks.sequence_batch()
    batch['weights'] = batch['weights'][:, :1]
    for term in (Term(), Term(target='labels')):
      with self.assertRaisesRegex(
        errors.UserError,
        r"compares \[4, 2\] values of 'logits', and the weights are \[4, 1\]: "
        'give one for each value, or one for each of the 4 examples',
      ):
        self.plan(term, batch=batch)
    batch['weights'] = batch['weights'][:, 0]
    for term in (Term(), Term(target='labels')):
      self.plan(term, batch=batch)
    self.plan(Term('low', 'high', projection='sparse'), batch=batch)

  @parameterized.parameters(
    ((4, 5),), ((4, 6, 6),), ((4, 1, 6, 6),), ((4, 1, 1, 6),)
  )
  def test_a_mask_of_another_shape(self, shape):
    plain = networks.sequence_batch()
    plain['x']['mask'] = np.ones(shape, bool)
    of_examples = {**plain, 'weights': np.ones(4, np.float32)}
    for batch in (plain, of_examples):
      with self.assertRaisesRegex(
        errors.UserError, rf"the 'mask' is {re.escape(str(list(shape)))}: it mu"
      ):
        self.plan(Term('low', 'high', projection='sparse'), batch=batch)
