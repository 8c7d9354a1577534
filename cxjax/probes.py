"""Probes: what a network's activations say about its inputs."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def degree_one(
  features: Callable[[jax.Array], jax.Array],
  draw: Callable[[jax.Array, jax.Array], dict[str, jax.Array]],
  key: jax.Array,
  num_batches: int,
) -> jax.Array:
  """Correlation of each feature with each single coordinate of the input.

  `E[g(x) x_j] / sd(g(x))` for uniform x in {-1, +1}^d: the degree-1 Fourier
  coefficients of g, of unit variance. It is what a first gradient step sees of
  the support of a parity. The standard error is `1 / sqrt(N)` with `N` the
  number of examples.

  Args:
    features: `[N, d] -> [N, r]`, pure.
    draw: `(key, step) -> {'x': [N, d], ...}`.
    key: the stream of examples.
    num_batches: of `draw`, accumulated one by one.

  Returns:
    `[r, d]` correlations in [-1, 1]; 0 for a feature that is constant.
  """

  def moments(step):
    x = draw(key, step)['x']
    g = features(x)
    return g.mean(0), jnp.square(g).mean(0), g.T @ x / x.shape[0]

  means = jax.lax.map(moments, jnp.arange(num_batches))
  mean, square, cross = jax.tree.map(lambda leaf: leaf.mean(0), means)
  deviation = jnp.sqrt(jnp.maximum(square - jnp.square(mean), 0.0))
  # A dead unit has no correlation with anything.
  scale = jnp.where(deviation > 0, deviation, 1.0)
  return cross / scale[:, None] * (deviation > 0)[:, None]
