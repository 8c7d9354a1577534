"""Tests of corpora: docstrings and files."""

import gzip
import json
import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import pytest

from cxjax import errors
from cxjax.data import corpus as corpus_lib
from cxjax.data import text_files


def is_optax(path):
  return path.parts[0].startswith('_src')


class CorpusTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def write(self, name, content):
    path = self.folder / name
    path.write_bytes(content)
    return path

  def load(self, pattern, **kwargs):
    return corpus_lib.load(f'files:{self.folder}/{pattern}', **kwargs)

  def test_blank_lines_separate_documents(self):
    self.write('b.txt', b'third\n \t\nfourth')
    self.write('a.txt', 'first\nstill \u00e9\n\n\n\nsecond\n'.encode())
    found = self.load('*.txt').documents
    self.assertEqual(
      found, ('first\nstill \u00e9', 'second', 'third', 'fourth')
    )

  def test_a_file_may_be_a_document(self):
    self.write('a.txt', b'one\n\nstill one')
    self.write('b.txt', b'two')
    found = self.load('*', whole_files=True).documents
    self.assertEqual(found, ('one\n\nstill one', 'two'))

  def test_gzip(self):
    self.write('a.txt', b'one\n\ntwo')
    plain = self.load('a.txt')
    self.write('a.txt.gz', gzip.compress(b'one\n\ntwo'))
    packed = self.load('a.txt.gz')
    self.assertEqual(plain.documents, packed.documents)
    self.assertEqual(plain.fingerprint, packed.fingerprint)

  def test_a_gzip_bomb(self):
    self.write('a.txt.gz', gzip.compress(b'one\n\n' * 1_000))
    with (
      mock.patch.object(text_files, 'MOST', 4_999),
      self.assertRaisesRegex(errors.UserError, 'more than 4,999 bytes once'),
    ):
      self.load('a.txt.gz')
    with mock.patch.object(text_files, 'MOST', 5_000):
      self.assertLen(self.load('a.txt.gz').documents, 1_000)

  def test_the_fingerprint_depends_on_where_documents_end(self):
    self.write('a.txt', b'one\n\ntwo three')
    self.write('b.txt', b'one two\n\nthree')
    a, b = self.load('a.txt'), self.load('b.txt')
    self.assertNotEqual(a.fingerprint, b.fingerprint)

  def test_bytes_that_are_not_utf8_are_an_error_with_their_offset(self):
    path = self.write('a.txt', b'good\n\n\xc3\xa9\xff')
    with self.assertRaisesRegex(
      errors.UserError, f'{path} is not UTF-8: byte 0xff at offset 8'
    ):
      self.load('*')

  @parameterized.parameters(
    ('files:/nowhere/*.txt', 'no file matches'),
    ('tfds:', 'name a dataset'),
    ('docstrings:numpy', 'nothing follows'),
    ('/data/a.jsonl', "give 'files:/data/a.jsonl'"),
    ('wiki', "data.source 'wiki'.*docstrings, files, tfds"),
  )
  def test_an_invalid_source(self, source, message):
    with self.assertRaisesRegex(errors.UserError, message):
      corpus_lib.load(source)

  def test_files_without_text(self):
    self.write('a.txt', b' \n\n ')
    with self.assertRaisesRegex(errors.UserError, 'have no text'):
      self.load('*')
    self.write('a.txt', b'one')
    with self.assertRaisesRegex(errors.UserError, '1 documents.*at least 2'):
      self.load('*')

  def test_a_damaged_gzip_file(self):
    content = gzip.compress(b'one\n\ntwo' * 99)
    middle = len(content) // 2
    flipped = bytes([content[middle] ^ 255])
    for damaged in (
      content[:-9],
      content[:middle] + flipped + content[middle + 1 :],
    ):
      self.write('a.gz', damaged)
      with self.assertRaisesRegex(errors.UserError, 'a.gz cannot be read'):
        self.load('*')

  @parameterized.parameters('a.TAR', 'a.tar.gz', 'a.tgz', 'a.zip')
  def test_an_archive(self, name):
    self.write(name, b'one\n\ntwo')
    with self.assertRaisesRegex(errors.UserError, f'{name} is an archive'):
      self.load('*')

  def test_a_character_of_no_text(self):
    message = 'a.txt is no text in UTF-8: the character 2 is NUL'
    self.write('a.txt', 'one\n\ntwo'.encode('utf-16-le'))
    with self.assertRaisesRegex(errors.UserError, message):
      self.load('*')
    self.write('a.txt', gzip.compress(b'p\0\n\ntwo'))
    with self.assertRaisesRegex(errors.UserError, message):
      self.load('*', whole_files=True)

  def test_a_byte_order_mark_and_a_folder_are_skipped(self):
    self.write('a.txt', b'\xef\xbb\xbfone\n\ntwo')
    (self.folder / 'deeper').mkdir()
    self.assertEqual(self.load('*').documents, ('one', 'two'))

  def test_a_file_that_is_found_by_several_names_is_read_once(self):
    (self.folder / 'a' / 'b').mkdir(parents=True)
    self.write('a/b/x.txt', b'one\n\ntwo')
    self.write('z.txt', b'three')
    want = ('one', 'two', 'three')
    with self.assertLogs('absl', level='INFO') as logs:
      self.assertEqual(self.load('**/**/*.txt').documents, want)
    self.assertRegex(logs.output[0], r'more than once: \d+ of \d+ are left out')
    (self.folder / 'a' / 'y.txt').symlink_to(self.folder / 'z.txt')
    (self.folder / 'a' / 'loop').symlink_to(self.folder / 'a')
    self.assertEqual(self.load('**/*.txt').documents, want)
    with self.assertNoLogs(level='INFO'):
      self.assertEqual(self.load('*/b/*.txt').documents, want[:2])
    (self.folder / '0.txt').symlink_to(self.folder / 'z.txt')
    self.assertEqual(self.load('**/*.txt').documents, ('three', 'one', 'two'))
    (self.folder / '0.txt').unlink()
    # Another file of the same content is one of its own.
    self.write('y.txt', b'three')
    self.assertEqual(self.load('*.txt').documents, ('three', 'three'))

  def test_docstrings_of_a_file(self):
    long = 'Computes the thing that everybody here has been waiting for, now.'
    path = self.write(
      'm.py',
      f'"""Module. {long}"""\ndef f():\n  """Short."""\n'
      f'class A:\n  """{long}\n\n  Args:\n    x: of ``A``, :func:`~m.f`.\n\n'
      '  >>> f()\n  """\n'.encode(),
    )
    with mock.patch.object(corpus_lib, 'SHORTEST', 60):
      found = list(corpus_lib.docstrings(path))
    self.assertEqual(
      found, [f'Module. {long}', f'{long}\n\nArgs:\nx: of A, m.f.']
    )
    path.write_bytes(b'def (:')
    self.assertEmpty(list(corpus_lib.docstrings(path)))

  @pytest.mark.slow
  def test_docstrings_are_kept_while_the_packages_are_the_same(self):
    with mock.patch.multiple(
      corpus_lib, PACKAGES=('optax',), SHORTEST=200, _is_prose=is_optax
    ):
      first = corpus_lib.load('docstrings')
      self.assertGreater(len(first.documents), 50)
      self.assertLen(set(first.documents), len(first.documents))
      self.assertIn('optax', first.versions)
      path = self.folder / 'documents.json'
      corpus_lib.save(first, path)
      with mock.patch.object(
        corpus_lib, 'docstrings', side_effect=AssertionError
      ):
        again = corpus_lib.load('docstrings', cached=path)
        self.assertEqual(first, again)
        kept = json.loads(path.read_text())
        kept['versions']['optax'] = '0'
        path.write_text(json.dumps(kept))
        with self.assertRaises(AssertionError):
          corpus_lib.load('docstrings', cached=path)

  @parameterized.parameters(
    '', '[]', '{"documents": ["a", "b"]}', '{"versions": {}, "documents": [1]}'
  )
  def test_kept_docstrings_that_are_damaged(self, content):
    path = self.write('documents.json', content.encode())
    with self.assertRaisesRegex(
      errors.UserError, f'{path} .*Restore it, or remove it: the docstrings'
    ):
      corpus_lib.load('docstrings', cached=path)


if __name__ == '__main__':
  absltest.main()
