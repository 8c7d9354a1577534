r"""Curricula on the grammar that end on the labels, or on both; equal FLOPs.

Every run takes the FLOPs of one-shot distillation at its default number of
steps, the teacher's forward passes included. A run that ends on the labels does
not run the teacher in its last stage, so that it has several times the steps.
For each of these endings a search with one seed tries two learning rates at the
middle length of the hidden stage, and the other lengths at the better rate. The
best is run with several seeds, beside the labels alone, one-shot distillation
and the extracted curriculum at the settings that masked_tune.py found for them.
The first seed of the last runs is that of the search.

Run (it trains its teacher first; about an hour on two cores):
  python -m experiments.endings --experiment=pcfg_bert

Writes EXPERIMENT_endings_tune.{md,csv} and EXPERIMENT_endings.{md,csv} into
--results. Finished runs are not run again.
"""

import functools
import pathlib

from absl import flags

from cxjax import errors
from cxjax import tables
from cxjax.analysis import search as search_lib
from cxjax.configs import builders
from cxjax.configs import cli
from cxjax.parallel import devices as devices_lib
from experiments import masked_tune
from experiments import paths
from experiments import sweeps

# Steps of the hidden stage; the middle one is tried first.
HIDDEN = {'pcfg_bert': (225, 450, 900)}
RATES = {'pcfg_bert': (3e-3, 1e-2)}
ENDINGS = ('labels', 'mixed')


class Budget:
  """FLOPs of one-shot distillation, and the steps that they allow."""

  def __init__(self, experiment: str) -> None:
    """Counts the compiled FLOPs of one-shot distillation."""
    config = masked_tune.EXPERIMENTS[experiment].get_config('extracted')
    self._config = config
    self.flops = config.num_steps * self._per_step('one_shot')[0]

  def _per_step(self, method: str, ending: str = 'output') -> list[float]:
    """FLOPs of a step of every stage, student and teacher."""
    config = sweeps.variant(self._config, {'extracted.ending': ending})
    devices = devices_lib.topology('cpu')
    spec = builders.abstract_specs(config, (method,), devices)[method]
    return [p.student_flops + p.teacher_flops for p in spec.plan_with_costs()]

  def supervised(self) -> int:
    """Returns the steps of the labels alone, a multiple of 25."""
    return round(self.flops / self._per_step('supervised')[0] / 25) * 25

  def steps(self, ending: str, hidden: int) -> tuple[int, int]:
    """Returns the steps of both stages; the last a multiple of 25."""
    first, last = self._per_step('extracted', ending)
    rest = round((self.flops - hidden * first) / last / 25) * 25
    errors.require(rest > 0, f'{hidden} hidden steps exceed the budget.')
    return hidden, rest


def settings(
  budget: Budget, ending: str, hidden: int, rate: float
) -> sweeps.Overrides:
  """Returns the fields of one run that ends on `ending`."""
  steps = budget.steps(ending, hidden)
  return {
    'extracted.ending': ending,
    'extracted.steps': steps,
    'num_steps': sum(steps),
    'optimizer.learning_rate': rate,
  }


def search(
  budget: Budget, experiment: str, ending: str, workdir: pathlib.Path
) -> list[tuple[sweeps.Overrides, float]]:
  """Runs settings of an ending with one seed.

  Args:
    budget: FLOPs of every run.
    experiment: 'pcfg_bert', whose config has the best rate of each method.
    ending: 'labels' or 'mixed'.
    workdir: folder of the runs.

  Returns:
    The settings and the top-1 of each run, best first.
  """
  short, middle, long = HIDDEN[experiment]
  fields = functools.partial(settings, budget, ending)
  best = lambda tried: tried[0].setting['optimizer.learning_rate']
  rounds = (
    lambda _: [fields(middle, rate) for rate in RATES[experiment]],
    lambda tried: [fields(hidden, best(tried)) for hidden in (short, long)],
  )

  def run(some: list[sweeps.Overrides]) -> list[float]:
    attempt = masked_tune.attempt
    summaries = [attempt('extracted', one, workdir) for one in some]
    return [summary['final']['accuracy'][0] for summary in summaries]

  tried = search_lib.search(rounds, run, lambda accuracy: -accuracy)
  return [(one.setting, one.found) for one in tried]


def study(workdir: pathlib.Path, results: pathlib.Path, seeds: int) -> None:
  """Searches every ending, and runs the best of each with several seeds.

  Args:
    workdir: folder of the runs.
    results: folder of the tables.
    seeds: number of seeds of the last runs.
  """
  name = flags.FLAGS.experiment
  budget = Budget(name)
  tuned: list[masked_tune.Row] = []
  lines: list[masked_tune.Row] = []

  def add(label: str, method: str, overrides: sweeps.Overrides) -> None:
    summary = masked_tune.attempt(method, overrides, workdir, seeds)
    lines.append(masked_tune.line(label, summary))
    cli.write(results / f'{name}_endings', tables.markdown(lines), lines)

  config = masked_tune.EXPERIMENTS[name].get_config('extracted')
  hidden = round(config.extracted.share * config.num_steps)
  rate = config.optimizer.learning_rate
  output = settings(budget, 'output', hidden, rate)
  add('extracted, FLOPs of one_shot', 'extracted', output)
  rate *= config.supervised.rate_factor
  labels = {
    'num_steps': budget.supervised(),
    'optimizer.learning_rate': rate,
  }
  add('labels alone (supervised), FLOPs of one_shot', 'supervised', labels)
  one_shot = {'optimizer.learning_rate': config.optimizer.learning_rate}
  add('one_shot', 'one_shot', one_shot)
  for ending in ENDINGS:
    found = search(budget, name, ending, workdir)
    tuned += [
      {
        'ending': ending,
        'settings': masked_tune.describe(overrides),
        'top-1': round(value, 4),
      }
      for overrides, value in found
    ]
    stem = results / f'{name}_endings_tune'
    cli.write(stem, tables.markdown(tuned), tuned)
    label = f'extracted, ending on {ending}, FLOPs of one_shot'
    add(label, 'extracted', found[0][0])


def main(argv: list[str]) -> None:
  """Runs the study."""
  del argv
  errors.lookup('experiment', flags.FLAGS.experiment, HIDDEN)
  study(paths.workdir('tune'), paths.results(), flags.FLAGS.seeds)


if __name__ == '__main__':
  cli.run(main)
