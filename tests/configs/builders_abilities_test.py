"""Tasks and models of elsewhere in configs, and what models lack."""

import pathlib
from unittest import mock

from absl import logging
from absl.testing import parameterized
import pytest

from cxjax import errors
from cxjax.configs import builders
from cxjax.models import base as models
from cxjax.models import mlp
from cxjax.tasks import base as tasks
from experiments import parity_mlp
from experiments import parity_transformer
from experiments import pcfg_bert
import own_config


class Bare(mlp.MLP):
  """A model that says of itself no more than what it reads."""

  abilities = models.Abilities(inputs=())


def build_bare(block, task):
  return Bare((block.width,) * block.depth, task.num_classes)


class AbilitiesTest(parameterized.TestCase):
  """Abilities that a model lacks are named in an error or a warning."""

  def check(self, config):
    experiment = builders.open_experiment(
      config, pathlib.Path(self.create_tempdir().full_path)
    )
    builders.check(experiment)

  def refused(self, config, message):
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      self.check(config)
    self.assertNotIn('\n', str(caught.exception))

  def bare(self, **mesh):
    self.enter_context(mock.patch.dict(models.MODELS, bare=build_bare))
    config = parity_mlp.tiny()
    config.model = 'bare'
    config.mesh.update(mesh)
    return config

  @pytest.mark.slow
  def test_dropout(self):
    config = parity_mlp.tiny()
    config.student.dropout = 0.1
    self.refused(config, 'dropout=0.1 needs a model with dropout; MLP has 0.0')
    config = self.bare()
    config.teacher.dropout = 0.1
    self.refused(config, 'dropout=0.1 needs the dropout of Bare, which decl')
    config.teacher.dropout = 0.0
    self.check(config)

  @parameterized.parameters(parity_transformer, pcfg_bert)
  def test_inputs(self, module):
    config = module.tiny('extracted')
    config.model = 'mlp'
    for block in (config.student, config.teacher):
      block.depth = 1
    self.refused(config, "gives the input 'tokens', .*which MLP does not read")

  @pytest.mark.slow
  def test_partition_rules(self):
    self.check(self.bare())
    self.check(self.bare(model=2, student='fsdp', teacher='replicated'))
    self.refused(
      self.bare(model=2, teacher='fsdp'),
      'mesh.student=tensor needs the partition_rules of Bare, which declares',
    )
    self.refused(
      self.bare(model=2, student='fsdp'),
      'mesh.teacher=tensor needs the partition_rules of Bare',
    )

  @pytest.mark.slow
  def test_parameters_that_match_no_rule(self):
    class Half(Bare):
      abilities = models.Abilities(
        inputs=(), partition_rules=((r'hidden\d+/kernel', 1),)
      )

    def build_half(block, task):
      return Half((block.width,) * block.depth, task.num_classes)

    config = self.bare(model=2)
    config.model = 'half'
    with (
      mock.patch.dict(models.MODELS, half=build_half),
      mock.patch.object(logging, 'warning') as warning,
    ):
      self.check(config)
    said = {args[0] % args[1:] for args, _ in warning.call_args_list}
    for role in ('student', 'teacher'):
      self.assertIn(
        f'The {role} has 1 parameters that match no partition rule; each '
        'device holds them whole: params/logits/kernel.',
        said,
      )
    with mock.patch.object(logging, 'warning') as warning:
      self.check(parity_mlp.tiny())  # Its rules decide about all.
    warning.assert_not_called()

  @parameterized.parameters(
    ('task', 'parityy', "task 'parityy'.*mean 'parity'"),
    ('model', 'mpl', "model 'mpl'.*mean 'mlp'"),
    ('method', 'extrakted', "method 'extrakted'.*mean 'extracted'"),
    ('mesh.student', 'tenser', "mesh.student 'tenser'.*mean 'tensor'"),
    ('keep_best', 'accurcy', "keep_best 'accurcy'.*mean 'accuracy'"),
    ('trainable', 'hiden0', "trainable='hiden0' matches no parameter"),
  )
  def test_the_nearest_name(self, field, value, message):
    config = parity_mlp.tiny()
    config.update_from_flattened_dict({field: value})
    self.refused(config, message)


class OwnTest(parameterized.TestCase):
  """A task, a metric and a model from outside the package."""

  def check(self, config):
    AbilitiesTest.check(self, config)

  @pytest.mark.slow
  def test_names_in_a_config(self):
    config = own_config.get_config()
    self.check(config)
    experiment = builders.open_experiment(
      config, pathlib.Path(self.create_tempdir().full_path)
    )
    self.assertIsInstance(experiment.task, own_config.Majority)
    self.assertIsInstance(experiment.model('student'), own_config.Plain)
    spec = builders.teacher_spec(experiment)
    self.assertEqual((spec.primary, list(spec.metrics)[0]), ('error', 'loss'))
    self.assertFalse(spec.primary_metric.higher_is_better)

  @parameterized.parameters(
    (
      ('agreement', 'accuracy'),
      'accuracy',
      "'agreement' compares with the tea",
    ),
    (('accuracy',), 'loss', "primary_metric='loss', which is not one of its"),
    (('loss', 'accurcy'), 'loss', "metric 'accurcy'.*mean 'accuracy'"),
  )
  def test_metrics_that_a_task_cannot_have(self, metrics, primary, message):
    class Other(own_config.Majority):
      pass

    Other.metrics, Other.primary_metric = metrics, primary
    make = lambda data, key: Other(data.d)
    other = tasks.Registration(make, make)
    config = own_config.get_config()
    config.task, config.keep_best = 'other', ''
    with (
      mock.patch.dict(tasks.TASKS, other=other),
      self.assertRaisesRegex(errors.UserError, message) as caught,
    ):
      self.check(config)
    self.assertNotIn('\n', str(caught.exception))

  def test_scores_in_the_wrong_order(self):
    """Those of an accuracy: the run would save at once, and never again."""
    config = own_config.get_config()
    config.teacher.save_at = (10.0, 20.0, 40.0)
    with self.assertRaisesRegex(errors.UserError, 'from worse to better val'):
      self.check(config)

  def test_a_task_that_lacks_something(self):
    class Half:
      num_classes = 2

    make = lambda data, key: Half()
    config = own_config.get_config()
    config.task = 'half'
    with (
      mock.patch.dict(tasks.TASKS, half=tasks.Registration(make, make)),
      self.assertRaisesRegex(errors.UserError, "'half' has no .*batch.*Synth"),
    ):
      self.check(config)
