"""Networks and data of the experiments, as `cxjax.compare` takes them."""

from collections.abc import Iterable
from collections.abc import Iterator
import dataclasses
import itertools
import pathlib
from typing import Any

from absl import flags

import cxjax
from cxjax import errors
from cxjax.api import shrink
from cxjax.configs import builders
from cxjax.configs import contest
from cxjax.configs import defaults
from cxjax.configs import student_starts
from cxjax.configs import teachers
from cxjax.methods import checkpoint_rules
from cxjax.methods import registry
from cxjax.models import sentence
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
EMBEDDINGS = 'token_embeddings'  # A method of MiniLM alone.
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


def fitting(name: str) -> tuple[str, ...]:
  """Returns the methods that fit an experiment of `NAMES`."""
  if name in CONFIGS:
    return METHODS
  if name == 'digits':
    return OTHERS
  return (*(m for m in OTHERS if m not in NEEDING_LABELS), EMBEDDINGS)


class First:
  """The first batches of others, again and again."""

  def __init__(self, batches: Iterable[Any], count: int) -> None:
    """Reads nothing yet."""
    self._batches, self._count = batches, count

  def __iter__(self) -> Iterator[Any]:
    """Yields them once."""
    return itertools.islice(iter(self._batches), self._count)


def of_config(name: str, size: str, workdir: pathlib.Path) -> contest.Setting:
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
  methods = {method: _options(experiment, method) for method in METHODS}
  checkpoints = _checkpoints(methods['progressive'], teacher)
  if not checkpoints:
    del methods['progressive']
  found = contest.of_experiment(experiment, teacher, checkpoints)
  layers = student_starts.matched(experiment, teacher)
  options = {'layers': layers, **found.options}
  return dataclasses.replace(found, methods=methods, options=options)


def _options(experiment: builders.Experiment, method: str) -> dict[str, Any]:
  """The options of a method in a config, as `compare` takes them."""
  block = defaults.method_block(experiment.with_method(method).config)
  own = {k: v for k, v in block.items() if k in registry.options(method)}
  return {'method': method, **own}


def _checkpoints(
  progressive: dict[str, Any], teacher: teacher_lib.Teacher
) -> tuple[int, ...]:
  """The checkpoints that a config chooses; their options are taken out."""
  rule = [progressive.pop(name) for name in ('rule', 'scores', 'count')]
  listed = progressive.pop('checkpoints')
  if not teacher.checkpoints[:-1]:
    return ()
  return checkpoint_rules.choose_checkpoints(
    teacher.checkpoints, rule[0], scores=rule[1], count=rule[2], listed=listed
  )


def of_digits(workdir: pathlib.Path) -> contest.Setting:
  """Returns the setting of digits.py; trains its teacher."""
  train, held_out = digits.digits()
  batches = digits.Batches(*train)
  x = next(iter(batches))[0]

  def student(seed: int) -> cxjax.ModelAdapter:
    (params,) = digits.fresh(digits.STUDENT, [seed], x).params
    return cxjax.from_linen(digits.STUDENT, params)

  return contest.Setting(
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


def of_minilm(name: str, workdir: pathlib.Path) -> contest.Setting:
  """Returns the setting of minilm.py; 'minilm_shrunk' cuts its students."""
  found = minilm.Comparison(workdir)
  layers = None
  student: contest.Student = lambda seed: cxjax.from_fn(
    found.student.apply, found.fresh(seed)
  )
  if name == 'minilm_shrunk':
    student, layers = _cut_minilm(found)
  methods: dict[str, dict[str, Any]] = {}
  for method in OTHERS:
    hidden = 'ending' in registry.options(method)
    methods[method] = {'method': method, **(minilm.HIDDEN if hidden else {})}
  methods[EMBEDDINGS] = {
    'method': 'extracted',
    'layers': minilm.TOKENS,
    'projection': 'identity',
    'loss': 'cosine',
    'share': minilm.SHARE,
  }
  return contest.Setting(
    found.teacher,
    student,
    found.batches,
    found.held_out,
    flags.FLAGS.num_steps,
    {method: methods[method] for method in fitting(name)},
    {'loss': 'cosine', 'layers': layers},
    minilm.RATES,
  )


def _cut_minilm(
  found: minilm.Comparison,
) -> tuple[contest.Student, shrink.Pairs]:
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


def find(name: str, size: str, workdir: pathlib.Path) -> contest.Setting:
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
