"""keras.distillation on JAX: a `Distiller`, timed in `fit`.

Its losses compare whole outputs of equal width. In a hidden stage both networks
are cut at their layer, and the teacher's ends in the projection.
"""

import functools
import os
from typing import Any

import numpy as np

os.environ['KERAS_BACKEND'] = 'jax'

import keras  # noqa: E402  After its backend is chosen.

from experiments.benchmarks.peers import protocol as protocol  # noqa: E402


class Adam(keras.optimizers.Adam):
  """Adam with the epsilon of Kingma and Ba's algorithm 1, as in the others."""

  def update_step(
    self, gradient: Any, variable: Any, learning_rate: Any
  ) -> None:
    """Updates a variable."""
    step = keras.ops.cast(self.iterations + 1, variable.dtype)
    scale = keras.ops.sqrt(1 - keras.ops.power(self.beta_2, step))
    self.epsilon, kept = self.epsilon * scale, self.epsilon
    super().update_step(gradient, variable, learning_rate)
    self.epsilon = kept


class Positions(keras.layers.Layer):
  """Adds position embeddings to `[B, L, D]`."""

  def build(self, shape: Any) -> None:
    """Makes the table."""
    self.table = self.add_weight(shape=shape[1:], name='table')

  def call(self, h: Any) -> Any:
    """Adds the table."""
    return h + self.table


