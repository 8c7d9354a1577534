"""Probes: what the activations of a network say about its inputs.

In shapes, `N` is the number of examples, `d` the number of input coordinates,
`r` the number of features, and `L` the length of a sequence.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cxjax import arguments
from cxjax import checks
from cxjax import deprecation
from cxjax import errors
from cxjax import types
from cxjax.methods import targets as targets_lib


@deprecation.renamed_arguments(draw='batch_fn')
@checks.checked(
  features=checks.function_like('lambda x: x'),
  batch_fn=checks.function_like('task.batch'),
  key=checks.key,
  num_batches=checks.positive,
  coordinates=checks.function_like('lambda x: x'),
)
def degree_one(
  features: Callable[[types.Input], jax.Array],
  batch_fn: Callable[[jax.Array, jax.typing.ArrayLike], types.Batch],
  key: jax.Array,
  num_batches: int,
  coordinates: Callable[[types.Input], jax.Array] = lambda x: x,
) -> jax.Array:
  """Computes the correlation of each feature with each input coordinate.

  The result is `E[g(x) x_j] / sd(g(x))` for uniform x in {-1, +1}^d: the
  degree-1 Fourier coefficients of g, scaled to unit variance. A first gradient
  step sees no more than this of the support of a parity. The standard error is
  `1 / sqrt(N)`, with `N` the number of examples in all batches.

  Args:
    features: `x -> [N, r]`, a pure function.
    batch_fn: `(key, step) -> batch`, as `task.batch` for one batch size.
    key: typed PRNG key of the stream of batches.
    num_batches: number of batches, one in memory at a time.
    coordinates: `x -> [N, d]` of +-1; the identity if x is that already.

  Returns:
    `[r, d]` correlations in [-1, 1]; 0 for a constant feature.
  """
  read = errors.calling(
    'features, batch_fn or coordinates',
    "Give functions that run on the batches, batch['x'].",
  )
  with read:
    return _degree_one(features, batch_fn, key, num_batches, coordinates)


def _degree_one(
  features: Callable[[types.Input], jax.Array],
  batch_fn: Callable[[jax.Array, jax.typing.ArrayLike], types.Batch],
  key: jax.Array,
  num_batches: int,
  coordinates: Callable[[types.Input], jax.Array],
) -> jax.Array:
  """`degree_one`, of arguments that were checked."""
  # Without the offset, the variance of a nearly constant feature would be lost
  # to rounding.
  offset = features(batch_fn(key, 0)['x']).mean(0)

  def moments(step: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    x = batch_fn(key, step)['x']
    g, signs = features(x) - offset[None], coordinates(x)
    return g.mean(0), jnp.square(g).mean(0), g.T @ signs / signs.shape[0]

  means = jax.lax.map(moments, jnp.arange(num_batches))
  mean, square, cross = jax.tree.map(lambda leaf: leaf.mean(0), means)
  deviation = jnp.sqrt(jnp.maximum(square - jnp.square(mean), 0.0))
  scale = jnp.where(deviation > 0, deviation, 1.0)
  return jnp.where(deviation[:, None] > 0, cross / scale[:, None], 0.0)


def cka(x: jax.Array, y: jax.Array) -> jax.Array:
  """Computes the linear centered kernel alignment of two sets of features.

  It is 1 if one set is a rotated, scaled and shifted copy of the other. It is
  near 0 if the sets are independent and `N` is much larger than the widths.

  Args:
    x: `[N, D]` features.
    y: `[N, E]` other features of the same examples.

  Returns:
    A scalar in [0, 1]; NaN if either set is constant.

  References:
    Kornblith et al., 2019. https://arxiv.org/abs/1905.00414, section 3.
  """
  arguments.arrays(x=x, y=y)
  errors.require(
    x.ndim == y.ndim == 2 and len(x) == len(y),
    f'x is {list(x.shape)} and y {list(y.shape)}: both must be [N, width], of '
    'the same N examples.',
  )
  x, y = (a - a.mean(0, keepdims=True) for a in (x, y))
  norm = lambda a, b: jnp.linalg.norm(a.T @ b)
  return jnp.square(norm(x, y)) / (norm(x, x) * norm(y, y))


@deprecation.renamed_arguments(real='mask')
@checks.checked(
  apply=targets_lib.APPLY,
  params=arguments.shapes,
  position=checks.counter,
  n=checks.positive,
  mask_id=checks.counter,
)
def ngram_distance(
  apply: types.Apply,
  params: types.Params,
  tokens: jax.Array,
  mask: jax.Array,
  position: jax.Array,
  n: int,
  mask_id: int,
) -> dict[str, jax.Array]:
  """Measures how much a masked prediction depends on near and far tokens.

  Both numbers are L1 distances from the model's distribution at `position` with
  that position alone masked. 'robust' masks the whole n-gram around it as well:
  it is small for a model that uses far tokens. 'close' masks everything but the
  n-gram: it is small for a model that uses near tokens alone.

  Args:
    apply: forward function of the model.
    params: parameters of the model.
    tokens: `[N, L]` ids.
    mask: `[N, L]` bool, the real tokens.
    position: a scalar, the same in every sentence. The distances of a sentence
      mean little if the token there is not real.
    n: length of the n-gram, an odd number.
    mask_id: id of the mask token.

  Returns:
    `{'robust': [N], 'close': [N]}`, each in [0, 2].

  References:
    Panigrahi et al., 2024. https://arxiv.org/abs/2410.05464, section 4.
  """
  arguments.arrays(tokens=tokens, mask=mask)
  errors.require(
    tokens.ndim == 2
    and jnp.issubdtype(tokens.dtype, jnp.integer)
    and tokens.shape == mask.shape
    and mask.dtype == bool,
    f'tokens are {tokens.dtype}{list(tokens.shape)} and mask is '
    f'{mask.dtype}{list(mask.shape)}: both must be [N, L], ids and bool.',
  )
  n = arguments.integer('n', n, 1)
  errors.require(n % 2 == 1, f'n={n} must be odd, for as many on either side.')
  if not isinstance(position, jax.core.Tracer):
    arguments.integer('position', int(position), 0, tokens.shape[1] - 1)
  index = jnp.arange(tokens.shape[1])[None]
  near = jnp.abs(index - position) <= n // 2
  # The first token marks the begin of the sentence and is never masked.
  maskable = index > 0
  target_positions = jnp.full((tokens.shape[0], 1), position, jnp.int32)

  def distribution(masked: jax.Array) -> jax.Array:
    x = {
      'tokens': jnp.where(masked & mask, mask_id, tokens),
      'mask': mask,
      'target_positions': target_positions,
    }
    logits = targets_lib.activation(apply, params, x, 'logits')
    return jax.nn.softmax(logits[:, 0])

  reference = distribution(index == position)
  far = maskable & ~near | (index == position)
  return {
    'robust': jnp.abs(reference - distribution(near & maskable)).sum(-1),
    'close': jnp.abs(reference - distribution(far)).sum(-1),
  }


def linear_probe(
  features: np.ndarray, labels: np.ndarray, num_classes: int, ridge: float = 1.0
) -> float:
  """Measures how well a linear classifier predicts labels from features.

  A ridge regression on the one-hot labels is fitted on the first half of the
  examples and evaluated on the second.

  Args:
    features: `[N, r]`.
    labels: `[N]` integers in `[0, num_classes)`.
    num_classes: number of classes.
    ridge: penalty on the squared weights, added to a sum over the examples.

  Returns:
    Accuracy on the second half.
  """
  arguments.arrays(features=features, labels=labels)
  ridge = arguments.number('ridge', ridge, arguments.Range(0))
  num_classes = arguments.integer('num_classes', num_classes, 1, 10**6)
  features, labels = np.asarray(features), np.asarray(labels)
  errors.require(
    features.ndim == 2
    and len(features) > 1
    and labels.shape == features.shape[:1]
    and labels.dtype.kind in 'iu'
    and bool((labels >= 0).all() and (labels < num_classes).all()),
    f'features are {list(features.shape)} and labels {labels.dtype}'
    f'{list(labels.shape)}: give [N, r] and [N] integers from 0 to '
    f'num_classes - 1 = {num_classes - 1}, of at least two examples.',
  )
  ones = np.ones((len(features), 1))
  design = np.concatenate([features, ones], axis=1, dtype=np.float64)
  half = len(features) // 2
  train, targets = design[:half], np.eye(num_classes)[labels[:half]]
  gram = train.T @ train + ridge * np.eye(design.shape[1])
  # Without a ridge it may be singular; the smallest solution is one.
  weights, *_ = np.linalg.lstsq(gram, train.T @ targets)
  predicted = (design[half:] @ weights).argmax(1)
  return float((predicted == labels[half:]).mean())
