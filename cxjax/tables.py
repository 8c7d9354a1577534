"""Tables as text."""

from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any


def markdown(rows: Iterable[Mapping[str, Any]]) -> str:
  """An aligned Markdown table; columns of numbers are right-aligned.

  Args:
    rows: at least one, all with the same fields in the same order: the columns.
      None is shown as a dash.

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

  def line(row):
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


def _cell(value: Any) -> str:
  if value is None:
    return '-'
  if isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, float):
    return f'{value:.4g}'
  if isinstance(value, int):
    return f'{value:,}'
  return str(value)
