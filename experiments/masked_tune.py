r"""Masked prediction: the same small search for each method, then a comparison.

The search uses one seed. Each method gets the same number of runs: some
learning rates and, at the best of them, other settings that it has. That is six
runs on the grammar, and three on text, which takes longer. The best of each
method is then trained with three seeds: for as many steps, and again for as
many FLOPs as one-shot distillation takes (student and teacher), if that is
another number of steps. All runs are evaluated on the same held-out sentences
or rows. The first of the three seeds is the one of the search.

With --recipes, the script compares variants of the hidden stages instead, with
one seed each.

Run (it trains its teacher first):
  python -m experiments.masked_tune --experiment=pcfg_bert
  python -m experiments.masked_tune --experiment=pcfg_bert --recipes

Writes EXPERIMENT_tune.{md,csv} and EXPERIMENT.{md,csv,png}, or
EXPERIMENT_recipes.{md,csv}, into --results. Finished runs are not run again.
"""

from collections.abc import Mapping
import pathlib
from typing import Any
from typing import TypeAlias

from absl import flags
import ml_collections
import numpy as np

from cxjax import errors
from cxjax import tables
from cxjax.analysis import plots
from cxjax.analysis import search as search_lib
from cxjax.configs import cli
from cxjax.training import metric_log
from cxjax.training import summary as summary_lib
from experiments import base
from experiments import paths
from experiments import pcfg_bert
from experiments import sweeps
from experiments import text_bert

EXPERIMENTS = {'pcfg_bert': pcfg_bert, 'text_bert': text_bert}
_EXPERIMENT = flags.DEFINE_string(
  'experiment', 'pcfg_bert', f'Experiment: {", ".join(EXPERIMENTS)}.'
)
_RECIPES = flags.DEFINE_bool(
  'recipes', False, 'Compare variants of the hidden stages.'
)
_SEEDS = flags.DEFINE_integer(
  'seeds', 3, 'Number of seeds of the final runs.', 1, 10_000
)

