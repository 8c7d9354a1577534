"""A cache is written once, whole, and says what it holds."""

import pathlib
import re
from unittest import mock

from absl.testing import parameterized
import pytest

from cxjax import errors
from cxjax.methods import stage as stage_lib
from cxjax.training import summary as summary_lib
from cxjax.training import target_cache
from cxjax.training.target_cache import writer
from tests.training.target_cache import fixtures

pytestmark = pytest.mark.slow


class WriterTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    root = pathlib.Path(cls('create_tempdir').create_tempdir().full_path)
    config = fixtures.mlp_config()
    config.student.width = 256  # Otherwise the files hold little but padding.
    cls.spec = fixtures.live_spec(config, period=12)
    cls.folder = root / 'cache'
    cls.summary = cls.write(cls.folder)

  @classmethod
  def write(cls, folder, dtype='bfloat16'):
    return target_cache.write(folder, cls.spec, fixtures.CONFIG, dtype)

  def fresh(self):
    return pathlib.Path(self.create_tempdir().full_path) / 'cache'

  def test_the_summary_counts_bytes(self):
    paths = sorted(self.folder.glob('*.array_record'))
    sizes = [path.stat().st_size for path in paths]
    stages = self.summary['stages']
    self.assertEqual([stage['bytes'] for stage in stages], sizes)
    self.assertEqual([stage['batches'] for stage in stages], [12, 12])
    tokens = 12 * 8  # Batches, examples of each; two seeds share them.
    self.assertEqual(stages[0]['tokens'], tokens)
    self.assertEqual(self.summary['bytes_per_token'], sum(sizes) / (2 * tokens))
    self.assertEqual(stages[0]['raw_bytes'], tokens * 1_024)
    # Of 1,024 bytes zstd leaves four fifths; a file has 64 kB of its own.
    self.assertBetween((sizes[0] - 2**16) / tokens, 500, 1_500)
    self.assertGreater(self.summary['teacher_flops'], 0)
    path = self.folder / 'summary.json'
    self.assertEqual(self.summary, summary_lib.read(path))

  def test_the_summary_is_a_table(self):
    table = target_cache.format_summary(self.summary)
    self.assertIn('bytes a token', table)
    for name in ('hidden0', 'output', 'all'):
      self.assertIn(name, table)

  def test_floats_are_stored_in_the_dtype(self):
    found, _ = target_cache.load(self.folder).read(0, 3)
    self.assertEqual(found['targets']['hidden0'].dtype, 'bfloat16')
    self.assertEqual(found['targets']['hidden0'].shape, (2, 8, 256))

  def test_a_finished_cache_is_not_made_again(self):
    path = self.folder / 'summary.json'
    before = path.stat().st_mtime_ns
    self.assertEqual(self.write(self.folder), self.summary)
    self.assertEqual(path.stat().st_mtime_ns, before)

  def test_an_edited_summary_is_refused(self):
    path = self.folder / 'summary.json'
    text = path.read_text()
    path.write_text(text.replace('"tokens": 96', '"tokens": 69'))
    self.addCleanup(path.write_text, text)
    with self.assertRaisesRegex(errors.UserError, 'edited.*targets again'):
      self.write(self.folder)

  def test_another_cache_is_not_overwritten(self):
    with self.assertRaisesRegex(
      errors.UserError, r'dtype \(bfloat16 there, float32 here\)'
    ):
      self.write(self.folder, 'float32')

  def test_an_unfinished_cache_is_made_again(self):
    folder = self.fresh()
    folder.mkdir()
    (folder / 'stage0.array_record').write_bytes(b'half')
    self.write(folder)
    target_cache.load(folder).read(0, 3)

  def test_a_run_is_not_overwritten(self):
    folder = self.fresh()
    folder.mkdir()
    (folder / 'config.json').write_text('{}')
    with self.assertRaisesRegex(errors.UserError, 'cache holds a run'):
      self.write(folder)

  def test_several_processes_do_not_write(self):
    with (
      mock.patch.object(writer.multihost, 'count', lambda: 2),
      self.assertRaisesRegex(errors.UserError, 'by one process.* there are 2'),
    ):
      self.write(self.fresh())

  @parameterized.parameters(
    ('write', 'No space left on device', 'Make room'),
    ('close', 'No space left on device', 'Make room'),
    ('write', 'write() failed: File too large', 'Allow larger files'),
  )
  def test_a_full_disk(self, moment, reason, advice):
    folder = self.fresh()
    full = RuntimeError(f'{reason}; while writing 16')
    broken = mock.Mock(**{f'{moment}.side_effect': full})
    with (
      mock.patch.object(
        writer.array_record_module, 'ArrayRecordWriter', return_value=broken
      ),
      self.assertRaisesRegex(
        errors.UserError,
        rf'array_record: {re.escape(reason)}\. {advice}.* another folder',
      ),
    ):
      self.write(folder)
    self.assertFalse((folder / 'index.json').exists())

  def test_labels_are_not_stored(self):
    terms = (stage_lib.Term(target='labels'), stage_lib.Term(weight=0.5))
    stages = (
      stage_lib.Stage('both', 4, terms),
      stage_lib.Stage('labels', 4, terms[:1]),
    )
    spec = fixtures.live_spec(period=8, stages=stages)
    folder = self.fresh()
    target_cache.write(folder, spec, {}, 'float32')
    found = target_cache.load(folder)
    self.assertEqual(list(found.read(0, 3)[0]['targets']), ['output'])
    self.assertEqual(found.read(1, 7)[0], {})
