"""Small files of a run: atomic, checked, claimed."""

import json
import os
import pathlib
from unittest import mock

from absl.testing import parameterized
import jax

from cxjax import errors
from cxjax import files

CONFIG = {'seed': 0, 'teacher': {'width': 8}, 'stages': [{'steps': 3}]}


class FilesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)


class WriteTest(FilesTest):
  def test_writes_in_a_new_folder(self):
    path = self.folder / 'new' / 'file.txt'
    files.write_text(path, 'größer')
    self.assertEqual(path.read_bytes(), 'größer'.encode())
    self.assertEqual(os.listdir(path.parent), ['file.txt'])

  def test_a_write_that_fails_leaves_the_old_file(self):
    path = self.folder / 'file.txt'
    files.write_text(path, 'old')
    with (
      mock.patch.object(os, 'fsync', side_effect=OSError(28, 'No space left')),
      self.assertRaisesRegex(errors.UserError, 'file.txt: No space left. Make'),
    ):
      files.write_text(path, 'new')
    self.assertEqual(path.read_text(), 'old')
    self.assertEqual(os.listdir(self.folder), ['file.txt'])

  def test_an_exception_leaves_the_old_file(self):
    path = self.folder / 'file.txt'
    files.write_text(path, 'old')
    with self.assertRaises(KeyboardInterrupt), files.replaced(path) as file:
      file.write(b'half')
      raise KeyboardInterrupt
    self.assertEqual(path.read_text(), 'old')
    self.assertEqual(os.listdir(self.folder), ['file.txt'])

  def test_a_folder_in_place_of_the_file(self):
    (self.folder / 'a.txt').mkdir()
    with self.assertRaisesRegex(errors.UserError, 'Something else is in its'):
      files.write_text(self.folder / 'a.txt', 'new')
    self.assertEqual(os.listdir(self.folder), ['a.txt'])

  def test_the_first_process_writes(self):
    path = self.folder / 'file.txt'
    with mock.patch.object(jax, 'process_index', lambda: 1):
      files.write_text(path, 'text')
      self.assertFalse(path.exists())
      files.write_text(path, 'text', own=True)
    self.assertEqual(path.read_text(), 'text')

  def test_json(self):
    path = self.folder / 'file.json'
    files.write_json(path, CONFIG)
    self.assertEqual(files.read_json(path), CONFIG)

  @parameterized.parameters('', '{', '[1, 2', 'nul')
  def test_damaged_json(self, text):
    path = self.folder / 'file.json'
    path.write_text(text)
    with self.assertRaisesRegex(errors.UserError, 'file.json cannot be read'):
      files.read_json(path)

  def test_missing_json(self):
    with self.assertRaisesRegex(errors.UserError, 'cannot be read'):
      files.read_json(self.folder / 'file.json')

  @parameterized.parameters(
    ('[' * 10**5, 'nested too deeply'), ('{"a": 1, "a": 2}', "'a' comes twice")
  )
  def test_json_that_nobody_wrote(self, text, message):
    path = self.folder / 'file.json'
    path.write_text(text)
    with self.assertRaisesRegex(errors.UserError, message):
      files.read_json(path)

  def test_what_is_no_file_is_not_read(self):
    fifo = self.folder / 'fifo'
    os.mkfifo(fifo)
    for path in (fifo, self.folder, pathlib.Path('/dev/zero')):
      with self.assertRaisesRegex(errors.UserError, 'cannot be read'):
        files.read_json(path)

  def test_links_are_not_written_through(self):
    other = self.folder / 'other'
    other.write_text('mine')
    for name in ('file.txt.tmp', 'file.txt'):
      (self.folder / name).symlink_to(other)
    files.write_text(self.folder / 'file.txt', 'text')
    self.assertEqual(other.read_text(), 'mine')
    self.assertEqual((self.folder / 'file.txt').read_text(), 'text')

  def test_too_many_open_files_is_no_full_disk(self):
    with (
      self.assertRaisesRegex(errors.UserError, 'Allow more open files'),
      files.written('file'),
    ):
      raise OSError(24, os.strerror(24))

  @parameterized.parameters('workdir', 'path')
  def test_a_limit_of_the_size_of_a_file_is_no_full_disk(self, place):
    with (
      self.assertRaisesRegex(
        errors.UserError,
        f'Allow larger .*ulimit -f.*, or choose another {place}',
      ),
      files.written('file', place),
    ):
      raise OSError(27, os.strerror(27))


