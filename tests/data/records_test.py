"""Tests of documents in records, and of compressed files."""

import bz2
import gzip
import lzma
import pathlib
import re
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import pyarrow
from pyarrow import parquet

from cxjax import errors
from cxjax.data import compression
from cxjax.data import corpus as corpus_lib
from cxjax.data import records
from cxjax.data import text_files

LINES = (
  '{"text": " one\\n\\nstill one ", "id": 1}',
  '',
  '{"text": "two \\u2028 \u2028", "id": 2}',
  '{"text": "  ", "id": 3}',
)

PAIRS = records.Fields(prompt='q', completion='a')


class RecordsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def write(self, name, content):
    path = self.folder / name
    path.write_bytes(
      content if isinstance(content, bytes) else content.encode()
    )
    return path

  def load(self, pattern='*', **kwargs):
    return corpus_lib.load(f'files:{self.folder}/{pattern}', **kwargs)

  def refuses(self, message, **kwargs):
    with self.assertRaisesRegex(errors.UserError, message):
      self.load(**kwargs)

  def test_a_line_is_a_document(self):
    self.write('a.jsonl', '\ufeff' + '\r\n'.join(LINES))
    self.assertEqual(self.load().documents, ('one\n\nstill one', 'two'))

  def test_a_field_that_is_chosen(self):
    self.write('a.JSONL', '{"b": "x"}\n{"b": "y"}')
    self.assertEqual(
      self.load(fields=records.Fields('b')).documents, ('x', 'y')
    )

  def test_a_prompt_and_its_completion(self):
    self.write('a.jsonl', '{"q": "1 + ", "a": "1"}\n{"q": "", "a": " 2"}')
    found = self.load(fields=PAIRS)
    self.assertEqual(found.documents, ('1 + 1', ' 2'))
    self.assertEqual([one.prompt for one in found.documents], [4, 0])
    self.write('a.jsonl', '{"q": "1", "a": " + 1"}\n{"q": "", "a": " 2"}')
    other = self.load(fields=PAIRS)
    self.assertEqual(other.documents, found.documents)
    self.assertNotEqual(other.fingerprint, found.fingerprint)

  @parameterized.parameters(
    ('{"text": "x"}\n{"text": ', r'a.jsonl, line 2 is not JSON: Expecting'),
    (
      '{"text": "x"}\n\n["x"]',
      'a.jsonl, line 3 is an array; it must be an obj',
    ),
    ('{"txt": "x"}', "a.jsonl, line 1 has no field 'text'; it has 'txt'"),
    (
      '{"text": 3}',
      "line 1: the field 'text' is a number, '3'; it must be a str",
    ),
    ('{"text": null}', "field 'text' is null; it must be a string"),
    ('{"text": "\\ud800"}', "'text' is no Unicode text: the character 1"),
    (
      '{"text": "a \\u0000 b"}',
      "line 1: the field 'text' is no text: the char",
    ),
    ('[' * 100_000, 'line 1 is not JSON'),
    ('{"text": 1' + '0' * 5_000 + '}', 'line 1 is not JSON|is a number'),
    ('{"text": "x"', 'line 1 is not JSON'),
  )
  def test_a_line_that_is_no_document(self, content, message):
    self.write('a.jsonl', content)
    self.refuses(message)

  def test_fields_that_no_file_has(self):
    self.write('a.txt', 'one\n\ntwo')
    self.refuses('a.txt is text, without', fields=records.Fields('body'))
    self.write('b.jsonl', '{"q": "x", "a": "y"}')
    self.refuses('a.txt is text, without', fields=PAIRS)
    with self.assertRaisesRegex(errors.UserError, 'has no records'):
      corpus_lib.load('docstrings', fields=PAIRS)
    with self.assertRaisesRegex(errors.UserError, 'give both, or neither'):
      records.Fields(prompt='q')
    with self.assertRaisesRegex(errors.UserError, "are both 'q'"):
      records.Fields(prompt='q', completion='q')
    with self.assertRaisesRegex(errors.UserError, 'names no field'):
      records.Fields('')

  @parameterized.parameters(
    ('gz', gzip.compress), ('bz2', bz2.compress), ('xz', lzma.compress)
  )
  def test_compressed(self, suffix, compress):
    self.write('a.jsonl.' + suffix, compress('\n'.join(LINES).encode()))
    self.write('b.txt.' + suffix, compress(b'three\n\nfour'))
    self.write('c.' + suffix, compress(b''))
    want = ('one\n\nstill one', 'two', 'three', 'four')
    self.assertEqual(self.load().documents, want)
    whole = compress(b'one\n\ntwo' * 99)
    self.write('b.txt.' + suffix, whole[: len(whole) // 2])
    self.refuses(f'b.txt.{suffix} cannot be read')
    with mock.patch.object(text_files, 'MOST', 9):
      self.refuses('more than 9 bytes once it is unpacked')

  def test_text_that_begins_like_bzip2(self):
    self.write('a.txt', 'BZh9 is a word\n\ntwo')
    self.assertEqual(self.load().documents, ('BZh9 is a word', 'two'))

  def test_zstandard_says_what_to_install(self):
    self.write('a.txt.zst', b'\x28\xb5\x2f\xfd rest')
    missing = {'compression.zstd': None, 'zstandard': None}
    with mock.patch.dict(sys.modules, missing):
      self.refuses('pip install zstandard')

  def test_zstandard(self):
    # Each frame of this stand-in for the package is one of bzip2.
    package = mock.Mock()
    package.ZstdDecompressor().decompressobj = bz2.BZ2Decompressor
    names = {'compression.zstd': None, 'zstandard': package}
    form = (re.compile(b'BZh'), compression._zstandard)
    frames = [bz2.compress(LINES[i].encode() + b'\n') for i in (0, 2)]
    with (
      mock.patch.dict(sys.modules, names),
      mock.patch.object(compression, 'FORMATS', (form,)),
      mock.patch.object(compression, 'CHUNK', 7),
    ):
      self.write('a.jsonl.zst', b''.join(frames))
      self.assertEqual(self.load().documents, ('one\n\nstill one', 'two'))
      self.write('a.jsonl.zst', b''.join(frames)[:-9])
      self.refuses('a.jsonl.zst cannot be read: it ends before')

  def parquet(self, name='a.parquet', **columns):
    parquet.write_table(pyarrow.table(columns), self.folder / name)

  def test_parquet(self):
    self.parquet(text=['one', ' ', 'two '], id=[1, 2, 3])
    self.assertEqual(self.load().documents, ('one', 'two'))
    packed = gzip.compress((self.folder / 'a.parquet').read_bytes())
    self.write('b.parquet.gz', packed)
    self.assertEqual(self.load('b*').documents, ('one', 'two'))
    self.parquet('p.parquet', q=['1 + '] * 2, a=['1', '2'])
    found = self.load('p*', fields=PAIRS)
    self.assertEqual([one.prompt for one in found.documents], [4, 4])

  def test_a_parquet_file_that_has_no_documents(self):
    self.parquet(text=['one', None])
    self.refuses("a.parquet, row 2: the field 'text' is null; it must")
    self.parquet(text=['one', 'b\0'])
    self.refuses("row 2: the field 'text' is no text: the character 2 is NUL")
    self.parquet(body=['one', 'two'])
    self.refuses("a.parquet has no field 'text'; it has 'body'")
    content = (self.folder / 'a.parquet').read_bytes()
    self.write('a.parquet', content[:-20])
    self.refuses('a.parquet is no Parquet file that pyarrow can read')
    with mock.patch.dict(sys.modules, {'pyarrow.parquet': None}):
      self.refuses('Run pip install pyarrow')


if __name__ == '__main__':
  absltest.main()
