"""Random projections: values that are rebuilt and never stored.

A projection matrix is rebuilt from its key, its distribution and its shape.
Every distribution is scaled so that `E[P P^T]` is the identity, hence
`E |x P|^2 = |x|^2` for every `x`. The widths are the teacher's, `d_in`, and the
student's, `d_out`. The paper's abstract asks for "a random projection of the
hidden representations of the teacher" without naming a distribution: 'gaussian'
as the default is our choice.

References:
  Gupta, Karmalkar, 2025. https://arxiv.org/abs/2503.17494.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from cxjax import arguments
from cxjax import checks
from cxjax import deprecation
from cxjax import errors
from cxjax import registration
from cxjax import settings

MOST = 2**31 - 1
# Bytes of a matrix, beyond which none is drawn: a gibibyte, in float32.
LARGEST = 2**30
F32 = jnp.float32
# Names of projections that are fitted on batches, see `fitted.py`.
FITTED = (
  'centered',
  'centered_rotated',
  'pca',
  'pca_rotated',
  'procrustes',
  'output_directions',
)
# `(key, d_in, d_out) -> [d_in, d_out]`.
Draw: TypeAlias = Callable[[jax.Array, int, int], jax.Array]


def _gaussian(key: jax.Array, d_in: int, d_out: int) -> jax.Array:
  return jax.random.normal(key, (d_in, d_out), F32) / jnp.sqrt(F32(d_out))


def _rademacher(key: jax.Array, d_in: int, d_out: int) -> jax.Array:
  sign = jax.random.rademacher(key, (d_in, d_out), F32)
  return sign / jnp.sqrt(F32(d_out))


def _sparse(key: jax.Array, d_in: int, d_out: int) -> jax.Array:
  die = jax.random.randint(key, (d_in, d_out), 0, 6, jnp.int32)
  sign = (die == 0).astype(F32) - (die == 1).astype(F32)
  return sign * jnp.sqrt(F32(3.0 / d_out))


def _orthogonal(key: jax.Array, d_in: int, d_out: int) -> jax.Array:
  matrix = jax.random.orthogonal(key, d_in, m=d_out, dtype=F32)
  return matrix * jnp.sqrt(jnp.maximum(F32(d_in / d_out), F32(1.0)))


def _identity(key: jax.Array, d_in: int, d_out: int) -> jax.Array:
  del key
  errors.require(
    d_in == d_out,
    f"The projection 'identity' needs equal widths, got {d_in} and {d_out}.",
  )
  return jnp.eye(d_in, dtype=F32)


# Projections by name, `(key, d_in, d_out) -> [d_in, d_out]`.
PROJECTIONS: dict[str, Draw] = {
  'gaussian': _gaussian,
  'rademacher': _rademacher,
  'sparse': _sparse,
  'orthogonal': _orthogonal,
  'identity': _identity,
}


def register(name: str, draw: Draw) -> None:
  """Makes a projection known by a name, as terms and configs give it.

  Args:
    name: name of the projection.
    draw: `(key, d_in, d_out) -> [d_in, d_out]`.

  Raises:
    UserError: the name is taken by another projection.
  """
  errors.require(
    not (isinstance(name, str) and name in FITTED),
    f'There is a projection {name!r} already, which is fitted on batches. '
    f'Choose another name than one of: {", ".join(FITTED)}.',
  )
  registration.add('projection', PROJECTIONS, name, draw, draw)


@deprecation.renamed_arguments(law='projection')
@settings.fixed()
def random_projection(
  key: jax.Array, projection: str, shape: tuple[int, int]
) -> jax.Array:
  """Draws a projection matrix `P`.

  Args:
    key: typed PRNG key; consumed.
    projection: 'gaussian', i.i.d. N(0, 1/d_out); 'rademacher',
      +-1/sqrt(d_out); 'sparse', two thirds zeros and +-sqrt(3/d_out)
      (Achlioptas); 'orthogonal', orthonormal columns times sqrt(d_in/d_out), or
      orthonormal rows where d_out > d_in (Haar measure); 'identity', for equal
      widths.
    shape: `(d_in, d_out)`, both positive.

  Returns:
    `[d_in, d_out]` float32, the same for the same arguments.

  Raises:
    UserError: an unknown projection, a width below 1, a matrix of more than a
      gibibyte, or 'identity' for unequal widths.

  References:
    Achlioptas. "Database-friendly random projections", 2003.
  """
  checks.key('key', key)
  errors.require(
    not (isinstance(projection, str) and projection in FITTED),
    f'The projection {projection!r} is fitted on activations and not drawn: '
    'cxjax.fit_projection does it.',
  )
  draw = errors.lookup('projection', projection, PROJECTIONS)
  errors.require(
    isinstance(shape, tuple | list) and len(shape) == 2,
    f'shape={shape!r} of a projection must be two widths, as (768, 128).',
  )
  d_in, d_out = (arguments.integer('shape', width, 1, MOST) for width in shape)
  size = jnp.dtype(F32).itemsize * d_in * d_out
  errors.require(
    size <= LARGEST,
    f'shape={tuple(shape)!r} of a projection takes {size / 1e9:,.1f} GB; at '
    f'most {LARGEST / 1e9:.1f} GB are drawn. Compare narrower activations, as '
    "hidden layers in place of logits or pool='mean' in place of 'flatten', or "
    'give a regressor a smaller width.',
  )
  with jax.enable_x64(False):  # A draw of the user may name no dtype.
    return draw(key, d_in, d_out)


def project(x: jax.Array, matrix: jax.Array) -> jax.Array:
  """Projects activations, `x P`; constant to the gradient in both.

  Args:
    x: `[..., d_in]` activations of the teacher.
    matrix: `[d_in, d_out]` from `random_projection`.

  Returns:
    `[..., d_out]`, with `E |x P|^2 = |x|^2` over the draw of `P`.
  """
  arguments.arrays(x=x, matrix=matrix)
  errors.require(
    matrix.ndim == 2 and x.shape[-1] == matrix.shape[0],
    f'x of shape {list(x.shape)} and a matrix of {list(matrix.shape)}: the '
    'last axis of x must be the first of the matrix.',
  )
  return _project(x, matrix)


@jax.jit
def _project(x: jax.Array, matrix: jax.Array) -> jax.Array:
  return jax.lax.stop_gradient(x) @ jax.lax.stop_gradient(matrix)
