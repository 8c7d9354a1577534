r"""What the networks of a masked-prediction run know: near, far, and trees.

  ngram  M_robust and M_close over the teacher's checkpoints, and of every
         method's students that are there (seed 0): how far a prediction moves
         when the n-gram around a masked position is hidden as well, or
         everything but that n-gram. Mean over positions, median over sentences.
  trees  On a grammar: accuracy of a linear probe for the non-terminal above
         each terminal, by level of the tree, from each block of the same.

Run, after launch.py on the workdir (minutes on one core):
  python -m experiments.probe_masked --workdir=runs/pcfg

Writes probe_ngram.{md,csv,png} and probe_trees.{md,csv,png} into the workdir.

References:
  Panigrahi et al., 2024. https://arxiv.org/abs/2410.05464, section 4.
  Allen-Zhu, Li, 2023. https://arxiv.org/abs/2305.13673, section 4.
"""

import functools
import itertools

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from cxjax.configs import builders
from cxjax.configs import cli
from cxjax import errors
from cxjax.configs import experiment
from cxjax.methods import curricula
from cxjax.analysis import plots
from cxjax.analysis import probes
from cxjax import tables
from cxjax.tasks import masked_text
from cxjax.tasks import masked_grammar
from experiments import base
from experiments import paths

_SENTENCES = flags.DEFINE_integer('sentences', 128, 'To measure on.', 2)
_EVERY = flags.DEFINE_integer(
  'every', 10, 'Positions of the n-gram probe: this, twice this, ...', 1
)
_N = flags.DEFINE_list('n', ['3', '7', '15'], 'Lengths of the n-grams, odd.')


def sentences(config, number):
  """Held-out sentences with what is above them; BOS first."""
  task = builders.make_task(config)
  key = builders.key_for(config, 'held_out')
  sample = jax.jit(functools.partial(task.grammar.sample, n=number))
  found = jax.device_get(sample(key))
  bos = np.full((number, 1), masked_grammar.BOS, np.int32)
  tokens = np.concatenate([bos, found['tokens']], axis=1)
  return task, tokens, found['ancestors']


def rows_of_text(config, number):
  """Held-out rows that are one piece of one document, and which are real."""
  task, text = builders.make_task(config), builders.text_of(config)
  rows = masked_text.held_out_rows(text.held_out, task, 20 * number)
  whole = rows['segments'].max(axis=1) == 1
  tokens = rows['tokens'][whole][:number]
  return task, tokens, rows['segments'][whole][:number] > 0


def versions(teacher, networks):
  """`(name, step, apply, params)`: the teacher as it learned, the students."""
  for at, _ in tqdm.tqdm(teacher.checkpoints, 'checkpoints'):
    yield 'teacher', at, teacher.apply, teacher.load(at)
  for name, (model, params) in networks.items():
    if name != 'teacher':
      yield name, None, model.apply, params


def ngrams(found, tokens, real, mask_id, lengths, every):
  """A row per network and n: mean over positions, median over sentences."""
  places = range(every, real.shape[1], every)
  errors.require(
    any(real[:, place].sum() >= 2 for place in places),
    f'No position {every}, {2 * every}, ... in two of the {len(real)} '
    f'sentences of at most {real.shape[1]} tokens. Lower --every.',
  )
  measure = jax.jit(
    functools.partial(probes.ngram_distance, mask_id=mask_id),
    static_argnames=('apply', 'n'),
  )
  for name, at, apply, params in found:
    for n in lengths:
      medians = {'robust': [], 'close': []}
      for place in places:
        use = real[:, place]
        if use.sum() < 2:
          continue
        moved = measure(apply, params, tokens, real, jnp.int32(place), n=n)
        for which, values in moved.items():
          medians[which].append(np.median(np.asarray(values)[use]))
      yield {
        'network': name,
        'step': at,
        'n': n,
        'M_robust': float(np.mean(medians['robust'])),
        'M_close': float(np.mean(medians['close'])),
      }


