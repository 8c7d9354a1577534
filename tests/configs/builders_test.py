"""From a config to an experiment, and to the specifications of its runs."""

import functools
import importlib
import pathlib
from unittest import mock

from absl import logging
from absl.testing import parameterized
import chex
import jax
import numpy as np
import pytest

from cxjax import errors
from cxjax.configs import builders
from cxjax.methods import registry
from cxjax.models import base as models
from cxjax.models import mlp
from cxjax.tasks import base as tasks
import experiments
from experiments import parity_mlp
from experiments import parity_transformer
from experiments import pcfg_bert
import own_config

FOLDER = pathlib.Path(experiments.__path__[0])
CONFIGS = tuple(
  path.stem
  for path in sorted(FOLDER.glob('*.py'))
  if 'def get_config' in path.read_text() and path.stem != 'base'
)
SIZES = ('cpu', 'llama_1b', 'paper', 'tiny')
# Fields that other tools read: they keep their names.
CONTRACT = (
  'seed',
  'num_seeds',
  'batch_size',
  'num_steps',
  'log_every',
  'eval_every',
  'save_every',
  'teacher.width',
  'teacher.num_steps',
  'teacher.stop_at',
  'teacher.folder',
  'student.width',
  'optimizer.name',
  'optimizer.learning_rate',
  'extracted.steps',
  'extracted.share',
  'extracted.layers',
  'extracted.ending',
  'keep_best',
  'trainable',
)
PARITY = ('data.d', 'data.k', 'data.support')


def module_of(name):
  return importlib.import_module(f'experiments.{name}')


def sizes_of(name):
  return [size for size in SIZES if hasattr(module_of(name), size)]


def plans(config, *methods):
  """Plans of the teacher and of the students; no file is read."""
  specs = builders.abstract_specs(config, methods, jax.devices()[:1])
  return {name: spec.plan() for name, spec in specs.items()}


class ConfigTest(parameterized.TestCase):
  """The configs of experiments/."""

  def test_finds_them(self):
    parity = ('parity_mlp', 'parity_transformer')
    masked = ('pcfg_bert', 'text_bert', 'wikipedia_bert')
    self.assertSameElements((*parity, *masked, 'causal_text'), CONFIGS)

  @parameterized.parameters(
    *((name, size) for name in CONFIGS for size in sizes_of(name))
  )
  def test_fields_that_other_tools_read(self, name, size):
    config = getattr(module_of(name), size)('extracted')
    flat = config.to_dict()
    fields = (*CONTRACT, *(PARITY if 'parity' in name else ()))
    for field in fields:
      block = flat
      for part in field.split('.'):
        self.assertIn(part, block, field)
        block = block[part]

  def test_the_smallest_size_can_be_planned(self):
    self.check_smallest('parity_mlp')

  @parameterized.parameters(*(n for n in CONFIGS if n != 'parity_mlp'))
  @pytest.mark.slow
  def test_so_can_that_of_sequences(self, name):
    self.check_smallest(name)

  def check_smallest(self, name):
    found = plans(module_of(name).tiny('extracted'), 'extracted')
    self.assertEqual(found.keys(), {'teacher', 'extracted'})
    self.assertEqual([s.stage.name for s in found['teacher']], ['labels'])
    self.assertEqual(found['extracted'][-1].stage.name, 'output')

  @pytest.mark.slow
  def test_every_method_can_be_planned(self):
    self.check_methods('parity_mlp', 'hidden0', tuple(registry.METHODS))

  @pytest.mark.slow
  def test_every_method_can_be_planned_for_sequences(self):
    # Those whose stages or terms have another form.
    methods = 'progressive', 'extracted', 'late_to_early', 'joint', 'custom'
    self.check_methods('parity_transformer', 'block0', methods)

  def check_methods(self, name, layer, methods):
    config = module_of(name).tiny('extracted')
    hidden = dict(student=layer, target=layer, projection='gaussian')
    config.custom.stages = (dict(terms=(hidden, dict(target='labels'))),)
    config.data.depth = 2  # The hierarchical variant: four classes.
    found = plans(config, *methods)
    self.assertEqual(found.keys(), {'teacher', *methods})
    (custom,) = found['custom']
    self.assertEqual(list(custom.terms), [layer, 'labels'])
    for name in methods:
      steps = sum(planned.stage.steps for planned in found[name])
      self.assertEqual(steps, config.num_steps)

  @parameterized.parameters(
    *((n, size) for n in CONFIGS for size in sizes_of(n) if size != 'tiny')
  )
  @pytest.mark.slow
  def test_every_size_can_be_planned(self, name, size):
    config = module_of(name).get_config(f'extracted,{size}')
    self.assertIn('extracted', plans(config, 'extracted'))


