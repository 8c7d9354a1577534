"""tunix: its `DistillationTrainer`, with its Llama or networks of flax.nnx.

A hidden stage is a strategy of its own, which stops both networks at their
layer and projects the teacher's.
"""

import functools
import json
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tunix.distillation import distillation_trainer
from tunix.distillation import strategies
from tunix.models.llama3 import model as llama
from tunix.models.llama3 import params as llama_params

from experiments.benchmarks.peers import cases as cases_lib
from experiments.benchmarks.peers import protocol as protocol


class Mlp(nnx.Module):
  """Linear-ReLU-Linear."""

  def __init__(self, case: cases_lib.Case, width: int) -> None:
    """Makes the layers."""
    rngs = nnx.Rngs(0)
    self.hidden0 = nnx.Linear(case.inputs, width, rngs=rngs)
    self.logits = nnx.Linear(width, case.classes, rngs=rngs)

  def hidden(self, x: jax.Array, positions: jax.Array) -> jax.Array:
    """Computes the hidden layer alone."""
    del positions
    return nnx.relu(self.hidden0(x))

  def __call__(self, x: jax.Array, positions: jax.Array) -> jax.Array:
    """Computes the logits."""
    return self.logits(self.hidden(x, positions))


class Block(nnx.Module):
  """Attention and MLP, with norms before them in a decoder, else after sums."""

  def __init__(self, sizes: cases_lib.Model, causal: bool) -> None:
    """Makes the layers."""
    rngs, width = nnx.Rngs(0), sizes.width
    eps = 1e-5 if causal else 1e-12
    self.causal = causal
    self.attention = nnx.MultiHeadAttention(
      sizes.heads, width, decode=False, rngs=rngs
    )
    self.attention_norm = nnx.LayerNorm(width, epsilon=eps, rngs=rngs)
    self.mlp_in = nnx.Linear(width, 4 * width, rngs=rngs)
    self.mlp_out = nnx.Linear(4 * width, width, rngs=rngs)
    self.mlp_norm = nnx.LayerNorm(width, epsilon=eps, rngs=rngs)

  def _mlp(self, h: jax.Array) -> jax.Array:
    h = jax.nn.gelu(self.mlp_in(h), approximate=self.causal)
    return self.mlp_out(h)

  def __call__(self, h: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Transforms `[B, L, D]`."""
    if self.causal:
      h = h + self.attention(self.attention_norm(h), mask=mask)
      return h + self._mlp(self.mlp_norm(h))
    h = self.attention_norm(h + self.attention(h, mask=mask))
    return self.mlp_norm(h + self._mlp(h))


class Tokens(nnx.Module):
  """A decoder or an encoder."""

  def __init__(self, case: cases_lib.Case, role: str) -> None:
    """Makes the layers."""
    sizes, rngs = getattr(case, role), nnx.Rngs(0)
    width, self.causal = sizes.width, case.model == 'decoder'
    self.stop = case.blocks(role)
    norm = lambda: nnx.LayerNorm(
      width, epsilon=1e-5 if self.causal else 1e-12, rngs=rngs
    )
    self.tokens = nnx.Embed(case.classes, width, rngs=rngs)
    self.positions = nnx.Param(jnp.zeros((case.inputs, width)))
    self.blocks = nnx.List(
      [Block(sizes, self.causal) for _ in range(sizes.depth)]
    )
    self.logits = nnx.Linear(
      width, case.classes, use_bias=not self.causal, rngs=rngs
    )
    if self.causal:
      self.final_norm = norm()
    else:
      self.embeddings_norm, self.transform_norm = norm(), norm()
      self.transform = nnx.Linear(width, width, rngs=rngs)

  def _run(self, tokens: jax.Array, stop: int | None) -> jax.Array:
    h, mask = self.tokens(tokens) + self.positions[...], None
    if self.causal:
      length = tokens.shape[1]
      mask = jnp.tril(jnp.ones((1, 1, length, length), bool))
    else:
      h = self.embeddings_norm(h)
    for block in self.blocks[:stop]:
      h = block(h, mask)
    return h

  def hidden(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
    """Computes the lower blocks alone."""
    del positions
    return self._run(tokens, self.stop)

  def __call__(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
    """Computes the logits where they are compared."""
    h = self._run(tokens, None)
    if self.causal:
      return self.logits(self.final_norm(h))
    h = jnp.take_along_axis(h, positions[..., None], axis=1)
    h = jax.nn.gelu(self.transform(h), approximate=False)
    return self.logits(self.transform_norm(h))


# Its attention leaves the base of the rotary positions at the default.
_apply_rope = llama.apply_rope


class Llama(nnx.Module):
  """Its Llama on full rows, read from the folder of a role."""

  def __init__(self, job: protocol.Job, role: str) -> None:
    """Reads the weights."""
    fields = json.loads((job.folder / role / 'config.json').read_text())
    config = llama.ModelConfig(
      num_layers=fields['num_hidden_layers'],
      vocab_size=fields['vocab_size'],
      embed_dim=fields['hidden_size'],
      hidden_dim=fields['intermediate_size'],
      num_heads=fields['num_attention_heads'],
      head_dim=fields['head_dim'],
      num_kv_heads=fields['num_key_value_heads'],
      rope_theta=fields['rope_theta'],
      norm_eps=fields['rms_norm_eps'],
    )
    llama.apply_rope = functools.partial(
      _apply_rope, rope_theta=config.rope_theta
    )
    self.inner = llama_params.create_model_from_safe_tensors(
      str(job.folder / role), config, dtype=jnp.float32
    )

  def __call__(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
    """Computes the logits."""
    del positions
    at = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return self.inner(tokens, at, None, at[:, :, None] >= at[:, None])[0]


# Names of ours, and what they are in nnx.
_NAMES = {
  'tokens/embedding': ('tokens', 'embedding'),
  'position_embedding': ('positions',),
  'logits_bias': ('logits', 'bias'),
}


def _place(name: str) -> tuple[str | int, ...]:
  """Returns the path in nnx of a parameter of ours."""
  if name in _NAMES:
    return _NAMES[name]
  first, *rest = name.split('/')
  if not first.startswith('block'):
    return (first, *rest)
  if rest[0] in ('query', 'key', 'value'):
    rest = ['attention', *rest]
  elif rest[0] == 'attention_out':
    rest = ['attention', 'out', *rest[1:]]
  return ('blocks', int(first.removeprefix('block')), *rest)


def _network(job: protocol.Job, role: str) -> nnx.Module:
  """Makes a network with the weights of a job."""
  case = job.case
  if case.model == 'llama':
    return Llama(job, role)
  if case.model == 'mlp':
    module: nnx.Module = Mlp(case, getattr(case, role).width)
  else:
    module = Tokens(case, role)
  state = nnx.state(module, nnx.Param)
  flat = dict(nnx.to_flat_state(state))
  for name, leaf in job.params(role).items():
    variable = flat.pop(_place(name))
    variable.set_value(jnp.asarray(leaf.reshape(variable.get_value().shape)))
  assert not flat, list(flat)
  nnx.update(module, state)
  return module


class Distance(strategies.BaseStrategy):
  """Squared distance from a projection of the teacher's layer."""

  def __init__(self, matrix: np.ndarray) -> None:
    """Takes `[d_T, D]`."""
    hidden = lambda model, x, positions: model.hidden(x, positions)
    super().__init__(hidden, hidden, lambda x, positions: jnp.zeros(()))
    self._matrix = jnp.asarray(matrix)

  def compute_loss(
    self, student_output: Any, teacher_output: Any, labels: Any
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the mean over all positions."""
    del labels
    apart = student_output - teacher_output @ self._matrix
    loss = jnp.square(apart).sum(-1).mean()
    return loss, {'loss': loss}

  def compute_eval_loss(self, student_output: Any, labels: Any) -> jax.Array:
    """Returns zero: nothing is evaluated."""
    del student_output
    return labels


def _logits(case: cases_lib.Case) -> strategies.LogitStrategy:
  """Returns its own strategy, without labels."""
  forward = lambda model, x, positions: model(x, positions)

  def labels(x: jax.Array, positions: jax.Array) -> jax.Array:
    # It computes the loss of labels for its metrics, whatever its weight is.
    shape = {
      'mlp': x.shape[:1],
      'encoder': positions.shape,
      'decoder': x.shape[:2],
      'llama': x.shape[:2],
    }[case.model]
    return jax.nn.one_hot(jnp.zeros(shape, jnp.int32), case.classes)

  return strategies.LogitStrategy(
    forward, forward, labels, temperature=1.0, alpha=1.0
  )


class _Trainer(distillation_trainer.DistillationTrainer):
  """Its trainer, which keeps the losses."""

  kept: list[Any] | None = None

  def _post_process_train_step(self, aux: Any) -> None:
    if self.kept is not None:
      self.kept.append(aux['loss' if 'loss' in aux else 'distill/soft_loss'])


class Tunix:
  """The student in a `DistillationTrainer`."""

  seeds = unit = 1

  def __init__(self, job: protocol.Job) -> None:
    """Copies the networks."""
    if job.case.stage == 'stored':
      raise protocol.Cannot('its trainer runs the teacher in every step')
    if job.matrix is None:
      strategy: Any = _logits(job.case)
    else:
      strategy = Distance(job.matrix)
    name, rate = job.case.optimizer
    optimizer = {'sgd': optax.sgd, 'adam': optax.adam}[name](rate)
    student, teacher = (_network(job, role) for role in ('student', 'teacher'))
    config = distillation_trainer.TrainingConfig(eval_every_n_steps=1 << 30)
    trainer = _Trainer(student, teacher, strategy, optimizer, config)
    # Otherwise it closes after the first call of `train`.
    trainer.is_managed_externally = True
    self._trainer = trainer.with_gen_model_input_fn(
      lambda x: {'x': x.input_tokens, 'positions': x.input_mask}
    )
    self._at, self._number = 0, job.case.drawn
    none = np.zeros((job.case.batch, 1), np.int32)
    self._batches = [
      distillation_trainer.TrainingInput(
        input_tokens=batch['x'] if 'x' in batch else batch['tokens'],
        input_mask=batch.get('target_positions', none),
      )
      for batch in job.batches()
    ]

  def _train(self, num_steps: int) -> None:
    begin, self._at = self._at, self._at + num_steps
    numbers = range(begin, self._at)
    self._trainer.train([self._batches[i % self._number] for i in numbers])

  def losses(self, num_steps: int) -> list[float]:
    """Trains; returns the losses."""
    self._trainer.kept = []
    self._train(num_steps)
    found, self._trainer.kept = self._trainer.kept, None
    return [float(loss) for loss in found]

  def run(self, num_steps: int) -> None:
    """Trains; it waits for the last step."""
    self._train(num_steps)


def make(job: protocol.Job) -> Tunix:
  """Makes the trainer of a job."""
  return Tunix(job)
