"""Losses of the accelerator benchmark's students in PyTorch."""

from collections.abc import Callable
from collections.abc import Sequence
import types
from typing import Any
from typing import TypeAlias

import numpy as np
import torch
from torch.nn import functional as F

from cxjax.models import transformer
from experiments.benchmarks import torch_transformer

Batch: TypeAlias = dict[str, torch.Tensor]


def batches(job: dict[str, Any]) -> list[Batch]:
  """Returns the batches of a job, on its device."""
  batch = dict(job['batches'])
  x = batch.pop('x')
  flat = {**(x if isinstance(x, dict) else {'x': x}), **batch}
  leaves = {name: _tensor(leaf, job) for name, leaf in flat.items()}
  number = len(next(iter(leaves.values())))
  return [
    {name: leaf[i] for name, leaf in leaves.items()} for i in range(number)
  ]


def joined(block: Sequence[Batch]) -> Batch:
  """Returns several batches as one."""
  return {name: torch.cat([b[name] for b in block]) for name in block[0]}


def _tensor(leaf: Any, job: dict[str, Any]) -> torch.Tensor:
  leaf = np.asarray(leaf)
  # Token ids and indices are int64 in PyTorch.
  wide = np.issubdtype(leaf.dtype, np.integer)
  leaf = np.array(leaf, np.int64 if wide else None, order='C')
  return torch.from_numpy(leaf).to(job['device'])


class Sgd:
  """`weight -= rate * gradient`, by hand."""

  state: dict[Any, Any] = {}

  def __init__(self, weights: Sequence[torch.Tensor], rate: float) -> None:
    """Takes the weights and the learning rate."""
    self._weights, self._rate = weights, rate

  def step(self) -> None:
    """Updates the weights that have a gradient."""
    with torch.no_grad():
      for weight in self._weights:
        if weight.grad is not None:
          weight.sub_(weight.grad, alpha=self._rate)


class Model:
  """A student, its teacher, and the loss between them.

  Attributes:
    trained: parameters of the student.
  """

  trained: list[torch.Tensor]

  def __init__(self, job: dict[str, Any]) -> None:
    """Takes what both kinds have."""
    self.job = job
    matrix = job['matrix']
    self._matrix = None if matrix is None else _tensor(matrix, job)

  def synchronize(self) -> None:
    """Waits until the device has done its work."""
    if self.job['device'] == 'cuda':
      torch.cuda.synchronize()

  def target(self, batch: Batch) -> torch.Tensor:
    """Returns what the teacher says about a batch."""
    raise NotImplementedError

  def loss(self, batch: Batch, target: torch.Tensor | None) -> torch.Tensor:
    """Returns the loss; without a target the teacher is asked."""
    raise NotImplementedError

  def optimizer(self, captured: bool) -> Any:
    """Returns the optimizer; `captured` is for a CUDA graph."""
    raise NotImplementedError


class Mlp(Model):
  """Two layers, as functions of tensors."""

  def __init__(self, job: dict[str, Any]) -> None:
    """Copies the parameters."""
    super().__init__(job)
    self._teacher, self.trained = (
      self._weights(role) for role in ('teacher', 'student')
    )
    for weight in self.trained:
      weight.requires_grad_()

  def _weights(self, role: str) -> list[torch.Tensor]:
    params = self.job['params'][role]['params']
    return [
      # torch.nn.Linear has outputs first.
      _tensor(params[layer][name].T, self.job)
      for layer in ('hidden0', 'logits')
      for name in ('kernel', 'bias')
    ]

  def _outputs(self, weights: list[torch.Tensor], x: torch.Tensor) -> Any:
    """The hidden layer in a hidden stage, else the logits."""
    kernel, bias, head, head_bias = weights
    hidden = F.linear(x, kernel, bias).relu()
    if self._matrix is not None:
      return hidden
    return F.linear(hidden, head, head_bias)

  def target(self, batch: Batch) -> torch.Tensor:
    """Returns probabilities, or the projected hidden layer."""
    with torch.no_grad():
      found = self._outputs(self._teacher, batch['x'])
      if self._matrix is not None:
        return found @ self._matrix
      return found.softmax(-1)

  def loss(self, batch: Batch, target: torch.Tensor | None) -> torch.Tensor:
    """Returns the KL divergence, or the squared error."""
    if target is None:
      target = self.target(batch)
    got = self._outputs(self.trained, batch['x'])
    if self._matrix is not None:
      return (got - target).square().sum(-1).mean()
    return F.kl_div(got.log_softmax(-1), target, reduction='batchmean')

  def optimizer(self, captured: bool) -> Sgd:
    """Returns plain SGD."""
    del captured
    return Sgd(self.trained, self.job['learning_rate'])


