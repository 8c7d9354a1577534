r"""Examples to 99% against the number of coordinates d, for each method.

Sparse parity of k = 3, 4, 5 of d = 20 to 100 bits, 8 seeds each, every method
with the learning rate of its config. Staged methods choose the length of their
first stage for each (d, k), 125 doubled up to 7 times, by the median seed;
progressive learns first from the checkpoint nearest to 75%. Exponents are
least-squares slopes of log examples (median seed) against log d, with the
standard error of the fit.

Run (hours; `--k=3` is minutes; finished runs are not run again):
  python -m experiments.sample_complexity --workdir=runs/sample_complexity

Writes sample_complexity.{csv,md,png} into --results.
"""

from absl import app
from absl import flags
import numpy as np

from cxjax.configs import cli
from cxjax.methods import curricula
from cxjax.analysis import plots
from cxjax import tables
from experiments import parity_mlp
from experiments import paths
from experiments import sweeps

_K = flags.DEFINE_list('k', ['3', '4', '5'], 'Sizes of the support.')
_D = flags.DEFINE_list('d', ['20', '30', '40', '60', '80', '100'], 'Widths.')
_METHODS = flags.DEFINE_list('methods', list(curricula.METHODS), 'Which.')

LENGTHS = tuple(125 * 2**i for i in range(8))  # 125 to 16,000.
# Updates of the labels and one-shot, at most; a seed that needs more is
# reported as such.
BUDGET = 600_000
BATCH = parity_mlp.get_config().batch_size
# Exponents of d: [B] for the labels and one-shot (d^(k-1)) and for progressive
# (d^2), taken over for extracted; constants and conditions are not checked.
THEORY = {
  'supervised': lambda k: k - 1,
  'one_shot': lambda k: k - 1,
  'progressive': lambda k: 2,
  'extracted': lambda k: 2,
}


def base(method, d, k):
  """The config of one point."""
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


def reached(summary):
  """Steps to 99% of each seed; infinity where it never got there."""
  steps = summary['steps_to']['0.99']
  return np.array([np.inf if s is None else s for s in steps], float)


def point(method, d, k, workdir):
  """The best first stage of a point, and its `reached`."""
  if method in ('supervised', 'one_shot'):
    return None, reached(sweeps.run(base(method, d, k), {}, workdir))
  best, best_length = np.full(1, np.inf), None
  for length in LENGTHS:
    if length >= np.median(best):
      break
    # A second stage this long is enough where the first did its work.
    total = max(20_000, 4 * length)
    overrides = {
      'num_steps': total,
      f'{method}.steps': (length, total - length),
    }
    found = reached(sweeps.run(base(method, d, k), overrides, workdir))
    if np.median(found) < np.median(best):
      best, best_length = found, length
  return best_length, best


def fit(d, steps):
  """Slope of log steps against log d, and its standard error."""
  d, steps = np.array(d, float), np.array(steps, float)
  use = np.isfinite(steps)
  if use.sum() < 3:
    return None, None
  coefficients, covariance = np.polyfit(
    np.log(d[use]), np.log(steps[use]), 1, cov='unscaled'
  )
  error = np.log(steps[use]) - np.polyval(coefficients, np.log(d[use]))
  variance = np.sum(error**2) / (use.sum() - 2)
  return coefficients[0], np.sqrt(covariance[0, 0] * variance)


def exponents(rows):
  """One row per (k, method): the fitted exponent beside the theory's."""
  lines = []
  for k in sorted({r['k'] for r in rows}):
    for method in curricula.METHODS:
      mine = [r for r in rows if (r['k'], r['method']) == (k, method)]
      if not mine:
        continue
      slope, error = fit(
        [r['d'] for r in mine], [float(r['median']) for r in mine]
      )
      last = max(mine, key=lambda r: r['d'])
      lines.append(
        {
          'k': k,
          'method': method,
          'exponent of d': slope and round(float(slope), 2),
          'standard error': error and round(float(error), 2),
          'theory': THEORY[method](k),
          'largest d': last['d'],
          'examples there': _number(last['median']),
        }
      )
  return lines


def _number(value):
  return int(value) if np.isfinite(value) else None


def draw_picture(rows, path):
  """One panel a k: examples against d, median and min to max of 8 seeds."""
  sizes = sorted({r['k'] for r in rows})
  figure, panels = plots.axes(
    'd', 'examples to 99%', columns=len(sizes), width=4.6
  )
  for k, panel in zip(sizes, panels, strict=True):
    for method in curricula.METHODS:
      mine = [r for r in rows if (r['k'], r['method']) == (k, method)]
      mine = [r for r in mine if np.isfinite(r['median'])]
      if not mine:
        continue
      d = [r['d'] for r in mine]
      color = plots.COLORS[method]
      slope, _ = fit(d, [r['median'] for r in mine])
      label = method if slope is None else f'{method}: d^{slope:.1f}'
      style = 's--' if method == 'supervised' else 'o-'  # Under one_shot.
      panel.plot(
        d, [r['median'] for r in mine], style, color=color, label=label
      )
      low = [r['min'] for r in mine]
      # A seed that is not there yet after the whole budget is drawn there.
      high = [min(r['max'], BUDGET * BATCH) for r in mine]
      panel.fill_between(d, low, high, color=color, alpha=0.2, linewidth=0)
    panel.set(xscale='log', yscale='log', title=f'parity of k = {k} bits')
    panel.set_xticks(sorted({r['d'] for r in rows}), minor=False)
    panel.set_xticklabels(sorted({r['d'] for r in rows}))
    panel.minorticks_off()
    panel.legend(frameon=False, fontsize='small')
  figure.tight_layout()
  plots.save(figure, path)


def main(argv):
  """Runs every point, and writes after each so that nothing is lost."""
  del argv
  workdir = paths.workdir('sample_complexity')
  stem = paths.results() / 'sample_complexity'
  rows = []
  for k in map(int, _K.value):
    for d in map(int, _D.value):
      for method in _METHODS.value:
        length, found = point(method, d, k, workdir)
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
  lines = exponents(rows)
  text = tables.markdown(lines)
  cli.write(stem, text, rows)
  draw_picture(rows, stem.with_suffix('.png'))


if __name__ == '__main__':
  app.run(cli.guarded(main))
