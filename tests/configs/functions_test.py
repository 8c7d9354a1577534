"""A function behind a name of a config that changed makes another run."""

import contextlib
import dataclasses
import json
import pathlib
from unittest import mock

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import pytest

import compiled_once
from cxjax import errors
from cxjax import files
from cxjax import settings
from cxjax.configs import builders
from cxjax.configs import experiment
from cxjax.configs import functions
from cxjax.methods import curricula
from cxjax.methods import losses
from cxjax.methods import projections
from cxjax.methods import registry
from cxjax.models import base as models
from cxjax.tasks import base as tasks
from cxjax.training import metrics
import own_config

TASK, MODEL = tasks.TASKS['own_majority'], models.MODELS['own_plain']


class Majority(own_config.Majority):
  """The task with inputs of another scale."""

  def batch(self, key, step, batch_size):
    made = super().batch(key, step, batch_size)
    return {**made, 'x': 2.0 * made['x']}


class Plain(own_config.Plain):
  """The model with another output."""

  def __call__(self, x):
    logits, activations = super().__call__(x)
    return 2.0 * logits, activations


def build(block, context):
  """A method that trains on the logits for fewer steps than the config says."""
  return curricula.one_shot(context.num_steps - 10, **context.output)


class Loss(own_config.Majority):
  """The task with another metric that decides."""

  primary_metric = 'loss'


# What a name stands for after a change: its registry, the name, the new entry,
# and the field that the message names.
CHANGES = {
  'task': (
    (tasks.TASKS, 'own_majority'),
    dataclasses.replace(TASK, make=lambda data, key: Majority(data.d)),
    'functions.task.batch',
  ),
  'primary metric': (
    (tasks.TASKS, 'own_majority'),
    dataclasses.replace(TASK, make=lambda data, key: Loss(data.d)),
    'functions.primary_metric (error there, loss here)',
  ),
  'model': (
    (models.MODELS, 'own_plain'),
    lambda block, task: Plain(block.width, task.num_classes),
    'functions.model.apply',
  ),
  'metric': (
    (metrics.METRICS, 'error'),
    metrics.Metric(
      lambda logits, y: 1.0 * (logits.argmax(-1) != y), higher_is_better=False
    ),
    'functions.metrics.error.statistics',
  ),
  'loss': (
    (losses.HIDDEN_LOSSES, 'l2'),
    lambda a, b: jnp.abs(a - b).sum(-1),
    'functions.stages.0.terms.0.loss',
  ),
  'projection': (
    (projections.PROJECTIONS, 'gaussian'),
    lambda key, d_in, d_out: 5.0 * jax.random.normal(key, (d_in, d_out)),
    'functions.stages.0.terms.0.draw',
  ),
  'method': (
    (registry.METHODS, 'extracted'),
    dataclasses.replace(registry.METHODS['extracted'], build=build),
    'functions.stages',
  ),
}


@contextlib.contextmanager
def changed(name):
  (table, entry), value, _ = CHANGES[name]
  with compiled_once.afresh(), mock.patch.dict(table, {entry: value}):
    yield


class TestCase(parameterized.TestCase):
  def folder(self):
    return pathlib.Path(self.create_tempdir().full_path)


class DigestsTest(TestCase):
  def digests(self, config=None):
    config = config or own_config.get_config()
    opened = builders.open_experiment(config, self.folder())
    teacher = builders.abstract_teacher(opened)
    return functions.digests(opened, builders.student_spec(opened, teacher))

  def test_are_json_and_the_same_again(self):
    found = self.digests()
    self.assertEqual(json.loads(json.dumps(found)), found)
    with compiled_once.afresh():
      self.assertEqual(files.differences(found, self.digests()), '')

  @parameterized.parameters(*CHANGES)
  @pytest.mark.slow
  def test_a_change_is_seen(self, name):
    before = self.digests()
    with changed(name):
      found = files.differences(before, self.digests())
    self.assertIn(CHANGES[name][-1], f'functions.{found}, functions.{found}')

  def test_devices_do_not_count(self):
    config = own_config.get_config()
    config.mesh.data = 1
    found = self.digests(config)
    self.assertEqual(files.differences(self.digests(), found), '')


class ClaimTest(TestCase):
  """Functions are compared where one traces to the same program again."""

  def setUp(self):
    super().setUp()
    self.path = self.folder()
    settings.claim_workdir(self.path, {'seed': 0}, {'loss': '0' * 16})

  def claim(self):
    settings.claim_workdir(self.path, {'seed': 0}, {'loss': '1' * 16})

  def test_another_function_is_refused(self):
    with self.assertRaisesRegex(errors.UserError, r'functions.loss \(another'):
      self.claim()

  @parameterized.parameters('jax', 'device')
  def test_another_environment_is_warned_of(self, name):
    here = {**settings.environment(), name: 'another'}
    with (
      mock.patch.object(settings, 'environment', lambda: here),
      self.assertLogs(level='WARNING') as log,
    ):
      self.claim()
    self.assertIn('was begun elsewhere', log.output[0])

  def test_a_saved_config_has_the_fields_alone(self):
    self.assertEqual(functions.saved_config(self.path), {'seed': 0})


@pytest.mark.slow
class RunTest(TestCase):
  def test_an_edited_function_is_refused(self):
    config, workdir = own_config.get_config(), self.folder()
    config.num_steps = config.save_every = 20
    config.teacher.num_steps = config.teacher.save_every = 20
    experiment.run(config, workdir)
    experiment.run(config, workdir)
    for name in ('projection', 'loss', 'model', 'task'):
      with (
        changed(name),
        self.assertRaisesRegex(errors.UserError, rf'[, ]{CHANGES[name][-1]}'),
      ):
        experiment.run(config, workdir)
