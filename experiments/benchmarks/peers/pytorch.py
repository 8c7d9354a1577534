"""Plain PyTorch: a loop by hand; eager, fused or compiled.

A hidden stage stops at its layer in both networks. Llama is the model of
transformers. Variants:
  eager     explicit attention, and the optimizer with its defaults.
  fused     `scaled_dot_product_attention`, and the fused optimizer.
  compiled  the same; loss, teacher and student by `torch.compile`.
"""

from typing import Any

import torch

from experiments.benchmarks.peers import protocol as protocol
from experiments.benchmarks.peers import torch_models as torch_models


class PyTorch(protocol.Loop):
  """The student in PyTorch."""

  def __init__(self, job: protocol.Job) -> None:
    """Copies the networks; the variant of the job is eager, fused, compiled."""
    super().__init__(job)
    plain = job.variant == 'eager'
    self._batches = torch_models.batches(job)
    self._stored = job.targets if job.case.stage == 'stored' else None
    self._student = torch_models.make(job, 'student', sdpa=not plain)
    self._teacher = torch_models.make(job, 'teacher', sdpa=not plain)
    self._distance = None
    if job.matrix is not None:
      self._distance = torch_models.ProjectedDistance(job.matrix)
    self._optimizer = torch_models.optimizer(
      job, self._student.parameters(), fused=not plain
    )
    self._objective = self._loss
    if job.variant == 'compiled':
      self._objective = torch.compile(self._loss, dynamic=False)

  def _loss(self, batch: Any, target: Any) -> torch.Tensor:
    if self._distance is not None:
      with torch.no_grad():
        target = self._teacher.hidden(batch)
      return self._distance(self._student.hidden(batch), target)
    if target is None:
      with torch.no_grad():
        target = self._teacher(batch)
    return torch_models.kl(self._student(batch), target)

  def step(self, number: int) -> torch.Tensor:
    """Trains on a batch; returns its loss."""
    target = None
    if self._stored is not None:
      target = torch.tensor(self._stored[number])
    self._optimizer.zero_grad()
    loss = self._objective(self._batches[number], target)
    loss.backward()
    self._optimizer.step()
    return loss.detach()


def make(job: protocol.Job) -> PyTorch:
  """Makes the trainer of a job."""
  return PyTorch(job)