class DigestTest(FilesTest):
  def test_reads_what_was_written(self):
    path = self.folder / 'record.json'
    files.write_with_digest(path, CONFIG)
    self.assertEqual(files.read_with_digest(path), CONFIG)

  @parameterized.parameters(
    ('"width": 8', '"width": 9'), ('"record"', '"recrod"'), ('sha256', 'sha')
  )
  def test_a_change_is_damage(self, old, new):
    path = self.folder / 'record.json'
    files.write_with_digest(path, CONFIG)
    path.write_text(path.read_text().replace(old, new))
    with self.assertRaisesRegex(errors.UserError, 'record.json is damaged'):
      files.read_with_digest(path)

  def test_digest_does_not_depend_on_the_order(self):
    one, two = {'a': 1, 'b': 2}, {'b': 2, 'a': 1}
    self.assertEqual(files.digest(one), files.digest(two))
    self.assertNotEqual(files.digest(one), files.digest({'a': 2, 'b': 1}))


class ClaimTest(FilesTest):
  def test_the_same_run_goes_on(self):
    files.claim_workdir(self.folder / 'run', CONFIG)
    files.claim_workdir(self.folder / 'run', json.loads(json.dumps(CONFIG)))
    self.assertEqual(files.read_json(self.folder / 'run/config.json'), CONFIG)

  @parameterized.parameters(
    ({'seed': 1}, r'seed \(0 there, 1 here\)\.'),
    ({'teacher': {'width': 9}}, r'teacher.width \(8 there, 9 here\)'),
    ({'stages': [{'steps': 4}]}, r'stages.0.steps \(3 there, 4 here\)'),
    ({'mesh': 2}, r'mesh \(absent there, 2 here\)'),
  )
  def test_another_run_is_refused_with_what_differs(self, change, message):
    files.claim_workdir(self.folder, CONFIG)
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      files.claim_workdir(self.folder, {**CONFIG, **change})
    self.assertIn('belongs to another configuration', str(caught.exception))

  def test_many_differences_are_counted(self):
    there = {f'field{i}': 0 for i in range(20)}
    here = dict.fromkeys(there, 1)
    found = files.differences(there, here)
    self.assertEqual(found.count('there'), files.MAX_SHOWN)
    self.assertEndsWith(found, ', and 8 more')
    self.assertEqual(files.differences(there, there), '')

  def test_digests_come_last_and_are_not_shown(self):
    there = {'optimizer': 16 * '0', 'rate': 1, 'best': '', 'loss': 16 * '1'}
    here = {'optimizer': 16 * 'f', 'rate': 2, 'best': 'loss'}
    self.assertEqual(
      files.differences(there, here),
      "rate (1 there, 2 here), best ('' there, loss here), "
      'loss (given there, absent here), optimizer (another)',
    )

  def test_functions_are_named_if_nothing_else_differs(self):
    """A changed field changes the functions made of it, which would hide it."""
    there = {'rate': 1, 'batches': 16 * '0', 'functions': {'loss': 16 * '0'}}
    here = {'rate': 1, 'batches': 16 * '0', 'functions': {'loss': 16 * 'f'}}
    found = files.differences(there, here)
    self.assertEqual(found, 'functions.loss (another)')
    here |= {'rate': 2, 'batches': 16 * 'f'}
    found = files.differences(there, here)
    self.assertEqual(found, 'rate (1 there, 2 here), batches (another)')

  @parameterized.parameters('checkpoints', 'summary.json')
  def test_a_run_without_its_config_is_refused(self, name):
    (self.folder / name).mkdir()
    with self.assertRaisesRegex(errors.UserError, 'config.json is missing'):
      files.claim_workdir(self.folder, CONFIG)

  @parameterized.parameters('*', 'ü x', '%d', 'a[b', 'a:b/c', "it's", '~x~')
  def test_names(self, name):
    files.claim_workdir(self.folder / name, CONFIG)

  @parameterized.parameters(
    ('[base] lr=1', 'has'),
    ('a[b]/run', 'has'),
    ('a\\b', 'has'),
    ('a\0b', 'has'),
    ('x' * 300, 'is too long'),
    ('x/' * 2000, 'is too long'),
    ('\udcff', 'is not UTF-8'),
    ('teacher/checkpoints/000000010/run', 'lies within the checkpoint'),
  )
  def test_names_that_are_refused(self, name, message):
    with self.assertRaisesRegex(errors.UserError, message):
      files.claim_workdir(self.folder / name, CONFIG)
    self.assertEmpty(os.listdir(self.folder))

  @parameterized.parameters('gs://bucket/run', 's3://x', 'hdfs://a/b', '~/run')
  def test_paths_that_are_refused(self, path):
    with self.assertRaisesRegex(
      errors.UserError, 'no local path|begins with ~'
    ):
      files.claim_workdir(pathlib.Path(path), CONFIG)
