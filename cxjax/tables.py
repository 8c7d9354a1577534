"""Tables of records, as Markdown and CSV."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import csv
import io
import os
import pathlib
from typing import Any

from cxjax import files


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


def fit(text: str, stream: Any) -> str:
  """Splits Markdown tables that are wider than a terminal.

  Args:
    text: lines, some of them of tables.
    stream: stream that the text is written to, as `sys.stdout`. If it is no
      terminal, the text stays as it is.

  Returns:
    The text. In place of a wide table there are several, one below the other,
    each with the first column and as many others as fit.
  """
  try:
    columns = os.get_terminal_size(stream.fileno()).columns
  except (OSError, ValueError, AttributeError):
    return text
  # Some terminals, as of a notebook's process, have no width.
  return _fit(text, columns) if columns else text


def _fit(text: str, columns: int) -> str:
  lines: list[str] = []
  table: list[str] = []
  for row in [*text.split('\n'), None]:
    if row is not None and row.startswith('| '):
      table.append(row)
      continue
    lines += _split(table, columns)
    table = []
    if row is not None:
      lines.append(row)
  return '\n'.join(lines)


def _split(table: Sequence[str], columns: int) -> list[str]:
  """The lines of a table, or of several that are no wider than `columns`."""
  if not table or len(table[0]) <= columns:
    return list(table)
  # The cells keep their spaces: a column is as wide as in the whole table.
  rows = [row[1:-1].split('|') for row in table]
  widths = [len(cell) + 1 for cell in rows[0]]
  groups: list[list[int]] = [[]]
  used = first = widths[0] + 1
  for i, width in enumerate(widths[1:], 1):
    if groups[-1] and used + width > columns:
      groups.append([])
      used = first
    groups[-1].append(i)
    used += width
  lines: list[str] = []
  for group in groups:
    if lines:
      lines.append('')
    for row in rows:
      lines.append(f'|{"|".join(row[i] for i in [0, *group])}|')
  return lines


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
    return f'{value:.4g}'
  if isinstance(value, int):
    return f'{value:,}'
  return str(value)
