"""Networks, losses and optimizers of the peers that are written in PyTorch."""

from collections.abc import Iterator
from collections.abc import Mapping
import types
from typing import Any
from typing import TypeAlias

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from experiments.benchmarks import torch_transformer
from experiments.benchmarks.peers import cases as cases_lib
from experiments.benchmarks.peers import protocol as protocol

Batch: TypeAlias = dict[str, torch.Tensor]


class Mlp(nn.Module):
  """Linear-ReLU-Linear, with the weights of ours."""

  # Path of the module whose output a hidden stage compares.
  tap = 'relu'

  def __init__(self, params: Mapping[str, np.ndarray]) -> None:
    """Copies the parameters."""
    super().__init__()
    for name in ('hidden0', 'logits'):
      kernel, bias = (params[f'{name}/{part}'] for part in ('kernel', 'bias'))
      layer = nn.Linear(*kernel.shape)
      layer.weight.data = torch.from_numpy(np.array(kernel.T, order='C'))
      layer.bias.data = torch.from_numpy(np.array(bias))
      setattr(self, name, layer)
    self.relu = nn.ReLU()

  def hidden(self, batch: Batch) -> torch.Tensor:
    """Computes the hidden layer alone."""
    return self.relu(self.hidden0(batch['x']))

  def forward(self, batch: Batch) -> torch.Tensor:
    """Computes the logits."""
    return self.logits(self.hidden(batch))


class Tokens(nn.Module):
  """A transformer on a batch of a job."""

  def __init__(self, job: protocol.Job, role: str, sdpa: bool) -> None:
    """Copies the parameters."""
    super().__init__()
    case = job.case
    sizes: cases_lib.Model = getattr(case, role)
    like = types.SimpleNamespace(
      width=sizes.width,
      heads=sizes.heads,
      layers=range(sizes.depth),
      causal=case.model == 'decoder',
      mlp_width=0,
      max_length=case.inputs,
      vocab_size=case.classes,
      num_classes=case.classes,
    )
    self.inner = torch_transformer.Transformer(like, job.params(role), sdpa)
    self._stop = case.blocks(role)

  @property
  def tap(self) -> str:
    """Path of the module whose output a hidden stage compares."""
    return f'inner.blocks.{self._stop - 1}'

  def hidden(self, batch: Batch) -> torch.Tensor:
    """Computes the lower blocks alone."""
    return self.inner(batch['tokens'], stop=self._stop)

  def forward(self, batch: Batch) -> torch.Tensor:
    """Computes the logits where they are compared."""
    positions = batch.get('target_positions')
    return self.inner(batch['tokens'], positions=positions)


class Llama(nn.Module):
  """A `LlamaForCausalLM` of transformers on a batch of a job."""

  tap = ''  # No case compares its hidden layers.

  def __init__(self, job: protocol.Job, role: str, sdpa: bool) -> None:
    """Reads the folder of a role."""
    super().__init__()
    import transformers  # noqa: PLC0415  Slow, and for this case alone.

    self.inner = transformers.LlamaForCausalLM.from_pretrained(
      job.folder / role,
      dtype=torch.float32,
      attn_implementation='sdpa' if sdpa else 'eager',
    )
    self.inner.train()

  def forward(self, batch: Batch) -> torch.Tensor:
    """Computes the logits."""
    return self.inner(batch['tokens'], use_cache=False).logits


def make(job: protocol.Job, role: str, *, sdpa: bool = True) -> Any:
  """Makes a network of a job.

  Args:
    job: the job.
    role: 'teacher' or 'student'.
    sdpa: whether attention is `scaled_dot_product_attention`; otherwise it is
      explicit.

  Returns:
    The module; `module(batch)` is its logits.
  """
  if job.case.model == 'mlp':
    return Mlp(job.params(role))
  if job.case.model == 'llama':
    return Llama(job, role, sdpa)
  return Tokens(job, role, sdpa)


def optimizer(
  job: protocol.Job, parameters: Iterator[Any], *, fused: bool = False
) -> torch.optim.Optimizer:
  """Makes the optimizer of a job; its defaults are those of PyTorch."""
  name, rate = job.case.optimizer
  if name == 'sgd':
    return torch.optim.SGD(parameters, rate, fused=fused)
  return torch.optim.Adam(parameters, rate, fused=fused)


def kl(logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
  """Computes the KL divergence of the teacher from the student, a mean."""
  logits, teacher = (x.flatten(0, -2) for x in (logits, teacher))
  return F.kl_div(
    logits.log_softmax(-1),
    teacher.log_softmax(-1),
    reduction='batchmean',
    log_target=True,
  )


class ProjectedDistance(nn.Module):
  """Squared distance of `[..., D]` from a projection of the teacher's."""

  def __init__(self, matrix: np.ndarray) -> None:
    """Keeps `[d_T, D]`, which is not trained."""
    super().__init__()
    self.register_buffer('matrix', torch.from_numpy(matrix))

  def forward(self, hidden: Any, teacher: Any) -> torch.Tensor:
    """Computes the mean over all positions."""
    return (hidden - teacher @ self.matrix).square().sum(-1).mean()


def batches(job: protocol.Job) -> list[Batch]:
  """Returns the batches of a job as tensors."""
  return [
    {name: torch.from_numpy(leaf) for name, leaf in batch.items()}
    for batch in job.batches(wide=True)
  ]
