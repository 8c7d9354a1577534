"""TRL: its `GKDTrainer`, on given tokens (lmbda=0), with forward KL (beta=0).

Its models are causal language models of transformers: GPT-2 or Llama. Its loss
leaves the last position of a row out, so it gets one token more.
"""

import os
from typing import Any

os.environ['TRL_EXPERIMENTAL_SILENCE'] = '1'

import datasets  # noqa: E402  After TRL is told to be silent.
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from trl.experimental import gkd  # noqa: E402

from experiments.benchmarks.peers import protocol as protocol  # noqa: E402
from experiments.benchmarks.peers import torch_models as torch_models  # noqa: E402


def _network(job: protocol.Job, role: str) -> Any:
  """Makes a GPT-2 or a Llama of transformers with the weights of a job."""
  if job.case.model == 'llama':
    return torch_models.make(job, role).inner
  case, sizes = job.case, getattr(job.case, role)
  config = transformers.GPT2Config(
    vocab_size=case.classes,
    n_positions=case.inputs + 1,
    n_embd=sizes.width,
    n_layer=sizes.depth,
    n_head=sizes.heads,
    resid_pdrop=0.0,
    embd_pdrop=0.0,
    attn_pdrop=0.0,
    tie_word_embeddings=False,
    use_cache=False,
    bos_token_id=0,
    eos_token_id=0,
    pad_token_id=0,
  )
  model = transformers.GPT2LMHeadModel(config)
  ours = {
    name: torch.from_numpy(leaf) for name, leaf in job.params(role).items()
  }
  # The position of the token more, which no loss sees.
  positions = ours['position_embedding']
  positions = torch.cat([positions, torch.zeros_like(positions[:1])])
  state = {
    'transformer.wte.weight': ours['tokens/embedding'],
    'transformer.wpe.weight': positions,
    'lm_head.weight': ours['logits/kernel'].T,
    **_norm(ours, 'final_norm', 'transformer.ln_f'),
  }
  for i in range(sizes.depth):
    block, there = f'block{i}', f'transformer.h.{i}'
    for leaf, name in (('kernel', 'weight'), ('bias', 'bias')):
      parts = [ours[f'{block}/{part}/{leaf}'] for part in _PARTS]
      state[f'{there}.attn.c_attn.{name}'] = torch.cat(parts, -1)
      for part, other in _LAYERS.items():
        state[f'{there}.{other}.{name}'] = ours[f'{block}/{part}/{leaf}']
    state |= _norm(ours, f'{block}/attention_norm', f'{there}.ln_1')
    state |= _norm(ours, f'{block}/mlp_norm', f'{there}.ln_2')
  model.load_state_dict(state)
  return model


_PARTS = ('query', 'key', 'value')
_LAYERS = {
  'attention_out': 'attn.c_proj',
  'mlp_in': 'mlp.c_fc',
  'mlp_out': 'mlp.c_proj',
}


def _norm(ours: Any, name: str, there: str) -> dict[str, torch.Tensor]:
  return {
    f'{there}.weight': ours[f'{name}/scale'],
    f'{there}.bias': ours[f'{name}/bias'],
  }


class _Losses(transformers.TrainerCallback):
  """Keeps the losses that the trainer logs."""

  def __init__(self) -> None:
    self.found: list[float] = []

  def on_log(
    self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any
  ) -> None:
    if logs and 'loss' in logs:
      self.found.append(float(logs['loss']))


class _Tokenizer(transformers.PreTrainedTokenizerFast):
  """A tokenizer that nobody asks for tokens."""


def _tokenizer() -> Any:
  import tokenizers

  inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({'x': 0}, 'x'))
  return _Tokenizer(tokenizer_object=inner, pad_token='x', eos_token='x')


class Trl:
  """The student in a `GKDTrainer`."""

  seeds, unit = 1, 25

  def __init__(self, job: protocol.Job) -> None:
    """Copies the networks."""
    if not job.case.causal:
      raise protocol.Cannot('its models are causal language models')
    self._job, self._at = job, 0
    self._student, self._teacher = (
      _network(job, role) for role in ('student', 'teacher')
    )
    self._optimizer = torch_models.optimizer(job, self._student.parameters())
    rows = [row for batch in job.batches() for row in batch['tokens']]
    padded = np.pad(np.stack(rows), ((0, 0), (0, 1)))
    self._rows = datasets.Dataset.from_dict({'input_ids': padded})

  def _prepared(self, num_steps: int, log_every: int) -> tuple[Any, Any]:
    """Makes a trainer of some steps, and the losses that it will log."""
    case = self._job.case
    numbers = [
      (self._at * case.batch + i) % len(self._rows)
      for i in range(num_steps * case.batch)
    ]
    self._at += num_steps
    losses = _Losses()
    arguments = gkd.GKDConfig(
      output_dir=str(self._job.folder / 'trl'),
      per_device_train_batch_size=case.batch,
      max_steps=num_steps,
      logging_steps=log_every,
      lmbda=0.0,
      beta=0.0,
      temperature=1.0,
      seq_kd=False,
      disable_dropout=True,
      max_grad_norm=0.0,
      lr_scheduler_type='constant',
      save_strategy='no',
      report_to=[],
      use_cpu=True,
      bf16=False,
      disable_tqdm=True,
      dataloader_drop_last=True,
      train_sampling_strategy='sequential',
      gradient_checkpointing=False,
    )
    trainer = gkd.GKDTrainer(
      self._student,
      self._teacher,
      arguments,
      data_collator=_collate,
      train_dataset=self._rows.select(numbers),
      processing_class=_tokenizer(),
      callbacks=[losses],
      optimizers=(
        self._optimizer,
        torch.optim.lr_scheduler.ConstantLR(self._optimizer, 1.0),
      ),
    )
    return trainer, losses

  def losses(self, num_steps: int) -> list[float]:
    """Trains; returns the losses."""
    trainer, losses = self._prepared(num_steps, 1)
    trainer.train()
    return losses.found

  def prepare(self, num_steps: int) -> None:
    """Makes the trainer of a round, whose log is that of the others."""
    self._trainer, _ = self._prepared(num_steps, self._job.case.unit)

  def run(self, num_steps: int) -> None:
    """Trains with the trainer that was made for it."""
    del num_steps
    self._trainer.train()


def _collate(rows: Any) -> dict[str, torch.Tensor]:
  tokens = torch.tensor([row['input_ids'] for row in rows])
  labels = tokens.clone()
  labels[:, 0] = -100  # Nothing predicts it; it would count in the mean.
  return {
    'input_ids': tokens,
    'attention_mask': torch.ones_like(tokens),
    'labels': labels,
  }


def make(job: protocol.Job) -> Trl:
  """Makes the trainer of a job."""
  return Trl(job)
