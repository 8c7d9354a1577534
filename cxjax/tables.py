"""Tables of records, as Markdown and CSV."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import csv
import io
import os
import pathlib
import sys
import textwrap
from typing import Any

from cxjax import files
from cxjax import streams

# Columns of text that goes to no terminal.
COLUMNS = 80


def markdown(rows: Iterable[Mapping[str, Any]]) -> str:
  """Formats an aligned Markdown table; numbers are right-aligned.

  Args:
    rows: at least one row, all with the same fields in the same order: the
      columns. None is shown as a dash.

  Returns:
    The table, with a final newline.
  """
  rows = list(rows)
  header = list(rows[0])
  rows = [list(row.values()) for row in rows]
  numeric = [
    any(isinstance(row[i], int | float) for row in rows)
    for i in range(len(header))
  ]
  cells = [[str(h) for h in header], *([_cell(c) for c in r] for r in rows)]
  widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]

  def line(row: Sequence[str]) -> str:
    fill = (
      c.rjust(w) if n else c.ljust(w)
      for c, w, n in zip(row, widths, numeric, strict=True)
    )
    return f'| {" | ".join(fill)} |'

  rule = (
    '-' * (w - 1) + ':' if n else '-' * w
    for w, n in zip(widths, numeric, strict=True)
  )
  lines = [line(cells[0]), f'| {" | ".join(rule)} |', *map(line, cells[1:])]
  return '\n'.join(lines) + '\n'


def width(stream: Any) -> int:
  """Number of columns of a stream.

  Args:
    stream: stream that text is written to, as `sys.stdout`.

  Returns:
    COLUMNS of the environment, or the columns of the terminal, or 80 where
    there is none, as in a file.
  """
  said = os.environ.get('COLUMNS', '')
  if said.isdecimal() and int(said):
    return int(said)
  try:
    return os.get_terminal_size(stream.fileno()).columns or COLUMNS
  except (OSError, ValueError, AttributeError):
    return COLUMNS


class Printed:
  """A result that prints as tables: they fit the terminal, as by `fit`.

  A notebook shows them whole. A subclass defines `markdown`.
  """

  def markdown(self) -> str:
    """Returns the whole text."""
    raise NotImplementedError

  def __str__(self) -> str:
    """Returns the text with tables that fit the terminal, or 80 columns."""
    return fit(self.markdown(), sys.stdout)

  def _repr_markdown_(self) -> str:
    """Returns the text as a notebook shows it."""
    return self.markdown()


def fit(text: str, stream: Any, indent: str = '') -> str:
  """Splits wide Markdown tables and wraps long lines.

  Args:
    text: lines, some of them of tables.
    stream: stream that the text is written to, as `sys.stdout`.
    indent: beginning of the lines after the first of a wrapped line.

  Returns:
    The text, no wider than the stream. In place of a wide table there are
    several, one below the other, each with the first column and some of the
    others. Words that are longer than a line stay whole.
  """
  columns = width(stream)
  lines: list[str] = []
  table: list[str] = []
  for row in [*text.split('\n'), None]:
    if row is not None and row.startswith('| '):
      table.append(row)
      continue
    lines += _split(table, columns)
    table = []
    if row is not None:
      lines += _wrapped(row, columns, indent)
  return '\n'.join(lines)


def show(text: str) -> None:
  """Prints a text, no wider than stdout, if the program has one."""
  streams.show(fit(text, sys.stdout))


def _wrapped(line: str, columns: int, indent: str) -> list[str]:
  """The lines of a long line."""
  if len(line) <= columns:
    return [line]
  return textwrap.wrap(
    line,
    columns,
    subsequent_indent=indent,
    break_long_words=False,
    break_on_hyphens=False,
  )


def _split(table: Sequence[str], columns: int) -> list[str]:
  """The lines of a table, or of several that are no wider than `columns`."""
  if not table or len(table[0]) <= columns:
    return list(table)
  # The cells keep their spaces: a column is as wide as in the whole table.
  rows = [row[1:-1].split('|') for row in table]
  widths = [len(cell) + 1 for cell in rows[0]]
  groups = _grouped(widths, columns)
  # As many tables, but of about the same width.
  for fewer in range(columns - 1, 0, -1):
    if len(narrower := _grouped(widths, fewer)) > len(groups):
      break
    groups = narrower
  lines: list[str] = []
  for group in groups:
    if lines:
      lines.append('')
    for row in rows:
      lines.append(f'|{"|".join(row[i] for i in [0, *group])}|')
  return lines


def _grouped(widths: Sequence[int], columns: int) -> list[list[int]]:
  """Columns of a table, beside the first, that fit side by side."""
  groups: list[list[int]] = [[]]
  used = first = widths[0] + 1
  for i, size in enumerate(widths[1:], 1):
    if groups[-1] and used + size > columns:
      groups.append([])
      used = first
    groups[-1].append(i)
    used += size
  return groups


def rounded(value: float) -> float:
  """Rounds to one decimal, and numbers below 1 to two significant digits."""
  return round(value, 1) if abs(value) >= 1 else float(f'{value:.2g}')


def number(value: float, digits: int = 4) -> str:
  """Significant digits of a number, with commas and no exponent if it is large.

  Args:
    value: any number.
    digits: number of significant digits.

  Returns:
    Such as '0.01235', '12.35' and '12,350'; from 1e15 on an exponent.
  """
  text = f'{value:,.{digits}g}'
  if 'e+' in text and abs(value) < 1e15:
    return f'{float(text):,.0f}'
  return text


def write_csv(path: pathlib.Path, records: Sequence[Mapping[str, Any]]) -> None:
  """Writes records as CSV, atomically; their fields are the columns.

  Args:
    path: the file.
    records: at least one record, all with the same fields.

  Raises:
    UserError: the folder cannot be written.
  """
  text = io.StringIO()
  writer = csv.DictWriter(text, list(records[0]), lineterminator='\n')
  writer.writeheader()
  writer.writerows(records)
  files.write_text(path, text.getvalue())


def read_csv(path: pathlib.Path) -> list[dict[str, str]]:
  """The rows of a CSV file, as text by column."""
  with path.open(newline='') as f:
    return list(csv.DictReader(f))


def _cell(value: Any) -> str:
  """Formats the cell of a Markdown table."""
  if value is None:
    return '-'
  if isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, float):
    return number(value)
  if isinstance(value, int):
    return f'{value:,}'
  return str(value)
