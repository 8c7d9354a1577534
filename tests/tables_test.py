"""Tables of records, as Markdown and CSV."""

import os
import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from cxjax import tables


class FitTest(absltest.TestCase):
  def fit(self, text, columns):
    size = os.terminal_size((columns, 24))
    with mock.patch.object(os, 'get_terminal_size', return_value=size):
      return tables.fit(text, mock.Mock())

  def test_a_wide_table_becomes_several(self):
    rows = [
      {'method': name, 'a' * 9: 1, 'b' * 9: 2, 'c' * 9: 3} for name in 'xy'
    ]
    text = 'Before.\n' + tables.markdown(rows) + '\nAfter.\n'
    expected = (
      'Before.\n'
      '| method | aaaaaaaaa | bbbbbbbbb |\n'
      '| ------ | --------: | --------: |\n'
      '| x      |         1 |         2 |\n'
      '| y      |         1 |         2 |\n'
      '\n'
      '| method | ccccccccc |\n'
      '| ------ | --------: |\n'
      '| x      |         3 |\n'
      '| y      |         3 |\n'
      '\nAfter.\n'
    )
    self.assertEqual(self.fit(text, 34), expected)
    self.assertEqual(self.fit(text, 45), expected)
    self.assertEqual(self.fit(text, 46), text)
    self.assertEqual(self.fit(text, 0), text)
    # A column that is wider than the terminal has a table of its own.
    self.assertLen(self.fit(text, 5).split('\n\n'), 4)

  def test_a_file_is_no_terminal(self):
    text = tables.markdown([{'a' * 300: 1}])
    with self.create_tempfile().open_text('w') as f:
      self.assertEqual(tables.fit(text, f), text)
    self.assertEqual(tables.fit(text, None), text)


class MarkdownTest(parameterized.TestCase):
  def test_numbers_right_and_text_left(self):
    rows = [
      {'name': 'a', 'n': 1, 'rate': 0.5},
      {'name': 'longer', 'n': 20_000, 'rate': 1 / 3},
    ]
    expected = (
      '| name   |      n |   rate |\n'
      '| ------ | -----: | -----: |\n'
      '| a      |      1 |    0.5 |\n'
      '| longer | 20,000 | 0.3333 |\n'
    )
    self.assertEqual(tables.markdown(rows), expected)

  @parameterized.parameters(
    (None, '-'),
    (1234567, '1,234,567'),
    (0.123456, '0.1235'),
    (1e-9, '1e-09'),
    (float('nan'), 'nan'),
    ('text', 'text'),
  )
  def test_cell(self, value, expected):
    last = tables.markdown([{'h': value}]).splitlines()[-1]
    self.assertEqual(last.strip('| '), expected)

  def test_a_gap_in_a_column_of_numbers(self):
    lines = tables.markdown([{'number': None}, {'number': 2.5}]).splitlines()
    self.assertEqual(
      lines, ['| number |', '| -----: |', '|      - |', '|    2.5 |']
    )

  def test_rule_has_three_dashes_at_least(self):
    lines = tables.markdown([{'a': 'x', 'b': 1}]).splitlines()
    self.assertEqual(lines[1], '| --- | --: |')

  def test_rows_may_be_an_iterator(self):
    rows = [{'a': 'x', 'b': 1}, {'a': 'y', 'b': 2}]
    self.assertEqual(tables.markdown(iter(rows)), tables.markdown(rows))


class CsvTest(parameterized.TestCase):
  def test_writes_a_header_and_the_records(self):
    path = pathlib.Path(self.create_tempdir().full_path) / 'new' / 'table.csv'
    records = [{'a': 1, 'b': 'x, "y"'}, {'a': 0.1, 'b': None}]
    tables.write_csv(path, records)
    self.assertEqual(path.read_text(), 'a,b\n1,"x, ""y"""\n0.1,\n')
    found = [{'a': '1', 'b': 'x, "y"'}, {'a': '0.1', 'b': ''}]
    self.assertEqual(tables.read_csv(path), found)

  def test_other_fields_are_refused(self):
    """The file that is there stays whole."""
    path = pathlib.Path(self.create_tempdir().full_path) / 'table.csv'
    tables.write_csv(path, [{'a': 1}])
    with self.assertRaisesRegex(ValueError, "'b'"):
      tables.write_csv(path, [{'a': 1}, {'b': 2}])
    self.assertEqual(path.read_text(), 'a\n1\n')


if __name__ == '__main__':
  absltest.main()
