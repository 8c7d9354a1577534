"""NVIDIA Model-Optimizer: `modelopt.torch.distill`, in a loop by hand.

Both networks run whole in every stage. A hidden stage has a loss module of its
own, which projects the teacher's layer.
"""

import modelopt.torch.distill as mtd
import torch
from torch import nn

from experiments.benchmarks.peers import protocol as protocol
from experiments.benchmarks.peers import torch_models as torch_models


class _Logits(mtd.LogitsDistillationLoss):
  """Its loss of logits, a mean over all positions."""

  def __init__(self) -> None:
    super().__init__(temperature=1.0, reduction='batchmean')

  def forward(
    self, logits: torch.Tensor, teacher: torch.Tensor
  ) -> torch.Tensor:
    return super().forward(logits.flatten(0, -2), teacher.flatten(0, -2))


class _Distance(nn.modules.loss._Loss):
  """The distance of hidden layers as a loss of PyTorch."""

  def __init__(self, distance: nn.Module) -> None:
    super().__init__()
    self._distance = distance

  def forward(
    self, hidden: torch.Tensor, teacher: torch.Tensor
  ) -> torch.Tensor:
    return self._distance(hidden, teacher)


class ModelOptimizer(protocol.Loop):
  """The student as a `DistillationModel`."""

  def __init__(self, job: protocol.Job) -> None:
    """Copies and converts the networks."""
    super().__init__(job)
    if job.case.stage == 'stored':
      raise protocol.Cannot('its teacher runs in every step')
    teacher, student = (
      torch_models.make(job, role) for role in ('teacher', 'student')
    )
    criterion = {('', ''): _Logits()}
    if job.matrix is not None:
      distance = torch_models.ProjectedDistance(job.matrix)
      criterion = {(student.tap, teacher.tap): _Distance(distance)}
    config = {'teacher_model': teacher, 'criterion': criterion}
    self._model = mtd.convert(student, mode=[('kd_loss', config)])
    self._model.train()
    trained = [p for p in self._model.parameters() if p.requires_grad]
    self._optimizer = torch_models.optimizer(job, iter(trained))
    self._batches = torch_models.batches(job)

  def step(self, number: int) -> torch.Tensor:
    """Trains on a batch; returns its loss."""
    self._optimizer.zero_grad()
    self._model(self._batches[number])
    loss = self._model.compute_kd_loss()
    loss.backward()
    self._optimizer.step()
    return loss.detach()


def make(job: protocol.Job) -> ModelOptimizer:
  """Makes the trainer of a job."""
  return ModelOptimizer(job)
