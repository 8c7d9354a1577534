r"""Hyperparameter search on sparse parity, the same for each method.

Each method is trained with the same learning rates, and at the best of them
with the same scales of the student's initialization, if the experiment has
several. Methods with stages before the output then get several lengths of
these, and progressive several checkpoints, all at the best of what was chosen
before. The search minimizes the number of steps until all seeds are at 99% (the
worst seed), within a budget.

Run:
  python -m experiments.tune --workdir=runs/tune
  python -m experiments.tune --experiment=parity_transformer

Writes EXPERIMENT_tune.{md,csv} into --results. Finished runs are not run again.
"""

from collections.abc import Callable
import dataclasses
import pathlib
from typing import Any
from typing import TypeAlias

from absl import flags
import ml_collections

from cxjax import errors
from cxjax import tables
from cxjax.analysis import search as search_lib
from cxjax.configs import cli
from cxjax.training import summary as summary_lib
from experiments import base
from experiments import parity_mlp
from experiments import parity_transformer
from experiments import paths
from experiments import sweeps


@dataclasses.dataclass(frozen=True)
class Space:
  """Search space of an experiment.

  Attributes:
    get_config: builds the experiment's config.
    budget: number of steps of a run.
    rates: learning rates.
    lengths: lengths in steps of all stages before the output together; the
      search for the other settings uses the first.
    scores: the teacher's accuracy at the checkpoint of progressive; as for
      `lengths`, the first comes first.
    inits: scales of the student's initialization besides that of the config.
  """

  get_config: Callable[[str], ml_collections.ConfigDict]
  budget: int
  rates: tuple[float, ...]
  lengths: tuple[int, ...]
  scores: tuple[float, ...]
  inits: tuple[float, ...] = ()


# The overrides of a run and its summary.
Trial: TypeAlias = tuple[sweeps.Overrides, summary_lib.Summary]

STAGED = ('progressive', 'extracted')
SPACES = {
  'parity_mlp': Space(
    parity_mlp.get_config,
    budget=40_000,
    rates=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    lengths=(2_000, 250, 500, 1_000, 4_000),
    scores=(0.75, 0.55, 0.65, 0.85, 0.95),
  ),
  'parity_transformer': Space(
    parity_transformer.get_config,
    budget=4_000,
    rates=(3e-4, 1e-3, 3e-3),
    lengths=(2_000, 1_000, 3_000),
    scores=(0.75, 0.55, 0.95),
    inits=(0.1, 0.4),
  ),
}
COLUMNS = (
  'at 99%',
  'steps to 99%: median',
  'worst',
  'examples',
  'GFLOP',
  'final accuracy: mean',
)
_EXPERIMENT = flags.DEFINE_string(
  'experiment', 'parity_mlp', f'Experiment: {", ".join(SPACES)}.'
)


def start_config(method: str, space: Space) -> ml_collections.ConfigDict:
  """Returns the config that the search varies."""
  config = space.get_config(method)
  config[method].rate_factor = 1.0
  config.num_steps = space.budget
  config.save_every = space.budget // 4
  config.stop_at = 0.99
  return config


def rank(summary: summary_lib.Summary) -> tuple[float, ...]:
  """Returns the sort key of a run; the best run has the smallest.

  Args:
    summary: summary of the run.

  Returns:
    Number of seeds that failed, steps of the slowest other seed, and the
    negative mean accuracy.
  """
  reached = summary['steps_to']['0.99']
  failed = sum(step is None for step in reached)
  accuracy = sum(summary['final']['accuracy']) / len(reached)
  return (
    failed,
    max((s for s in reached if s is not None), default=0),
    -accuracy,
  )


def search(method: str, space: Space, workdir: pathlib.Path) -> list[Trial]:
  """Runs the search of a method.

  Args:
    method: name of the method.
    space: settings to try.
    workdir: folder of the runs.

  Returns:
    The overrides and the summary of every run, best first.
  """
  best = lambda tried: tried[0].setting
  staged = method in STAGED
  shares = tuple(length / space.budget for length in space.lengths)
  start: dict[str, Any] = {}
  if staged:
    start[f'{method}.share'] = shares[0]
  if method == 'progressive':
    start['progressive.scores'] = space.scores[:1]
  rounds = (
    lambda _: [{**start, 'optimizer.learning_rate': r} for r in space.rates],
    lambda tried: [{**best(tried), 'student.init_std': s} for s in space.inits],
    lambda tried: [
      {**best(tried), f'{method}.share': share}
      for share in (shares if staged else ())
    ],
    lambda tried: [
      {**best(tried), 'progressive.scores': (s,)}
      for s in (space.scores if method == 'progressive' else ())
    ],
  )

  def run(settings: list[sweeps.Overrides]) -> list[summary_lib.Summary]:
    config = start_config(method, space)
    return [sweeps.run(config, overrides, workdir) for overrides in settings]

  found = search_lib.search(rounds, run, rank)
  return [(one.setting, one.found) for one in found]


def row(method: str, space: Space, tried: Trial, best: bool) -> dict[str, Any]:
  """Returns one row of the table.

  Args:
    method: name of the method.
    space: settings that were tried.
    tried: the run.
    best: whether it is the best run of its method.

  Returns:
    The cells by column.
  """
  overrides, summary = tried
  share = overrides.get(f'{method}.share')
  cells = {
    'method': method,
    'learning rate': overrides['optimizer.learning_rate'],
    'before output': None if share is None else round(share * space.budget),
    'checkpoint at': overrides.get('progressive.scores', (None,))[0],
  }
  if space.inits:
    cells['init'] = overrides.get('student.init_std', 'as it is')
  found = sweeps.table_cells(summary)
  cells |= {name: found[name] for name in COLUMNS}
  return cells | {'best': 'best' if best else ''}


def main(argv: list[str]) -> None:
  """Runs the search of every method, and writes the table after each."""
  del argv
  name = _EXPERIMENT.value
  space = errors.lookup('experiment', name, SPACES)
  rows = []
  for method in base.METHODS:
    found = search(method, space, paths.workdir('tune'))
    rows += [row(method, space, one, i == 0) for i, one in enumerate(found)]
    results = paths.results() / f'{name}_tune'
    cli.write(results, tables.markdown(rows), rows)


if __name__ == '__main__':
  cli.run(main)
