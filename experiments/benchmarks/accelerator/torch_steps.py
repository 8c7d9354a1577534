"""Process that trains the students of the accelerator benchmark in PyTorch.

It is written as users of PyTorch would, a loop over batches that lie on the
device. The sides:
  eager     no compiler; in transformers attention is spelled out, and
            `torch.optim.Adam` as it comes.
  ahead     the teacher sees as many batches at once as ours does.
  sdpa      `scaled_dot_product_attention`, and Adam with fused=True.
  compiled  the loss of sdpa, teacher and student, by `torch.compile`.
  graphs    the whole step of `compiled` as one CUDA graph.
"""

import collections
from collections.abc import Callable
from collections.abc import Iterator
import dataclasses
import pathlib
import pickle
import signal
import sys
import time
import traceback
from typing import Any

import torch

from experiments.benchmarks.accelerator import pipe as pipe
from experiments.benchmarks.accelerator import torch_models as models

LONGEST_LIFE = 900  # Seconds after which the process ends by itself.


@dataclasses.dataclass(frozen=True)
class Side:
  """Settings of a side that trains with torch.

  Attributes:
    fused: fused attention and Adam.
    ahead: the teacher sees several batches at once.
    compiled: the loss is compiled.
    captured: the step is one CUDA graph.
  """

  fused: bool = True
  ahead: bool = False
  compiled: bool = False
  captured: bool = False


SIDES = {
  'eager': Side(fused=False),
  'ahead': Side(fused=False, ahead=True),
  'sdpa': Side(),
  'compiled': Side(compiled=True),
  'graphs': Side(compiled=True, captured=True),
}
# A batch and, where they are computed ahead, its targets.
Pair = tuple[models.Batch, Any]


class Trainer:
  """One side: the student, its optimizer and its batches.

  Attributes:
    unit: steps of which a round is a multiple.
    limit: longest round.
  """

  def __init__(self, job: dict[str, Any], side: Side) -> None:
    """Copies the parameters, and compiles."""
    self.unit = self._block = job['ahead'] if side.ahead else 1
    self._batches = models.batches(job)
    self._model = models.make(job, fused=side.fused)
    self._loss = self._model.loss
    if side.compiled:
      self._loss = torch.compile(self._loss, dynamic=False)
    self._optimizer = self._model.optimizer(captured=side.captured)
    self._step: Callable[[models.Batch, Any], torch.Tensor] = self._update
    first = next(iter(self._pairs(self._block)))
    if side.captured:
      self._step = self._capture(first)
    else:
      self._loss(*first).backward()  # Compiles.
    self._model.synchronize()
    self.limit = len(self._batches)

  def _pairs(self, num_steps: int) -> Iterator[Pair]:
    """Yields the first batches and their targets; None is not computed yet."""
    batches = self._batches[:num_steps]
    if self._block == 1:
      yield from ((batch, None) for batch in batches)
      return
    for i in range(0, len(batches), self._block):
      block = batches[i : i + self._block]
      targets = self._model.target(models.joined(block))
      yield from zip(block, targets.chunk(len(block)), strict=True)

  def _update(self, batch: models.Batch, target: Any) -> torch.Tensor:
    """Trains one step; returns the loss."""
    for weight in self._model.trained:
      weight.grad = None
    loss = self._loss(batch, target)
    loss.backward()
    self._optimizer.step()
    return loss.detach()

  def _capture(self, first: Pair) -> Callable[..., torch.Tensor]:
    """Records a step as a CUDA graph; the student stays as it is."""
    batch = {name: leaf.clone() for name, leaf in first[0].items()}
    before = [weight.detach().clone() for weight in self._model.trained]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
      for _ in range(3):  # Compiles, and makes the optimizer's state.
        self._update(batch, None)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
      loss = self._update(batch, None)
    with torch.no_grad():
      for weight, value in zip(self._model.trained, before, strict=True):
        weight.copy_(value)
      for state in self._optimizer.state.values():
        for leaf in state.values():
          leaf.zero_()

    def step(new: models.Batch, target: Any) -> torch.Tensor:
      del target
      for name, leaf in new.items():
        batch[name].copy_(leaf)
      graph.replay()
      return loss

    return step

  def losses(self, num_steps: int) -> list[float]:
    """Trains on the first batches; returns the losses."""
    return [self._step(*pair).item() for pair in self._pairs(num_steps)]

  def seconds(self, num_steps: int) -> float:
    """Trains on the first batches; returns the seconds that it took."""
    self._model.synchronize()
    begin = time.perf_counter()
    # Nothing looks at the steps: the GPU need not wait.
    collections.deque((self._step(*p) for p in self._pairs(num_steps)), 0)
    self._model.synchronize()
    return time.perf_counter() - begin


class Trainers:
  """The sides that were built, and the orders."""

  def __init__(self, job: dict[str, Any]) -> None:
    """Builds nothing yet."""
    self._job = job
    self._built: dict[str, Trainer] = {}

  def build(self, side: str) -> dict[str, Any]:
    """Builds a side; returns `unit`, `limit` and the seconds it took."""
    begin = time.perf_counter()
    trainer = self._built[side] = Trainer(self._job, SIDES[side])
    seconds = time.perf_counter() - begin
    return {'unit': trainer.unit, 'limit': trainer.limit, 'built': seconds}

  def losses(self, side: str, steps: int) -> list[float]:
    """Returns the losses of the first steps of a side."""
    return self._built[side].losses(steps)

  def seconds(self, side: str, steps: int) -> float:
    """Returns the seconds of some steps of a side."""
    return self._built[side].seconds(steps)


def main(path: str) -> None:
  """Serves until the other side closes.

  Args:
    path: file of the job (accelerator/compare.py).
  """
  signal.alarm(LONGEST_LIFE)
  server = pipe.Server()
  job = pickle.loads(pathlib.Path(path).read_bytes())
  precise = job['compute'] == 'float32'
  torch.set_float32_matmul_precision('highest' if precise else 'high')
  if job['device'] == 'cpu':
    torch.set_num_threads(1)  # Only a try of small sizes runs there.
  trainers = Trainers(job)
  for message in server:
    order = getattr(trainers, message.pop('order'))
    try:
      server.reply(value=order(**message))
    except Exception as error:  # One side must not end the others.
      traceback.print_exc()
      server.reply(error=pipe.one_line(error))


if __name__ == '__main__':
  main(sys.argv[1])