class RotaryAttention(keras.layers.Layer):
  """Causal attention with rotary positions and shared keys, as of Llama."""

  def __init__(self, heads: int, theta: float = 10_000.0) -> None:
    """Takes the number of heads of the queries."""
    super().__init__()
    self._heads, self._theta = heads, theta

  def call(self, query: Any, key: Any, value: Any) -> Any:
    """Computes `[B, L, H D]` from products of this and lesser widths."""
    ops, (length, width) = keras.ops, query.shape[1:]
    size = width // self._heads
    split = lambda h: ops.reshape(h, (-1, length, h.shape[-1] // size, size))
    rates = self._theta ** (-np.arange(0, size, 2) / size)
    angles = np.outer(np.arange(length), rates)[:, None].astype(np.float32)

    def rotate(h: Any) -> Any:
      first, second = ops.split(split(h), 2, axis=-1)
      cos, sin = np.cos(angles), np.sin(angles)
      turned = first * cos - second * sin, second * cos + first * sin
      return ops.concatenate(turned, axis=-1)

    args = rotate(query), rotate(key), split(value)
    h = ops.dot_product_attention(*args, is_causal=True)
    return ops.reshape(h, (-1, length, width))


class Network:
  """A functional model with the weights of a job, kept by layer."""

  def __init__(self, job: protocol.Job, role: str) -> None:
    """Builds the model of a role; `model` is it."""
    self._params, self._set = job.params(role), []
    self._case, self._sizes = job.case, getattr(job.case, role)
    self._hidden = job.matrix is not None
    h, inputs = self._mlp() if job.case.model == 'mlp' else self._tokens(role)
    if self._hidden and role == 'teacher':
      layer = keras.layers.Dense(job.matrix.shape[1], use_bias=False)
      h = layer(h)
      layer.set_weights([job.matrix])
    self.model = keras.Model(inputs, h)
    for layer, weights in self._set:
      layer.set_weights([np.asarray(leaf) for leaf in weights])

  def _layer(self, layer: Any, *names: str) -> Any:
    self._set.append((layer, [self._params[name] for name in names]))
    return layer

  def _dense(self, name: str, **kwargs: Any) -> Any:
    names = [
      place
      for place in (f'{name}/kernel', f'{name}/bias')
      if place in self._params
    ]
    width = self._params[names[0]].shape[1]
    layer = keras.layers.Dense(width, use_bias=len(names) == 2, **kwargs)
    return self._layer(layer, *names)

  def _norm(self, name: str) -> Any:
    if self._case.model == 'llama':
      layer = keras.layers.RMSNormalization(epsilon=1e-6)
      return self._layer(layer, f'{name}/scale')
    layer = keras.layers.LayerNormalization(
      epsilon=1e-5 if self._case.model == 'decoder' else 1e-12
    )
    return self._layer(layer, f'{name}/scale', f'{name}/bias')

  def _mlp(self) -> tuple[Any, Any]:
    inputs = {'x': keras.Input((self._case.inputs,), name='x')}
    h = self._dense('hidden0', activation='relu')(inputs['x'])
    return (h if self._hidden else self._dense('logits')(h)), inputs

  def _tokens(self, role: str) -> tuple[Any, Any]:
    case, causal = self._case, self._case.causal
    token_input = functools.partial(keras.Input, dtype='int32')
    inputs = {'tokens': token_input((case.inputs,), name='tokens')}
    table = keras.layers.Embedding(case.classes, self._sizes.width)
    h = self._layer(table, 'tokens/embedding')(inputs['tokens'])
    if case.model != 'llama':
      h = self._layer(Positions(), 'position_embedding')(h)
    if not causal:
      name = 'target_positions'
      inputs[name] = token_input((case.predicted,), name=name)
      h = self._norm('embeddings_norm')(h)
    depth = case.blocks(role) if self._hidden else self._sizes.depth
    block = functools.partial(self._block, causal=causal)
    if case.model == 'llama':
      block = self._llama_block
    for i in range(depth):
      h = block(h, f'block{i}')
    if self._hidden:
      return h, inputs
    if causal:
      head = keras.layers.Dense(case.classes, use_bias=False)
      head = self._layer(head, 'logits/kernel')
      return head(self._norm('final_norm')(h)), inputs
    at = keras.ops.expand_dims(inputs['target_positions'], -1)
    h = keras.ops.take_along_axis(h, at, axis=1)
    h = keras.activations.gelu(self._dense('transform')(h), approximate=False)
    head = self._layer(
      keras.layers.Dense(case.classes), 'logits/kernel', 'logits_bias'
    )
    return head(self._norm('transform_norm')(h)), inputs

  def _block(self, h: Any, name: str, causal: bool) -> Any:
    width, heads = self._sizes.width, self._sizes.heads
    size = width // heads
    attention = keras.layers.MultiHeadAttention(heads, size)
    weights = []
    for part in ('query', 'key', 'value'):
      kernel, bias = (
        self._params[f'{name}/{part}/{leaf}'] for leaf in ('kernel', 'bias')
      )
      weights += [
        kernel.reshape(width, heads, size),
        bias.reshape(heads, size),
      ]
    kernel = self._params[f'{name}/attention_out/kernel']
    weights += [
      kernel.reshape(heads, size, width),
      self._params[f'{name}/attention_out/bias'],
    ]
    self._set.append((attention, weights))
    first, second = (
      self._norm(f'{name}/{part}') for part in ('attention_norm', 'mlp_norm')
    )

    def attend(h: Any) -> Any:
      return attention(h, h, use_causal_mask=causal)

    def mlp(h: Any) -> Any:
      h = self._dense(f'{name}/mlp_in')(h)
      h = keras.activations.gelu(h, approximate=causal)
      return self._dense(f'{name}/mlp_out')(h)

    if causal:
      h = h + attend(first(h))
      return h + mlp(second(h))
    h = first(h + attend(h))
    return second(h + mlp(h))

  def _llama_block(self, h: Any, name: str) -> Any:
    dense = lambda part, **kwargs: self._dense(f'{name}/{part}', **kwargs)
    inside = self._norm(f'{name}/attention_norm')(h)
    parts = (dense(part)(inside) for part in ('query', 'key', 'value'))
    attended = RotaryAttention(self._sizes.heads)(*parts)
    h = h + dense('attention_out')(attended)
    inside = self._norm(f'{name}/mlp_norm')(h)
    gate = dense('mlp_gate', activation='silu')(inside)
    return h + dense('mlp_out')(gate * dense('mlp_in')(inside))


class Keras:
  """The student in a `Distiller`.

  Attributes:
    seeds: 1.
    unit: steps of which a round is a multiple: each calls `fit` once.
    limit: batches that are drawn; a round begins at the first.
  """

  seeds, unit = 1, 25

  def __init__(self, job: protocol.Job) -> None:
    """Builds and compiles the models."""
    if job.case.stage == 'stored':
      raise protocol.Cannot('its teacher runs in every step')
    self.limit, self._size = job.case.drawn, job.case.batch
    self._batches = job.batches()
    teacher, student = (
      Network(job, role).model for role in ('teacher', 'student')
    )
    # By name, its KL divergence takes logits for probabilities.
    kl = keras.losses.KLDivergence()
    loss, weight = keras.distillation.LogitsDistillation(1.0, kl), 1.0
    if job.matrix is not None:
      # Its mean runs over the features as well.
      loss = keras.distillation.FeatureDistillation('mse')
      weight = float(job.matrix.shape[1])
    self._distiller = keras.distillation.Distiller(
      teacher,
      student,
      [loss],
      distillation_loss_weights=[weight],
      student_loss_weight=0.0,
    )
    name, rate = job.case.optimizer
    optimizer = {
      'sgd': lambda: keras.optimizers.SGD(rate),
      'adam': lambda: Adam(rate, epsilon=1e-8),
    }[name]()
    # Its loss of labels has weight 0, but must be given.
    self._distiller.compile(optimizer, loss='mse')
    self._all = {
      name: np.concatenate([batch[name] for batch in self._batches])
      for name in self._batches[0]
    }
    self._at = 0

  def losses(self, num_steps: int) -> list[float]:
    """Trains a batch at a time; returns the losses."""
    found = []
    for _ in range(num_steps):
      batch = self._batches[self._at % self.limit]
      logs = self._distiller.train_on_batch(batch, return_dict=True)
      found.append(float(logs['total_loss']))
      self._at += 1
    return found

  def run(self, num_steps: int) -> None:
    """Trains on the first batches."""
    rows = num_steps * self._size
    self._distiller.fit(
      {name: leaf[:rows] for name, leaf in self._all.items()},
      batch_size=self._size,
      shuffle=False,
      verbose=0,
    )


def make(job: protocol.Job) -> Keras:
  """Makes the trainer of a job."""
  return Keras(job)
