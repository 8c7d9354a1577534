r"""Why the curriculum works: who knows the support of the parity?

For a trained teacher, the correlation with single coordinates of the input, in
the support against outside it, of
  - a random projection of its hidden activations (what `extracted` imitates),
    of a transformer those of each block at the last position,
  - the output of each of its checkpoints (what `progressive` imitates),
  - its final output (what `one_shot` imitates).

Run, after any run on the workdir:
  python -m experiments.probe_parity --workdir=runs/demo

Writes probe_parity.{md,csv,png} into the workdir.
"""

import functools
import itertools

from absl import app
from absl import flags
import jax
import numpy as np

from cxjax.configs import builders
from cxjax.configs import cli
from cxjax.methods import stage as stage_lib
from cxjax import errors
from cxjax.configs import experiment
from cxjax.analysis import plots
from cxjax.analysis import probes
from cxjax.methods import projections
from cxjax.methods import train_step
from cxjax import tables
from experiments import base
from experiments import paths

_WIDTH = flags.DEFINE_integer('width', 100, 'Columns of the projection.')
_EXAMPLES = flags.DEFINE_integer('examples', 2**18, 'To average over.')
BATCH = 1_024
MARKERS = ('o', 's', '^', 'v')


def measure(config, teacher, width, examples):
  """`{layer or step: [d] root mean square correlation}` of each function."""
  task = builders.make_task(config)
  draw = functools.partial(task.draw, batch_size=BATCH)
  key = builders.key_for(config, 'held_out')
  num_batches = max(examples // BATCH, 1)

  @functools.partial(jax.jit, static_argnames='name')
  def correlations(params, matrix, name):
    stage = stage_lib.Stage(
      name, 1, target=name, positions=stage_lib.READ_ONLY
    )

    def features(x):
      value = train_step.compared(teacher.apply, params, x, name, stage)
      value = value.reshape(-1, value.shape[-1])  # One position is read.
      if name == stage_lib.LOGITS:
        # One class is redundant: probabilities sum to 1.
        return jax.nn.softmax(value)[:, 1:]
      return projections.project(value, matrix)

    found = probes.degree_one(
      features, draw, key, num_batches, task.coordinates
    )
    return jax.numpy.sqrt(jax.numpy.square(found).mean(0))

  d_in = config.teacher.width
  stage_key = builders.key_for(config, 'student_stage')
  matrix = projections.random_projection(stage_key, 'gaussian', (d_in, width))
  found = {
    layer: correlations(teacher.params, matrix, layer)
    for layer in teacher.layers
  }
  for at, _ in teacher.checkpoints:
    found[at] = correlations(teacher.load(at), None, 'logits')
  return {name: np.asarray(value) for name, value in found.items()}


def rows(found, support, accuracies):
  """One row a function: accuracy, in the support, outside it, the ratio."""
  inside = np.isin(np.arange(len(next(iter(found.values())))), support)
  for name, value in found.items():
    if name not in accuracies:
      title, accuracy = f'projected {name}, final', None
    else:
      title, accuracy = f'output, checkpoint {name}', accuracies[name]
    within, without = value[inside].mean(), value[~inside].mean()
    yield {
      'function': title,
      'accuracy': accuracy,
      'in support': float(within),
      'outside': float(without),
      'ratio': float(within / without),
    }


def draw_picture(found, support, accuracies, path):
  """Left: coordinate by coordinate. Right: the teacher's training."""
  figure, (left, right) = plots.axes(
    'coordinate of the input, support first', '|correlation|', columns=2
  )
  steps = list(accuracies)
  middle = min(steps, key=lambda s: abs(accuracies[s] - 0.75))
  layers = [name for name in found if name not in accuracies]
  d = len(found[layers[0]])
  order = [*support, *(j for j in range(d) if j not in support)]
  for name, label, color in (
    *(
      (layer, f'random projection of {layer}', 'extracted') for layer in layers
    ),
    (middle, f'output at step {middle}', 'progressive'),
    (steps[-1], 'output of the final teacher', 'one_shot'),
  ):
    left.plot(
      found[name][order],
      MARKERS[layers.index(name) % len(MARKERS)] if name in layers else 'o',
      markersize=4,
      label=label,
      color=plots.COLORS[color],
    )
  left.axvline(len(support) - 0.5, color='black', linewidth=0.8)
  left.set_ylim(0, None)
  left.legend(frameon=False, loc='lower center', bbox_to_anchor=(0.5, 1))
  inside = np.isin(np.arange(d), support)
  for label, part, style in (
    ('output, in the support', inside, '-'),
    ('output, outside', ~inside, ':'),
  ):
    values = [found[s][part].mean() for s in steps]
    right.plot(
      steps, values, style, label=label, color=plots.COLORS['progressive']
    )
  for layer, style in zip(layers, itertools.cycle(('--', '-.', ':'))):
    right.axhline(
      found[layer][inside].mean(),
      color=plots.COLORS['extracted'],
      linestyle=style,
      label=f'projection of {layer}, in the support',
    )
  right.set_xlabel("step of the teacher's training")
  accuracy = right.twinx()
  accuracy.plot(steps, list(accuracies.values()), color='grey', linewidth=1)
  accuracy.set_ylabel('accuracy of the teacher (grey)', color='grey')
  accuracy.set_ylim(0.45, 1.02)
  accuracy.spines['top'].set_visible(False)
  right.set_ylim(0, None)
  right.legend(frameon=False, loc='lower center', bbox_to_anchor=(0.5, 1))
  figure.tight_layout()
  plots.save(figure, path)


def main(argv):
  """Measures, prints the table, draws the picture."""
  del argv
  workdir = paths.workdir()
  config, teacher = experiment.load(base.get_config('extracted'), workdir)
  task = builders.make_task(config)
  errors.require(
    hasattr(task, 'supports'),
    f'{workdir} is a run of task {config.task!r}; this probe is for parity.',
  )
  support = sorted(j for node in task.supports for j in node)
  found = measure(config, teacher, _WIDTH.value, _EXAMPLES.value)
  accuracies = dict(teacher.checkpoints)
  lines = list(rows(found, support, accuracies))
  text = tables.markdown(lines)
  cli.write(workdir / 'probe_parity', text, lines)
  draw_picture(found, support, accuracies, workdir / 'probe_parity.png')


if __name__ == '__main__':
  app.run(cli.guarded(main))
