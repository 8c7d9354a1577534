"""Pictures of runs."""

from collections.abc import Mapping
from collections.abc import Sequence
import pathlib

from matplotlib import figure as mpl
from matplotlib.axes import Axes
import numpy as np

from cxjax import files
from cxjax.training import metric_log
from cxjax.parallel import multihost

# Okabe and Ito's palette: told apart without colour vision.
COLORS = {
  'supervised': '#999999',
  'one_shot': '#0072B2',
  'progressive': '#E69F00',
  'extracted': '#D55E00',
}
OTHERS = ('#009E73', '#CC79A7')  # What is no method by itself.


def save(figure: mpl.Figure, path: pathlib.Path) -> None:
  """Writes a figure as PNG; of several processes the first does.

  Raises:
    UserError: the file cannot be written.
  """
  if not multihost.is_first():
    return
  with files.written(path):
    figure.savefig(path, dpi=150, bbox_inches='tight')


def axes(
  xlabel: str, ylabel: str, columns: int = 1, rows: int = 1, width: float = 6.4
) -> tuple[mpl.Figure, Sequence[Axes]]:
  """A figure and its panels, row by row, in the style of the project."""
  # Not pyplot: it would ask for a screen, and keep the figure.
  figure = mpl.Figure(figsize=(width * columns, 4 * rows))
  panels = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
  for panel in panels:
    panel.set(xlabel=xlabel, ylabel=ylabel)
    panel.grid(alpha=0.3)
    panel.spines[['top', 'right']].set_visible(False)
  return figure, panels


def accuracy_curves(
  runs: Mapping[str, Sequence[metric_log.Row]], path: pathlib.Path
) -> None:
  """`curves` of the held-out accuracy."""
  curves(runs, 'accuracy', 'held-out accuracy', path)


def curves(
  runs: Mapping[str, Sequence[metric_log.Row]],
  metric: str,
  ylabel: str,
  path: pathlib.Path,
) -> None:
  """A metric against steps: median over seeds, band from min to max.

  Args:
    runs: rows of metrics.jsonl by method.
    metric: of the evaluations, at most 1.
    ylabel: what it is.
    path: of the PNG file.
  """
  figure, (panel,) = axes('student steps', ylabel)
  others, best = iter(OTHERS * len(runs)), 0.0
  for method, rows in runs.items():
    steps, values = zip(*metric_log.evaluations(rows, metric), strict=True)
    values = np.array(values)
    color = COLORS.get(method) or next(others)
    # The baselines often lie on one another at chance: both should be seen.
    style = '--' if method == 'supervised' else '-'
    panel.plot(
      steps, np.median(values, axis=1), style, label=method, color=color
    )
    panel.fill_between(
      steps,
      values.min(axis=1),
      values.max(axis=1),
      alpha=0.2,
      color=color,
      linewidth=0,
    )
    boundaries(panel, rows, color)
    best = max(best, values.max())
  if best > 0.7:  # Else half of the picture would be empty.
    panel.set_ylim(None, 1.02)
  seeds = values.shape[1]
  title = f'median of {seeds} seeds, min to max' if seeds > 1 else 'one seed'
  panel.legend(title=title, frameon=False)
  save(figure, path)


def boundaries(panel: Axes, rows: Sequence[metric_log.Row], color: str) -> None:
  """Marks the steps at which one stage ends and the next begins."""
  for row, following in zip(rows[:-1], rows[1:], strict=True):
    if row['stage'] != following['stage']:
      panel.axvline(row['step'], color=color, linestyle=':', linewidth=1)