RATES = {
  'pcfg_bert': (1e-3, 3e-3, 1e-2, 3e-2),
  'text_bert': (3e-3, 5e-3, 8e-3),  # Most students diverge from 1e-2 on.
}
# Start of the search, whatever the defaults are.
START = {
  'supervised.rate_factor': 1.0,
  'progressive.rule': 'even',
  'progressive.count': 3,
  'progressive.share': 0.75,
  'extracted.share': 0.4,
}
# Settings of a method besides its learning rate.
CHOICES: dict[str, dict[str, list[sweeps.Overrides]]] = {
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
RECIPES: dict[str, sweeps.Overrides] = {
  'default': {},
  'last block': {'extracted.layers': EACH[3:]},
  'every block': {'extracted.layers': EACH},
  'every block, no regressor, one projection for all': {
    'extracted.layers': EACH,
    'extracted.regressor': False,
    'extracted.width': 0,
    'extracted.shared_projection': True,
  },
  'no regressor': {'extracted.regressor': False, 'extracted.width': 0},
  'raw activation': {'extracted.norm': 'none'},
  'learned projection (FitNets)': {
    'extracted.projection': 'identity',
    'extracted.width': 0,
  },
  'second and last block': {'extracted.layers': SECOND_AND_LAST},
  'second block': {'extracted.layers': EACH[1:2]},
  'projection to 32': {'extracted.width': 32},
  'centered': {'extracted.centered': True},
  'predicted tokens only': {'extracted.tokens': 'predicted'},
  'one schedule for both stages': {'optimizer.restart_schedule': False},
  'hard labels at the end': {'hard_labels': True},
  'blocks frozen after their stage': {'extracted.freeze': True},
  'target times 0.1': {'extracted.scale': 0.1},
  'projection orthogonal': {'extracted.projection': 'orthogonal'},
}
Row: TypeAlias = dict[str, Any]


def attempt(
  method: str,
  overrides: sweeps.Overrides,
  workdir: pathlib.Path,
  seeds: int = 1,
) -> summary_lib.Summary:
  """Runs one variant of a method, or reads its summary."""
  config, overrides = _variant(method, overrides, seeds)
  return sweeps.run(config, overrides, workdir)


def _variant(
  method: str, overrides: sweeps.Overrides, seeds: int
) -> tuple[ml_collections.ConfigDict, sweeps.Overrides]:
  """Returns the config at the start of the search, and the overrides."""
  experiment = EXPERIMENTS[_EXPERIMENT.value]
  config = sweeps.variant(experiment.get_config(method), START)
  return config, {'num_seeds': seeds, **overrides}


def _folder(
  method: str, overrides: sweeps.Overrides, workdir: pathlib.Path
) -> pathlib.Path:
  """Returns the folder of a final run."""
  config, overrides = _variant(method, overrides, _SEEDS.value)
  return sweeps.folder(config, overrides, workdir) / method


def search(
  method: str, workdir: pathlib.Path
) -> list[tuple[sweeps.Overrides, float]]:
  """Runs the search of a method.

  Args:
    method: name of the method.
    workdir: folder of the runs.

  Returns:
    The overrides and the accuracy of every run, best first.
  """
  best = lambda tried: tried[0].setting
  name = _EXPERIMENT.value
  choices = CHOICES[name].get(method, ())
  rounds = (
    lambda _: [{'optimizer.learning_rate': rate} for rate in RATES[name]],
    lambda tried: [{**best(tried), **choice} for choice in choices],
  )

  def run(settings: list[sweeps.Overrides]) -> list[float]:
    found = []
    for overrides in settings:
      # The first seed of a finished final run is that of the search.
      final = _folder(method, overrides, workdir) / 'summary.json'
      seeds = _SEEDS.value if final.exists() else 1
      summary = attempt(method, overrides, workdir, seeds)
      found.append(summary['final']['accuracy'][0])
    return found

  tried = search_lib.search(rounds, run, lambda accuracy: -accuracy)
  return [(one.setting, one.found) for one in tried]


def describe(overrides: sweeps.Overrides) -> str:
  """Returns overrides as the cell of a table."""
  return ', '.join(f'{k}={v}' for k, v in overrides.items()) or 'default'


def line(name: str, summary: summary_lib.Summary) -> Row:
  """Returns a row of the final table."""
  final = summary['final']
  values = np.array(final['accuracy'])
  mean = lambda metric: float(np.mean(final[metric]))
  return {
    'method': name,
    'steps': summary['steps'],
    'TFLOP': round(summary_lib.flops(summary) / 1e12, 2),
    'top-1: mean': round(float(values.mean()), 4),
    'sd': round(float(values.std(ddof=1)), 4) if len(values) > 1 else None,
    'min': round(float(values.min()), 4),
    'max': round(float(values.max()), 4),
    'cross entropy': round(mean('loss'), 4),
    'perplexity': round(mean('perplexity'), 3),
    'agreement': round(mean('agreement'), 4),
    'teacher KL': round(mean('teacher_kl'), 4),
  }


def tune(workdir: pathlib.Path, results: pathlib.Path) -> None:
  """Runs the search of every method, then the comparison.

  Args:
    workdir: folder of the runs.
    results: folder of the tables and the picture.
  """
  best, rows = {}, []
  for method in base.METHODS:
    found = search(method, workdir)
    best[method] = found[0][0]
    rows += [
      {'method': method, 'settings': describe(o), 'top-1': value}
      for o, value in found
    ]
    name = f'{_EXPERIMENT.value}_tune'
    cli.write(results / name, tables.markdown(rows), rows)
  compare(best, workdir, results)


def compare(
  best: Mapping[str, sweeps.Overrides],
  workdir: pathlib.Path,
  results: pathlib.Path,
) -> None:
  """Runs the best of each method with several seeds.

  Args:
    best: overrides by method.
    workdir: folder of the runs.
    results: folder of the table and the picture.
  """
  finals: dict[str, summary_lib.Summary] = {}
  lines: list[Row] = []
  name = _EXPERIMENT.value

  def add(label: str, summary: summary_lib.Summary) -> None:
    lines.append(line(label, summary))
    cli.write(results / name, tables.markdown(lines), lines)

  for method, overrides in best.items():
    finals[method] = attempt(method, overrides, workdir, _SEEDS.value)
    add(method, finals[method])
  records = {m: metric_log.read(_folder(m, best[m], workdir)) for m in finals}
  picture = results / f'{name}.png'
  plots.curves(records, 'accuracy', 'held-out accuracy', picture)
  for method, summary in finals.items():
    steps = equal_steps(summary, finals['one_shot'])
    if abs(steps / summary['steps'] - 1) > 0.01:
      longer = {**best[method], 'num_steps': steps}
      equal = attempt(method, longer, workdir, _SEEDS.value)
      add(f'{method}, FLOPs of one_shot', equal)


def equal_steps(
  summary: summary_lib.Summary, other: summary_lib.Summary
) -> int:
  """Returns the steps after which one run has the FLOPs of another.

  Args:
    summary: summary of the run.
    other: summary of the other run.

  Returns:
    The number of steps, a multiple of 25.
  """
  ratio = summary_lib.flops(other) / summary_lib.flops(summary)
  return round(summary['steps'] * ratio / 25) * 25


def compare_recipes(workdir: pathlib.Path, results: pathlib.Path) -> None:
  """Runs every variant of the hidden stages.

  Args:
    workdir: folder of the runs.
    results: folder of the table.
  """
  rows: list[Row] = []
  for name, overrides in RECIPES.items():
    summary = attempt('extracted', overrides, workdir)
    rows.append(
      {
        'recipe': name,
        'top-1': round(float(np.mean(summary['final']['accuracy'])), 4),
        'TFLOP': round(summary_lib.flops(summary) / 1e12, 2),
      }
    )
    stem = results / f'{_EXPERIMENT.value}_recipes'
    cli.write(stem, tables.markdown(rows), rows)


def main(argv: list[str]) -> None:
  """Runs the search and the comparison, or the variants."""
  del argv
  errors.lookup('experiment', _EXPERIMENT.value, EXPERIMENTS)
  run = compare_recipes if _RECIPES.value else tune
  run(paths.workdir('tune'), paths.results())


if __name__ == '__main__':
  cli.run(main)
