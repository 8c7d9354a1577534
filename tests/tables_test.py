"""Tables of records, as Markdown and CSV."""

import os
import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from cxjax import tables


class FitTest(parameterized.TestCase):
  def fit(self, text, columns):
    size = os.terminal_size((columns, 24))
    with mock.patch.object(os, 'get_terminal_size', return_value=size):
      return tables.fit(text, mock.Mock())

  def setUp(self):
    super().setUp()
    self.enter_context(mock.patch.dict(os.environ, clear=True))

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
    # A column that is wider than the terminal has a table of its own.
    self.assertLen(self.fit(text, 8).split('\n\n'), 4)

  def test_its_parts_are_of_like_width(self):
    """Four columns are two and two, although three would fit."""
    four = {'m': 1} | {letter * 9: 1 for letter in 'abcd'}
    text = tables.markdown([four])
    self.assertLen(text.splitlines()[0], 55)
    heads = [part.splitlines()[0] for part in self.fit(text, 45).split('\n\n')]
    self.assertEqual(
      heads,
      ['|   m | aaaaaaaaa | bbbbbbbbb |', '|   m | ccccccccc | ddddddddd |'],
    )

  def test_words_are_wrapped(self):
    text = 'one two three/four-five\n\nsix\n' + 'x' * 12 + '\n'
    expected = 'one two\nthree/four-five\n\nsix\n' + 'x' * 12 + '\n'
    self.assertEqual(self.fit(text, 10), expected)
    self.assertEqual(self.fit(text, 80), text)

  def test_later_lines_may_be_indented(self):
    found = tables.fit('word ' * 20, None, indent='  ').splitlines()
    self.assertEqual(
      found, ['word ' * 15 + 'word', '  ' + 'word ' * 3 + 'word']
    )

  @parameterized.parameters(
    ({}, 100, 100),
    ({}, 0, 80),  # Some terminals have no width, as that of a notebook.
    ({}, None, 80),
    ({'COLUMNS': '200'}, None, 200),
    ({'COLUMNS': '200'}, 100, 200),
    ({'COLUMNS': 'wide'}, None, 80),
    ({'COLUMNS': '0'}, 100, 100),
  )
  def test_width(self, environment, terminal, expected):
    """The terminal's, or 80, as in a file."""
    size = os.terminal_size((terminal or 0, 24))
    error = OSError if terminal is None else None
    with (
      mock.patch.dict(os.environ, environment),
      mock.patch.object(
        os, 'get_terminal_size', return_value=size, side_effect=error
      ),
    ):
      self.assertEqual(tables.width(mock.Mock()), expected)
    self.assertEqual(tables.width(None), 80)


class Result(tables.Printed):
  def markdown(self):
    return tables.markdown([{'m': 0, 'a' * 50: 1, 'b' * 50: 2}])


class PrintedTest(absltest.TestCase):
  def test_fits_where_it_is_printed_and_is_whole_in_a_notebook(self):
    self.assertEqual(Result()._repr_markdown_(), Result().markdown())
    for columns, tables_in_all in (('80', 2), ('200', 1)):
      with mock.patch.dict(os.environ, {'COLUMNS': columns}):
        self.assertLen(str(Result()).strip().split('\n\n'), tables_in_all)


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
    (1234.5, '1,234'),
    (12_345.6, '12,350'),
    (999_999.0, '1,000,000'),
    (-3e9, '-3,000,000,000'),
    (2e15, '2e+15'),
    (float('inf'), 'inf'),
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


class RoundedTest(parameterized.TestCase):
  @parameterized.parameters(
    (12_345.67, 12_345.7),
    (1.26, 1.3),
    (0.999, 1.0),
    (0.04567, 0.046),
    (4.587e-4, 4.6e-4),
    (0.0, 0.0),
  )
  def test_small_numbers_keep_two_digits(self, value, expected):
    self.assertEqual(tables.rounded(value), expected)


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
