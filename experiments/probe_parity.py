r"""Probe of a parity teacher: which functions reveal the support?

Measures the correlation with single coordinates of the input, inside the
support and outside it, of these functions of a trained teacher:
  - a random projection of its hidden activations, the target of `extracted`; of
    a transformer, that of each block at the last position,
  - the output of each of its checkpoints, the target of `progressive`,
  - its final output, the target of `one_shot`.

Run, after any run on the workdir:
  python -m experiments.probe_parity --workdir=runs/demo

Writes probe_parity.{md,csv,png} into the workdir.
"""

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
from matplotlib.axes import Axes
import ml_collections
import numpy as np

from cxjax import errors
from cxjax import tables
from cxjax import types
from cxjax.analysis import plots
from cxjax.analysis import probes
from cxjax.configs import builders
from cxjax.configs import cli
from cxjax.configs import experiment
from cxjax.methods import projections
from cxjax.methods import stage as stage_lib
from cxjax.methods import targets
from cxjax.training import teacher as teacher_lib
from experiments import base
from experiments import paths

_WIDTH = flags.DEFINE_integer('width', 100, 'Columns of the projection.', 1)
_EXAMPLES = flags.DEFINE_integer(
  'examples', 2**18, 'Number of examples to average over.', 1
)
BATCH = 1_024
MARKERS = ('o', 's', '^', 'v')
SHADE = {'color': 'black', 'alpha': 0.08, 'linewidth': 0}
TRANSITION = 0.55, 0.95  # Accuracies between which the teacher is learning.
# Correlations `[d]` by function: the name of a layer, whose projection it is,
# or the step of a checkpoint, whose output it is.
Found: TypeAlias = dict[str | int, np.ndarray]


