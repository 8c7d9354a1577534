"""Tests of records in files of JSON, CSV and TSV, and of what is no text."""

import csv
import gzip
import json
import pathlib
import zipfile

from absl.testing import absltest
from absl.testing import parameterized

from cxjax import errors
from cxjax.data import corpus as corpus_lib
from cxjax.data import records

OBJECTS = [{'text': 'one, "two"', 'id': 1}, {'id': 2, 'text': 'three\nfour'}]
DOCUMENTS = ('one, "two"', 'three\nfour')
TABLE = 'id,text\n1,"one, ""two"""\n2,"three\nfour"\n'


class RecordFilesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def write(self, name, content):
    (self.folder / name).write_text(content, newline='')

  def load(self, pattern='*', **kwargs):
    return corpus_lib.load(f'files:{self.folder}/{pattern}', **kwargs)

  def refuses(self, message, **kwargs):
    with self.assertRaisesRegex(errors.UserError, message):
      self.load(**kwargs)

  @parameterized.parameters(
    ('a.json', '\n'.join(map(json.dumps, OBJECTS))),
    ('c4-train.00000-of-01024.JSON', '\n\n'.join(map(json.dumps, OBJECTS))),
    ('a.json', json.dumps(OBJECTS)),
    ('a.json', '\ufeff\n' + json.dumps(OBJECTS, indent=2)),
    ('a.csv', TABLE),
    ('a.CSV', TABLE.replace('\n', '\r\n').replace('three\r', 'three')),
  )
  def test_records(self, name, content):
    self.write(name, content)
    self.assertEqual(self.load().documents, DOCUMENTS)
    (self.folder / name).unlink()
    packed = gzip.compress(content.encode())
    (self.folder / f'{name}.gz').write_bytes(packed)
    self.assertEqual(self.load().documents, DOCUMENTS)

  @parameterized.parameters('\n', '\r\n')
  def test_a_tsv_file(self, end):
    lines = 'id\ttext', '1\tone, "two"', '', '2\t three', ''
    self.write('a.tsv', end.join(lines))
    self.assertEqual(self.load().documents, ('one, "two"', 'three'))

  def test_a_quotation_in_a_column_that_is_not_read(self):
    self.write('a.tsv', 'id\ttext\ttitle\n1\tsome\t"One" title\n')
    self.write('b.tsv', 'text\nother\n')
    self.assertEqual(self.load().documents, ('some', 'other'))

  def test_one_object_is_one_document(self):
    for name in 'ab':
      self.write(f'{name}.json', json.dumps({'text': name}, indent=1))
    self.assertEqual(self.load().documents, ('a', 'b'))

  @parameterized.parameters(
    ('a.json', json.dumps([{'q': '1 + ', 'a': '2'}] * 2)),
    ('a.csv', 'a,q\n2,1 + \n2,1 + '),
    ('a.tsv', 'a\tq\n2\t1 + \n2\t1 + '),
  )
  def test_a_prompt_and_its_completion(self, name, content):
    self.write(name, content)
    found = self.load(fields=records.Fields(prompt='q', completion='a'))
    self.assertEqual(found.documents, ('1 + 2', '1 + 2'))
    self.assertEqual([one.prompt for one in found.documents], [4, 4])

  def test_a_field_of_any_length(self):
    before = csv.field_size_limit()
    long = 'word ' * 30_000
    self.write('a.csv', f'text\n{long}\nshort\n')
    self.assertEqual(self.load().documents, (long.strip(), 'short'))
    self.assertEqual(csv.field_size_limit(), before)

  @parameterized.parameters(
    ('a.json', 'prose', 'a.json, line 1 is not JSON'),
    ('a.json', '[{"text": "a"}', 'a.json is no list in JSON'),
    ('a.json', '[' * 100_000, 'a.json is no list in JSON'),
    (
      'a.json',
      '["a", "b"]',
      'a.json, item 1 is a string; it must be an object',
    ),
    ('a.json', '3', 'a.json is a number; it must be an object'),
    ('a.json', '{"data": []}', "a.json has no field 'text'; it has 'data'"),
    ('a.json', '[{"text": "a"}, {}]', "a.json, item 2 has no field 'text'"),
    ('a.csv', 'a,b\n1,2', "a.csv has no field 'text'; it has 'a', 'b'.* leave"),
    ('a.csv', 'text,text\n1,2', "a.csv has 2 columns 'text'"),
    ('a.csv', 'text,b\n1,2\n1,2,3', 'a.csv, row 2 has 3 fields, .* names 2'),
    ('a.csv', 'text\n"a', 'a.csv is no CSV file: unexpected end of data'),
    ('a.csv', 'text\n"a" b', 'a.csv is no CSV file'),
    ('a.tsv', 'text\tb\n1', 'a.tsv, row 1 has 1 fields'),
    ('a.tsv', 'text\tb\n"one\ttwo"\tthree', 'a.tsv, row 1: .* begins with "'),
  )
  def test_what_is_no_record(self, name, content, message):
    self.write(name, content)
    self.refuses(message)

  @parameterized.parameters('%PDF-1.4\nstream', '{\\rtf1 text}')
  def test_text_of_another_program(self, content):
    self.write('a.txt', content)
    self.refuses('a.txt is no plain text but a PDF or RTF file')

  def test_a_document_of_an_office(self):
    with zipfile.ZipFile(self.folder / 'a.docx', 'w') as file:
      file.writestr('document.xml', 'text' * 99)
    self.refuses('a.docx (is not UTF-8|is no text)')

  def test_json_lines_of_another_name_are_warned_of(self):
    self.write('a.txt', '\n'.join(map(json.dumps, OBJECTS)))
    self.write('b.txt', '{ set } one\n\ntwo')
    with self.assertLogs(level='WARNING') as log:
      self.assertLen(self.load().documents, 3)
    self.assertLen(log.output, 1)
    self.assertRegex(log.output[0], 'a.txt is read as text, .*1 of 2 files')
    with self.assertNoLogs(level='WARNING'):
      self.load('b*')

  @parameterized.parameters('', '/', '/d*')
  def test_a_folder(self, end):
    (self.folder / 'data').mkdir()
    with self.assertRaisesRegex(
      errors.UserError, f"only folders: give 'files:{self.folder}[/dat]*/\\*',"
    ):
      corpus_lib.load(f'files:{self.folder}{end}')

  def test_a_link_to_what_is_not_there(self):
    self.write('a.txt', 'one\n\ntwo')
    (self.folder / 'b.txt').symlink_to(self.folder / 'gone.txt')
    self.refuses('b.txt is a link to what is not there. Restore')

  def test_a_name_with_brackets(self):
    self.write('a[1].txt', 'one\n\ntwo')
    self.refuses(r'brackets .*: give .*/a\[\[\]1\].txt', pattern='a[1].txt')
    self.assertLen(self.load('a[[]1].txt').documents, 2)

  def test_a_device(self):
    with self.assertRaisesRegex(errors.UserError, '/dev/null is a device'):
      corpus_lib.load('files:/dev/nul*')


if __name__ == '__main__':
  absltest.main()
