r"""Growth of a step's time: what it costs to scale each size of a run.

One encoder that learns from another one (the case 'bert' of peers/cases.py), of
which one size at a time is doubled several times. The exponent is the slope of
a line through the logarithms: 1 is time in proportion to the size.

Run:
  python -m experiments.benchmarks.growth

Writes growth.{md,csv,png} into --out: the time of a step of all students, the
seconds of compilation, and the exponents.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import os
import pathlib
import statistics
from typing import Any
from typing import TypeAlias

from absl import flags
import jax
import numpy as np

from cxjax import errors
from cxjax import files
from cxjax import tables
from cxjax.configs import cli
from cxjax.parallel import devices as devices_lib
from experiments.benchmarks import machine
from experiments.benchmarks import one_stage
from experiments.benchmarks import rounds
from experiments.benchmarks.peers import cases as cases_lib
from experiments.benchmarks.peers import ours as ours

Row: TypeAlias = dict[str, Any]

# Factors of each size, from that of the case on.
AXES: Mapping[str, Sequence[float]] = {
  'students': (1, 2, 4, 8),
  'width': (1, 2, 4, 8),
  'depth': (0.25, 0.5, 1, 2),
  'batch': (0.25, 0.5, 1, 2),
  'vocabulary': (0.5, 1, 2, 4),
  'length': (0.5, 1, 2, 4),
}
_AXES = flags.DEFINE_list('axes', list(AXES), 'Sizes that grow.')
_SIZE = flags.DEFINE_enum(
  'size', 'full', list(cases_lib.SIZES), 'Sizes of the networks.'
)
HEADER = """\
jax {jax}, {cores} cores, {busy:.1f} busy with others. Milliseconds of one \
step of all students, medians of {rounds} rounds, in which the sizes of a line \
take turns. Lines were measured one after the other: the same step may differ \
from line to line.
"""


def scaled(
  case: cases_lib.Case, axis: str, factor: float
) -> tuple[cases_lib.Case, int, int]:
  """Scales one size of a case.

  Args:
    case: the case.
    axis: key of `AXES`.
    factor: the factor.

  Returns:
    The case, its number of students, and the size.
  """
  grown = lambda size: max(round(size * factor), 1)
  if axis == 'students':
    return case, grown(1), grown(1)
  if axis in ('width', 'depth'):
    models = {
      role: dataclasses.replace(model, **{axis: grown(getattr(model, axis))})
      for role, model in (('teacher', case.teacher), ('student', case.student))
    }
    found = dataclasses.replace(case, **models)
    return found, 1, getattr(found.student, axis)
  field = {'batch': 'batch', 'vocabulary': 'classes', 'length': 'inputs'}[axis]
  sizes = {field: grown(getattr(case, field))}
  if axis == 'length':  # The same share of the tokens is predicted.
    sizes['predicted'] = grown(case.predicted)
  return dataclasses.replace(case, **sizes), 1, sizes[field]


def exponent(sizes: Sequence[float], times: Sequence[float]) -> float:
  """Returns the slope of a line through the logarithms."""
  slope, _ = np.polyfit(np.log(sizes), np.log(times), 1)
  return float(slope)


def error(sizes: Sequence[float], times: Sequence[float]) -> float | None:
  """Returns the standard error of the slope; None for two points."""
  x, y = np.log(sizes), np.log(times)
  if len(x) < 3:
    return None
  rest = y - np.polyval(np.polyfit(x, y, 1), x)
  return float(np.sqrt(np.sum(rest**2) / (len(x) - 2) / np.var(x) / len(x)))


def measure(
  case: cases_lib.Case, axis: str, turns: int, *, tiny: bool
) -> Iterator[Row]:
  """Times an axis; its points take turns.

  Args:
    case: the case.
    axis: key of `AXES`.
    turns: number of rounds.
    tiny: whether rounds are short.

  Yields:
    A row for each point.
  """
  sides, sizes = {}, {}
  for factor in AXES[axis]:
    grown, students, size = scaled(case, axis, factor)
    side = one_stage.Ours(ours.make_spec(grown, students, live=True))
    sides[str(size)], sizes[str(size)] = side, size
  found = list(rounds.measure(sides, turns, tiny=tiny))
  us = rounds.times(found)
  for name, side in sides.items():
    # Of all students, not of one.
    times = [time * side.seeds for time in us[name]]
    yield {
      'axis': axis,
      'size': sizes[name],
      'us': statistics.median(times),
      'low': min(times),
      'high': max(times),
      'compile s': side.built,
    }


def render(rows: Sequence[Row], turns: int, busy: float) -> str:
  """Renders the page: an axis a line, with its exponent.

  Args:
    rows: rows from `measure`.
    turns: number of rounds.
    busy: the most cores that others kept busy, seen between two axes.

  Returns:
    Markdown.
  """
  text = HEADER.format(
    jax=jax.__version__,
    cores=len(os.sched_getaffinity(0)),
    busy=busy,
    rounds=turns,
  )
  lines = []
  for axis in dict.fromkeys(row['axis'] for row in rows):
    own = [row for row in rows if row['axis'] == axis]
    sizes, times = ([row[key] for row in own] for key in ('size', 'us'))
    lines.append(
      {
        'size': axis,
        'values': ', '.join(f'{size:,}' for size in sizes),
        'ms': ', '.join(tables.number(time / 1e3, 3) for time in times),
        'of the rounds': ', '.join(map(_range, own)),
        'exponent': round(exponent(sizes, times), 2),
        'standard error': _rounded(error(sizes, times)),
        'of the last doubling': round(exponent(sizes[-2:], times[-2:]), 2),
        'compile, s': ', '.join(f'{row["compile s"]:.1f}' for row in own),
      }
    )
  return f'{text}\n{tables.markdown(lines)}'


def _range(row: Row) -> str:
  """The quickest and the slowest round, in milliseconds."""
  low, high = (tables.number(row[name] / 1e3, 3) for name in ('low', 'high'))
  return f'{low} to {high}'


def _rounded(value: float | None) -> float | None:
  return None if value is None else round(value, 2)


def plot(rows: Sequence[Row], path: pathlib.Path) -> None:
  """Plots the time of a step against each size, relative to the first point."""
  from cxjax.analysis import plots

  figure, (panel,) = plots.axes('size, times the smallest', 'time of a step')
  for axis in dict.fromkeys(row['axis'] for row in rows):
    own = [row for row in rows if row['axis'] == axis]
    sizes, times = ([row[key] for row in own] for key in ('size', 'us'))
    panel.loglog(
      np.divide(sizes, sizes[0]),
      np.divide(times, times[0]),
      marker='o',
      label=f'{axis}: {exponent(sizes, times):.2f}',
      base=2,
    )
  for axis in (panel.xaxis, panel.yaxis):
    axis.set_major_formatter(lambda value, _: f'{value:g}')
  panel.set_ylabel('time of a step, times that of the smallest')
  panel.legend(title='exponent', frameon=False)
  plots.save(figure, path)


def main(argv: list[str]) -> None:
  """Times the axes, and writes the table after each."""
  del argv
  jax.config.update('jax_platforms', 'cpu')
  case, turns = cases_lib.SIZES[_SIZE.value]['bert'], rounds.ROUNDS.value
  errors.require(bool(_AXES.value), '--axes= is empty: leave it out for all.')
  for axis in _AXES.value:
    errors.lookup('axis', axis, AXES)
  devices_lib.split_cpu(ours.make_config(case, 1).mesh.cpu_devices)
  stem = pathlib.Path(rounds.OUT.value) / 'growth'
  rows: list[Row] = []
  busy = 0.0
  for axis in _AXES.value:
    rows += measure(case, axis, turns, tiny=_SIZE.value == 'tiny')
    busy = max(busy, machine.busy_cores())
    text = render(rows, turns, busy)
    files.write_text(stem.with_suffix('.md'), text)
    tables.write_csv(stem.with_suffix('.csv'), rows)
    plot(rows, stem.with_suffix('.png'))
  cli.show(text)


if __name__ == '__main__':
  cli.run(main)
