r"""Draws pictures from the CSV files of finished runs.

How many students have solved a parity: of runs whose curves were not kept, and
of those whose seeds are learned in jumps at steps of their own. And how well
the students of the grammar end, by method and budget.

Run:
  python -m experiments.pictures

Draws parity_d100_k6.png, parity_d50_k6_long.png, parity_transformer.png and
pcfg_bert_budgets.png into --results.
"""

import pathlib

from matplotlib import ticker
import numpy as np

from cxjax import errors
from cxjax import tables
from cxjax.analysis import plots
from cxjax.configs import cli
from experiments import paths

TITLES = {
  'parity_d100_k6': 'Parity of 6 of 100 bits',
  'parity_d50_k6_long': 'Parity of 6 of 50 bits, long runs',
  'parity_transformer': 'Parity of 4 of 30 tokens, GPT-2',
}
# Tables of the grammar by budget, and the names of their rows in the picture.
BUDGETS = {
  'equal steps': (
    'pcfg_bert',
    {name: name for name in plots.COLORS},
  ),
  'equal FLOPs': (
    'pcfg_bert_endings',
    {
      'labels alone (supervised), FLOPs of one_shot': 'supervised',
      'one_shot': 'one_shot',
      'extracted, FLOPs of one_shot': 'extracted',
      'extracted, ending on mixed, FLOPs of one_shot': 'extracted, mixed',
      'extracted, ending on labels, FLOPs of one_shot': 'extracted_labels',
    },
  ),
}
TEACHER = 0.848  # Top-1 of the grammar's teacher, of the same runs.
SOLVED = 'steps_to_0.99'
APART = 0.015  # Distance of lines that coincide, of the height of the axes.


def solved(path: pathlib.Path) -> dict[str, tuple[np.ndarray, int, int]]:
  """Reads when the students of each method reached an accuracy of 99%.

  Args:
    path: CSV file of a comparison, with a row for each student.

  Returns:
    By method the steps of those that did, ascending; the number of students;
    and the number of steps that they were trained for.

  Raises:
    UserError: the file has no such columns.
  """
  rows = tables.read_csv(path)
  errors.require(
    bool(rows) and {'method', 'steps', SOLVED} <= set(rows[0]),
    f'{path} lacks the columns method, steps or {SOLVED}. Give the CSV file of '
    'a comparison.',
  )
  found = {}
  for method in dict.fromkeys(row['method'] for row in rows):
    mine = [row for row in rows if row['method'] == method]
    steps = sorted(int(row[SOLVED]) for row in mine if row[SOLVED])
    found[method] = (np.array(steps, int), len(mine), int(mine[0]['steps']))
  return found


def draw(path: pathlib.Path, picture: pathlib.Path, title: str) -> None:
  """Draws the number of students at 99% against steps.

  Args:
    path: CSV file of a comparison.
    picture: path of the PNG file.
    title: title of the plot.

  Raises:
    UserError: the CSV file is another one, or the picture cannot be written.
  """
  found = solved(path)
  figure, (panel,) = plots.axes('student steps', 'students at 99% accuracy')
  count = max(students for _, students, _ in found.values())
  for i, (method, (steps, students, total)) in enumerate(found.items()):
    x = np.concatenate([[0], steps, [total]])
    y = np.concatenate([np.arange(len(steps) + 1), [len(steps)]])
    # Side by side where they coincide.
    beside = APART * count * ((len(found) - 1) / 2 - i)
    plots.draw_line(
      panel,
      x,
      y + beside,
      method,
      label=f'{method}: {len(steps)} of {students}',
      color=plots.COLORS[method],
      drawstyle='steps-post',
    )
  panel.yaxis.set_major_locator(ticker.MaxNLocator(integer=True))
  panel.set(ylim=(-0.03 * count, 1.05 * count), title=title)
  panel.legend(frameon=False, loc='upper left', bbox_to_anchor=(1.01, 1.0))
  plots.save(figure, picture)


def ends(path: pathlib.Path) -> dict[str, tuple[float, float, float]]:
  """Reads the top-1 accuracies that methods end with.

  Args:
    path: CSV file with a row for each method.

  Returns:
    The lowest, the mean and the highest of the seeds of each method.

  Raises:
    UserError: the file has no such columns, or a cell is no number.
  """
  columns = 'min', 'top-1: mean', 'max'
  rows = tables.read_csv(path)
  errors.require(
    bool(rows) and {'method', *columns} <= set(rows[0]),
    f'{path} lacks the columns method, {", ".join(columns)}.',
  )
  found = {}
  for number, row in enumerate(rows, 1):
    low, mean, high = (
      _number(row[column], f'{path}, row {number}: {column}')
      for column in columns
    )
    found[row['method']] = low, mean, high
  return found


def _number(text: str | None, where: str) -> float:
  try:
    return float(text or '')
  except ValueError as error:
    raise errors.UserError(
      f'{where}={text!r} must be a number. Restore the file, or run its '
      'experiment again.'
    ) from error


def draw_budgets(folder: pathlib.Path, picture: pathlib.Path) -> None:
  """Draws how well the students of the grammar end, a panel a budget.

  Args:
    folder: folder of the CSV files.
    picture: path of the PNG file.

  Raises:
    UserError: a file lacks a method or a column, or a cell is no number.
  """
  figure, panels = plots.axes('top-1 on masked tokens', '', columns=2, width=4)
  for panel, (budget, (name, methods)) in zip(
    panels, BUDGETS.items(), strict=True
  ):
    path = folder / f'{name}.csv'
    found = ends(path)
    for method in methods:
      errors.require(
        method in found,
        f'{path} has no row of the method {method!r}. Restore the file, or run '
        'its experiment again.',
      )
    for at, (method, label) in enumerate(reversed(methods.items())):
      low, mean, high = found[method]
      color = plots.COLORS[label.split(',')[0].removesuffix('_labels')]
      panel.plot([low, high], [at, at], color=color)
      panel.plot(mean, at, 'o', color=color)
    panel.set_yticks(range(len(methods)), list(methods.values())[::-1])
    panel.axvline(TEACHER, color='gray', linewidth=1, zorder=1)
    panel.text(TEACHER - 0.005, len(methods) - 0.6, 'teacher', ha='right')
    panel.set(title=budget, xlim=(0.54, 0.9), ylim=(-0.5, len(methods) - 0.3))
  figure.tight_layout()
  plots.save(figure, picture)


def main(argv: list[str]) -> None:
  """Draws the pictures."""
  del argv
  paths.require_unset('workdir')
  folder = paths.results()
  draw_budgets(folder, folder / 'pcfg_bert_budgets.png')
  for name, title in TITLES.items():
    draw(folder / f'{name}.csv', folder / f'{name}.png', title)


if __name__ == '__main__':
  cli.run(main)
