"""Damaged targets, and those of other runs, are refused."""

import functools
import pathlib
import shutil

from absl.testing import parameterized
import pytest

from cxjax import errors
from cxjax import files
from cxjax.training import target_cache
from tests.training.target_cache import fixtures

pytestmark = pytest.mark.slow


class ReaderTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    root = pathlib.Path(cls('create_tempdir').create_tempdir().full_path)
    cls.spec = fixtures.live_spec()
    cls.original = root / 'cache'
    target_cache.write(cls.original, cls.spec, fixtures.CONFIG, 'float32')

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path) / 'cache'
    shutil.copytree(self.original, self.folder)

  def test_a_flipped_byte(self):
    """Any byte of a record; ArrayRecord's own and ours."""
    path = self.folder / 'stage0.array_record'
    content = path.read_bytes()
    found, _ = target_cache.load(self.folder).read(0, 3)
    record = found['targets']['hidden0'].tobytes()
    at = content.index(record[:4])  # It does not shrink: it is as it was.
    flipped = bytearray(content)
    flipped[at + 2] ^= 1
    path.write_bytes(flipped)
    cache = target_cache.load(self.folder)
    cache.read(0, 4)
    with self.assertRaisesRegex(
      errors.UserError, 'Batch 3 in .*stage0.array_record: it is damaged'
    ):
      cache.read(0, 3)

  def test_records_of_another_stage(self):
    one, two = (self.folder / f'stage{i}.array_record' for i in range(2))
    content = one.read_bytes(), two.read_bytes()
    self.assertEqual(*map(len, content))
    two.write_bytes(content[0])
    with self.assertRaisesRegex(errors.UserError, 'Batch 25 in .*is damaged'):
      target_cache.load(self.folder).read(1, 25)

  @parameterized.parameters('cut', 'gone', 'index', 'unfinished', 'garbage')
  def test_a_damaged_cache(self, damage):
    path = self.folder / 'stage1.array_record'
    index = self.folder / 'index.json'
    message = 'stage1.array_record.*is damaged. Remove .*cache_targets='
    if damage == 'cut':
      path.write_bytes(path.read_bytes()[:-1])
      message = 'has 131071 bytes, not 131072: it is damaged'
    elif damage == 'gone':
      path.unlink()
    elif damage == 'garbage':
      path.write_bytes(bytes(path.stat().st_size))
    elif damage == 'index':
      index.write_text(index.read_text().replace('"k": 2', '"k": 3'))
      message = 'index.json is damaged'
    else:
      index.unlink()
      message = 'holds no finished cache'
    with self.assertRaisesRegex(errors.UserError, message):
      target_cache.load(self.folder)

  @parameterized.parameters(
    *(((), value) for value in ({}, [], None, 3)),
    (('config',), None),
    (('cache', 'batches'), 'x'),
    (('cache', 'batches'), 0),
    (('cache', 'dtype'), 'int8'),
    (('checkpoints',), [[20]]),
    (('checkpoints',), 3),
    (('stages', 0), {}),
    (('stages', 1, 'bytes'), True),
    (('stages', 1, 'steps'), 0),
    (('stages', 1, 'arrays', 0, 'shape'), ['x']),
  )
  def test_an_index_of_another_form(self, place, value):
    """With a digest that fits it."""
    path = self.folder / 'index.json'
    record = files.read_with_digest(path)
    if place:
      *outer, last = place
      block = functools.reduce(lambda found, name: found[name], outer, record)
      block[last] = value
    else:
      record = value
    files.write_with_digest(path, record)
    with self.assertRaisesRegex(errors.UserError, 'Remove .*, and make it'):
      target_cache.load(self.folder)

  def test_a_folder_that_is_not_there(self):
    with self.assertRaisesRegex(errors.UserError, '/none holds no finished'):
      target_cache.load(pathlib.Path('/none'))

  def test_another_config(self):
    cache = target_cache.load(self.folder)
    cache.require_same(fixtures.CONFIG)
    with self.assertRaisesRegex(
      errors.UserError, r'of another run. .*data.k \(2 there, 3 here\)'
    ):
      cache.require_same({**fixtures.CONFIG, 'data': {'k': 3}})
    with self.assertRaisesRegex(errors.UserError, r'final \(.* there, x here'):
      cache.require_same({**fixtures.CONFIG, 'parameters': {'final': 'x'}})

  def test_the_fingerprint_is_that_of_the_bytes(self):
    cache = target_cache.load(self.folder)
    self.assertRegex(cache.fingerprint, '^[0-9a-f]{16}$')
    again = self.folder.with_name('again')
    other = fixtures.with_teacher(
      self.spec, params=fixtures.live_spec().teacher.params
    )
    target_cache.write(again, other, fixtures.CONFIG, 'float32')
    self.assertEqual(target_cache.load(again).fingerprint, cache.fingerprint)
    target_cache.write(
      again.with_name('bfloat16'), self.spec, fixtures.CONFIG, 'bfloat16'
    )
    other = target_cache.load(again.with_name('bfloat16'))
    self.assertNotEqual(other.fingerprint, cache.fingerprint)

  def test_batches_that_are_lacking(self):
    cache = target_cache.load(self.folder)
    cache.require_all(self.spec)
    config = fixtures.mlp_config()
    config.extracted.steps = (30, 30)
    with self.assertRaisesRegex(
      errors.UserError, r"'hidden0' reads 5 batches .* number \[25\]"
    ):
      cache.require_all(fixtures.live_spec(config))
    with self.assertRaisesRegex(errors.UserError, 'reads .* batches that'):
      cache.require_all(fixtures.live_spec(period=30))
