"""What of a config decides a run, and what does not."""

import pathlib
from unittest import mock

from absl.testing import parameterized
import pytest

from cxjax import errors
from cxjax import files
from cxjax.configs import builders
from cxjax.configs import identity
from cxjax.parallel import agreement
from experiments import parity_mlp
from experiments import text_bert


def config_of(method='extracted', **fields):
  config = parity_mlp.tiny(method)
  config.update_from_flattened_dict(fields)
  return config


class TestCase(parameterized.TestCase):
  def differs(self, make, *configs):
    """The fields in which two identities differ."""
    return files.differences(*map(make, configs))


class TeacherTest(TestCase):
  @parameterized.parameters(
    ('teacher.width', 12),
    ('teacher.optimizer.learning_rate', 0.5),
    ('teacher.save_at', (0.5,)),
    ('data.k', 3),
    ('seed', 5),
  )
  def test_depends_on(self, field, value):
    found = self.differs(
      identity.teacher_config, config_of(), config_of(**{field: value})
    )
    self.assertStartsWith(found, f'{field} (')

  @parameterized.parameters(
    ('student.width', 12),
    ('num_steps', 70),
    ('optimizer.learning_rate', 0.5),
    ('teacher.folder', 'elsewhere'),
    ('mesh.data', 2),
    ('extracted.share', 0.1),
  )
  def test_does_not_depend_on(self, field, value):
    one, two = config_of(), config_of(**{field: value})
    self.assertEqual(self.differs(identity.teacher_config, one, two), '')


class SharedTest(TestCase):
  @parameterized.parameters(
    ('optimizer.learning_rate', 0.5, 'optimizer.learning_rate (0.0'),
    ('progressive.share', 0.1, 'progressive.share ('),
    ('teacher.folder', 'elsewhere', "teacher.folder ('' in 0, given in 1)"),
    ('mesh.cpu_devices', 2, ''),
  )
  def test_processes_agree_but_for_paths(self, field, value, expected):
    found = files.differences(
      *(
        self.compared(config)
        for config in (config_of(), config_of(**{field: value}))
      ),
      ('in 0', 'in 1'),
    )
    self.assertStartsWith(found, expected)
    self.assertEqual(bool(found), bool(expected))

  def test_processes_agree_on_flags_and_settings(self):
    found = self.compared(config_of(), compare=['one_shot'])
    self.assertEqual(found['--compare'], ['one_shot'])
    self.assertFalse(found['settings']['jax_enable_x64'])

  def compared(self, config, **flags):
    """The values that the processes of a run compare."""
    with mock.patch.object(agreement, 'require_same') as require:
      identity.require_same(config, **flags)
    return require.call_args.args[0]()


class StudentTest(TestCase):
  @parameterized.parameters(
    ('student.width', 12),
    ('teacher.width', 12),
    ('optimizer.b1', 0.5),
    ('extracted.share', 0.1),
    ('keep_best', 'loss'),
    ('patience', 3),
    ('trainable', 'hidden*'),
    ('alpha', 0.5),
    ('mesh.data', 2),
    ('num_seeds', 3),
  )
  def test_depends_on(self, field, value):
    found = self.differs(
      identity.student_config, config_of(), config_of(**{field: value})
    )
    self.assertStartsWith(found, f'{field} (')

  @parameterized.parameters(
    ('progressive.share', 0.1),
    ('custom.stages', (dict(terms=(dict(),)),)),
    ('mesh.cpu_devices', 2),
    ('cache.dtype', 'bfloat16'),
  )
  def test_does_not_depend_on(self, field, value):
    one, two = config_of(), config_of(**{field: value})
    self.assertEqual(self.differs(identity.student_config, one, two), '')

  def test_a_method_that_is_like_another_depends_on_its_block(self):
    make = lambda share: config_of('fitnets', **{'extracted.share': share})
    found = self.differs(identity.student_config, make(0.1), make(0.2))
    self.assertStartsWith(found, 'extracted.share (')

  def test_the_terms_of_a_custom_curriculum(self):
    make = lambda weight: config_of(
      'custom', **{'custom.stages': (dict(terms=(dict(weight=weight),)),)}
    )
    found = self.differs(identity.student_config, make(1.0), make(0.5))
    self.assertIn('custom.stages', found)
    self.assertIn('1.0', found)

  def test_where_files_of_a_text_lie_does_not_count(self):
    one, two = text_bert.tiny('extracted'), text_bert.tiny('extracted')
    two.data.folder = two.data.tokenizer = 'elsewhere'
    for make in (identity.student_config, identity.teacher_config):
      self.assertEqual(self.differs(make, one, two), '')
    two.data.fingerprints.corpus = 'abc'
    self.assertIn(
      'data.fingerprints.corpus',
      self.differs(identity.student_config, one, two),
    )

  def test_stored_targets_count_by_their_bytes(self):
    one, two = config_of(), config_of()
    for config, folder in ((one, 'here'), (two, 'there')):
      config.cache.update(folder=folder, fingerprint='abc')
    two.cache.dtype = 'bfloat16'
    self.assertEqual(self.differs(identity.student_config, one, two), '')
    two.cache.fingerprint = 'def'
    self.assertIn(
      'cache.fingerprint', self.differs(identity.student_config, one, two)
    )


