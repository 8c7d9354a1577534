r"""Images: a convolutional teacher and a small student, on 1,797 digits.

The models are plain linen modules, written without cxjax in mind. Each method
is searched over the same learning rates, with three seeds, and then measured
with eight other seeds: the labels alone, one-shot distillation, the extracted
curriculum, and the learned projections of FitNets.

Run (eight minutes on one core):
  pip install scikit-learn
  python -m experiments.digits

Writes digits_tune.{md,csv} and digits.{md,csv,png} into --results.
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import pathlib
from typing import Any
from typing import TypeAlias

from flax import linen as nn
import jax
import numpy as np

import cxjax
from cxjax import errors
from cxjax import tables
from cxjax import types
from cxjax.analysis import plots
from cxjax.analysis import search as search_lib
from cxjax.configs import cli
from experiments import paths

BATCH, HELD_OUT = 64, 360
STEPS, SEEDS = 400, 8
RATES = (3e-3, 1e-2, 3e-2, 1e-1)
METHODS: dict[str, dict[str, Any] | None] = {
  'supervised': None,
  'one_shot': {'layers': ()},
  'extracted': {},
  'fitnets': {'projection': 'identity', 'regressor': True},
}
# Images `[N, 8, 8, 1]` and classes `[N]`.
Examples: TypeAlias = tuple[np.ndarray, np.ndarray]
Row: TypeAlias = dict[str, Any]


class Convolutional(nn.Module):
  """Two convolutions, each with a norm, and two linear layers.

  Attributes:
    features: widths of the convolutions and of the first linear layer.
  """

  features: tuple[int, int, int]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Computes `[B, 10]` logits of `[B, 8, 8, 1]` images."""
    *convolutions, hidden = self.features
    for features in convolutions:
      x = nn.Conv(features, (3, 3))(x)
      x = nn.relu(nn.GroupNorm(2)(x))
      x = nn.avg_pool(x, (2, 2), (2, 2))
    x = nn.relu(nn.Dense(hidden)(x.reshape(len(x), -1)))
    return nn.Dense(10)(x)


TEACHER = Convolutional((32, 64, 128))
STUDENT = Convolutional((2, 4, 8))


def digits() -> tuple[Examples, Examples]:
  """Loads the training set and the held-out set; images are in [0, 1].

  Raises:
    UserError: scikit-learn is not installed.
  """
  try:
    from sklearn import datasets  # noqa: PLC0415
  except ImportError as error:
    raise errors.UserError(
      'The digits come with scikit-learn. Run pip install scikit-learn.'
    ) from error
  images, labels = datasets.load_digits(return_X_y=True)
  images = images.reshape(-1, 8, 8, 1).astype(np.float32) / 16
  order = np.random.default_rng(0).permutation(len(images))
  images, labels = images[order], labels[order].astype(np.int32)
  cut = len(images) - HELD_OUT
  return (images[:cut], labels[:cut]), (images[cut:], labels[cut:])


class Batches:
  """Batches of images and classes, in a new order in every epoch."""

  def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
    """Keeps the examples."""
    self._images, self._labels = images, labels

  def __iter__(self) -> Iterator[Examples]:
    """Yields batches without end, the same in every iteration."""
    rng = np.random.default_rng(1)
    while True:
      order = rng.permutation(len(self._images))
      for i in range(0, len(order) - BATCH + 1, BATCH):
        rows = order[i : i + BATCH]
        yield self._images[rows], self._labels[rows]


def fresh(
  module: nn.Module, seeds: Iterable[int], x: np.ndarray
) -> cxjax.ModelAdapter:
  """Initializes networks, one for each seed."""
  init = jax.jit(module.init)
  return cxjax.from_linen(module, [init(jax.random.key(s), x) for s in seeds])


