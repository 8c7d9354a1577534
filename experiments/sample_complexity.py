r"""Examples to 99% against the number of coordinates d, for each method.

Sparse parity of k = 3, 4, 5 of d = 20 to 100 bits, 8 seeds each, every method
with the learning rate of its config. A method with several stages gets the best
length of its first stage for each (d, k): 125 doubled up to 7 times, compared
by the median seed. Progressive learns first from the checkpoint nearest to 75%.
An exponent is the least-squares slope of log examples (median seed) against
log d, with the standard error of the fit.

Run (hours; `--k=3` takes minutes; finished runs are not run again):
  python -m experiments.sample_complexity --workdir=runs/sample_complexity

Writes sample_complexity.{csv,md,png} into --results.
"""

from collections.abc import Callable
from collections.abc import Sequence
import math
import pathlib
from typing import Any
from typing import TypeAlias

from absl import flags
from matplotlib.axes import Axes
import ml_collections
import numpy as np

from cxjax import errors
from cxjax import tables
from cxjax.analysis import plots
from cxjax.configs import cli
from cxjax.training import summary as summary_lib
from experiments import base
from experiments import parity_mlp
from experiments import paths
from experiments import sweeps

_K = flags.DEFINE_list('k', ['3', '4', '5'], 'Sizes of the support.')
_D = flags.DEFINE_list(
  'd', ['20', '30', '40', '60', '80', '100'], 'Numbers of coordinates.'
)
_METHODS = flags.DEFINE_list('methods', list(base.METHODS), 'Methods to run.')

LENGTHS = tuple(125 * 2**i for i in range(8))  # 125 to 16,000.
# Maximal number of updates of the labels and one-shot; seeds that need more are
# 'None' in the CSV file.
BUDGET = 600_000
BATCH = parity_mlp.get_config().batch_size
# Exponents of d: from Panigrahi et al. for the labels and one-shot (d^(k-1))
# and for progressive (d^2), which we assume for extracted; we check neither
# constants nor conditions.
THEORY: dict[str, Callable[[int], int]] = {
  'supervised': lambda k: k - 1,
  'one_shot': lambda k: k - 1,
  'progressive': lambda k: 2,
  'extracted': lambda k: 2,
}
Row: TypeAlias = dict[str, Any]


def point_config(method: str, d: int, k: int) -> ml_collections.ConfigDict:
  """Returns the config of a method for parity of k of d bits."""
  config = parity_mlp.get_config(method)
  config.data.d, config.data.k = d, k
  config.data.eval_size = 2_048
  config.num_steps = BUDGET
  config.stop_at = 0.99
  config.teacher.num_steps = BUDGET
  config.log_every = config.eval_every = 50
  config.teacher.log_every = config.teacher.eval_every = 50
  config.save_every = 50_000
  config.teacher.save_every = 50_000
  return config


def reached(summary: summary_lib.Summary) -> np.ndarray:
  """Returns the steps to 99% of each seed, `[S]`; infinity for a failure."""
  steps = summary['steps_to']['0.99']
  return np.array([np.inf if s is None else s for s in steps], float)


def measure(
  method: str, d: int, k: int, workdir: pathlib.Path
) -> tuple[int | None, np.ndarray]:
  """Runs a method on parity of k of d bits.

  Args:
    method: name of the method.
    d: number of coordinates.
    k: size of the support.
    workdir: folder of the runs.

  Returns:
    The best length of the first stage, None for a method of one stage, and the
    steps to 99% of each seed with it.
  """
  config = point_config(method, d, k)
  if method in ('supervised', 'one_shot'):
    return None, reached(sweeps.run(config, {}, workdir))
  best, best_length = np.full(1, np.inf), None
  for length in LENGTHS:
    if length >= np.median(best):
      break
    # A second stage of this length suffices if the first one did its work.
    total = max(20_000, 4 * length)
    overrides = {
      'num_steps': total,
      f'{method}.steps': (length, total - length),
    }
    found = reached(sweeps.run(config, overrides, workdir))
    if np.median(found) < np.median(best):
      best, best_length = found, length
  return best_length, best


