r"""The grammar task: every method at its best, after the same small search.

First with one seed: each method gets five runs, three learning rates and, at
the best of them, two settings of what else there is to choose. Then the best of
each with three seeds, at as many steps, and `supervised` at as many FLOPs as
well (the student's and its teacher's; it has no teacher to pay for).

With --recipes, in place of that, recipes of the hidden stages, one seed each.

Run (it trains its teacher first):
  python -m experiments.pcfg_tune --workdir=runs/pcfg_tune
  python -m experiments.pcfg_tune --workdir=runs/pcfg_tune --recipes

Writes pcfg_tune.{md,csv} and pcfg.{md,csv,png}, or pcfg_recipes.{md,csv}, into
--results. Runs that are finished are not run again.
"""

import pathlib

from absl import app
from absl import flags
import numpy as np

from cxjax import command
from cxjax import journal
from cxjax import methods
from cxjax import plots
from cxjax import summary as summary_lib
from cxjax import table
from experiments import pcfg_bert
from experiments import sweeps

_WORKDIR = flags.DEFINE_string('workdir', 'runs/pcfg_tune', 'Of the runs.')
_RESULTS = flags.DEFINE_string('results', 'experiments/results', 'Of tables.')
_RECIPES = flags.DEFINE_bool('recipes', False, 'Try recipes of extraction.')
_SEEDS = flags.DEFINE_integer('seeds', 3, 'Of the final runs.')

RATES = (1e-3, 3e-3, 1e-2)
# What a method has to choose besides its learning rate.
CHOICES = {
  'supervised': [{'optimizer.learning_rate': rate} for rate in (5e-3, 2e-2)],
  'one_shot': [{'hard_labels': True}, {'loss': 'mse'}],
  'progressive': [
    {'progressive.count': 1, 'progressive.share': 0.5},
    {'progressive.count': 5, 'progressive.share': 5 / 6},
  ],
  'extracted': [{'extracted.share': 0.2}, {'extracted.share': 0.6}],
}
EACH = tuple((f'block{i}', f'block{i}') for i in range(4))
SECOND_AND_LAST = (EACH[1], EACH[3])
RECIPES = {
  'default: last block, readout, projection to 128': {},
  'every block': {'extracted.layers': EACH},
  'every block, no readout, one projection for all': {
    'extracted.layers': EACH,
    'extracted.readout': False,
    'extracted.width': 0,
    'extracted.shared': True,
  },
  'no readout': {'extracted.readout': False, 'extracted.width': 0},
  'raw activation': {'extracted.norm': 'none'},
  'learned projection (FitNets)': {
    'extracted.law': 'identity',
    'extracted.width': 0,
  },
  'second and last block': {'extracted.layers': SECOND_AND_LAST},
  'second block': {'extracted.layers': EACH[1:2]},
  'projection to 32': {'extracted.width': 32},
  'centred': {'extracted.centred': True},
  'masked positions only': {'extracted.positions': 'read'},
  'one schedule for both stages': {'optimizer.restart_schedule': False},
  'hard labels at the end': {'hard_labels': True},
  'blocks frozen after their stage': {'extracted.freeze': True},
  'target times 0.1': {'extracted.scale': 0.1},
  'law orthogonal': {'extracted.law': 'orthogonal'},
}


def accuracy(summary):
  """Mean over the seeds."""
  return float(np.mean(summary['final']['accuracy']))


def attempt(method, overrides, workdir, seeds=1):
  """The summary of one run."""
  overrides = {'num_seeds': seeds, **overrides}
  return sweeps.run(pcfg_bert.get_config(method), overrides, workdir)


def search(method, workdir):
  """`(overrides, summary)` of the runs of a method, best first."""
  tried = []

  def add(overrides):
    tried.append((overrides, attempt(method, overrides, workdir)))
    tried.sort(key=lambda item: -accuracy(item[1]))

  for rate in RATES:
    add({'optimizer.learning_rate': rate})
  best = tried[0][0]
  for choice in CHOICES[method]:
    add({**best, **choice})
  return tried


def describe(overrides):
  """Overrides in a table."""
  return ', '.join(f'{k}={v}' for k, v in overrides.items()) or 'default'


def line(name, summary):
  """One line of the final table."""
  values = np.array(summary['final']['accuracy'])
  return {
    'method': name,
    'steps': summary['steps'],
    'TFLOP': round(summary_lib.flops(summary) / 1e12, 2),
    'top-1: mean': round(float(values.mean()), 4),
    'sd': round(float(values.std(ddof=1)), 4) if len(values) > 1 else None,
    'min': round(float(values.min()), 4),
    'max': round(float(values.max()), 4),
    'cross entropy': round(float(np.mean(summary['final']['loss'])), 4),
  }


def tune(workdir, results):
  """The search, and the best of each with several seeds."""
  rows, finals, curves = [], {}, {}
  for method in methods.METHODS:
    found = search(method, workdir)
    rows += [
      {'method': method, 'settings': describe(o), 'top-1': accuracy(s)}
      for o, s in found
    ]
    best = found[0][0]
    finals[method] = attempt(method, best, workdir, _SEEDS.value)
    curves[method] = rows_of(method, best, workdir)
    if method == 'supervised':
      labels = best
  command.write(results / 'pcfg_tune', table.markdown(rows), rows)
  steps = finals['supervised']['steps']
  ratio = summary_lib.flops(finals['one_shot']) / summary_lib.flops(
    finals['supervised']
  )
  longer = {**labels, 'num_steps': round(steps * ratio / 25) * 25}
  equal = attempt('supervised', longer, workdir, _SEEDS.value)
  lines = [line(method, summary) for method, summary in finals.items()]
  lines.append(line('supervised, equal FLOPs', equal))
  command.write(results / 'pcfg', table.markdown(lines), lines)
  plots.accuracy_curves(curves, results / 'pcfg.png')


def rows_of(method, overrides, workdir):
  """The logged rows of a finished run."""
  overrides = {'num_seeds': _SEEDS.value, **overrides}
  config = pcfg_bert.get_config(method)
  return journal.read(sweeps.folder(config, overrides, workdir) / method)


def recipes(workdir, results):
  """What was tried of the hidden stages."""
  rows = []
  for name, overrides in RECIPES.items():
    summary = attempt('extracted', overrides, workdir)
    rows.append(
      {
        'recipe': name,
        'top-1': round(accuracy(summary), 4),
        'TFLOP': round(summary_lib.flops(summary) / 1e12, 2),
      }
    )
    command.write(results / 'pcfg_recipes', table.markdown(rows), rows)


def main(argv):
  """Searches, prints and keeps everything that was tried."""
  del argv
  workdir = pathlib.Path(_WORKDIR.value)
  results = pathlib.Path(_RESULTS.value)
  (recipes if _RECIPES.value else tune)(workdir, results)


if __name__ == '__main__':
  app.run(command.guarded(main))
