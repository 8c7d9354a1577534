"""The table of the peers' benchmark."""

from collections.abc import Mapping
from collections.abc import Sequence
import importlib.metadata
import os
import platform
from typing import Any
from typing import TypeAlias

from cxjax import tables
from experiments.benchmarks.peers import compare as compare

Row: TypeAlias = dict[str, Any]

HEADER = """\
Python {python}, jax {jax}, {cores} cores, size {size}, {rounds} rounds.
{quiet}

The same step everywhere: sizes, batches, initial weights, loss and optimizer; \
the losses of the first {steps} steps agree, or a side is not timed. \
Microseconds of one step of one student, median (min..max) of rounds that take \
turns. A whole run has the log, the evaluations and the checkpoints of the \
experiment's config. The limit is what the products of a step take alone on \
this machine, and one pass of the optimizer over memory; the share is its part \
of the time.
"""
LOADED = (
  'The machine was not quiet: others kept {busy:.1f} of its cores busy. The '
  'times are too long, and the ratios uncertain.'
)
# Columns of the CSV file.
FIELDS = (
  'case',
  'side',
  'us',
  'low',
  'high',
  'times ours',
  'cpu us',
  'whole us',
  'share',
  'compile s',
  'first step s',
  'MB',
  'busy',
  'note',
)


def records(rows: Sequence[Row]) -> list[Row]:
  """Returns the rows with all fields, in their order."""
  return [{field: row.get(field) for field in FIELDS} for row in rows]


def render(rows: Sequence[Row], options: compare.Options, steps: int) -> str:
  """Renders the page.

  Args:
    rows: rows of `compare.compare`.
    options: options of the benchmark.
    steps: number of steps whose losses were compared.

  Returns:
    Markdown.
  """
  busy = max(row['busy'] for row in rows)
  text = HEADER.format(
    python=platform.python_version(),
    jax=importlib.metadata.version('jax'),
    cores=len(os.sched_getaffinity(0)),
    size=options.size,
    rounds=options.rounds,
    steps=steps,
    quiet=(
      LOADED.format(busy=busy)
      if busy > compare.QUIET
      else 'Before and after each case others kept at most '
      f'{busy:.2f} cores busy.'
    ),
  )
  parts = [text]
  for case in dict.fromkeys(row['case'] for row in rows):
    own = [row for row in rows if row['case'] == case]
    timed = [_line(row) for row in own if 'us' in row]
    parts += [f'## {case}\n', tables.markdown(timed)]
    notes = [
      f'- {row["side"]}: {row["note"]}\n' for row in own if row.get('note')
    ]
    parts.append(''.join(notes))
  return '\n'.join(parts)


def _line(row: Mapping[str, Any]) -> Row:
  """Returns the cells of a side that was timed, or of the limit."""
  us = tables.number(row['us'])
  if 'low' in row:
    low, high = (tables.number(row[name], 3) for name in ('low', 'high'))
    us += f' ({low}..{high})'
  number = lambda name, digits=3: (
    None if row.get(name) is None else tables.number(row[name], digits)
  )
  share = row.get('share')
  return {
    'side': row['side'],
    'us': us,
    'times ours': number('times ours'),
    'CPU us': number('cpu us'),
    'whole run, us': number('whole us'),
    'share of the limit': None if share is None else f'{share:.0%}',
    'compile, s': number('compile s'),
    'first step, s': number('first step s'),
    'peak, MB': number('MB', 4),
  }
