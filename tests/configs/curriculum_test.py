"""Tests of the curriculum of a config and its checkpoints of the teacher."""

import pathlib
from unittest import mock

from absl.testing import parameterized
import jax
import pytest

from cxjax import errors
from cxjax.configs import builders
from cxjax.configs import curriculum
from cxjax.configs import experiment
from cxjax.training import trainer
from experiments import parity_mlp

# Of a teacher of 60 steps, which is evaluated every 10 and saved every 20.
NEVER = {'teacher.save_at': (), 'teacher.stop_at': None}


def config_of(method='extracted', **fields):
  config = parity_mlp.tiny(method)
  config.update_from_flattened_dict(fields)
  return config


def listed(*steps):
  return {'progressive.rule': 'list', 'progressive.checkpoints': steps}


def custom(checkpoint, **fields):
  terms = (dict(loss='kl'),)
  return (dict(terms=terms, checkpoint=checkpoint, **fields),)


class MayBeSavedTest(parameterized.TestCase):
  @parameterized.parameters(
    ({}, (0, 20, 30, 60), (7, 61, 80)),
    (NEVER, (0, 20, 40, 60), (10, 30, 50, 80)),
    # It may end at half as many steps again as an evaluation.
    ({**NEVER, 'teacher.stop_at': 0.9}, (15, 30, 45), (10, 25, 50)),
    (
      {**NEVER, 'teacher.stop_at': 0.9, 'teacher.overrun': 0.0},
      (10, 50),
      (15, 45),
    ),
    (
      {**NEVER, 'teacher.stop_at': 0.9, 'teacher.overrun': 0.25},
      (13, 25, 38, 50),
      (12, 14, 37, 39),
    ),
    ({'teacher.num_steps': 55}, (50, 55), (56, 60)),
  )
  def test_steps(self, fields, may, never):
    block = config_of(**fields).teacher
    for step in (*may, *never):
      self.assertEqual(
        curriculum.may_be_saved(block, step), step in may, msg=step
      )


class CheckpointTest(parameterized.TestCase):
  @parameterized.parameters(
    (
      'extracted',
      {'extracted.checkpoint': 7},
      '^extracted.checkpoint=7 is a',
    ),
    ('fitnets', {'extracted.checkpoint': 80}, '^extracted.checkpoint=80'),
    ('joint', {'joint.checkpoint': 30, **NEVER}, 'save_every=20 steps and at'),
    ('progressive', listed(20, 7), '^progressive.checkpoints: 7 is a step at'),
    ('progressive', {**listed(30), **NEVER}, 'save_every=20 steps, before'),
    # The final teacher comes after them in any case.
    ('progressive', listed(60), '60 is that of the final teacher'),
    ('progressive', {**listed(45), 'teacher.overrun': 0.5}, ': 45 is'),
    ('custom', {'custom.stages': custom(7)}, r'stages.0..checkpoint=7 is a'),
    (
      'custom',
      {'custom.stages': (*custom(40, steps=30), *custom(80))},
      r'stages.1..checkpoint=80 is a',
    ),
    (
      'progressive',
      {
        **NEVER,
        'progressive.rule': 'even',
        'progressive.count': 4,
        'progressive.steps': (10, 10, 10, 10, 20),
      },
      'the 4 checkpoints of progressive.count=4, and the teacher has at most 3',
    ),
    (
      'progressive',
      {
        **NEVER,
        'progressive.rule': 'transition',
        'progressive.scores': (0.6, 0.7, 0.8, 0.9),
        'progressive.steps': (10, 10, 10, 10, 20),
      },
      r'the 4 checkpoints of progressive.scores=\(0.6, 0.7, 0.8, 0.9\), and',
    ),
  )
  @pytest.mark.slow
  def test_one_that_is_never_saved_is_refused_before_training(
    self, method, fields, message
  ):
    folder = pathlib.Path(self.create_tempdir().full_path)
    config = config_of(method, **fields)
    for call in (
      lambda: experiment.run(config, folder / 'run'),
      lambda: builders.abstract_specs(config, [method], jax.devices()[:1]),
    ):
      with (
        mock.patch.object(trainer, 'fit', side_effect=AssertionError),
        self.assertRaisesRegex(errors.UserError, message) as caught,
      ):
        call()
      self.assertNotIn('\n', str(caught.exception))
    self.assertFalse((folder / 'run').exists())

  @parameterized.parameters(
    ('extracted', {'extracted.checkpoint': -1}),
    ('extracted', {'extracted.checkpoint': 0}),
    ('extracted', {'extracted.checkpoint': 30}),
    ('extracted', {'extracted.checkpoint': 60}),
    ('progressive', listed(0, 30, 40)),
    ('custom', {'custom.stages': (*custom(30, steps=30), *custom(60))}),
    # The rule does not read them.
    ('progressive', {'progressive.checkpoints': (7,)}),
  )
  @pytest.mark.slow
  def test_others_are_left_to_the_run(self, method, fields):
    folder = pathlib.Path(self.create_tempdir().full_path)
    config = config_of(method, **fields)
    builders.check(builders.open_experiment(config, folder))
