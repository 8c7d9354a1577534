"""torchdistill: its `DistillationBox`, with hooks at the modules of a stage.

Both networks run whole in every stage. A hidden stage has a loss of its own in
the registry, which projects the teacher's layer.
"""

import importlib
import importlib.machinery
import importlib.util
import sys
import types
from typing import Any

import torch
from torch import nn
from transformers import LlamaForCausalLM  # noqa: F401  Before the stubs.

from experiments.benchmarks.peers import protocol as protocol
from experiments.benchmarks.peers import torch_models as torch_models


class _Stub(types.ModuleType):
  """A module whose names are empty classes."""

  __path__: list[str] = []

  def __getattr__(self, name: str) -> type:
    if name.startswith('__'):
      raise AttributeError(name)
    return type(name, (), {})


class _Torchvision:
  """Finds stubs of torchvision, which torchdistill imports for images."""

  def find_spec(self, name: str, *_: Any) -> Any:
    if name.partition('.')[0] != 'torchvision':
      return None
    return importlib.machinery.ModuleSpec(name, self, is_package=True)

  def create_module(self, spec: Any) -> types.ModuleType:
    return _Stub(spec.name)

  def exec_module(self, module: types.ModuleType) -> None:
    del module


if importlib.util.find_spec('torchvision') is None:
  sys.meta_path.append(_Torchvision())  # type: ignore[arg-type]
  for _part in ('datasets', 'models', 'ops', 'transforms'):
    importlib.import_module(f'torchvision.{_part}')

from torchdistill.core import distillation  # noqa: E402  After the stubs.
from torchdistill.losses import registry  # noqa: E402


class _Flat(nn.Module):
  """A network whose logits are `[N, C]`, as its losses want them."""

  def __init__(self, inner: nn.Module) -> None:
    super().__init__()
    self.inner = inner

  def forward(self, batch: Any) -> torch.Tensor:
    return self.inner(batch).flatten(0, -2)


@registry.register_mid_level_loss
class ProjectedDistance(nn.Module):
  """Squared distance of the student's layer from the projected teacher's."""

  def __init__(self, student: str, teacher: str, matrix: Any) -> None:
    """Takes the paths of the two layers, and the projection."""
    super().__init__()
    self._paths = student, teacher
    self._distance = torch_models.ProjectedDistance(matrix)

  def forward(
    self, students: Any, teachers: Any, *args: Any, **kwargs: Any
  ) -> torch.Tensor:
    """Computes the loss of the outputs that the hooks have kept."""
    del args, kwargs
    student, teacher = self._paths
    return self._distance(
      students[student]['output'], teachers[teacher]['output']
    )


class Torchdistill(protocol.Loop):
  """The student in a `DistillationBox`."""

  def __init__(self, job: protocol.Job) -> None:
    """Copies the networks and writes their configuration."""
    super().__init__(job)
    if job.case.stage == 'stored':
      raise protocol.Cannot('its teacher runs in every step')
    teacher, student = (
      _Flat(torch_models.make(job, role)) for role in ('teacher', 'student')
    )
    taps = [f'inner.{each.inner.tap}' for each in (student, teacher)]
    name, rate = job.case.optimizer
    config: dict[str, Any] = {
      'num_epochs': 1,
      'teacher': {'requires_grad': False, 'forward_proc': 'forward_batch_only'},
      'student': {'forward_proc': 'forward_batch_only'},
      'criterion': _criterion(job, *taps),
      'optimizer': {
        'key': {'sgd': 'SGD', 'adam': 'Adam'}[name],
        'kwargs': {'lr': rate},
      },
    }
    if job.matrix is not None:
      for role, tap in zip(('student', 'teacher'), taps, strict=True):
        config[role]['forward_hook'] = {'output': [tap]}
    device = torch.device('cpu')
    self._box = distillation.DistillationBox(
      teacher, student, {}, config, device, None, False, 1
    )
    self._batches = torch_models.batches(job)
    teacher.eval()

  def step(self, number: int) -> torch.Tensor:
    """Trains on a batch; returns its loss."""
    self._box.pre_forward_process()
    loss = self._box.forward_process(self._batches[number])
    self._box.post_forward_process(loss)
    return loss.detach()


def _criterion(job: protocol.Job, student: str, teacher: str) -> dict[str, Any]:
  """Returns the configuration of the loss, for two paths of layers."""
  if job.matrix is not None:
    term = {
      'key': 'ProjectedDistance',
      'kwargs': {
        'student': student,
        'teacher': teacher,
        'matrix': job.matrix,
      },
    }
  else:
    where = {'module_path': '.', 'module_io': 'output'}
    paths = {
      f'{role}_{name}': value
      for role in ('student', 'teacher')
      for name, value in where.items()
    }
    term = {
      'key': 'KDLoss',
      'kwargs': {**paths, 'temperature': 1.0, 'alpha': 0.0},
    }
  return {
    'key': 'WeightedSumLoss',
    'kwargs': {'sub_terms': {'loss': {'criterion': term, 'weight': 1.0}}},
  }


def make(job: protocol.Job) -> Torchdistill:
  """Makes the trainer of a job."""
  return Torchdistill(job)