def run(
  teacher: cxjax.ModelAdapter,
  method: str,
  rate: float,
  seeds: Iterable[int],
  batches: Batches,
  held_out: Examples,
) -> tuple[cxjax.Plan, list[types.Record]]:
  """Trains students by a method.

  Args:
    teacher: the trained teacher.
    method: a key of `METHODS`.
    rate: peak learning rate.
    seeds: seeds of the students.
    batches: training batches.
    held_out: held-out set.

  Returns:
    The plan, and the history of all students together.
  """
  example = next(iter(batches))
  options = METHODS[method]
  if options is None:
    options = {'stages': cxjax.supervised(STEPS)}
  histories = []
  # One by one: a CPU is slow at the convolutions of several networks at once.
  for seed in seeds:
    student = fresh(STUDENT, [seed], example[0])
    plan = cxjax.plan(teacher, student, example, num_steps=STEPS, **options)
    _, history = cxjax.distill(
      plan, batches, held_out=held_out, learning_rate=rate, seed=seed
    )
    histories.append(history)
  return plan, [together(records) for records in zip(*histories, strict=True)]


def together(records: Sequence[types.Record]) -> types.Record:
  """Joins the records of single students; the loss is that of the first."""
  return records[0] | {
    key: [record[key][0] for record in records]
    for key, value in records[0].items()
    if isinstance(value, list)
  }


def trained_teacher(
  batches: Batches, held_out: Examples, workdir: pathlib.Path | None = None
) -> cxjax.ModelAdapter:
  """Trains the teacher on the labels, or reads it from a finished run."""
  example = next(iter(batches))
  (start,) = fresh(TEACHER, [0], example[0]).params
  network = cxjax.from_linen(TEACHER, start)
  stages = cxjax.supervised(600)
  plan = cxjax.plan(network, network, example, num_steps=600, stages=stages)
  params, history = cxjax.distill(
    plan, batches, held_out=held_out, learning_rate=3e-3, workdir=workdir
  )
  print(f'teacher: accuracy {history[-1]["eval/accuracy"][0]:.4f}')
  return cxjax.from_linen(TEACHER, params)


def line(method: str, rate: float, history: Sequence[types.Record]) -> Row:
  """Returns a row of a table."""
  last = history[-1]
  values = np.array(last['eval/accuracy'])
  return {
    'method': method,
    'learning rate': rate,
    'accuracy': round(float(values.mean()), 4),
    'sd': round(float(values.std(ddof=1)), 4),
    'min': round(float(values.min()), 4),
    'max': round(float(values.max()), 4),
    'agreement': round(float(np.mean(last['eval/agreement'])), 4),
  }


def search(
  teacher: cxjax.ModelAdapter,
  method: str,
  batches: Batches,
  held_out: Examples,
) -> list[Row]:
  """Runs every learning rate of a method, with three seeds of their own.

  Args:
    teacher: the trained teacher.
    method: a key of `METHODS`.
    batches: training batches.
    held_out: held-out set.

  Returns:
    A row for each rate, best first.
  """

  def each(rates: list[float]) -> list[Row]:
    rows = []
    for rate in rates:
      seeds = range(100, 103)
      _, history = run(teacher, method, rate, seeds, batches, held_out)
      rows.append(line(method, rate, history))
    return rows

  rank = lambda row: -row['accuracy']
  found = search_lib.search([lambda _: RATES], each, rank)
  return [one.found for one in found]


def main(argv: list[str]) -> None:
  """Trains the teacher, runs the searches, and writes the comparison."""
  del argv
  results = paths.results()
  # Every student compiles the same programs.
  folder = paths.workdir('digits') / 'cache'
  jax.config.update('jax_compilation_cache_dir', str(folder))
  train, held_out = digits()
  batches = Batches(*train)
  teacher = trained_teacher(batches, held_out)
  cli.show(str(cxjax.taps(teacher, next(iter(batches))[0])))
  tried: list[Row] = []
  rows: list[Row] = []
  histories = {}
  for method in METHODS:
    found = search(teacher, method, batches, held_out)
    best = found[0]['learning rate']
    tried += sorted(found, key=lambda row: row['learning rate'])
    cli.write(results / 'digits_tune', tables.markdown(tried), tried)
    plan, history = run(teacher, method, best, range(SEEDS), batches, held_out)
    if method == 'extracted':
      cli.show(str(plan))
    rows.append(line(method, best, history))
    histories[method] = history
  cli.write(results / 'digits', tables.markdown(rows), rows)
  picture = results / 'digits.png'
  plots.curves(histories, 'accuracy', 'held-out accuracy', picture)


if __name__ == '__main__':
  cli.run(main)