class Bert(Model):
  """Encoders, as modules; the head sees the masked positions alone."""

  def __init__(self, job: dict[str, Any], *, fused: bool) -> None:
    """Copies the parameters."""
    super().__init__(job)
    self._fused = fused
    self._teacher, self._student = (
      self._module(role) for role in ('teacher', 'student')
    )
    self.trained = list(self._student.parameters())
    self._stops = [self._stop(role) for role in ('teacher', 'student')]

  def _module(self, role: str) -> Any:
    block = types.SimpleNamespace(**self.job['blocks'][role])
    task = types.SimpleNamespace(**self.job['data'])
    task.num_classes = task.vocab_size
    like = transformer.build(block, task, causal=False)
    module = torch_transformer.Transformer(
      like, self.job['params'][role], sdpa=self._fused
    )
    return module.to(self.job['device'])

  def _stop(self, role: str) -> int:
    """Number of the blocks that a stage needs."""
    layer = self.job['layers'][role]
    if layer.startswith('block'):
      return int(layer.removeprefix('block')) + 1
    return self.job['blocks'][role]['depth']

  def _outputs(self, module: Any, batch: Batch, stop: int) -> torch.Tensor:
    """The block of a hidden stage, else the logits where tokens are masked."""
    h = module(batch['tokens'], batch['mask'], stop)
    if self._matrix is not None:
      return h
    h = h.take_along_dim(batch['target_positions'][..., None], 1)
    return module.logits(module.transform_norm(F.gelu(module.transform(h))))

  def _autocast(self) -> Any:
    low = self.job['compute'] == 'bfloat16'
    return torch.autocast(self.job['device'], torch.bfloat16, enabled=low)

  def target(self, batch: Batch) -> torch.Tensor:
    """Returns log probabilities, or the projected block."""
    with torch.no_grad(), self._autocast():
      found = self._outputs(self._teacher, batch, self._stops[0])
      if self._matrix is not None:
        return found @ self._matrix
      return found.float().log_softmax(-1)

  def loss(self, batch: Batch, target: torch.Tensor | None) -> torch.Tensor:
    """Returns the KL divergence, or the squared error, by token."""
    if target is None:
      target = self.target(batch)
    with self._autocast():
      got = self._outputs(self._student, batch, self._stops[1]).float()
    if self._matrix is not None:
      values, weights = (got - target).square().sum(-1), batch['mask']
    else:
      weights = batch['weights']
      values = F.kl_div(
        got.log_softmax(-1), target, reduction='none', log_target=True
      ).sum(-1)
    return (values * weights).sum() / weights.sum()

  def optimizer(self, captured: bool) -> torch.optim.Adam:
    """Returns Adam."""
    return torch.optim.Adam(
      self.trained,
      self.job['learning_rate'],
      fused=self._fused,
      capturable=captured,
    )


def make(job: dict[str, Any], *, fused: bool) -> Model:
  """Makes the networks of a job.

  Args:
    job: see accelerator/compare.py.
    fused: fused attention and Adam.

  Returns:
    The model.
  """
  makers: dict[str, Callable[[], Model]] = {
    'parity': lambda: Mlp(job),
    'random_text': lambda: Bert(job, fused=fused),
  }
  return makers[job['task']]()