def fit(
  d: Sequence[float], steps: Sequence[float]
) -> tuple[float | None, float | None]:
  """Fits the slope of log steps against log d.

  Args:
    d: numbers of coordinates.
    steps: steps for each; infinite ones are left out.

  Returns:
    The slope and its standard error; None for fewer than three points.
  """
  x, y = np.array(d, float), np.array(steps, float)
  use = np.isfinite(y)
  if use.sum() < 3:
    return None, None
  coefficients, covariance = np.polyfit(
    np.log(x[use]), np.log(y[use]), 1, cov='unscaled'
  )
  error = np.log(y[use]) - np.polyval(coefficients, np.log(x[use]))
  variance = np.sum(error**2) / (use.sum() - 2)
  return float(coefficients[0]), float(np.sqrt(covariance[0, 0] * variance))


def exponents(rows: Sequence[Row]) -> list[Row]:
  """Returns a row for each k and method: the fitted exponent and the theory."""
  lines = []
  for k in sorted({row['k'] for row in rows}):
    for method in base.METHODS:
      mine = _select(rows, k, method)
      if not mine:
        continue
      slope, error = fit(
        [row['d'] for row in mine], [float(row['median']) for row in mine]
      )
      last = max(mine, key=lambda row: row['d'])
      lines.append(
        {
          'k': k,
          'method': method,
          'exponent of d': slope and round(slope, 2),
          'standard error': error and round(error, 2),
          'theory': THEORY[method](k),
          'fitted to': sum(math.isfinite(row['median']) for row in mine),
          'largest d': last['d'],
          'examples there': _number(last['median']),
        }
      )
  return lines


def _select(rows: Sequence[Row], k: int, method: str) -> list[Row]:
  return [row for row in rows if (row['k'], row['method']) == (k, method)]


def _number(value: float) -> int | None:
  return int(value) if np.isfinite(value) else None


def draw_picture(rows: Sequence[Row], path: pathlib.Path) -> None:
  """Draws examples against d in a panel for each k.

  A curve is the median of the seeds, its band is from min to max.

  Args:
    rows: rows of the CSV file.
    path: path of the PNG file.
  """
  sizes = sorted({row['k'] for row in rows})
  figure, panels = plots.axes(
    'd', 'examples to 99%', columns=len(sizes), width=4.6
  )
  ticks = sorted({row['d'] for row in rows})
  for k, panel in zip(sizes, panels, strict=True):
    for method in base.METHODS:
      mine = _select(rows, k, method)
      _draw_curve(panel, method, [r for r in mine if np.isfinite(r['median'])])
    panel.set(xscale='log', yscale='log', title=f'parity of k = {k} bits')
    panel.set_xticks(ticks, minor=False)
    panel.set_xticklabels([str(d) for d in ticks])
    panel.minorticks_off()
    if panel.lines:
      panel.legend(frameon=False, fontsize='small')
  figure.tight_layout()
  plots.save(figure, path)


def _draw_curve(panel: Axes, method: str, rows: Sequence[Row]) -> None:
  """Draws one method of one k."""
  if not rows:
    return
  d = [row['d'] for row in rows]
  median = [row['median'] for row in rows]
  slope, _ = fit(d, median)
  label = method if slope is None else f'{method}: d^{slope:.1f}'
  style = 's--' if method == 'supervised' else 'o-'  # Under one_shot.
  color = plots.COLORS[method]
  panel.plot(d, median, style, color=color, label=label)
  low = [row['min'] for row in rows]
  # A seed that needs more than the whole budget is drawn there.
  high = [min(row['max'], BUDGET * BATCH) for row in rows]
  panel.fill_between(d, low, high, color=color, alpha=0.2, linewidth=0)


def main(argv: list[str]) -> None:
  """Runs every point, and writes the table and the picture."""
  del argv
  workdir = paths.workdir('sample_complexity')
  stem = paths.results() / 'sample_complexity'
  rows = []
  sizes = cli.whole_numbers('k', _K.value), cli.whole_numbers('d', _D.value)
  errors.require(
    bool(_METHODS.value), '--methods= is empty: give methods, or leave it out.'
  )
  for method in _METHODS.value:
    errors.lookup('method', method, THEORY)
  for k in sizes[0]:
    for d in sizes[1]:
      for method in _METHODS.value:
        length, found = measure(method, d, k, workdir)
        examples = found * BATCH
        rows.append(
          {
            'k': k,
            'd': d,
            'method': method,
            'first stage': length,
            'median': np.median(examples),
            'min': examples.min(),
            'max': examples.max(),
            'seeds': ' '.join(str(_number(e)) for e in examples),
          }
        )
  cli.write(stem, tables.markdown(exponents(rows)), rows)
  draw_picture(rows, stem.with_suffix('.png'))


if __name__ == '__main__':
  cli.run(main)
