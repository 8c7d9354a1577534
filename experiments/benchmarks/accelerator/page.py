"""The page of the accelerator benchmark, from its rows."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import pathlib
from typing import Any
from typing import TypeAlias

from cxjax import files
from cxjax import tables

Row: TypeAlias = dict[str, Any]
Rows: TypeAlias = Sequence[Row]

LEGEND = """\
Times: median (min..max) of the rounds, in which the sides take turns; in steps,
microseconds of one step of one student. 'per second' counts tokens, padding
included, or examples of an MLP. 'times ours': ratio of the medians (median of
the ratios of the rounds). 'of peak': FLOPs of a step, counted from its jaxpr,
over the time and the measured peak. 'loss difference': the largest of the
first 100 steps, relative to the first loss. 'build s' is near 0 if a cache had
it.
"""
TITLES = {
  'environment': 'Machine',
  'steps': 'Steps',
  'kernels': 'What a step of one student goes to',
  'attention': 'Attention, bfloat16, forward and backward',
  'agreement': 'Runs on the device against runs on the CPU',
  'tests': 'Fast tests',
  'failures': 'First failures',
}


def span(row: Row) -> str:
  """Returns a median and its range as text."""
  us, low, high = (tables.number(row[name]) for name in ('us', 'low', 'high'))
  return f'{us} ({low}..{high})'


def share(row: Row, peaks: Mapping[str, float]) -> str | None:
  """Returns the share of the measured peak, None if it is not known.

  Args:
    row: row of the table of steps.
    peaks: TFLOP per second, by the type of the computation.

  Returns:
    A percentage.
  """
  peak = peaks.get(row['compute'])
  if not row.get('flops') or not peak:
    return None
  return f'{row["flops"] / row["us"] / 1e6 / peak:.1%}'


def _environment(rows: Rows) -> Iterator[Row]:
  for row in rows:
    yield {'measure': row['measure'], 'value': _text(row['value'])}


def _text(value: Any) -> str:
  return tables.number(value) if isinstance(value, float) else str(value)


def _steps(rows: Rows, peaks: Mapping[str, float]) -> Iterator[Row]:
  for row in rows:
    yield {
      'case': row['case'],
      'side': row['side'],
      'us': span(row),
      'per second': row['tokens/s'],
      'times ours': row['times ours'],
      'of peak': share(row, peaks),
      'loss difference': row['difference'],
      'build s': row['build s'],
    }


def _attention(rows: Rows) -> Iterator[Row]:
  for row in rows:
    yield {
      **{k: row[k] for k in ('length', 'batch', 'masked', 'implementation')},
      'us': span(row),
      'output': row['difference of the output'],
      'gradients': row['of the gradients'],
      'agrees': row['agrees'],
    }


def _plain(rows: Rows) -> Iterator[Row]:
  for row in rows:
    yield {name: value for name, value in row.items() if name != 'table'}


def _failed(rows: Rows) -> Iterator[Row]:
  """Sides that did not work, with their error."""
  for row in rows:
    if 'error' in row and row['table'] != 'failures':
      names = ('table', 'case', 'side', 'length', 'implementation')
      parts = [str(row[name]) for name in names if name in row]
      masked = ' masked' if row.get('masked') else ''
      yield {'what': ' '.join(parts) + masked, 'error': row['error']}


def page(rows: Rows, cases: Rows) -> str:
  """Returns the page.

  Args:
    rows: rows of all cases; 'table' says where a row belongs.
    cases: name, result and seconds of each case.

  Returns:
    The Markdown text.
  """
  by_table: dict[str, Rows] = {
    table: [r for r in rows if r['table'] == table and 'error' not in r]
    for table in TITLES
  }
  by_table['failures'] = [r for r in rows if r['table'] == 'failures']
  peaks = {
    row['measure'].split()[1].rstrip(','): row['value']
    for row in by_table['environment']
    if row['measure'].startswith('peak ')
  }
  lines = {
    'environment': list(_environment(by_table['environment'])),
    'steps': list(_steps(by_table['steps'], peaks)),
    'attention': list(_attention(by_table['attention'])),
    **{
      table: list(_plain(by_table[table]))
      for table in ('kernels', 'agreement', 'tests', 'failures')
    },
  }
  parts = ['# One accelerator', LEGEND, tables.markdown(cases)]
  for table, found in lines.items():
    if found:
      parts += [f'## {TITLES[table]}', tables.markdown(found)]
  if failed := list(_failed(rows)):
    parts += ['## What did not work', tables.markdown(failed)]
  return '\n'.join(part.rstrip('\n') + '\n' for part in parts)


def write(folder: pathlib.Path, rows: Rows, cases: Rows) -> str:
  """Writes `accelerator.md` and `accelerator.csv`.

  Args:
    folder: folder of both files.
    rows: rows of all cases, as for `page`.
    cases: name, result and seconds of each case, as for `page`.

  Returns:
    The page.

  Raises:
    UserError: the folder cannot be written.
  """
  text = page(rows, cases)
  files.write_text(folder / 'accelerator.md', text)
  every = [*rows, *({'table': 'cases', **case} for case in cases)]
  columns = dict.fromkeys(name for row in every for name in row)
  tables.write_csv(
    folder / 'accelerator.csv',
    [{name: row.get(name) for name in columns} for row in every],
  )
  return text
