"""Plots of runs: a metric against steps, for several methods."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import io
import itertools
import pathlib
import textwrap
from typing import Any

from matplotlib import figure as mpl
from matplotlib import lines
from matplotlib import patches
from matplotlib import patheffects
from matplotlib.axes import Axes
import numpy as np

from cxjax import checks
from cxjax import errors
from cxjax import files
from cxjax import types
from cxjax.parallel import multihost
from cxjax.training import metric_log

# The palette of Okabe and Ito, which readers without color vision can tell
# apart.
COLORS = {
  'supervised': '#333333',
  'one_shot': '#0072B2',
  'progressive': '#E69F00',
  'extracted': '#D55E00',
}
# Colors of runs that are none of these methods.
OTHERS = ('#009E73', '#CC79A7', '#56B4E9', '#999999')
# Strips of stages above the axes: height and distance, of the height of the
# axes; points of the axes' width, and of a letter, to tell which names fit.
STRIP, GAP, WIDTH, LETTER = 0.05, 0.015, 340, 4.5


def save(figure: mpl.Figure, path: pathlib.Path) -> None:
  """Writes a figure as PNG; of several processes the first one writes.

  Args:
    figure: the figure.
    path: path of the PNG file.

  Raises:
    UserError: the file cannot be written, or the path is that of a folder.
  """
  path = checks.file('path', path)
  if not multihost.is_first():
    return
  with files.written(path, 'path'):
    path.parent.stat()  # A folder that is missing may be a mistake.
  drawn = io.BytesIO()
  figure.savefig(drawn, format='png', dpi=150, bbox_inches='tight')
  files.write_bytes(path, drawn.getvalue(), 'path')


def axes(
  xlabel: str, ylabel: str, columns: int = 1, rows: int = 1, width: float = 6.4
) -> tuple[mpl.Figure, Sequence[Axes]]:
  """Makes a figure and its panels in the style of the project.

  Args:
    xlabel: label of the horizontal axes.
    ylabel: label of the vertical axes.
    columns: number of panels side by side.
    rows: number of panels one above the other.
    width: width of a panel, in inches.

  Returns:
    The figure, and its panels row by row.
  """
  # pyplot would look for a screen and keep every figure in memory.
  figure = mpl.Figure(figsize=(width * columns, 4 * rows))
  panels = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
  for panel in panels:
    panel.set(xlabel=xlabel, ylabel=ylabel)
    panel.grid(alpha=0.3)
    panel.spines[['top', 'right']].set_visible(False)
  return figure, panels


def curves(
  runs: Mapping[str, Sequence[types.Record]],
  metric: str,
  ylabel: str,
  path: pathlib.Path,
  title: str = '',
  xlabel: str = 'student steps',
  teacher: float | None = None,
) -> None:
  """Plots a metric against steps: every seed, and their median.

  A dotted line in the color of a run marks the end of each of its stages, and a
  strip above the axes has the names of the stages.

  Args:
    runs: records of metrics.jsonl by method or by another name.
    metric: name of the metric, as in 'accuracy' for `eval/accuracy`.
    ylabel: label of the vertical axis.
    path: path of the PNG file.
    title: title of the plot; by default that it compares `ylabel`.
    xlabel: label of the horizontal axis, the unit of the records' steps.
    teacher: the teacher's value of the metric, drawn as a horizontal line.

  Raises:
    UserError: a run has no record of the metric, or the file cannot be written.
  """
  figure, (panel,) = axes(xlabel, ylabel)
  others = _styles()
  staged = [name for name, records in runs.items() if _ends(records)]
  seeds = 0
  for name, records in runs.items():
    known = COLORS.get(name)
    line, color = ('-', known) if known else next(others)
    seeds = max(seeds, _curve(panel, name, records, metric, (line, color)))
    if name in staged:
      shift = staged.index(name), len(staged)
      boundaries(panel, records, color, shift)
      _strip(panel, records, color, len(staged) - 1 - staged.index(name))
  if teacher is not None:
    panel.axhline(teacher, color='gray', linewidth=1, zorder=1, label='teacher')
  several = f'median of {seeds} seeds,\nthin: each seed'
  handles, _ = panel.get_legend_handles_labels()
  if staged:
    handles.append(
      lines.Line2D([], [], color='gray', linestyle=':', label='end of a stage')
    )
  panel.legend(
    handles=handles,
    title=several if seeds > 1 else 'one seed',
    alignment='left',
    frameon=False,
    # Outside, where it cannot cover a curve.
    loc='upper left',
    bbox_to_anchor=(1.01, 1.0),
  )
  # Above the strips; 288 points are the height of a figure.
  pad = 6 + 0.77 * 288 * (STRIP + GAP) * len(staged)
  panel.set_title(title or f'{ylabel} by method', pad=pad)
  save(figure, path)


def _styles() -> Iterator[tuple[Any, str]]:
  """Yields lines and colors, none twice; dashes have more and more dots."""
  for dots in itertools.count(-1):
    line = '-' if dots < 0 else (0, (7, 2, *(1, 2) * dots))
    yield from ((line, color) for color in OTHERS)


def _curve(
  panel: Axes,
  name: str,
  records: Sequence[types.Record],
  metric: str,
  style: tuple[Any, str],
) -> int:
  """Draws the seeds of a run and their median; returns the number of seeds.

  The median is that of the seeds that are finite; the legend counts the others.
  """
  found = list(metric_log.evaluations(records, metric))
  names = {key: None for one in records for key in one if 'eval/' in key}
  errors.require(
    bool(found),
    f'The run {name} has no record of eval/{metric}. Choose a metric that it '
    f'has: {", ".join(names).replace("eval/", "") or "none"}.',
  )
  steps = np.array([step for step, _ in found])
  values = np.array([per_seed for _, per_seed in found])
  finite = [row[np.isfinite(row)] for row in values]
  median = np.array([np.median(row) if row.size else np.nan for row in finite])
  label, (line, color) = _label(name, records), style
  if failed := values.shape[1] - len(finite[-1]):
    label += f'\n({failed} of {values.shape[1]} diverged)'
  look = {'label': label, 'color': color, 'linestyle': line}
  draw_line(panel, steps, median, name, **look)
  # A band from min to max would flood the picture if one seed stays behind.
  if values.shape[1] > 1:
    panel.plot(steps, values, color=color, alpha=0.4, linewidth=0.7, zorder=1.5)
  return values.shape[1]


def draw_line(
  panel: Axes, x: np.ndarray, y: np.ndarray, method: str, **style: Any
) -> None:
  """Draws the line of a method, so that baselines that coincide are visible.

  Args:
    panel: the panel.
    x: `[N]`.
    y: `[N]`.
    method: its name; supervised is dashed and lies on top, with a white edge.
    **style: style of the line, as `label` and `color`.
  """
  if method == 'supervised':
    edge = patheffects.withStroke(linewidth=4, foreground='white')
    style |= {'linestyle': (0, (3, 4)), 'linewidth': 2, 'path_effects': [edge]}
  panel.plot(x, y, zorder=3 if method == 'supervised' else 2, **style)


def _label(name: str, records: Sequence[types.Record]) -> str:
  """The name of a run and, if it has several, its stages in order."""
  stages = list(dict.fromkeys(record['stage'] for record in records))
  if len(stages) == 1:
    return name
  return '\n'.join([name, *textwrap.wrap(', '.join(stages), 24)])


def _strip(
  panel: Axes, records: Sequence[types.Record], color: str, row: int
) -> None:
  """Draws the stages of a run above the axes, with the names that fit."""
  ends = [*_ends(records), records[-1]['step']]
  names = {record['step']: record['stage'] for record in records}
  place = panel.get_xaxis_transform()
  bottom = 1 + GAP + row * (STRIP + GAP)
  for i, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
    corner, size = (start, bottom), (end - start, STRIP)
    panel.add_patch(
      patches.Rectangle(
        corner,
        *size,
        transform=place,
        facecolor=color,
        edgecolor='white',
        alpha=0.6 if i % 2 else 0.35,
        clip_on=False,
      )
    )
    name = names[end]
    if len(name) * LETTER < WIDTH * (end - start) / ends[-1]:
      middle = (start + end) / 2, bottom + STRIP / 2
      panel.text(
        *middle, name, ha='center', va='center', fontsize=7, transform=place
      )


def _ends(records: Sequence[types.Record]) -> list[int]:
  """The last recorded step of each stage but the last."""
  return [
    record['step']
    for record, following in zip(records[:-1], records[1:], strict=True)
    if record['stage'] != following['stage']
  ]


def boundaries(
  panel: Axes,
  records: Sequence[types.Record],
  color: str,
  shift: tuple[int, int] = (0, 1),
) -> None:
  """Draws a dotted vertical line at the end of each stage but the last.

  Args:
    panel: the panel.
    records: records of the run.
    color: color of the lines.
    shift: `(i, n)`: these are the lines of run `i` of `n`, whose dots alternate
      where their lines coincide.
  """
  i, count = shift
  dots = (4 * i, (2, 4 * count - 2))
  for step in _ends(records):
    panel.axvline(step, color=color, linestyle=dots, linewidth=1.5, zorder=1)
