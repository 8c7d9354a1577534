r"""Cosine of the gradients of hidden stages and of the output.

While an update for the hidden layers is one for the output too, the cosine of
the two gradients is positive. Does it say when to stop a hidden stage? For each
share of the steps that is hidden, the script trains students and writes the
cosine at the end of the hidden stages beside what the students reach. The
optimizer is that of the config, or for digits Adam with a warm-up of 6%; the
steps and the learning rates are in `CASES`.

Run (digits needs scikit-learn):
  python -m experiments.gradient_cosine --experiment=parity_mlp,digits,pcfg_bert

Writes gradient_cosine.{md,csv,png} into --results.
"""

import dataclasses
import pathlib
import statistics
from typing import Any

from absl import flags
import jax
import numpy as np

import cxjax
from cxjax import errors
from cxjax import files
from cxjax import tables
from cxjax.analysis import plots
from cxjax.api import distilled
from cxjax.api import named_plans
from cxjax.api import starts as starts_lib
from cxjax.configs import cli
from cxjax.configs import contest
from cxjax.training import gradient_cosine
from experiments import contestants
from experiments import paths

_EXPERIMENTS = flags.DEFINE_list('experiment', ['parity_mlp'], 'Experiments.')
_SIZE = flags.DEFINE_string('size', 'cpu', 'Size of their configs: cpu, tiny.')
_SHARES = flags.DEFINE_list(
  'shares',
  ['0.1', '0.2', '0.4', '0.6', '0.8'],
  'Parts of the steps, in (0, 1).',
)
# Steps of a run, and the learning rate that was best for the curriculum before.
CASES = {
  'parity_mlp': (1_000, 0.01),
  'digits': (400, 0.03),
  'pcfg_bert': (500, 0.01),
}
EVALUATIONS = 40  # Of each run, at even distances.
COSINE = f'eval/{gradient_cosine.NAME}'
Row = dict[str, Any]


def run(
  one: contest.Setting, share: float, steps: int, rate: float
) -> distilled.Distilled:
  """Trains students by the extracted curriculum.

  Args:
    one: networks and data.
    share: share of the steps in hidden stages.
    steps: number of steps.
    rate: peak learning rate.

  Returns:
    The students and their records.
  """
  seeds = flags.FLAGS.seeds
  start = starts_lib.starts(one.student, seeds)
  student = dataclasses.replace(start.student, params=start.params)
  first = next(iter(one.batches))
  planner = named_plans.Planner(
    one.teacher,
    start.student,
    first,
    one.options.get('layers'),
    named_plans.Output(one.options.get('loss', 'kl'), 1.0, 0.0, None, None),
  )
  entry = {**one.methods['extracted'], 'share': share}
  stages = planner.plan('extracted', entry, steps).stages
  plan = cxjax.plan(one.teacher, student, first, stages=stages)
  each = max(steps // EVALUATIONS, 1)
  return cxjax.distill(
    plan,
    one.batches,
    held_out=one.held_out,
    metrics=one.options.get('metrics'),
    optimizer=one.optimizer,
    learning_rate=rate,
    seed=list(range(seeds)),
    eval_every=each,
    log_every=each,
    gradient_cosine=True,
  )


def rows(name: str, found: dict[float, distilled.Distilled]) -> list[Row]:
  """Lists a row for each share of an experiment.

  Args:
    name: name of the experiment.
    found: runs by their share.
  """
  lines = []
  for share, (_, history) in found.items():
    metric = next(
      key for key in history[-1] if key.startswith('eval/') and key != COSINE
    )
    cosines = [r for r in history if COSINE in r]
    scores = history[-1][metric]
    lines.append(
      {
        'experiment': name,
        'hidden share': share,
        'hidden steps': cosines[-1]['step'],
        'cosine at its end: mean': statistics.fmean(cosines[-1][COSINE]),
        'cosine: min': min(cosines[-1][COSINE]),
        'cosine: max': max(cosines[-1][COSINE]),
        'metric': metric.removeprefix('eval/'),
        'mean': statistics.fmean(scores),
        'sd': statistics.stdev(scores) if len(scores) > 1 else None,
      }
    )
  return lines


def picture(histories: dict[str, list[Row]], path: pathlib.Path) -> None:
  """Draws the cosine over the longest hidden stages, a panel an experiment."""
  figure, panels = plots.axes('', '', columns=len(histories))
  for panel, (name, history) in zip(panels, histories.items(), strict=True):
    some = [record for record in history if COSINE in record]
    steps = [record['step'] for record in some]
    for values in np.transpose([record[COSINE] for record in some]):
      panel.plot(steps, values, color='#0072B2', alpha=0.7)
    panel.axhline(0, color='#999999', linewidth=0.8)
    panel.set_title(name)
    panel.set_xlabel('step of the hidden stages')
    panel.set_ylabel('cosine of the gradients')
  figure.subplots_adjust(wspace=0.4)
  plots.save(figure, path)


def main(argv: list[str]) -> None:
  """Runs all shares of all experiments."""
  del argv
  for name in _EXPERIMENTS.value:
    errors.lookup('--experiment', name, CASES)
  shares = sorted(paths.fractions(_SHARES))
  workdir, results = paths.workdir('gradient_cosine'), paths.results()
  jax.config.update('jax_compilation_cache_dir', str(workdir / 'cache'))
  lines: list[Row] = []
  histories = {}
  for name in _EXPERIMENTS.value:
    one = contestants.find(name, _SIZE.value, workdir / name)
    found = {s: run(one, s, *CASES[name]) for s in shares}
    lines += rows(name, found)
    histories[name] = found[max(found)].history
  path = results / 'gradient_cosine'
  made = f'Made by `{paths.command("gradient_cosine")}`.'
  table = tables.markdown(lines)
  files.write_text(path.with_suffix('.md'), f'{made}\n\n{table}')
  tables.write_csv(path.with_suffix('.csv'), lines)
  picture(histories, path.with_suffix('.png'))


if __name__ == '__main__':
  cli.run(main)
