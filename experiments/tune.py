r"""Every method at its best: the same search for each, then the same test.

Sparse parity, 8 seeds. Each method gets the same five learning rates; those
that have a first stage get it in five lengths as well, at their best rate; and
progressive, whose checkpoint is a choice too, five checkpoints at its best rate
and length. What is minimised is the number of steps until all 8 seeds are at
99% (the worst seed), in a budget of 40,000.

Run:
  python -m experiments.tune --workdir=runs/tune

Writes tune.{md,csv} into --results.
"""

from absl import app

from cxjax import command
from cxjax import methods
from cxjax import summary as summary_lib
from cxjax import table
from experiments import parity_mlp
from experiments import places
from experiments import sweeps

BUDGET = 40_000
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
LENGTHS = (250, 500, 1_000, 2_000, 4_000)
ACCURACIES = (0.55, 0.65, 0.75, 0.85, 0.95)


def base(method):
  """The config that the search varies."""
  config = parity_mlp.get_config(method)
  config[method].rate_factor = 1.0
  config.num_steps = BUDGET
  config.save_every = 10_000
  config.stop_at = 0.99
  return config


def first_stage(method, length):
  """Overrides for a first stage of `length` steps."""
  return {f'{method}.steps': (length, BUDGET - length)}


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


def search(method, workdir):
  """All variants tried for a method, with their summaries, best last."""
  tried = {}

  def best_of(candidates):
    for overrides in candidates:
      key = tuple(sorted(overrides.items()))
      tried[key] = sweeps.run(base(method), overrides, workdir)
    return dict(min(tried, key=lambda key: score(tried[key])))

  staged = method in ('progressive', 'extracted')
  start = first_stage(method, 2_000) if staged else {}
  if method == 'progressive':
    start['progressive.accuracies'] = (0.75,)
  best = best_of({**start, 'optimizer.learning_rate': r} for r in RATES)
  if staged:
    best = best_of({**best, **first_stage(method, n)} for n in LENGTHS)
  if method == 'progressive':
    best = best_of({**best, 'progressive.accuracies': (a,)} for a in ACCURACIES)
  return sorted(tried.items(), key=lambda item: score(item[1]))


def row(method, overrides, summary, best):
  """One line of the table."""
  overrides = dict(overrides)
  length = overrides.get(f'{method}.steps', (None,))[0]
  accuracy = overrides.get('progressive.accuracies', (None,))[0]
  shown = summary_lib.compare_row(summary)
  return {
    'method': method,
    'learning rate': overrides['optimizer.learning_rate'],
    'first stage': length,
    'checkpoint at': accuracy,
    **{name: shown[name] for name in list(shown)[1:6]},
    'best': 'best' if best else '',
  }


def main(argv):
  """Searches, prints and keeps everything that was tried."""
  del argv
  rows = []
  for method in methods.METHODS:
    found = search(method, places.workdir('tune'))
    rows += [row(method, o, s, i == 0) for i, (o, s) in enumerate(found)]
  text = table.markdown(rows)
  command.write(places.results() / 'tune', text, rows)


if __name__ == '__main__':
  app.run(command.guarded(main))
