r"""Costs of large runs on slices of TPUs: a plan from dry runs.

Run, with libtpu (pip install 'libtpu>=0.0.52'), about two hours on one core:
  python -m experiments.scaling

Writes experiments/scaling.md, and scaling.csv into --results, again after every
stage. --workdir keeps each compiled stage, which is compiled again only if its
config changes. A stage that scaling.csv has already keeps its row; --recompile
compiles these too. --written compiles nothing.
"""

import dataclasses
import pathlib
import time
from typing import Any

from absl import flags
from absl import logging

from cxjax import errors
from cxjax import files
from cxjax import tables
from cxjax.analysis import dry_run
from cxjax.analysis import hlo_cost
from cxjax.configs import builders
from cxjax.configs import cli
from cxjax.parallel import devices as devices_lib
from experiments import paths
from experiments import scaling_cases as cases
from experiments import scaling_report as report

_WRITTEN = flags.DEFINE_bool(
  'written', False, 'Compile nothing, and write the page of finished stages.'
)
_RECOMPILE = flags.DEFINE_bool(
  'recompile', False, 'Compile the stages that scaling.csv has already.'
)
PAGE = pathlib.Path('experiments/scaling.md')


def _path(point: cases.Point) -> pathlib.Path:
  """Returns the file of a compiled stage."""
  file = '-'.join(point).replace(':', '-').replace(' ', '-')
  return paths.workdir('scaling') / f'{file}.json'


def compile_stage(point: cases.Point) -> None:
  """Compiles a stage, and writes its estimate to its file."""
  name, topology, stage = point
  begin = time.perf_counter()
  specs = builders.abstract_specs(
    cases.config(point), ['extracted'], devices_lib.topology(topology)
  )
  spec = specs['teacher' if stage == cases.LABELS else 'extracted']
  at = -1 if stage in (cases.LABELS, cases.OUTPUT) else 0
  spec = dataclasses.replace(spec, stages=(spec.stages[at],))
  (found,) = dry_run.estimate(name, spec)
  seconds = time.perf_counter() - begin
  files.write_json(
    _path(point),
    {
      'seconds': seconds,
      'config': cases.digest(point),
      **dataclasses.asdict(found),
    },
  )
  logging.info('%s, %s on %s: %.0f s', name, stage, topology, seconds)


def finished(point: cases.Point) -> dry_run.Estimate | None:
  """Returns the estimate of a stage if it was compiled with this config."""
  path = _path(point)
  if not path.exists():
    return None
  record = files.read_json(path)
  del record['seconds']
  if record.pop('config', None) != cases.digest(point):
    return None
  for name, kind in (
    ('chip', devices_lib.Chip),
    ('memory', dry_run.Memory),
    ('cost', hlo_cost.Cost),
  ):
    record[name] = record[name] and kind(**record[name])
  return dry_run.Estimate(**record)


def _file() -> pathlib.Path:
  """Returns the CSV file."""
  return paths.results() / 'scaling.csv'


def stored() -> dict[cases.Point, report.Row]:
  """Returns the rows of the CSV file whose slices and batches are today's."""
  found = {}
  for row in tables.read_csv(_file()) if _file().exists() else []:
    cells = {column: _number(cell) for column, cell in row.items()}
    point = cells['case'], cells['slice'], cells['stage']
    if point in cases.points():
      chips = cases.SLICES[cells['slice']]
      if cells['rows'] == cases.CASES[cells['case']].rows[chips]:
        found[point] = cells
  return found


def _number(cell: str) -> Any:
  """Returns the number that a cell of a CSV file is, or its text."""
  for kind in (int, float):
    try:
      return kind(cell)
    except ValueError:
      pass
  return cell


def write() -> None:
  """Writes the page and the CSV file of the stages that are finished.

  Raises:
    UserError: no stage is finished, or one does not fit.
  """
  rows: dict[tuple[str, str], dict[str, report.Row]] = {}
  earlier = stored()
  for point in cases.points():
    name, topology, stage = point
    found = finished(point)
    if found is None:
      if point in earlier:
        rows.setdefault((name, topology), {})[stage] = earlier[point]
      continue
    errors.require(
      found.memory is not None,
      f'{stage} of {name} on {topology} does not fit: {found.memory_problem}. '
      f'Change its case, and remove {_path(point)}.',
    )
    by_stage = rows.setdefault((name, topology), {})
    by_stage[stage] = report.row(point, found)
  errors.require(
    bool(rows),
    f'{paths.workdir("scaling")} has no finished stage. Run without --written '
    'to compile some.',
  )
  files.write_text(PAGE.absolute(), report.page(rows))
  flat = [one for key in sorted(rows) for one in rows[key].values()]
  tables.write_csv(_file(), flat)


def main(argv: list[str]) -> None:
  """Compiles the stages that are missing, and writes the page."""
  del argv
  earlier = () if _RECOMPILE.value else stored()
  for point in cases.points():
    done = point in earlier or finished(point) is not None
    if not done and not _WRITTEN.value:
      compile_stage(point)
      write()
  write()


if __name__ == '__main__':
  cli.run(main)
