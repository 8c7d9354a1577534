"""The loop of the official code of progressive distillation, rewritten.

From its description: PyTorch's modules, batches from a `DataLoader`, the
teacher in `no_grad`, `KLDivLoss` of probabilities with the student's log
probabilities, and the loss read at every step for its log.
"""

from typing import Any

import torch
from torch import nn

from experiments.benchmarks.peers import protocol as protocol
from experiments.benchmarks.peers import torch_models as torch_models


class Official(protocol.Loop):
  """The student, trained by such a loop."""

  def __init__(self, job: protocol.Job) -> None:
    """Copies the networks."""
    super().__init__(job)
    if job.case.stage != 'output':
      raise protocol.Cannot('it has neither hidden layers nor stored targets')
    if job.case.model == 'encoder':
      raise protocol.Cannot('its masked language model is for grammars alone')
    self._teacher, self._student = (
      torch_models.make(job, role, sdpa=False)
      for role in ('teacher', 'student')
    )
    self._teacher.eval()
    self._optimizer = torch_models.optimizer(job, self._student.parameters())
    self._criterion = nn.KLDivLoss(reduction='batchmean')
    self._loader = iter(())
    self._dataset = torch_models.batches(job)

  def _batch(self) -> Any:
    try:
      return next(self._loader)
    except StopIteration:
      # Each item is a whole batch.
      loader = torch.utils.data.DataLoader(self._dataset, batch_size=None)
      self._loader = iter(loader)
      return next(self._loader)

  def step(self, number: int) -> float:
    """Trains on the next batch; returns its loss."""
    del number
    batch = self._batch()
    self._optimizer.zero_grad()
    with torch.no_grad():
      target = self._teacher(batch).flatten(0, -2).softmax(-1)
    logits = self._student(batch).flatten(0, -2)
    loss = self._criterion(logits.log_softmax(-1), target)
    loss.backward()
    self._optimizer.step()
    return loss.item()


def make(job: protocol.Job) -> Official:
  """Makes the trainer of a job."""
  return Official(job)
