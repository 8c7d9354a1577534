r"""One step of one-shot distillation: this project against PyTorch eager.

What is timed: draw a batch, teacher forward, student forward, KL between the
logits, backward, SGD; compiling is not. Parity of 6 of 100 bits, two-layer
networks, float32, on the CPU.

The same on both sides: the algorithm, the batches and the initial weights. The
losses of the first 100 steps must agree, or nothing is timed. The sides take
turns, so that what else the machine does slows both.

Not the same:
  - Ours draws its batches as it trains. Those of PyTorch are drawn in advance.
  - Ours runs as in training: `CompiledSteps.advance` and a look at the loss, every
    100 steps. PyTorch is spared modules, optimizer and looks, which cost it
    time: networks are functions of tensors, the update is written by hand.
  - Ours computes the frozen teacher's targets of K batches in one product.
    PyTorch has a column without that and, where K is more than 1, one with it:
    the first ratio is what the user gains, the second what compiling gains.
  - Ours with eight seeds trains eight students on one stream of batches and
    counts an eighth of the time. PyTorch trains one.

Run, after pip install 'torch>=2.13':
  python -m experiments.benchmarks.parity_mlp

Writes parity_mlp.{md,csv} into --out; the CSV has every round. To measure one
core, put `taskset -c 0` before it.
"""

import dataclasses
import pathlib

from absl import app
from absl import flags
import jax
import numpy as np

from cxjax.configs import cli
from cxjax.methods import stage as stage_lib
from cxjax import errors
from cxjax.parallel import mesh as mesh_lib
from cxjax.methods import curricula
from cxjax.training import optimizers
from cxjax.training import run_spec
from cxjax import tables
from cxjax.tasks import parity
from cxjax.models import mlp
from experiments.benchmarks import rounds

try:
  import torch
except ImportError:
  torch = None

LEARNING_RATE = 1e-3
SEEDS = (1, 8)
LOG_EVERY = 100  # As in experiments/parity_mlp.py.
BATCHES = 1_024  # Drawn for PyTorch; a round of it is no longer.


@dataclasses.dataclass(frozen=True)
class Case:
  """Widths of the hidden layers, and examples of a batch."""

  teacher: int
  student: int
  batch: int


CASES = {
  f'{case.teacher}-{case.student}-{case.batch}': case
  for case in (
    Case(1_000, 100, 1),
    Case(1_000, 100, 64),
    Case(50_000, 1_000, 1),
    Case(50_000, 1_000, 64),
  )
}
_CASES = flags.DEFINE_list(
  'cases', list(CASES), 'Which, as TEACHER-STUDENT-BATCH.'
)


def make_recipe(case, num_seeds):
  """The run of this project that is timed; its teacher is untrained."""
  key = jax.random.key(0)
  keys = jax.random.split(jax.random.key(1), max(SEEDS))[:num_seeds]
  task = parity.make(d=100, k=6, depth=1, support='random', key=key)
  held_out = task.draw(key, 0, 1)
  teacher = mlp.MLP((case.teacher,), task.num_classes)
  optimizer = optimizers.default()
  optimizer.name, optimizer.learning_rate = 'sgd', LEARNING_RATE
  mesh = mesh_lib.make({'data': 1}, case.batch)
  return run_spec.RunSpec(
    student=mlp.MLP((case.student,), task.num_classes),
    stages=stage_lib.one_shot(1),
    draw=task.draw,
    held_out=mesh_lib.replicate(held_out, mesh),
    init_keys=mesh_lib.replicate(keys, mesh),
    data_keys=mesh_lib.replicate(keys[:1], mesh),
    stage_keys=mesh_lib.replicate(keys, mesh),
    batch_size=case.batch,
    optimizer=optimizer,
    mesh=mesh,
    rules=('replicated', 'replicated'),
    log_every=LOG_EVERY,
    eval_every=LOG_EVERY,
    save_every=LOG_EVERY,
    teacher=curricula.Teacher(
      teacher.apply,
      mesh_lib.replicate(teacher.init(key, held_out['x']), mesh),
      teacher.layers,
    ),
  )


