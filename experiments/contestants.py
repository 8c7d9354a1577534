"""Networks and data of the experiments, as `cxjax.compare` takes them."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import itertools
import pathlib
from typing import Any
from typing import TypeAlias

from absl import flags
import jax
import numpy as np

import cxjax
from cxjax import errors
from cxjax import types
from cxjax.api import shrink
from cxjax.configs import builders
from cxjax.configs import defaults
from cxjax.configs import student_starts
from cxjax.configs import teachers
from cxjax.methods import checkpoint_rules
from cxjax.methods import registry
from cxjax.models import sentence
from cxjax.training import metrics as metrics_lib
from cxjax.training import optimizers
from cxjax.training import teacher as teacher_lib
from experiments import causal_text
from experiments import digits
from experiments import minilm
from experiments import parity_mlp
from experiments import parity_transformer
from experiments import pcfg_bert
from experiments import text_bert

CONFIGS = {
  'parity_mlp': parity_mlp,
  'parity_transformer': parity_transformer,
  'pcfg_bert': pcfg_bert,
  'text_bert': text_bert,
  'causal_text': causal_text,
  'causal_text_shrunk': causal_text,
}
NAMES = (*CONFIGS, 'digits', 'minilm', 'minilm_shrunk')
METHODS = (
  'supervised',
  'one_shot',
  'one_shot_labels',
  'progressive',
  'extracted',
  'extracted_labels',
  'extracted_centered',
  'extracted_centered_labels',
  'extracted_pca',
  'extracted_pca_rotated',
  'extracted_pca_rotated_labels',
  'extracted_directions',
  'fitnets',
  'late_to_early',
  'joint',
  'joint_fading',
)
Student: TypeAlias = Callable[[int], cxjax.ModelAdapter]
CALIBRATION = 4  # Batches that a student of MiniLM is cut on.
NEEDING_LABELS = (
  'supervised',
  'one_shot_labels',
  'extracted_labels',
  'extracted_centered_labels',
  'extracted_pca_rotated_labels',
)
# Without checkpoints of the teacher.
OTHERS = tuple(name for name in METHODS if name != 'progressive')


@dataclasses.dataclass(frozen=True)
class Setting:
  """Networks, data and methods of an experiment.

  Attributes:
    teacher: the trained teacher.
    student: makes the student of a seed.
    batches: training batches; each iteration begins anew.
    held_out: held-out set.
    num_steps: steps of one-shot distillation.
    methods: options of each method, as `compare` takes them.
    options: others of `compare`.
    rates: learning rates to try.
    optimizer: fields of the optimizer of its config, or of one with a warm-up.
  """

  teacher: cxjax.ModelAdapter
  student: Student
  batches: Iterable[Any]
  held_out: Any
  num_steps: int
  methods: dict[str, dict[str, Any]]
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
  optimizer: Mapping[str, Any] = dataclasses.field(
    default_factory=lambda: {'warmup': 0.06}
  )


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
      yield _plain(self._draw(self._key, np.int32(step), some))


def _plain(batch: types.Batch) -> types.Batch:
  """The entries of a batch that `distill` takes; bytes of text are no such."""
  return {k: v for k, v in batch.items() if k in ('x', 'y', 'weights')}


class First:
  """The first batches of others, again and again."""

  def __init__(self, batches: Iterable[Any], count: int) -> None:
    """Reads nothing yet."""
    self._batches, self._count = batches, count

  def __iter__(self) -> Iterator[Any]:
    """Yields them once."""
    return itertools.islice(iter(self._batches), self._count)


def of_config(name: str, size: str, workdir: pathlib.Path) -> Setting:
  """Returns the setting of an experiment with a config; trains its teacher."""
  config = CONFIGS[name].get_config(f'extracted,{size}')
  if name.endswith('_shrunk'):
    config.student.start = 'teacher'
    # As wide as the heads of the config's student together.
    config.student.heads = 1
  experiment = builders.open_experiment(config, workdir)
  builders.check(experiment)
  teachers.save_task(experiment)
  teacher = teachers.train_teacher(experiment, workdir)
  model = experiment.model('student')
  batches = TaskBatches(experiment)
  student = _fresh(experiment, model)
  if name.endswith('_shrunk'):
    student = _cut(experiment, model, teacher.params)
  methods = {}
  for method in METHODS:
    block = defaults.method_block(experiment.with_method(method).config)
    own = {k: v for k, v in block.items() if k in registry.options(method)}
    methods[method] = {'method': method, **own}
  found = cxjax.from_fn(teacher.apply, teacher.params)
  chosen, methods['progressive'] = _checkpoints(methods['progressive'], teacher)
  if chosen:
    found = cxjax.with_checkpoints(found, chosen)
  else:
    del methods['progressive']
  return Setting(
    found,
    student,
    batches,
    _plain(experiment.held_out),
    config.num_steps,
    methods,
    {
      'layers': student_starts.matched(experiment, teacher),
      'metrics': _metrics(experiment.task),
    },
    optimizer={
      name: value
      for name, value in config.optimizer.items()
      if name not in optimizers.ARGUMENTS
    },
  )


def _checkpoints(
  method: dict[str, Any], teacher: teacher_lib.Teacher
) -> tuple[dict[int, cxjax.ModelAdapter], dict[str, Any]]:
  """The checkpoints that a config chooses, and its other options."""
  options = dict(method)
  rule = [options.pop(name) for name in ('rule', 'scores', 'count')]
  listed = options.pop('checkpoints')
  if not teacher.checkpoints[:-1]:
    return {}, options
  steps = checkpoint_rules.choose_checkpoints(
    teacher.checkpoints, rule[0], scores=rule[1], count=rule[2], listed=listed
  )
  assert teacher.load is not None
  load = teacher.load
  of = lambda step: cxjax.from_fn(teacher.apply, load(step))
  return {step: of(step) for step in steps}, options


def _metrics(task: Any) -> tuple[str, ...]:
  """The metrics of a task that read labels alone; the deciding one is first."""
  names = (task.primary_metric, *task.metrics)
  found = metrics_lib.resolve(tuple(dict.fromkeys(names)))
  return tuple(name for name, metric in found.items() if not metric.others)


def _fresh(experiment: builders.Experiment, model: Any) -> Student:
  """Makes the students of an experiment, at the start of a seed."""
  x = jax.tree.map(lambda leaf: leaf[:1], experiment.held_out['x'])
  init = jax.jit(lambda key: model.init(key, x))
  key = builders.key_for(experiment.config, 'student_init')
  fold = lambda seed: jax.random.fold_in(key, seed)
  return lambda seed: cxjax.from_fn(model.apply, init(fold(seed)))


def _cut(experiment: builders.Experiment, model: Any, params: Any) -> Student:
  """Makes the students of an experiment, cut out of its teacher."""
  key = builders.key_for(experiment.config, 'student_start')

  def student(seed: int) -> cxjax.ModelAdapter:
    (start,) = student_starts.cut(experiment, params, key, (seed,))
    return cxjax.from_fn(model.apply, start)

  return student


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
    {method: {'method': method} for method in OTHERS},
    # Three seeds were worse at the highest one with every method; in the short
    # runs of a search one seed may look better (results/digits_tune.md).
    rates=digits.RATES[:-1],
  )


def of_minilm(name: str, workdir: pathlib.Path) -> Setting:
  """Returns the setting of minilm.py; 'minilm_shrunk' cuts its students."""
  found = minilm.Comparison(workdir)
  layers = None
  student: Student = lambda seed: cxjax.from_fn(
    found.student.apply, found.fresh(seed)
  )
  if name == 'minilm_shrunk':
    student, layers = _cut_minilm(found)
  methods: dict[str, dict[str, Any]] = {}
  for method in OTHERS:
    hidden = 'ending' in registry.options(method)
    methods[method] = {'method': method, **(minilm.HIDDEN if hidden else {})}
  return Setting(
    found.teacher,
    student,
    found.batches,
    found.held_out,
    flags.FLAGS.num_steps,
    {name: m for name, m in methods.items() if name not in NEEDING_LABELS},
    {'loss': 'cosine', 'layers': layers},
    minilm.RATES,
  )


def _cut_minilm(found: minilm.Comparison) -> tuple[Student, shrink.Pairs]:
  """Makes students of the same size cut out of MiniLM, and pairs their layers.

  Each seed is cut on batches of its own; its linear layer is random.
  """
  random = found.student
  sizes = dict(
    depth=random.encoder.depth,
    width=random.encoder.width,
    mlp=4 * random.encoder.width,
  )
  module, layers = shrink.outline(found.encoder[0], **sizes)
  model = sentence.SentenceEncoder(module, features=random.features)

  def student(seed: int) -> cxjax.ModelAdapter:
    at = seed * CALIBRATION
    some = itertools.islice(iter(found.batches), at, at + CALIBRATION)
    _, cut, _ = cxjax.shrink(found.encoder, **sizes, batches=list(some))
    linear = found.fresh(seed)['params']['linear']
    params = {'encoder': cut['params'], 'linear': linear}
    return cxjax.from_fn(model.apply, {'params': params})

  return student, layers


def find(name: str, size: str, workdir: pathlib.Path) -> Setting:
  """Returns the networks, data and methods of an experiment.

  Args:
    name: a name in `NAMES`.
    size: size of its config, if it has one: 'cpu' or 'tiny'.
    workdir: folder of its teacher.

  Returns:
    The setting; the teacher is trained, or found finished.
  """
  errors.lookup('experiment', name, dict.fromkeys(NAMES))
  if name in CONFIGS:
    return of_config(name, size, workdir)
  return of_digits(workdir) if name == 'digits' else of_minilm(name, workdir)
