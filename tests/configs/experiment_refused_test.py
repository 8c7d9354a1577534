"""Configs that are refused before anything is written."""

import os
from unittest import mock

from absl.testing import parameterized
import pytest

from cxjax import errors
from cxjax.configs import builders
from cxjax.configs import experiment
from cxjax.configs import teachers
from cxjax.training import metrics as metrics_lib
from tests.configs.parity_runs import TestCase
from tests.configs.parity_runs import config_of
from tests.configs.parity_runs import files_of
from tests.configs.parity_runs import open_

pytestmark = pytest.mark.slow

BAD = (
  ('method', {'method': 'extract'}, "method 'extract'.*mean 'extracted'"),
  (
    'projection',
    {'extracted.projection': 'gauss'},
    "projection 'gauss'.*gaussian, rademacher",
  ),
  (
    'identity',
    {'extracted.projection': 'identity'},
    'equal widths, got 16 and 8',
  ),
  ('k', {'data.k': 9}, 'data.k=9.*data.d=8'),
  ('tree', {'data.depth': 3}, '7 nodes do not fit in data.d=8'),
  ('support', {'data.support': 'last'}, "support 'last'.*first, random"),
  ('batch', {'batch_size': 0}, 'batch_size=0 must be a whole number from 1 '),
  ('seeds', {'num_seeds': 0}, 'num_seeds=0 must be'),
  ('steps', {'num_steps': 0}, 'num_steps=0 must be'),
  ('temperature', {'temperature': 0.0}, 'temperature=0.0.*hard_labels=True'),
  ('sum', {'extracted.steps': (10, 20)}, r'sum num_steps=60, not 30'),
  ('parts', {'extracted.steps': (10, 20, 30)}, 'must be 2 numbers'),
  ('share', {'extracted.share': 1.0}, 'share=1.0'),
  ('loss', {'loss': 'ce'}, "loss 'ce'.*kl, reverse_kl"),
  ('hidden', {'extracted.loss': 'l1'}, "extracted.loss 'l1'.*l2, cosine"),
  ('optimizer', {'optimizer.name': 'adm'}, "mean 'adam'"),
  ('schedule', {'optimizer.schedule': 'x'}, "schedule 'x'"),
  ('rate', {'optimizer.learning_rate': 0.0}, 'learning_rate=0.0'),
  ('width', {'student.width': 0}, 'width=0'),
  ('layer', {'extracted.layers': (('h', 'hidden0'),)}, "activation 'h'"),
  ('eval', {'eval_every': 15}, 'multiple of log_every=10'),
  ('keep', {'keep': 1}, 'keep=1'),
  ('best', {'keep_best': 'acuracy'}, "keep_best 'acuracy'.*mean 'accuracy'"),
  ('trainable', {'trainable': 'hiden'}, "trainable='hiden' matches no"),
  ('mesh', {'mesh.data': 64}, 'mesh.data=64'),
  ('seed', {'seed': -1}, 'seed=-1'),
  ('teacher', {'teacher.save_every': 15}, 'teacher: save_every=15 must be'),
  ('lookahead', {'lookahead': 10**6}, 'lookahead=1000000.*log_every=10'),
  ('unread', {'cache.dtype': 'int8'}, "cache.dtype 'int8'.*bfloat16"),
  ('nothing stored', {'cache.batches': 5}, 'cache.batches=5.*cache.folder'),
  ('task', {'task': 'parityy'}, "task 'parityy'.*mean 'parity'"),
  ('model', {'model': 'mpl'}, "model 'mpl'.*mean 'mlp'"),
  (
    'custom',
    {'method': 'custom', 'custom.stages': ()},
    'custom.stages=.. has no stage',
  ),
  (
    'custom term',
    {'method': 'custom', 'custom.stages': (dict(terms=(dict(weigth=1),)),)},
    "'weigth'.*mean 'weight'",
  ),
  (
    'custom widths',
    {
      'method': 'custom',
      'custom.stages': (
        dict(terms=(dict(student='hidden0', target='hidden0'),)),
      ),
    },
    "'hidden0', 8 wide, with 'hidden0', 16 wide",
  ),
)


class BadInputTest(TestCase):
  @parameterized.named_parameters(*BAD)
  def test_one_line_before_anything_is_written(self, fields, message):
    workdir = self.folder()
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      experiment.run(config_of(**fields), workdir)
    self.assertNotIn('\n', str(caught.exception))
    self.assertEqual(files_of(workdir), {})

  def test_a_metric_that_reduces_wrongly(self):
    broken = metrics_lib.Metric(lambda logits, labels: logits.mean())
    config = config_of(seed=7)  # What other tests planned has no such metric.
    with (
      mock.patch.dict(metrics_lib.METRICS, accuracy=broken),
      self.assertRaisesRegex(errors.UserError, "'accuracy' makes") as caught,
    ):
      experiment.run(config, self.folder())
    self.assertNotIn('\n', str(caught.exception))

  def test_a_folder_that_cannot_be_written(self):
    blocked = self.folder() / 'file'
    blocked.write_text('')
    with self.assertRaisesRegex(errors.UserError, 'file is no folder. Choose'):
      experiment.run(config_of(), blocked / 'run')

  def test_a_file_in_place_of_the_folder_of_a_method(self):
    """No teacher is trained first."""
    workdir = self.folder()
    (workdir / 'extracted').write_text('')
    for call in (
      lambda: experiment.run(config_of(), workdir),
      lambda: experiment.compare(
        config_of(), ['one_shot', 'extracted'], workdir
      ),
    ):
      with self.assertRaisesRegex(errors.UserError, 'extracted is no folder'):
        call()
    self.assertEqual(os.listdir(workdir), ['extracted'])

  @parameterized.parameters(
    {'rule': 'transition', 'scores': (0.6, 0.9)},
    {'rule': 'even', 'count': 2},
    {'rule': 'list', 'checkpoints': (20, 40)},
  )
  def test_any_choice_of_checkpoints_may_have_its_steps(self, **block):
    config = config_of('progressive')
    config.progressive.update(block, steps=(10, 20, 30))
    builders.check(open_(config, self.folder()))

  def test_hard_labels_need_no_temperature(self):
    config = config_of('one_shot', temperature=0.0, hard_labels=True)
    builders.check(open_(config, self.folder()))


class CheckpointsOfTheTeacherTest(TestCase):
  """A checkpoint that a teacher lacks is known once it is trained."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = cls.shared_folder()
    teachers.train_teacher(open_(config_of(), cls.workdir), cls.workdir)

  @parameterized.parameters(
    (
      'progressive',
      {'progressive.rule': 'list', 'progressive.checkpoints': (30,)},
      'no intermediate checkpoint 30. It has: 0, 20, 40',
    ),
    (
      'extracted',
      {'extracted.checkpoint': 30},
      'has no checkpoint 30. It has: 0, 20',
    ),
  )
  def test_is_one_line_that_lists_those_that_there_are(
    self, method, fields, message
  ):
    before = files_of(self.workdir)
    config = config_of(method, **fields)
    for call in (
      lambda: experiment.run(config, self.workdir),
      # The method before it is not trained either.
      lambda: experiment.compare(config, ['one_shot', method], self.workdir),
    ):
      with self.assertRaisesRegex(errors.UserError, message):
        call()
      self.assertEqual(files_of(self.workdir), before)