class StoredTest(TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.base = cls('create_tempdir').stored()

  def stored(self, method='extracted', **fields):
    config = config_of(method, **fields)
    workdir = pathlib.Path(self.create_tempdir().full_path)
    experiment = builders.open_experiment(config, workdir)
    teacher = builders.abstract_teacher(experiment)
    spec = builders.student_spec(experiment, teacher)
    return identity.stored_config(experiment.config, spec)

  @parameterized.parameters(
    ('teacher.width', 12),
    ('student.width', 12),  # Of the projection.
    ('extracted.projection', 'sparse'),
    ('extracted.norm', 'layer'),
    ('extracted.scale', 2.0),
    ('extracted.centered', True),
    ('batch_size', 16),
    ('num_seeds', 3),
    ('share_batches', True),
    ('top_k', 1),
    ('seed', 1),
  )
  @pytest.mark.slow
  def test_depends_on(self, field, value):
    found = files.differences(self.base, self.stored(**{field: value}))
    self.assertNotEqual(found, '')

  @parameterized.parameters(
    ('optimizer.learning_rate', 0.5),
    ('temperature', 2.0),
    ('alpha', 0.5),
    ('extracted.loss', 'cosine'),
    ('extracted.freeze', True),
    ('trainable', 'hidden*'),
    ('keep_best', 'loss'),
  )
  @pytest.mark.slow
  def test_does_not_depend_on(self, field, value):
    found = files.differences(self.base, self.stored(**{field: value}))
    self.assertEqual(found, '')

  def test_a_rotation_to_the_students_depends_on_them(self):
    found = self.stored(**{'extracted.projection': 'pca_rotated'})
    self.assertEqual(found['student'], config_of().student.to_dict())
    self.assertNotIn('student', self.base)

  @pytest.mark.slow
  def test_each_term_of_a_stage(self):
    hidden = dict(student='hidden0', target='hidden0', projection='gaussian')
    stage = dict(terms=(dict(), hidden, dict(target='labels')))
    make = lambda **fields: self.stored(
      'custom',
      **{'custom.stages': (dict(terms=(dict(), {**hidden, **fields})),)},
    )
    found = self.stored('custom', **{'custom.stages': (stage,)})
    (stored,) = found['stages'].values()
    self.assertEqual(list(stored['terms']), ['output', 'hidden0'])
    self.assertEqual(files.differences(make(), make(weight=0.5)), '')
    self.assertIn(
      'hidden0.projection', files.differences(make(), make(projection='sparse'))
    )

  @parameterized.parameters(0, 7, 60)
  def test_period(self, batches):
    config = config_of(**{'cache.batches': batches})
    self.assertEqual(identity.period(config), batches or 60)

  def test_what_cannot_be_stored(self):
    with self.assertRaisesRegex(errors.UserError, 'cache.batches=61 must be'):
      identity.period(config_of(**{'cache.batches': 61}))
    with self.assertRaisesRegex(errors.UserError, 'supervised learns the lab'):
      identity.check_stored(config_of('supervised'))
