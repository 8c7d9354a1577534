r"""Masked prediction: every method at its best, after the same small search.

First with one seed: each method gets as many runs, some learning rates and, at
the best of them, settings of what else there is to choose: six of the grammar,
three of text, which takes longer. Then the best of each with three seeds, at as
many steps, and again at as many FLOPs as one-shot distillation takes (the
student's and its teacher's), if that is another number of steps. All of it is
measured on the same held-out sentences or rows, and the first of the three
seeds is the one of the search.

With --specs, in place of that, specs of the hidden stages, one seed each.

Run (it trains its teacher first):
  python -m experiments.masked_tune --experiment=pcfg_bert
  python -m experiments.masked_tune --experiment=pcfg_bert --specs

Writes EXPERIMENT_tune.{md,csv} and EXPERIMENT.{md,csv,png}, or
EXPERIMENT_recipes.{md,csv}, into --results. Runs that are finished are not run
again.
"""

from absl import app
from absl import flags
import numpy as np

from cxjax.configs import cli
from cxjax import errors
from cxjax.training import metric_log
from cxjax.methods import curricula
from cxjax.analysis import plots
from cxjax.training import summary as summary_lib
from cxjax import tables
from experiments import pcfg_bert
from experiments import paths
from experiments import sweeps
from experiments import text_bert

EXPERIMENTS = {'pcfg_bert': pcfg_bert, 'text_bert': text_bert}
_EXPERIMENT = flags.DEFINE_string('experiment', 'pcfg_bert', 'Which.')
_RECIPES = flags.DEFINE_bool('specs', False, 'Try specs of extraction.')
_SEEDS = flags.DEFINE_integer('seeds', 3, 'Of the final runs.')

RATES = {
  'pcfg_bert': (1e-3, 3e-3, 1e-2, 3e-2),
  'text_bert': (3e-3, 5e-3, 8e-3),  # From 1e-2 on most students die.
}
# Where the search begins, whatever the defaults are.
START = {
  'supervised.rate_factor': 1.0,
  'progressive.rule': 'even',
  'progressive.count': 3,
  'progressive.share': 0.75,
  'extracted.share': 0.4,
}
# What a method has to choose besides its learning rate.
CHOICES = {
  'pcfg_bert': {
    'supervised': [{'optimizer.learning_rate': rate} for rate in (5e-3, 2e-2)],
    'one_shot': [{'hard_labels': True}, {'loss': 'mse'}],
    'progressive': [
      {'progressive.count': 1, 'progressive.share': 0.5},
      {'progressive.count': 5, 'progressive.share': 5 / 6},
    ],
    'extracted': [{'extracted.share': 0.2}, {'extracted.share': 0.6}],
  },
  'text_bert': {},
}
EACH = tuple((f'block{i}', f'block{i}') for i in range(4))
SECOND_AND_LAST = (EACH[1], EACH[3])
RECIPES = {
  'default': {},
  'last block': {'extracted.layers': EACH[3:]},
  'every block': {'extracted.layers': EACH},
  'every block, no readout, one projection for all': {
    'extracted.layers': EACH,
    'extracted.regressor': False,
    'extracted.width': 0,
    'extracted.shared_projection': True,
  },
  'no readout': {'extracted.regressor': False, 'extracted.width': 0},
  'raw activation': {'extracted.norm': 'none'},
  'learned projection (FitNets)': {
    'extracted.projection': 'identity',
    'extracted.width': 0,
  },
  'second and last block': {'extracted.layers': SECOND_AND_LAST},
  'second block': {'extracted.layers': EACH[1:2]},
  'projection to 32': {'extracted.width': 32},
  'centered': {'extracted.centered': True},
  'masked positions only': {'extracted.tokens': 'read'},
  'one schedule for both stages': {'optimizer.restart_schedule': False},
  'hard labels at the end': {'hard_labels': True},
  'blocks frozen after their stage': {'extracted.freeze': True},
  'target times 0.1': {'extracted.scale': 0.1},
  'law orthogonal': {'extracted.projection': 'orthogonal'},
}


def accuracy(summary):
  """Mean over the seeds."""
  return float(np.mean(summary['final']['accuracy']))


def attempt(method, overrides, workdir, seeds=1):
  """The summary of one run."""
  config, overrides = _variant(method, overrides, seeds)
  return sweeps.run(config, overrides, workdir)


