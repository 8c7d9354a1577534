"""EasyDeL: its `DistillationTrainer`, for its own causal language models.

Llama is read from the folder that transformers reads as well. Of GPT-2, version
0.3.0 has biases of the size of a layer's inputs, so that it does not run: this
module tries it, and says what happens.
"""

import contextlib
import sys
from typing import Any

import datasets
import easydel
from flax import nnx
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.peers import protocol as protocol

FOREVER = 1 << 30  # Steps of a run, of which it makes some at a time.


def _require_gpt2(job: protocol.Job) -> None:
  """Raises `Cannot`: its GPT-2 does not run, or has no trainer here."""
  case = job.case
  config = easydel.GPT2Config(
    vocab_size=case.classes,
    n_positions=case.inputs,
    n_embd=case.student.width,
    n_layer=case.student.depth,
    n_head=case.student.heads,
  )
  model = easydel.GPT2LMHeadModel(
    config, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0)
  )
  tokens = jnp.ones((case.batch, case.inputs), jnp.int32)
  try:
    model(input_ids=tokens, attention_mask=jnp.ones_like(tokens))
  except (TypeError, ValueError) as error:
    raise protocol.Cannot(f'its GPT-2 does not run: {error}') from error
  raise protocol.Cannot(
    'its GPT-2 runs in this version, and its trainer is not yet written here'
  )


def _network(job: protocol.Job, role: str) -> Any:
  """Reads the Llama of a role."""
  return easydel.AutoEasyDeLModelForCausalLM.from_pretrained(
    str(job.folder / role),
    dtype=jnp.float32,
    param_dtype=jnp.float32,
    config_kwargs={'attn_dtype': jnp.float32},  # By default bfloat16.
    from_torch=True,
  )


def _arguments(job: protocol.Job) -> Any:
  """Makes the options of the trainer: Adam, and the KL divergence alone."""
  case = job.case
  return easydel.DistillationConfig(
    save_directory=str(job.folder / 'easydel'),
    temperature=1.0,
    alpha=1.0,
    learning_rate=case.optimizer[1],
    optimizer='adamw',
    weight_decay=0.0,
    scheduler='none',
    total_batch_size=case.batch,
    max_length=case.inputs,
    max_training_steps=FOREVER,
    num_train_epochs=1,
    shuffle_train_dataset=False,
    log_steps=case.unit,
    report_steps=case.unit,
    progress_bar_type='json',
    use_wandb=False,
    save_steps=None,
    do_last_save=False,
  )


class _Tokenizer:
  """A tokenizer that nobody asks for tokens."""

  pad_token = eos_token = 'x'
  pad_token_id = eos_token_id = 0


class _Trainer(easydel.DistillationTrainer):
  """Its trainer, which keeps the losses."""

  kept: list[float] | None = None

  def on_step_end(self, state: Any, metrics: Any, step: int) -> tuple[Any, Any]:
    """Keeps the loss of a step."""
    if self.kept is not None:
      self.kept.append(float(metrics.loss))
    return state, metrics


class EasyDeL:
  """The student in a `DistillationTrainer`."""

  seeds = unit = 1

  def __init__(self, job: protocol.Job) -> None:
    """Reads the networks."""
    case = job.case
    if not case.causal:
      raise protocol.Cannot('its models are causal language models')
    if case.model == 'decoder':
      _require_gpt2(job)
    self._batches = [
      {
        'input_ids': batch['tokens'],
        'attention_mask': np.ones_like(batch['tokens']),
      }
      for batch in job.batches()
    ]
    student, teacher = (_network(job, role) for role in ('student', 'teacher'))
    self._trainer = _Trainer(
      arguments=_arguments(job),
      processing_class=_Tokenizer(),
      student_model=student,
      teacher_model=teacher,
      train_dataset=datasets.Dataset.from_list(self._batches),
    )
    # It winds forward to its step, at no cost in a list.
    self._trainer.dataloader_train = self._batches
    self._at = 0

  def _train(self, num_steps: int) -> None:
    self._at += num_steps
    self._trainer.max_training_steps = self._at
    with contextlib.redirect_stdout(sys.stderr):  # The answers go there.
      output = self._trainer.train()
    self._trainer.model_state = output.state

  def losses(self, num_steps: int) -> list[float]:
    """Trains; returns the losses."""
    self._trainer.kept = []
    self._train(num_steps)
    found, self._trainer.kept = self._trainer.kept, None
    return found

  def run(self, num_steps: int) -> None:
    """Trains; it waits for every step."""
    self._train(num_steps)


def make(job: protocol.Job) -> EasyDeL:
  """Makes the trainer of a job."""
  return EasyDeL(job)
