"""Tests of the tables."""

from absl.testing import absltest
from absl.testing import parameterized

from cxjax import table


class MarkdownTest(parameterized.TestCase):
  def test_numbers_right_and_text_left(self):
    rows = [('a', 1, 0.5), ('longer', 20_000, 1 / 3)]
    text = table.markdown(('name', 'n', 'rate'), rows)
    expected = (
      '| name   |      n |   rate |\n'
      '| ------ | -----: | -----: |\n'
      '| a      |      1 |    0.5 |\n'
      '| longer | 20,000 | 0.3333 |\n'
    )
    self.assertEqual(text, expected)

  @parameterized.parameters(
    (None, '-'),
    (1234567, '1,234,567'),
    (0.123456, '0.1235'),
    (1e-9, '1e-09'),
    (float('nan'), 'nan'),
    ('text', 'text'),
  )
  def test_cell(self, value, expected):
    last = table.markdown(('h',), [(value,)]).splitlines()[-1]
    self.assertEqual(last.strip('| '), expected)

  def test_a_gap_in_a_column_of_numbers(self):
    lines = table.markdown(('number',), [(None,), (2.5,)]).splitlines()
    self.assertEqual(
      lines, ['| number |', '| -----: |', '|      - |', '|    2.5 |']
    )

  def test_rule_has_three_dashes_at_least(self):
    lines = table.markdown(('a', 'b'), [('x', 1)]).splitlines()
    self.assertEqual(lines[1], '| --- | --: |')

  def test_rows_may_be_an_iterator(self):
    rows = [('x', 1), ('y', 2)]
    self.assertEqual(
      table.markdown(('a', 'b'), iter(rows)), table.markdown(('a', 'b'), rows)
    )

  def test_without_rows(self):
    text = table.markdown(('name', 'b'), [])
    self.assertEqual(text, '| name | b   |\n| ---- | --- |\n')


if __name__ == '__main__':
  absltest.main()
