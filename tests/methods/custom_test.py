"""Tests of the curricula that a config spells out."""

from absl.testing import parameterized
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from cxjax import errors
from cxjax.methods import custom
from cxjax.methods import losses
from cxjax.methods import registry
from cxjax.methods import stage as stage_lib

Stage, Term = stage_lib.Stage, stage_lib.Term


class CustomTest(parameterized.TestCase):
  def test_every_field(self):
    stages = custom.custom(
      [
        dict(
          name='joint',
          steps=20,
          frozen=('s1',),
          checkpoint=7,
          terms=(
            dict(
              student='s0',
              target='t0',
              loss='cosine',
              weight=0.5,
              projection='sparse',
              regressor=True,
              width=3,
              shared_projection=True,
              norm='layer',
              centered=True,
              scale=2.0,
              tokens='predicted',
              pool='mean',
              name='mine',
            ),
            dict(target='labels'),
            dict(top_k=2),
          ),
        ),
        dict(terms=(dict(loss='mse'),)),
      ],
      60,
    )
    term = Term(
      's0',
      't0',
      losses.cosine,
      0.5,
      'sparse',
      True,
      3,
      True,
      'layer',
      True,
      2.0,
      'predicted',
      'mean',
      name='mine',
    )
    terms = (term, Term(target='labels'), Term(top_k=2))
    expected = (
      Stage('joint', 20, terms, ('s1',), 7),
      Stage('stage 1', 40, (Term(loss=losses.mse),)),
    )
    self.assertEqual(stages, expected)

  def test_is_a_method_of_the_configs(self):
    """The blocks as `ConfigDict` has them, read from JSON as well."""
    stages = [{'terms': [{'student': 'logits', 'weight': 0.5}]}]
    for given in (stages, ml_collections.ConfigDict({'a': stages}).a):
      block = ml_collections.ConfigDict(registry.METHODS['custom'].options)
      block.stages = given
      found = registry.build('custom', block, registry.Context(60))
      self.assertEqual(found, (Stage('stage 0', 60, (Term(weight=0.5),)),))

  def test_the_blocks_stay_as_they_are(self):
    stages = [dict(terms=(dict(weight=dict(schedule='linear')),))]
    custom.custom(stages, 5)
    expected = [dict(terms=(dict(weight=dict(schedule='linear')),))]
    self.assertEqual(stages, expected)

  @parameterized.parameters(
    ('kl', dict(temperature=3.0), lambda s, t: losses.kl(s, t, 3.0)),
    ('reverse_kl', {}, losses.reverse_kl),
    ('kl', dict(hard_labels=True), losses.hard_kl),
    ('mse', {}, losses.mse),
  )
  @pytest.mark.slow
  def test_losses_of_logits(self, name, fields, expected):
    fields = dict(loss=name, **fields)
    (stage,) = custom.custom([dict(terms=(fields,))], 1)
    student, teacher = jnp.array([[0.0, 1, 2]]), jnp.array([[1.0, 0, 3]])
    np.testing.assert_array_equal(
      stage.terms[0].loss(student, teacher), expected(student, teacher)
    )

  def test_a_weight_that_changes(self):
    weight = dict(schedule='linear', start=2.0, end=0.5, until=0.5)
    (stage,) = custom.custom([dict(terms=(dict(weight=weight),))], 1)
    (term,) = stage.terms
    for fraction, expected in ((0.0, 2.0), (0.25, 1.25), (0.5, 0.5), (1, 0.5)):
      self.assertAlmostEqual(float(term.weight_at(fraction)), expected)

  @parameterized.parameters(
    ([], 'custom.stages=.. has no stage'),
    (
      [dict(terms=({},), step=3)],
      r"field of custom.stages\[0\] 'step'.*mean 'steps'",
    ),
    (
      [dict(terms=(dict(los='kl'),))],
      r"field of custom.stages\[0\].terms 'los'.*mean 'loss'",
    ),
    ([dict(terms=(dict(loss='kll'),))], "loss 'kll'.*mean 'kl'.*[a-z0-9_].$"),
    ([dict(terms=(dict(projection='x'),))], "projection 'x'"),
    ([dict(terms=())], "'stage 0' has no terms"),
    ([dict(name='a')], "'a' has no terms"),
    ([dict(terms=({},), steps=59)], 'add up to 59 of num_steps=60'),
    ([dict(terms=({},), steps=61)], 'add up to 61 of num_steps=60'),
    ([dict(terms=({},))] * 2, 'one stage leaves its steps out'),
    (
      [dict(terms=({},), steps=60), dict(terms=({},))],
      'add up to 60 of num_steps=60.*leaves its steps out and has the rest',
    ),
    ([dict(terms=({},), steps='60')], r"\[0\].steps='60' must be a whole"),
    ([dict(terms=({},), steps=60.0)], 'steps=60.0'),
    ([dict(terms=({},), steps=-5), dict(terms=({},))], 'steps=-5'),
    (
      [dict(terms=(dict(student='a', temperature=2.0),))],
      'loss=None has a temperature.*kl, reverse_kl',
    ),
    (
      [dict(terms=(dict(loss='kl', temperature=0.0),))],
      'temperature=0.0 must be from',
    ),
    ([dict(terms=(dict(loss='mse', hard_labels=True),))], "not of 'mse'"),
    ([dict(terms=(dict(loss='kl', temperature='2'),))], "temperature='2' must"),
    ([dict(terms=(dict(loss='kl', top_k='2'),))], "top_k='2' must"),
    # A comma that is missing.
    (dict(terms=({},)), 'custom.stages.*must be a tuple of blocks'),
    ([dict(terms=dict(student='a'))], 'terms.*must be a tuple of blocks'),
    ([3], r'custom.stages\[0\]=3 must be a block'),
    (3, 'custom.stages=3 must be a tuple of blocks'),
    ([dict(terms=('logits',))], "'logits'.*must be a block"),
    ([dict(terms=(dict(weight=dict(shedule='linear')),))], "'shedule'.*mean"),
    ([dict(terms=(dict(weight=dict(schedule='lin')),))], "'lin'.*mean 'linear"),
    ([dict(terms=(dict(weight=dict(until=0.0)),))], 'until=0.0 must be in'),
    ([dict(terms=(dict(weight=dict(until='1')),))], "until='1'"),
    ([dict(terms=(dict(weight=dict(start=-1.0)),))], 'start=-1.0'),
    ([dict(terms=(dict(weight=dict(end='0')),))], "end='0'"),
    ([dict(terms=(dict(weight=-1.0),))], 'weight=-1.0'),
  )
  def test_refuses(self, stages, message):
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      custom.custom(stages, 60)
    self.assertNotIn('\n', str(caught.exception))


class WeightScheduleTest(parameterized.TestCase):
  @parameterized.parameters(
    ('linear', lambda t: 1 - t),
    ('cosine', lambda t: (1 + np.cos(np.pi * t)) / 2),
  )
  def test_follows_the_curve(self, name, curve):
    schedule = custom.weight_schedule(name, start=2.0, end=0.5, until=0.5)
    for fraction in np.linspace(0, 1, 9):
      fall = curve(min(fraction / 0.5, 1))
      expected = 0.5 + 1.5 * fall
      self.assertAlmostEqual(float(schedule(fraction)), expected, places=5)

  def test_may_rise(self):
    schedule = custom.weight_schedule('cosine', start=0.0, end=1.0)
    self.assertAlmostEqual(float(schedule(0.0)), 0)
    self.assertAlmostEqual(float(schedule(1.0)), 1)

  def test_two_of_the_same_compile_alike(self):
    """The stage is the key of what is compiled."""
    stage = lambda: custom.custom(
      [dict(terms=(dict(weight=dict(schedule='cosine')),))], 5
    )
    self.assertEqual(stage(), stage())
