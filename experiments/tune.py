r"""Every method at its best: the same search for each, then the same test.

Sparse parity. Each method gets the same learning rates, and at the best of them
the same scales of the student's start, where they are a choice; those that have
stages before the output get them in some lengths as well; and progressive,
whose checkpoint is a choice too, some checkpoints, all at the best of what was
chosen before. What is minimised is the number of steps until all seeds are at
99% (the worst seed), in a budget.

Run:
  python -m experiments.tune --workdir=runs/tune
  python -m experiments.tune --experiment=parity_transformer

Writes EXPERIMENT_tune.{md,csv} into --results.
"""

from collections.abc import Callable
import dataclasses

from absl import app
from absl import flags
import ml_collections

from cxjax.configs import cli
from cxjax import errors
from cxjax.methods import curricula
from cxjax.training import summary as summary_lib
from cxjax import tables
from experiments import parity_mlp
from experiments import parity_transformer
from experiments import paths
from experiments import sweeps


@dataclasses.dataclass(frozen=True)
class Search:
  """What is tried of an experiment.

  Attributes:
    get_config: the experiment's.
    budget: steps of a run.
    rates: learning rates.
    lengths: of all stages before the output, in steps; the first is that of
      the search for the others.
    accuracies: the teacher's, at the checkpoint of progressive; as `lengths`.
    inits: scales of the student's start besides that of the experiment.
  """

  get_config: Callable[[str], ml_collections.ConfigDict]
  budget: int
  rates: tuple[float, ...]
  lengths: tuple[int, ...]
  accuracies: tuple[float, ...]
  inits: tuple[float, ...] = ()


STAGED = ('progressive', 'extracted')
SEARCHES = {
  'parity_mlp': Search(
    parity_mlp.get_config,
    budget=40_000,
    rates=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    lengths=(2_000, 250, 500, 1_000, 4_000),
    accuracies=(0.75, 0.55, 0.65, 0.85, 0.95),
  ),
  'parity_transformer': Search(
    parity_transformer.get_config,
    budget=4_000,
    rates=(3e-4, 1e-3, 3e-3),
    lengths=(2_000, 1_000, 3_000),
    accuracies=(0.75, 0.55, 0.95),
    inits=(0.1, 0.4),
  ),
}
_EXPERIMENT = flags.DEFINE_string('experiment', 'parity_mlp', 'Which.')


def base(method, space):
  """The config that the search varies."""
  config = space.get_config(method)
  config[method].rate_factor = 1.0
  config.num_steps = space.budget
  config.save_every = space.budget // 4
  config.stop_at = 0.99
  return config


def score(summary):
  """Steps of the worst seed; seeds that failed count first."""
  reached = summary['steps_to']['0.99']
  failed = sum(step is None for step in reached)
  accuracy = sum(summary['final']['accuracy']) / len(reached)
  return (
    failed,
    max((s for s in reached if s is not None), default=0),
    -accuracy,
  )


def search(method, space, workdir):
  """All variants tried for a method, with their summaries, best first."""
  tried = {}

  def best_of(candidates):
    for overrides in candidates:
      key = tuple(sorted(overrides.items()))
      if key not in tried:
        tried[key] = sweeps.run(base(method, space), overrides, workdir)
    return dict(min(tried, key=lambda key: score(tried[key])))

  shares = tuple(length / space.budget for length in space.lengths)
  start = {}
  if method in STAGED:
    start[f'{method}.share'] = shares[0]
  if method == 'progressive':
    start['progressive.accuracies'] = space.accuracies[:1]
  best = best_of({**start, 'optimizer.learning_rate': r} for r in space.rates)
  best = best_of(
    [best, *({**best, 'student.init_std': s} for s in space.inits)]
  )
  if method in STAGED:
    best = best_of({**best, f'{method}.share': share} for share in shares)
  if method == 'progressive':
    best_of({**best, 'progressive.accuracies': (a,)} for a in space.accuracies)
  return sorted(tried.items(), key=lambda item: score(item[1]))


def row(method, space, overrides, summary, best):
  """One line of the table."""
  overrides = dict(overrides)
  share = overrides.get(f'{method}.share')
  line = {
    'method': method,
    'learning rate': overrides['optimizer.learning_rate'],
    'before output': None if share is None else round(share * space.budget),
    'checkpoint at': overrides.get('progressive.accuracies', (None,))[0],
  }
  if space.inits:
    line['init'] = overrides.get('student.init_std', 'as it is')
  shown = summary_lib.compare_row(summary)
  line |= {name: shown[name] for name in list(shown)[1:7]}
  return line | {'best': 'best' if best else ''}


def main(argv):
  """Searches, prints and keeps everything that was tried."""
  del argv
  name = _EXPERIMENT.value
  space = errors.lookup('experiment', name, SEARCHES)
  rows = []
  for method in curricula.METHODS:
    found = search(method, space, paths.workdir('tune'))
    rows += [row(method, space, o, s, i == 0) for i, (o, s) in enumerate(found)]
    results = paths.results() / f'{name}_tune'
    cli.write(results, tables.markdown(rows), rows)


if __name__ == '__main__':
  app.run(cli.guarded(main))