def measure(
  config: ml_collections.ConfigDict,
  teacher: teacher_lib.Teacher,
  width: int,
  examples: int,
) -> Found:
  """Measures the correlations of each function with the coordinates.

  Args:
    config: config of the teacher.
    teacher: the teacher.
    width: columns of the projection.
    examples: number of examples to average over.

  Returns:
    The root mean square over the features of each function.
  """
  task = builders.make_task(config)
  key = builders.key_for(config, 'held_out')
  num_batches = max(examples // BATCH, 1)

  @functools.partial(jax.jit, static_argnames='name')
  def correlations(params: Any, matrix: Any, name: str) -> jax.Array:
    term = stage_lib.Term(name, name, tokens=stage_lib.PREDICTED)

    def features(x: types.Input) -> jax.Array:
      found = targets.forward(teacher.apply, params, x)
      value = targets.compared(found, x, name, term)
      value = value.reshape(-1, value.shape[-1])  # One position is predicted.
      if name == stage_lib.LOGITS:
        # One class is redundant: probabilities sum to 1.
        return jax.nn.softmax(value)[:, 1:]
      return projections.project(value, matrix)

    found = probes.degree_one(
      features,
      lambda key, step: task.batch(key, step, BATCH),
      key,
      num_batches,
      task.coordinates,
    )
    return jax.numpy.sqrt(jax.numpy.square(found).mean(0))

  stage_key = builders.key_for(config, 'student_stage')
  shape = (config.teacher.width, width)
  matrix = projections.random_projection(stage_key, 'gaussian', shape)
  found: dict[str | int, jax.Array] = {
    layer: correlations(teacher.params, matrix, layer)
    for layer in teacher.layers
  }
  for step, _ in teacher.checkpoints:
    found[step] = correlations(teacher.at(step), None, stage_lib.LOGITS)
  return {name: np.asarray(value) for name, value in found.items()}


def rows(
  found: Found, support: Sequence[int], scores: Mapping[int, float]
) -> Iterator[dict[str, Any]]:
  """Yields a row for each function.

  Args:
    found: the correlations.
    support: coordinates in the support.
    scores: accuracy of the teacher by checkpoint.

  Yields:
    The accuracy, and the mean correlation in the support, outside it, and the
    ratio of the two.
  """
  inside = np.isin(np.arange(len(next(iter(found.values())))), support)
  for name, value in found.items():
    if isinstance(name, str):
      title, accuracy = f'projected {name}, final', None
    else:
      title, accuracy = f'output, checkpoint {name}', scores[name]
    within, without = value[inside].mean(), value[~inside].mean()
    yield {
      'function': title,
      'accuracy': accuracy,
      'in support': float(within),
      'outside': float(without),
      'ratio': float(within / without),
    }


def draw_picture(
  found: Found,
  support: Sequence[int],
  scores: Mapping[int, float],
  path: pathlib.Path,
) -> None:
  """Draws the correlations by coordinate and by step of the teacher.

  Args:
    found: the correlations.
    support: coordinates in the support.
    scores: accuracy of the teacher by checkpoint.
    path: path of the PNG file.
  """
  figure, (left, right) = plots.axes(
    'coordinate of the input, support first', '|correlation|', columns=2
  )
  _draw_coordinates(left, found, support, scores)
  _draw_training(right, found, support, scores)
  for panel in (left, right):
    panel.set_ylim(0, None)
    panel.legend(frameon=False, loc='lower center', bbox_to_anchor=(0.5, 1))
  figure.tight_layout()
  plots.save(figure, path)


def _layers(found: Found) -> list[str]:
  return [name for name in found if isinstance(name, str)]


def _draw_coordinates(
  panel: Axes,
  found: Found,
  support: Sequence[int],
  scores: Mapping[int, float],
) -> None:
  """Draws the correlation with each coordinate, of some functions."""
  steps, layers = list(scores), _layers(found)
  middle = min(steps, key=lambda step: abs(scores[step] - 0.75))
  d = len(found[layers[0]])
  order = [*support, *(j for j in range(d) if j not in support)]
  curves: list[tuple[str | int, str, str, str]] = [
    *(
      (layer, f'random projection of {layer}', 'extracted', marker)
      for layer, marker in zip(layers, itertools.cycle(MARKERS), strict=False)
    ),
    (middle, f'output at step {middle}', 'progressive', 'D'),
    (steps[-1], 'output of the final teacher', 'one_shot', 'P'),
  ]
  for name, label, method, marker in curves:
    color = plots.COLORS[method]
    panel.plot(
      found[name][order], marker, markersize=4, label=label, color=color
    )
  panel.axvspan(-0.5, len(support) - 0.5, label='support', **SHADE)


def _draw_training(
  panel: Axes,
  found: Found,
  support: Sequence[int],
  scores: Mapping[int, float],
) -> None:
  """Draws the correlations of the outputs against the teacher's steps."""
  steps, layers = list(scores), _layers(found)
  inside = np.isin(np.arange(len(found[steps[0]])), support)
  color = plots.COLORS['progressive']
  for label, part, style in (
    ('output, in the support', inside, '-'),
    ('output, outside', ~inside, ':'),
  ):
    values = [found[step][part].mean() for step in steps]
    panel.plot(steps, values, style, label=label, color=color)
  styles = itertools.cycle(('--', '-.', ':'))
  for layer, style in zip(layers, styles, strict=False):
    panel.axhline(
      found[layer][inside].mean(),
      color=plots.COLORS['extracted'],
      linestyle=style,
      label=f'projection of {layer}, in the support',
    )
  panel.set_xlabel("step of the teacher's training")
  low, high = TRANSITION
  learning = [step for step in steps if low <= scores[step] <= high]
  if learning:
    label = f'accuracy of the teacher {low:.0%} to {high:.0%}'
    panel.axvspan(min(learning), max(learning), label=label, **SHADE)


def main(argv: list[str]) -> None:
  """Measures, and writes the table and the picture."""
  del argv
  paths.require_unset('results')
  workdir = paths.workdir()
  config, teacher = experiment.load(base.get_config('extracted'), workdir)
  task = builders.make_task(config)
  errors.require(
    hasattr(task, 'supports'),
    f'{workdir} is a run of task {config.task!r}; this probe is for parity.',
  )
  support = sorted(j for node in task.supports for j in node)
  found = measure(config, teacher, _WIDTH.value, _EXAMPLES.value)
  scores = dict(teacher.checkpoints)
  lines = list(rows(found, support, scores))
  cli.write(workdir / 'probe_parity', tables.markdown(lines), lines)
  draw_picture(found, support, scores, workdir / 'probe_parity.png')


if __name__ == '__main__':
  cli.run(main)
