"""EasyDeL: its `DistillationTrainer` is for its own causal language models.

Those of the sizes of a case are its GPT-2, which does not run in version 0.3.0:
the biases of its layers have the size of their inputs. This module tries it,
and says what happens.
"""

import easydel
from flax import nnx
import jax.numpy as jnp

from experiments.benchmarks.peers import protocol as protocol


def make(job: protocol.Job) -> protocol.Trainer:
  """Tries the model of a job; always raises `Cannot`."""
  case = job.case
  if case.model == 'llama':
    raise protocol.Cannot('its trainer is not yet written here')
  if case.model != 'decoder':
    raise protocol.Cannot('its models are causal language models')
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
