"""Probes: what a network's activations say about its inputs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cxjax.methods import train_step


def degree_one(
  features: Callable[[Any], jax.Array],
  draw: Callable[..., dict[str, Any]],
  key: jax.Array,
  num_batches: int,
  coordinates: Callable[[Any], jax.Array] = lambda x: x,
) -> jax.Array:
  """Correlation of each feature with each single coordinate of the input.

  `E[g(x) x_j] / sd(g(x))` for uniform x in {-1, +1}^d: the degree-1 Fourier
  coefficients of g, of unit variance. It is what a first gradient step sees of
  the support of a parity. The standard error is `1 / sqrt(N)` with `N` the
  number of examples.

  Args:
    features: `x -> [N, r]`, pure.
    draw: `(key, step) -> {'x': x, ...}`.
    key: the stream of examples.
    num_batches: of `draw`, accumulated one by one.
    coordinates: `x -> [N, d]` of +-1, where x is not that already.

  Returns:
    `[r, d]` correlations in [-1, 1]; 0 for a feature that is constant.
  """
  # Nearly constant features would lose their variance to rounding.
  offset = features(draw(key, 0)['x']).mean(0)

  def moments(step):
    x = draw(key, step)['x']
    g, signs = features(x) - offset[None], coordinates(x)
    return g.mean(0), jnp.square(g).mean(0), g.T @ signs / signs.shape[0]

  means = jax.lax.map(moments, jnp.arange(num_batches))
  mean, square, cross = jax.tree.map(lambda leaf: leaf.mean(0), means)
  deviation = jnp.sqrt(jnp.maximum(square - jnp.square(mean), 0.0))
  # A dead unit has no correlation with anything.
  scale = jnp.where(deviation > 0, deviation, 1.0)
  return cross / scale[:, None] * (deviation > 0)[:, None]


def cka(x: jax.Array, y: jax.Array) -> jax.Array:
  """Linear centered kernel alignment of two sets of features.

  1 where one is the other turned, scaled and shifted; near 0 where they have
  nothing in common, and the examples outnumber the widths.

  Args:
    x: `[N, D]` features of N examples.
    y: `[N, E]` other features of the same examples.

  Returns:
    A scalar in [0, 1]; not a number if either is constant.

  References:
    Kornblith et al., 2019. https://arxiv.org/abs/1905.00414, section 3.
  """
  x, y = (a - a.mean(0, keepdims=True) for a in (x, y))
  norm = lambda a, b: jnp.linalg.norm(a.T @ b)
  return jnp.square(norm(x, y)) / (norm(x, x) * norm(y, y))


def ngram_distance(
  apply: train_step.Apply,
  params: train_step.Params,
  tokens: jax.Array,
  real: jax.Array,
  position: jax.Array,
  n: int,
  mask_id: int,
) -> dict[str, jax.Array]:
  """How much a masked prediction hangs on what is near, and on what is far.

  L1 distances between the model's distributions at `position`, of the sentence
  with that position alone masked, and of the sentence with more masked:
  'robust', the whole n-gram around it as well: small for a model that knows
  what is far. 'close', everything but that n-gram: small for a model that
  looks no further.

  Args:
    apply: the model.
    params: its parameters.
    tokens: `[N, L]`.
    real: `[N, L]` bool; false is padding.
    position: a scalar, the same in every sentence; must be real to mean much.
    n: length of the n-gram, odd.
    mask_id: the id that hides a token.

  Returns:
    `{'robust': [N], 'close': [N]}`, each in [0, 2].

  References:
    Panigrahi et al., 2024. https://arxiv.org/abs/2410.05464, section 4.
  """
  place = jnp.arange(tokens.shape[1])[None]
  near = jnp.abs(place - position) <= n // 2
  at = jnp.full((tokens.shape[0], 1), position, jnp.int32)

  def distribution(hidden):
    seen = jnp.where(hidden & real, mask_id, tokens)
    x = {'tokens': seen, 'mask': real, 'target_positions': at}
    logits, _ = apply(params, x)
    return jax.nn.softmax(logits[:, 0])

  alone = distribution(place == position)
  # The first position is where a sentence begins, in every version.
  everything = (place > 0) & ~near | (place == position)
  return {
    'robust': jnp.abs(alone - distribution(near & (place > 0))).sum(-1),
    'close': jnp.abs(alone - distribution(everything)).sum(-1),
  }


def linear_probe(
  features: np.ndarray, labels: np.ndarray, num_classes: int, ridge: float = 1.0
) -> float:
  """Accuracy of a linear read-out, least squares on one half, on the other.

  Args:
    features: `[N, D]`.
    labels: `[N]` integers in `[0, num_classes)`.
    num_classes: `C`.
    ridge: penalty on the squared weights, against one example each.

  Returns:
    Share of the second half of the examples that is classified correctly.
  """
  ones = np.ones((len(features), 1))
  design = np.concatenate([features, ones], axis=1, dtype=np.float64)
  half = len(features) // 2
  train, wanted = design[:half], np.eye(num_classes)[labels[:half]]
  gram = train.T @ train + ridge * np.eye(design.shape[1])
  weights = np.linalg.solve(gram, train.T @ wanted)
  guess = (design[half:] @ weights).argmax(1)
  return float((guess == labels[half:]).mean())