def trees(networks, task, tokens, ancestors):
  """A row per network and activation: accuracy of the probe at each level."""
  real = tokens != masked_grammar.PAD
  x = {'tokens': tokens, 'mask': real}
  inside = real[:, 1:]
  levels = task.grammar.levels
  for name, (model, params) in networks.items():
    _, found = jax.jit(model.apply)(params, x)
    for at in ('embeddings', *model.layers):
      features = np.asarray(found[at], np.float64)[:, 1:][inside]
      row = {'network': name, 'activation': at}
      # The root is known, and the terminal itself is the input.
      for depth in range(1, len(levels) - 1):
        symbols = np.sort(levels[depth])
        labels = np.searchsorted(symbols, ancestors[:, depth][inside])
        row[f'level {depth}'] = probes.linear_probe(
          features, labels, len(symbols)
        )
      yield row
  row = {'network': 'most frequent symbol', 'activation': None}
  for depth in range(1, len(levels) - 1):
    _, counts = np.unique(ancestors[:, depth][inside], return_counts=True)
    row[f'level {depth}'] = float(counts.max() / counts.sum())
  yield row


def networks_of(config, workdir, teacher):
  """`{name: (module, params)}` of what the workdir holds."""
  found = {'teacher': (builders.make_model(config, 'teacher'), teacher.params)}
  for method in curricula.METHODS:
    if (workdir / method / 'summary.json').exists():
      model, params = experiment.load_students(config, workdir, method)
      found[method] = model, jax.tree.map(lambda leaf: leaf[0], params)
  return found


def draw_ngrams(rows, path):
  """M_robust above M_close, a column an n: the teacher's steps, the students.

  A student is a horizontal line: where it ended.
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
    mine = [row for row in rows if row['n'] == n]
    teacher = [row for row in mine if row['step'] is not None]
    steps = [row['step'] for row in teacher]
    values = [row[name] for row in teacher]
    panel.plot(steps, values, color='black', label='teacher')
    for row in mine:
      if row['step'] is None:
        color = plots.COLORS[row['network']]
        label = row['network']
        panel.axhline(row[name], color=color, linestyle='--', label=label)
    panel.set_ylim(0, None)
  panels[-1].legend(frameon=False, loc='center left', bbox_to_anchor=(1, 0.5))
  figure.tight_layout()
  plots.save(figure, path)


def draw_trees(rows, path):
  """One panel a level: accuracy of the probe against depth in the network."""
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
    panel.axhline(chance[level], color='grey', linestyle=':')
    panel.tick_params(axis='x', rotation=45)
  panels[-1].legend(frameon=False, loc='center left', bbox_to_anchor=(1, 0.5))
  figure.tight_layout()
  plots.save(figure, path)


def main(argv):
  """Measures, prints the tables, draws the pictures."""
  del argv
  workdir = paths.workdir()
  config, teacher = experiment.load(base.get_config('extracted'), workdir)
  errors.require(
    config.task in ('pcfg', 'text'),
    f'{workdir} is a run of task {config.task!r}; this probe is for pcfg and '
    'text.',
  )
  lengths = [int(n) for n in _N.value]
  errors.require(
    all(n > 0 and n % 2 for n in lengths), f'--n={lengths} must be odd numbers.'
  )
  networks = networks_of(config, workdir, teacher)
  if config.task == 'pcfg':
    task, tokens, ancestors = sentences(config, _SENTENCES.value)
    real, mask_id = tokens != masked_grammar.PAD, masked_grammar.MASK
  else:
    task, tokens, real = rows_of_text(config, _SENTENCES.value)
    mask_id = task.mask_id
  found = versions(teacher, networks)
  rows = list(ngrams(found, tokens, real, mask_id, lengths, _EVERY.value))
  cli.write(workdir / 'probe_ngram', tables.markdown(rows), rows)
  draw_ngrams(rows, workdir / 'probe_ngram.png')
  if config.task == 'pcfg':
    rows = list(trees(networks, task, tokens, ancestors))
    cli.write(workdir / 'probe_trees', tables.markdown(rows), rows)
    draw_trees(rows, workdir / 'probe_trees.png')


if __name__ == '__main__':
  app.run(cli.guarded(main))
