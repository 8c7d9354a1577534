r"""Step time of one-shot distillation: this project against PyTorch eager.

We time one step: draw a batch, teacher forward, student forward, KL between the
logits, backward, SGD; without compilation. Parity of 6 of 100 bits, two-layer
networks, float32, on the CPU.

The same on both sides: the algorithm, the batches and the initial weights. The
losses of the first 100 steps must agree, or nothing is timed. The sides take
turns, so that other work on the machine slows both.

Not the same:
  - Ours draws its batches as it trains. Those of PyTorch are drawn in advance.
  - Ours runs the program of the training loop, and reads the loss every 100
    steps. PyTorch does without modules, optimizer and reads, which cost it
    time: networks are functions of tensors, the update is written by hand.
  - Ours computes the frozen teacher's targets of K batches in one product.
    PyTorch has a column without that and, where K is more than 1, one with it:
    the first ratio is the gain of the user, the second that of compilation.
  - Ours with eight seeds trains eight students on one stream of batches and
    counts an eighth of the time. PyTorch trains one.

Run, after pip install 'torch>=2.13':
  python -m experiments.benchmarks.parity_mlp

Writes parity_mlp.{md,csv} into --out; the CSV file has every round. To measure
one core, put `taskset -c 0` before the command.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import pathlib
import time
from typing import Any

from absl import flags
import jax
import numpy as np

from cxjax import errors
from cxjax import tables
from cxjax import types
from cxjax.configs import builders
from cxjax.configs import cli
from cxjax.training import run_spec
from experiments import parity_mlp
from experiments.benchmarks import one_stage
from experiments.benchmarks import rounds

try:
  import torch
except ImportError:
  torch = None

LEARNING_RATE = 1e-3
SEEDS = (1, 8)
BATCHES = 1_024  # Batches that are drawn for PyTorch: its longest round.


@dataclasses.dataclass(frozen=True)
class Case:
  """Sizes of the networks and of a batch.

  Attributes:
    teacher: width of the teacher's hidden layer.
    student: width of the student's hidden layer.
    batch: examples of a batch.
  """

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
  'cases', list(CASES), 'Cases, as TEACHER-STUDENT-BATCH.'
)


def make_spec(case: Case, num_seeds: int) -> run_spec.RunSpec:
  """Returns the run of this project that is timed; its teacher is untrained."""
  c = parity_mlp.get_config('one_shot,cpu')
  c.data.d, c.data.k, c.data.eval_size = 100, 6, 1
  c.teacher.width, c.student.width = case.teacher, case.student
  c.batch_size, c.num_seeds, c.share_batches = case.batch, num_seeds, True
  c.optimizer.name, c.optimizer.learning_rate = 'sgd', LEARNING_RATE
  c.mesh.data = 1
  experiment = builders.open_experiment(c, pathlib.Path())
  teacher = one_stage.untrained_teacher(experiment)
  return builders.student_spec(experiment, teacher)


def _network(weights: Sequence[Any], x: Any) -> Any:
  kernel, bias, head, head_bias = weights
  # In place: for 50,000 units, most of the time of a second array is page
  # faults.
  hidden = torch.nn.functional.linear(x, kernel, bias).relu_()
  return torch.nn.functional.linear(hidden, head, head_bias)


def _weights(params: types.Params) -> list[Any]:
  return [
    # torch.nn.Linear has outputs first.
    torch.from_numpy(np.array(params['params'][layer][name].T, order='C'))
    for layer in ('hidden0', 'logits')
    for name in ('kernel', 'bias')
  ]


class Torch:
  """The first of our students in PyTorch."""

  seeds = 1
  limit = BATCHES

  def __init__(
    self,
    teacher: types.Params,
    student: types.Params,
    x: np.ndarray,
    block: int,
  ) -> None:
    """Copies flax parameters and `[N, B, d]` batches."""
    self.block = self.unit = block
    self._x = torch.from_numpy(x)
    self._teacher = _weights(teacher)
    self._student = [weight.requires_grad_() for weight in _weights(student)]

  def _targets(self, x: Any) -> Any:
    with torch.no_grad():
      return _network(self._teacher, x).softmax(-1)

  def _pairs(self, num_steps: int) -> Iterator[tuple[Any, Any]]:
    """Returns batches with their targets."""
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

  def _update(self, x: Any, target: Any) -> Any:
    """Trains one step; returns its loss."""
    log_q = _network(self._student, x).log_softmax(-1)
    loss = torch.nn.functional.kl_div(log_q, target, reduction='batchmean')
    for weight in self._student:
      weight.grad = None
    loss.backward()
    with torch.no_grad():
      for weight in self._student:
        weight.sub_(weight.grad, alpha=LEARNING_RATE)
    return loss

  def losses(self, num_steps: int) -> list[float]:
    """Trains on the first batches; returns the losses."""
    return [self._update(*pair).item() for pair in self._pairs(num_steps)]

  def seconds(self, num_steps: int) -> float:
    """Trains on the first batches; returns the seconds that it took."""
    begin = time.perf_counter()
    for pair in self._pairs(num_steps):
      self._update(*pair)
    return time.perf_counter() - begin


def make_sides(case: Case) -> dict[str, rounds.Side]:
  """Returns the sides of a case, before their first step, by name."""
  spec = make_spec(case, 1)
  assert spec.teacher is not None
  ours = {f'ours {n}': one_stage.Ours(make_spec(case, n)) for n in SEEDS}
  draw = jax.jit(jax.vmap(spec.batch, in_axes=(None, 0)))
  x = np.array(draw(spec.keys.data[0], np.arange(BATCHES))['x'])
  models = spec.teacher.params, ours['ours 1'].stage.first
  sides: dict[str, rounds.Side] = {**ours, 'plain': Torch(*models, x, block=1)}
  if spec.lookahead_steps > 1:
    sides['look-ahead'] = Torch(*models, x, spec.lookahead_steps)
  return sides


def summarize(
  case: Case, rows: Sequence[rounds.Row]
) -> Iterator[dict[str, Any]]:
  """Yields the rows of a case in the table, one for each number of seeds."""
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


def main(argv: list[str]) -> None:
  """Checks all cases, times them, and writes the table."""
  del argv
  rounds.begin()
  cases = {name: errors.lookup('case', name, CASES) for name in _CASES.value}
  sides = {name: make_sides(case) for name, case in cases.items()}
  for name in cases:
    # Where the networks agree, a loss is a difference of equal numbers.
    rounds.check(name, sides[name], rtol=1e-4, atol=1e-6)
  rows: list[rounds.Row] = []
  lines: list[dict[str, Any]] = []
  for name, case in cases.items():
    found = rounds.timed(dataclasses.asdict(case), sides[name])
    rows += found
    lines += summarize(case, found)
  text = rounds.describe() + tables.markdown(lines)
  cli.write(pathlib.Path(rounds.OUT.value) / 'parity_mlp', text, rows)


if __name__ == '__main__':
  cli.run(main)