def _variant(method, overrides, seeds):
  experiment = EXPERIMENTS[_EXPERIMENT.value]
  config = sweeps.variant(experiment.get_config(method), START)
  return config, {'num_seeds': seeds, **overrides}


def search(method, workdir):
  """`(overrides, accuracy of the first seed)` of the runs, best first."""
  tried = []

  def add(overrides):
    # A final run that is there has the seed of the search as its first.
    final = _folder(method, overrides, workdir) / 'summary.json'
    seeds = _SEEDS.value if final.exists() else 1
    summary = attempt(method, overrides, workdir, seeds)
    tried.append((overrides, summary['final']['accuracy'][0]))
    tried.sort(key=lambda item: -item[1])

  for rate in RATES[_EXPERIMENT.value]:
    add({'optimizer.learning_rate': rate})
  best = tried[0][0]
  for choice in CHOICES[_EXPERIMENT.value].get(method, ()):
    add({**best, **choice})
  return tried


def describe(overrides):
  """Overrides in a table."""
  return ', '.join(f'{k}={v}' for k, v in overrides.items()) or 'default'


def line(name, summary):
  """One line of the final table."""
  final = summary['final']
  values = np.array(final['accuracy'])
  return {
    'method': name,
    'steps': summary['steps'],
    'TFLOP': round(summary_lib.flops(summary) / 1e12, 2),
    'top-1: mean': round(float(values.mean()), 4),
    'sd': round(float(values.std(ddof=1)), 4) if len(values) > 1 else None,
    'min': round(float(values.min()), 4),
    'max': round(float(values.max()), 4),
    'cross entropy': round(float(np.mean(final['loss'])), 4),
    'perplexity': round(float(np.mean(final['perplexity'])), 3),
    'agreement': round(float(np.mean(final['agreement'])), 4),
    'teacher KL': round(float(np.mean(final['teacher_kl'])), 4),
  }


def tune(workdir, results):
  """The search, and the best of each with several seeds."""
  best, rows = {}, []
  for method in curricula.METHODS:
    found = search(method, workdir)
    best[method] = found[0][0]
    rows += [
      {'method': method, 'settings': describe(o), 'top-1': value}
      for o, value in found
    ]
    name = f'{_EXPERIMENT.value}_tune'
    cli.write(results / name, tables.markdown(rows), rows)
  finals, lines = {}, []
  name = _EXPERIMENT.value

  def add(label, summary):
    lines.append(line(label, summary))
    cli.write(results / name, tables.markdown(lines), lines)

  for method, overrides in best.items():
    finals[method] = attempt(method, overrides, workdir, _SEEDS.value)
    add(method, finals[method])
  curves = {m: metric_log.read(_folder(m, best[m], workdir)) for m in finals}
  plots.accuracy_curves(curves, results / f'{name}.png')
  for method, summary in finals.items():
    steps = equal_steps(summary, finals['one_shot'])
    if abs(steps / summary['steps'] - 1) > 0.01:
      longer = {**best[method], 'num_steps': steps}
      equal = attempt(method, longer, workdir, _SEEDS.value)
      add(f'{method}, FLOPs of one_shot', equal)


def equal_steps(summary, other):
  """Steps with which a run costs what another one did, in 25s."""
  ratio = summary_lib.flops(other) / summary_lib.flops(summary)
  return round(summary['steps'] * ratio / 25) * 25


def _folder(method, overrides, workdir):
  """Of a final run."""
  config, overrides = _variant(method, overrides, _SEEDS.value)
  return sweeps.folder(config, overrides, workdir) / method


def specs(workdir, results):
  """What was tried of the hidden stages."""
  rows = []
  for name, overrides in RECIPES.items():
    summary = attempt('extracted', overrides, workdir)
    rows.append(
      {
        'spec': name,
        'top-1': round(accuracy(summary), 4),
        'TFLOP': round(summary_lib.flops(summary) / 1e12, 2),
      }
    )
    cli.write(
      results / f'{_EXPERIMENT.value}_recipes', tables.markdown(rows), rows
    )


def main(argv):
  """Searches, prints and keeps everything that was tried."""
  del argv
  errors.lookup('experiment', _EXPERIMENT.value, EXPERIMENTS)
  workdir = paths.workdir('tune')
  results = paths.results()
  (specs if _RECIPES.value else tune)(workdir, results)


if __name__ == '__main__':
  app.run(cli.guarded(main))