class ExperimentTest(parameterized.TestCase):
  def folder(self):
    return pathlib.Path(self.create_tempdir().full_path)

  def test_the_config_that_was_given_stays(self):
    config = parity_mlp.tiny()
    before = config.to_dict()
    experiment = builders.open_experiment(config, self.folder())
    other = experiment.with_method('one_shot')
    self.assertEqual(config.to_dict(), before)
    self.assertEqual(experiment.config.method, 'extracted')
    self.assertEqual(other.config.method, 'one_shot')
    self.assertIs(other.task, experiment.task)

  @parameterized.parameters(parity_mlp, parity_transformer, pcfg_bert)
  def test_shapes_are_those_of_the_data(self, module):
    config = module.tiny('extracted')
    if module is pcfg_bert:  # Sampling takes seconds to compile.
      config.data.eval_size = 4
    experiment = builders.open_experiment(config, self.folder())
    shapes = builders.abstract_experiment(config, jax.devices())
    chex.assert_trees_all_equal_shapes_and_dtypes(
      experiment.held_out, shapes.held_out
    )
    self.assertIsInstance(shapes.held_out['y'], jax.ShapeDtypeStruct)

  def test_a_key_for_each_purpose(self):
    config = parity_mlp.tiny()
    keys = {
      tuple(jax.random.key_data(builders.key_for(config, name)).tolist())
      for name in builders.PURPOSES
    }
    self.assertLen(keys, len(builders.PURPOSES))

  def test_the_first_student_is_the_same_however_many_there_are(self):
    config = parity_mlp.tiny()
    found = []
    for number in (2, 5):
      config.num_seeds = number
      experiment = builders.open_experiment(config, self.folder())
      teacher = builders.abstract_teacher(experiment)
      keys = builders.student_spec(experiment, teacher).keys
      found.append(jax.tree.map(lambda k: jax.random.key_data(k)[0], keys.init))
      self.assertEqual(keys.data.shape, (number,))
    np.testing.assert_array_equal(*found)


class SpecTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = pathlib.Path(cls('create_tempdir').create_tempdir().full_path)

  def specs(self, method='extracted', **fields):
    config = parity_mlp.tiny(method)
    config.update_from_flattened_dict(fields)
    experiment = builders.open_experiment(config, self.workdir)
    teacher = builders.abstract_teacher(experiment)
    return builders.teacher_spec(experiment), builders.student_spec(
      experiment, teacher
    )

  def test_a_method_has_its_own_learning_rate(self):
    _, student = self.specs(
      **{'extracted.rate_factor': 3.0, 'optimizer.learning_rate': 0.1}
    )
    params = {'w': np.zeros(2, np.float32)}
    tx = student.optimizer()
    updates, _ = tx.update({'w': np.ones(2, np.float32)}, tx.init(params))
    np.testing.assert_allclose(updates['w'], -0.3, rtol=1e-4)

  def test_a_method_that_is_like_another_has_its_settings(self):
    fields = {'extracted.rate_factor': 3.0, 'extracted.norm': 'layer'}
    _, extracted = self.specs(**fields)
    _, labels = self.specs('extracted_labels', **fields)
    self.assertEqual(labels.stages[:-1], extracted.stages[:-1])
    self.assertFalse(labels.stages[-1].needs_teacher)
    _, fitnets = self.specs('fitnets', **fields)
    (term,) = fitnets.stages[0].terms
    self.assertEqual((term.projection, term.norm), ('identity', 'layer'))
    params = np.zeros(2, np.float32)
    tx = fitnets.optimizer()
    updates, _ = tx.update(np.ones(2, np.float32), tx.init(params))
    np.testing.assert_allclose(updates, -3e-3, rtol=1e-4)

  def test_what_students_and_teachers_keep(self):
    teacher, student = self.specs(keep_best='loss', keep=5, trainable='hid*')
    self.assertEqual((teacher.loop.keep, teacher.loop.keep_best), (0, ''))
    self.assertEqual((student.loop.keep, student.loop.keep_best), (5, 'loss'))
    self.assertEqual((teacher.trainable, student.trainable), ('', 'hid*'))
    self.assertEqual(list(teacher.metrics), ['accuracy', 'loss', 'perplexity'])
    self.assertEqual(list(student.teacher_metrics), ['agreement', 'teacher_kl'])
    self.assertEqual(list(teacher.teacher_metrics), [])

  def test_a_teacher_needs_no_student(self):
    """As of a probe, whose config has the fields that all have."""
    config = parity_mlp.tiny()
    del config.student
    opened = builders.open_experiment(config, self.workdir)
    self.assertEqual(builders.teacher_spec(opened).num_seeds, 1)

  def test_one_stream_of_batches_for_all(self):
    _, apart = self.specs()
    _, shared = self.specs(share_batches=True)
    self.assertEqual((apart.keys.data.size, shared.keys.data.size), (2, 1))
    self.assertEqual(shared.keys.init.size, 2)

  def test_a_custom_curriculum(self):
    stages = (
      dict(
        name='joint',
        steps=20,
        terms=(
          dict(student='logits', target='logits', loss='kl', temperature=2.0),
          dict(
            student='hidden0',
            target='hidden0',
            projection='gaussian',
            weight=dict(schedule='cosine', start=2.0, end=0.5),
          ),
        ),
      ),
      dict(terms=(dict(target='labels', weight=0.5),)),
    )
    _, student = self.specs('custom', **{'custom.stages': stages})
    joint, rest = student.stages
    self.assertEqual((joint.name, joint.steps, rest.steps), ('joint', 20, 40))
    output, hidden = joint.terms
    self.assertEqual(output.loss.keywords, {'temperature': 2.0})
    weights = [float(hidden.weight_at(t)) for t in (0.0, 0.5, 1.0)]
    np.testing.assert_allclose(weights, [2.0, 1.25, 0.5], rtol=1e-6)
    self.assertEqual(rest.terms[0].weight, 0.5)

  def test_a_teacher_of_elsewhere_is_not_planned(self):
    config = parity_mlp.tiny()
    config.teacher.folder = 'somewhere'
    self.assertEqual(list(plans(config, 'one_shot')), ['one_shot'])

  def test_the_abstract_teacher_has_any_checkpoint(self):
    _, student = self.specs(
      'progressive',
      **{
        'progressive.rule': 'list',
        'progressive.checkpoints': (20, 40_000),
        'progressive.steps': (10, 20, 30),
      },
    )
    self.assertEqual(
      [stage.checkpoint for stage in student.stages], [20, 40_000, None]
    )
    self.assertFalse(student.teacher.available)


class Bare(mlp.MLP):
  """A model that says of itself no more than what it reads."""

  abilities = models.Abilities(inputs=())


def build_bare(block, task):
  return Bare((block.width,) * block.depth, task.num_classes)


class AbilitiesTest(parameterized.TestCase):
  """What a model lacks is said, and never done without."""

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


class ModelTest(parameterized.TestCase):
  @parameterized.parameters('teacher', 'student')
  def test_with_a_task_or_that_of_the_config(self, role):
    config = parity_mlp.tiny()
    make = functools.partial(builders.make_model, config, role)
    model = make()
    self.assertEqual(model, make(builders.make_task(config)))
    self.assertEqual(model.widths, (config[role].width,))