def _network(weights, x):
  kernel, bias, head, head_bias = weights
  # In place: for 50,000 units, most of a second array is page faults.
  hidden = torch.nn.functional.linear(x, kernel, bias).relu_()
  return torch.nn.functional.linear(hidden, head, head_bias)


def _weights(params):
  return [
    # As torch.nn.Linear has it: outputs first.
    torch.from_numpy(np.array(params['params'][layer][name].T, order='C'))
    for layer in ('hidden0', 'logits')
    for name in ('kernel', 'bias')
  ]


class Torch:
  """The first of our students in PyTorch."""

  seeds = 1
  limit = BATCHES

  def __init__(self, teacher, student, x, block):
    """Takes over flax parameters and `[N, B, d]` batches."""
    self.block = self.unit = block
    self._x = torch.from_numpy(x)
    self._teacher = _weights(teacher)
    self._student = [weight.requires_grad_() for weight in _weights(student)]

  def _targets(self, x):
    with torch.no_grad():
      return _network(self._teacher, x).softmax(-1)

  def _pairs(self, num_steps):
    x = self._x[:num_steps]
    if self.block == 1:
      return ((batch, self._targets(batch)) for batch in x)
    return (
      pair
      for block in x.split(self.block)
      for pair in zip(
        block,
        self._targets(block.flatten(0, 1)).unflatten(0, block.shape[:2]),
        strict=True,
      )
    )

  def _update(self, x, target):
    log_q = _network(self._student, x).log_softmax(-1)
    loss = torch.nn.functional.kl_div(log_q, target, reduction='batchmean')
    for weight in self._student:
      weight.grad = None
    loss.backward()
    with torch.no_grad():
      for weight in self._student:
        weight.sub_(weight.grad, alpha=LEARNING_RATE)
    return loss

  def losses(self, num_steps):
    """Trains on the first batches; the losses."""
    return [self._update(*pair).item() for pair in self._pairs(num_steps)]

  def run(self, num_steps):
    """Trains on the first batches."""
    for pair in self._pairs(num_steps):
      self._update(*pair)


def make_sides(case):
  """`{name: side}` of a case, all before their first step."""
  spec = make_recipe(case, 1)
  sides = {f'ours {n}': rounds.Ours(make_recipe(case, n)) for n in SEEDS}
  draw = jax.jit(jax.vmap(spec.batch, in_axes=(None, 0)))
  x = np.array(draw(spec.data_keys[0], np.arange(BATCHES))['x'])
  models = spec.teacher.params, sides['ours 1'].first
  sides['plain'] = Torch(*models, x, block=1)
  if spec.blocks > 1:
    sides['look-ahead'] = Torch(*models, x, spec.blocks)
  return sides


def summarize(case, rows):
  """The lines of a case in the table."""
  us = rounds.times(rows)
  plain, ahead = us['plain'], us.get('look-ahead')
  for seeds in SEEDS:
    ours = us[f'ours {seeds}']
    yield dataclasses.asdict(case) | {
      'K': rows[0]['lookahead'],
      'seeds': seeds,
      'ours': rounds.spread(ours),
      'PyTorch': rounds.spread(plain),
      'PyTorch / ours': rounds.ratio(plain, ours),
      'with look-ahead': rounds.spread(ahead),
      'with look-ahead / ours': rounds.ratio(ahead, ours),
    }


def main(argv):
  """Checks all cases, times them, writes and prints."""
  del argv
  rounds.begin()
  cases = {name: errors.lookup('case', name, CASES) for name in _CASES.value}
  sides = {name: make_sides(case) for name, case in cases.items()}
  for name in cases:
    # Where the networks agree, a loss is a difference of equal numbers.
    rounds.check(name, sides[name], rtol=1e-4, atol=1e-6)
  rows, lines = [], []
  for name, case in cases.items():
    found = rounds.measure(dataclasses.asdict(case), sides[name])
    rows += found
    lines += summarize(case, found)
  text = rounds.describe() + tables.markdown(lines)
  cli.write(pathlib.Path(rounds.OUT.value) / 'parity_mlp', text, rows)


if __name__ == '__main__':
  app.run(cli.guarded(main))
