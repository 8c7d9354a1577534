r"""Images: a convolutional teacher and a small student, on 1,797 digits.

The models are plain linen modules; nothing in them is for cxjax. Every method
gets the same learning rates (one run of three seeds each), and is then
measured with other seeds: with the labels alone, in one shot, by the extracted
curriculum, and with FitNets' learned projections.

Run (eight minutes on one core):
  pip install scikit-learn
  python -m experiments.digits

Writes digits_tune.{md,csv} and digits.{md,csv,png} into --results.
"""

from absl import app
from flax import linen as nn
import jax
import numpy as np

import cxjax
from cxjax.configs import cli
from cxjax import errors
from cxjax.analysis import plots
from cxjax import tables
from experiments import paths

BATCH, HELD_OUT = 64, 360
STEPS, SEEDS = 400, 8  # Of the students.
RATES = (3e-3, 1e-2, 3e-2, 1e-1)
METHODS = {
  'supervised': None,
  'one_shot': {'layers': ()},
  'extracted': {},
  'fitnets': {'projection': 'identity', 'regressor': True},
}


class Convolutional(nn.Module):
  """Two convolutions, each with a norm, and two linear layers."""

  features: tuple[int, int, int]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """`[B, 8, 8, 1]` images to `[B, 10]` logits."""
    *convolutions, hidden = self.features
    for features in convolutions:
      x = nn.Conv(features, (3, 3))(x)
      x = nn.relu(nn.GroupNorm(2)(x))
      x = nn.avg_pool(x, (2, 2), (2, 2))
    x = nn.relu(nn.Dense(hidden)(x.reshape(len(x), -1)))
    return nn.Dense(10)(x)


TEACHER = Convolutional((32, 64, 128))
STUDENT = Convolutional((2, 4, 8))


def digits() -> tuple[tuple[np.ndarray, np.ndarray], ...]:
  """Images in [0, 1] and classes, to learn from and held out."""
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
  """Images and classes, in a new order every epoch."""

  def __init__(self, images, labels):
    """Keeps them."""
    self._images, self._labels = images, labels

  def __iter__(self):
    """Batches without end, the same every time."""
    rng = np.random.default_rng(1)
    while True:
      order = rng.permutation(len(self._images))
      for i in range(0, len(order) - BATCH + 1, BATCH):
        rows = order[i : i + BATCH]
        yield self._images[rows], self._labels[rows]


def fresh(module, seeds, x):
  """Networks at their start."""
  init = jax.jit(module.init)
  return cxjax.from_linen(module, [init(jax.random.key(s), x) for s in seeds])


def run(teacher, method, rate, seeds, batches, held_out):
  """The plan of a method, and the history of its students."""
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
      plan, batches, held_out=held_out, learning_rate=rate
    )
    histories.append(history)
  return plan, [together(rows) for rows in zip(*histories, strict=True)]


def together(rows):
  """Rows of one student each, as the row of all; the loss is the first's."""
  return rows[0] | {
    key: [row[key][0] for row in rows]
    for key, value in rows[0].items()
    if isinstance(value, list)
  }


def trained_teacher(batches, held_out):
  """The teacher, trained on the labels by the same step."""
  example = next(iter(batches))
  (start,) = fresh(TEACHER, [0], example[0]).params
  network = cxjax.from_linen(TEACHER, start)
  stages = cxjax.supervised(600)
  plan = cxjax.plan(network, network, example, num_steps=600, stages=stages)
  params, history = cxjax.distill(
    plan, batches, held_out=held_out, learning_rate=3e-3
  )
  print(f'teacher: accuracy {history[-1]["eval/accuracy"][0]:.4f}')
  return cxjax.from_linen(TEACHER, params)


def line(method, rate, history):
  """A row of a table."""
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


def main(argv):
  """Trains the teacher, searches, compares."""
  del argv
  results = paths.results()
  # Every student compiles the same programs.
  folder = paths.workdir('digits') / 'cache'
  jax.config.update('jax_compilation_cache_dir', str(folder))
  learn, held_out = digits()
  batches = Batches(*learn)
  teacher = trained_teacher(batches, held_out)
  example = next(iter(batches))
  print(cxjax.taps(teacher, example[0]))
  tried, rows, curves = [], [], {}
  for method in METHODS:
    found = []
    for rate in RATES:
      _, history = run(
        teacher, method, rate, range(100, 103), batches, held_out
      )
      found.append(line(method, rate, history))
    best = max(found, key=lambda row: row['accuracy'])['learning rate']
    tried += found
    cli.write(results / 'digits_tune', tables.markdown(tried), tried)
    plan, history = run(teacher, method, best, range(SEEDS), batches, held_out)
    if method == 'extracted':
      print(plan)
    rows.append(line(method, best, history))
    curves[method] = history
  cli.write(results / 'digits', tables.markdown(rows), rows)
  plots.accuracy_curves(curves, results / 'digits.png')


if __name__ == '__main__':
  app.run(cli.guarded(main))
