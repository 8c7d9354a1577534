r"""Probes of a masked-prediction run: near and far tokens, and parse trees.

  ngram  M_robust and M_close of each of the teacher's checkpoints, and of the
         students that the workdir has (seed 0): how far a prediction moves when
         the n-gram around a masked position is masked too, or everything but
         that n-gram. Mean over positions, median over sentences.
  trees  On a grammar: accuracy of a linear probe for the non-terminal above
         each terminal, by level of the tree, from each block of these networks.

Run, after launch.py on the workdir (minutes on one core):
  python -m experiments.probe_masked --workdir=runs/pcfg

Writes probe_ngram.{md,csv,png} and probe_trees.{md,csv,png} into the workdir.

References:
  Panigrahi et al., 2024. https://arxiv.org/abs/2410.05464, section 4.
  Allen-Zhu, Li, 2023. https://arxiv.org/abs/2305.13673, section 4.
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import itertools
import pathlib
from typing import Any
from typing import TypeAlias

from absl import flags
import jax
import jax.numpy as jnp
from matplotlib.axes import Axes
import ml_collections
import numpy as np
import tqdm

from cxjax import errors
from cxjax import tables
from cxjax import types
from cxjax.analysis import plots
from cxjax.analysis import probes
from cxjax.configs import builders
from cxjax.configs import cli
from cxjax.configs import experiment
from cxjax.tasks import masked_grammar
from cxjax.tasks import masked_text
from cxjax.training import teacher as teacher_lib
from experiments import base
from experiments import paths

_SENTENCES = flags.DEFINE_integer(
  'sentences', 128, 'Number of sentences to measure on.', 2
)
_EVERY = flags.DEFINE_integer(
  'every', 10, 'Positions of the n-gram probe: this, twice this, ...', 1
)
_N = flags.DEFINE_list('n', ['3', '7', '15'], 'Lengths of the n-grams, odd.')

# A model and its parameters.
Network: TypeAlias = tuple[Any, types.Params]
# The name of a network, the step of a checkpoint (None for a student), its
# forward function and its parameters.
Version: TypeAlias = tuple[str, int | None, types.Apply, types.Params]
Row: TypeAlias = dict[str, Any]


def sentences(
  config: ml_collections.ConfigDict, number: int
) -> tuple[masked_grammar.MaskedGrammar, np.ndarray, np.ndarray]:
  """Draws held-out sentences of a grammar.

  Args:
    config: config of the run.
    number: `N`, number of sentences.

  Returns:
    The task; the tokens, `[N, L]`, BOS first; and the non-terminals above each
    terminal, `[N, depth, L - 1]`.
  """
  task = builders.make_task(config)
  key = builders.key_for(config, 'held_out')
  sample = jax.jit(functools.partial(task.grammar.sample, n=number))
  found = jax.device_get(sample(key))
  bos = np.full((number, 1), masked_grammar.BOS, np.int32)
  tokens = np.concatenate([bos, found['tokens']], axis=1)
  return task, tokens, found['ancestors']


def rows_of_text(
  config: ml_collections.ConfigDict, number: int
) -> tuple[masked_text.MaskedText, np.ndarray, np.ndarray]:
  """Reads held-out rows of text that hold one chunk of one document.

  Args:
    config: config of the run.
    number: `N`, maximal number of rows.

  Returns:
    The task, the tokens, `[N, L]`, and which of them are real, `[N, L]` bool.
  """
  task = builders.make_task(config)
  rows = task.held_out_rows(20 * number)
  single = rows['segments'].max(axis=1) == 1
  tokens = rows['tokens'][single][:number]
  return task, tokens, rows['segments'][single][:number] > 0


def versions(
  teacher: teacher_lib.Teacher, networks: Mapping[str, Network]
) -> Iterator[Version]:
  """Yields each checkpoint of the teacher, then each student."""
  for step, _ in tqdm.tqdm(teacher.checkpoints, 'checkpoints'):
    yield 'teacher', step, teacher.apply, teacher.at(step)
  for name, (model, params) in networks.items():
    if name != 'teacher':
      yield name, None, model.apply, params


def ngrams(
  found: Iterable[Version],
  tokens: np.ndarray,
  mask: np.ndarray,
  mask_id: int,
  lengths: Sequence[int],
  every: int,
) -> Iterator[Row]:
  """Measures the distances of the n-gram probe.

  Args:
    found: the networks.
    tokens: `[N, L]` ids.
    mask: `[N, L]` bool, the real tokens.
    mask_id: id of the mask token.
    lengths: lengths of the n-grams.
    every: distance between the positions.

  Yields:
    A row for each network and length: mean over positions, median over
    sentences.

  Raises:
    UserError: no position is real in two sentences.
  """
  positions = range(every, mask.shape[1], every)
  positions = [at for at in positions if mask[:, at].sum() >= 2]
  errors.require(
    bool(positions),
    f'No position {every}, {2 * every}, ... in two of the {len(mask)} '
    f'sentences of at most {mask.shape[1]} tokens. Lower --every.',
  )
  measure = jax.jit(
    functools.partial(probes.ngram_distance, mask_id=mask_id),
    static_argnames=('apply', 'n'),
  )
  for name, step, apply, params in found:
    for n in lengths:
      medians: dict[str, list[float]] = {'robust': [], 'close': []}
      for at in positions:
        moved = measure(apply, params, tokens, mask, jnp.int32(at), n=n)
        for which, values in moved.items():
          real = np.asarray(values)[mask[:, at]]
          medians[which].append(float(np.median(real)))
      yield {
        'network': name,
        'step': step,
        'n': n,
        'M_robust': float(np.mean(medians['robust'])),
        'M_close': float(np.mean(medians['close'])),
      }


def trees(
  networks: Mapping[str, Network],
  task: masked_grammar.MaskedGrammar,
  tokens: np.ndarray,
  ancestors: np.ndarray,
) -> Iterator[Row]:
  """Measures the accuracy of linear probes for the non-terminals.

  Args:
    networks: the networks.
    task: the task.
    tokens: `[N, L]` ids, BOS first.
    ancestors: `[N, depth, L - 1]` non-terminals above each terminal.

  Yields:
    A row for each network and activation, with a column for each level of the
    tree; the last row is the accuracy of the most frequent symbol.
  """
  mask = tokens != masked_grammar.PAD
  x = {'tokens': tokens, 'mask': mask}
  inside = mask[:, 1:]
  levels = task.grammar.levels
  # The root is known, and the terminal itself is the input.
  depths = range(1, len(levels) - 1)
  for name, (model, params) in networks.items():
    _, found = jax.jit(model.apply)(params, x)
    for activation in ('embeddings', *model.layers):
      features = np.asarray(found[activation], np.float64)[:, 1:][inside]
      row: Row = {'network': name, 'activation': activation}
      for depth in depths:
        symbols = np.sort(levels[depth])
        labels = np.searchsorted(symbols, ancestors[:, depth][inside])
        row[f'level {depth}'] = probes.linear_probe(
          features, labels, len(symbols)
        )
      yield row
  row = {'network': 'most frequent symbol', 'activation': None}
  for depth in depths:
    _, counts = np.unique(ancestors[:, depth][inside], return_counts=True)
    row[f'level {depth}'] = float(counts.max() / counts.sum())
  yield row


def networks_of(
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  teacher: teacher_lib.Teacher,
) -> dict[str, Network]:
  """Returns the teacher and the first student of each method by name.

  Args:
    config: config of the run.
    workdir: folder of the run.
    teacher: the teacher.

  Returns:
    The networks that the workdir has.
  """
  found = {'teacher': (builders.make_model(config, 'teacher'), teacher.params)}
  for method in base.METHODS:
    if (workdir / method / 'summary.json').exists():
      model, params = experiment.load_students(config, workdir, method)
      found[method] = model, jax.tree.map(lambda leaf: leaf[0], params)
  return found


def draw_ngrams(rows: Sequence[Row], path: pathlib.Path) -> None:
  """Draws M_robust above M_close, with a column for each length.

  The teacher is a curve over its steps; a student is a horizontal line.

  Args:
    rows: rows of `ngrams`.
    path: path of the PNG file.
  """
  lengths = sorted({row['n'] for row in rows})
  names = ('M_robust', 'M_close')
  figure, panels = plots.axes(
    "step of the teacher's training",
    'L1 distance',
    columns=len(lengths),
    rows=2,
    width=3.6,
  )
  for (name, n), panel in zip(
    itertools.product(names, lengths), panels, strict=True
  ):
    panel.set_title(f'{name}, n = {n}')
    _draw_ngram(panel, [row for row in rows if row['n'] == n], name)
  panels[-1].legend(frameon=False, loc='center left', bbox_to_anchor=(1, 0.5))
  figure.tight_layout()
  plots.save(figure, path)


def _draw_ngram(panel: Axes, rows: Sequence[Row], name: str) -> None:
  """Draws one distance of all networks."""
  teacher = [row for row in rows if row['step'] is not None]
  steps = [row['step'] for row in teacher]
  values = [row[name] for row in teacher]
  panel.plot(steps, values, color='black', label='teacher')
  for row in rows:
    if row['step'] is None:
      color = plots.COLORS[row['network']]
      label = row['network']
      panel.axhline(row[name], color=color, linestyle='--', label=label)
  panel.set_ylim(0, None)


def draw_trees(rows: Sequence[Row], path: pathlib.Path) -> None:
  """Draws the accuracy of the probes against depth, in a panel for each level.

  Args:
    rows: rows of `trees`.
    path: path of the PNG file.
  """
  *rows, chance = rows
  levels = [name for name in chance if name.startswith('level')]
  figure, panels = plots.axes(
    'activation', 'accuracy of the probe', columns=len(levels), width=3.6
  )
  for level, panel in zip(levels, panels, strict=True):
    panel.set_title(level)
    for name in dict.fromkeys(row['network'] for row in rows):
      mine = [row for row in rows if row['network'] == name]
      panel.plot(
        [row['activation'].replace('embeddings', 'emb') for row in mine],
        [row[level] for row in mine],
        'o-',
        markersize=3,
        label=name,
        color=plots.COLORS.get(name, 'black'),
      )
    panel.axhline(chance[level], color='gray', linestyle=':')
    panel.tick_params(axis='x', rotation=45)
  panels[-1].legend(frameon=False, loc='center left', bbox_to_anchor=(1, 0.5))
  figure.tight_layout()
  plots.save(figure, path)


def main(argv: list[str]) -> None:
  """Measures, and writes the tables and the pictures."""
  del argv
  paths.require_unset('results')
  workdir = paths.workdir()
  lengths = cli.whole_numbers('n', _N.value)
  errors.require(
    all(n % 2 for n in lengths), f'--n={lengths} must be odd numbers.'
  )
  config, teacher = experiment.load(base.get_config('extracted'), workdir)
  task = builders.make_task(config)
  is_grammar = isinstance(task, masked_grammar.MaskedGrammar)
  errors.require(
    is_grammar or isinstance(task, masked_text.MaskedText),
    f'{workdir} is a run of task {config.task!r}; this probe is for pcfg and '
    'text.',
  )
  networks = networks_of(config, workdir, teacher)
  if is_grammar:
    task, tokens, ancestors = sentences(config, _SENTENCES.value)
    mask, mask_id = tokens != masked_grammar.PAD, masked_grammar.MASK
  else:
    task, tokens, mask = rows_of_text(config, _SENTENCES.value)
    mask_id = task.mask_id
  found = versions(teacher, networks)
  rows = list(ngrams(found, tokens, mask, mask_id, lengths, _EVERY.value))
  cli.write(workdir / 'probe_ngram', tables.markdown(rows), rows)
  draw_ngrams(rows, workdir / 'probe_ngram.png')
  if is_grammar:
    rows = list(trees(networks, task, tokens, ancestors))
    cli.write(workdir / 'probe_trees', tables.markdown(rows), rows)
    draw_trees(rows, workdir / 'probe_trees.png')


if __name__ == '__main__':
  cli.run(main)
