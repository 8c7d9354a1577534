"""From a config to an experiment, and to the specifications of its runs."""

import functools
import pathlib

from absl.testing import parameterized
import chex
import jax
import numpy as np
import pytest

from cxjax.configs import builders
from experiments import parity_mlp
from experiments import parity_transformer
from experiments import pcfg_bert
from tests.configs.planned import plans


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
  @pytest.mark.slow
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

  @pytest.mark.slow
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

  @pytest.mark.slow
  def test_a_method_has_its_own_learning_rate(self):
    _, student = self.specs(
      **{'extracted.rate_factor': 3.0, 'optimizer.learning_rate': 0.1}
    )
    params = {'w': np.zeros(2, np.float32)}
    tx = student.optimizer()
    updates, _ = tx.update({'w': np.ones(2, np.float32)}, tx.init(params))
    np.testing.assert_allclose(updates['w'], -0.3, rtol=1e-4)

  @pytest.mark.slow
  def test_a_method_that_is_like_another_has_its_settings(self):
    fields = {'extracted.rate_factor': 3.0, 'extracted.norm': 'layer'}
    _, extracted = self.specs(**fields)
    _, labels = self.specs('extracted_labels', **fields)
    objectives = lambda spec: [one.objective for one in spec.stages[:-1]]
    self.assertEqual(objectives(labels), objectives(extracted))
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

  @pytest.mark.slow
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

  def test_the_abstract_teacher_has_any_checkpoint_of_its_schedule(self):
    _, student = self.specs(
      'progressive',
      **{
        'teacher.num_steps': 50_000,
        'progressive.rule': 'list',
        'progressive.checkpoints': (20, 40_000),
        'progressive.steps': (10, 20, 30),
      },
    )
    self.assertEqual(
      [stage.checkpoint for stage in student.stages], [20, 40_000, None]
    )
    self.assertFalse(student.teacher.available)


class ModelTest(parameterized.TestCase):
  @parameterized.parameters('teacher', 'student')
  def test_with_a_task_or_that_of_the_config(self, role):
    config = parity_mlp.tiny()
    make = functools.partial(builders.make_model, config, role)
    model = make()
    self.assertEqual(model, make(builders.make_task(config)))
    self.assertEqual(model.widths, (config[role].width,))
