"""Fitted projections: matrices that fixed batches and the networks decide.

In place of a random draw, a projection may follow from the teacher's
activations on some batches, from the student's start or from the teacher's
output. All of them subtract the mean of the target over those batches, which is
stored, and divide by one number, so that the entries of the projected target
have the mean square 1 there. Terms that share a projection have its directions
in common, fitted on all of their targets, and each its own mean and number. A
projection is rebuilt from the same batches and never stored.

A fitted matrix has one row more than a random one: its last row is added.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
from typing import Any
from typing import TypeAlias

import jax
import numpy as np

from cxjax import arguments
from cxjax import errors
from cxjax.methods import projections

# Batches that a projection is fitted on: the first ones of a run.
BATCHES = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
  """Moments over the batches that a projection is fitted on.

  Attributes:
    mean: `[d_T]`, of the target before its projection.
    covariance: `[d_T, d_T]`, of the same.
    cross: `[d_T, d_S]` covariance of the target and of the student's activation
      at its start, where the projection needs it.
    output: `[d_T, C]` matrix of the teacher's output, where it needs it.
  """

  mean: np.ndarray
  covariance: np.ndarray
  cross: np.ndarray | None = None
  output: np.ndarray | None = None


def pooled(parts: Sequence[Moments]) -> Moments:
  """Moments of several targets together, to fit directions for all of them.

  Args:
    parts: moments of each target, of the same widths.

  Returns:
    Their mean over the targets, each centered and divided by its root mean
    square, so that all of them count alike.
  """
  sizes = [np.sqrt(max(np.trace(one.covariance), 1e-30)) for one in parts]
  mean = lambda values: np.mean(np.stack(list(values)), axis=0)
  pairs = list(zip(parts, sizes, strict=True))
  cross = None
  if parts[0].cross is not None:
    cross = mean(np.asarray(one.cross) / size for one, size in pairs)
  return Moments(
    np.zeros_like(parts[0].mean),
    mean(one.covariance / size**2 for one, size in pairs),
    cross,
  )


# `(key, moments, r) -> [d_T, r]`; one factor for all of it does not matter.
Fit: TypeAlias = Callable[[jax.Array, Moments, int], np.ndarray]


def _centered(key: jax.Array, moments: Moments, width: int) -> np.ndarray:
  shape = len(moments.mean), width
  return np.asarray(projections.random_projection(key, 'gaussian', shape))


def _pca(key: jax.Array, moments: Moments, width: int) -> np.ndarray:
  del key
  _, vectors = np.linalg.eigh(moments.covariance)
  return _signed(vectors[:, ::-1][:, :width])


def _procrustes(key: jax.Array, moments: Moments, width: int) -> np.ndarray:
  del key, width
  assert moments.cross is not None
  left, _, right = np.linalg.svd(moments.cross, full_matrices=False)
  return left @ right


def _rotated(fit: Fit) -> Fit:
  """A fit, then the rotation that brings its targets nearest the start."""

  def rotated(key: jax.Array, moments: Moments, width: int) -> np.ndarray:
    matrix = fit(key, moments, width)
    assert moments.cross is not None
    left, _, right = np.linalg.svd(matrix.T @ moments.cross)
    return matrix @ (left @ right)

  return rotated


def _output_directions(
  key: jax.Array, moments: Moments, width: int
) -> np.ndarray:
  del key
  assert moments.output is not None
  vectors, *_ = np.linalg.svd(moments.output, full_matrices=False)
  return _signed(vectors[:, :width])


def _signed(vectors: np.ndarray) -> np.ndarray:
  """Columns whose largest entry is positive: libraries differ in the sign."""
  largest = np.abs(vectors).argmax(axis=0)
  signs = np.sign(vectors[largest, np.arange(vectors.shape[1])])
  return vectors * np.where(signs == 0, 1, signs)


@dataclasses.dataclass(frozen=True)
class Fitted:
  """A fitted projection, and what it follows from besides the target.

  Attributes:
    fit: makes the matrix.
    drawn: it is a Gaussian draw, of any width, and reads the key.
    ranked: its width must be below the number of examples.
    rotated: it needs the student's start.
    of_output: it needs the matrix of the teacher's output.
  """

  fit: Fit
  drawn: bool = False
  ranked: bool = False
  rotated: bool = False
  of_output: bool = False

  @property
  def follows_targets(self) -> bool:
    """True if its directions depend on the targets that it is fitted on."""
    return self.ranked or self.rotated


# Fitted projections by name; `projections.FITTED` has the names too.
FITTED = {
  'centered': Fitted(_centered, drawn=True),
  'centered_rotated': Fitted(_rotated(_centered), drawn=True, rotated=True),
  'pca': Fitted(_pca, ranked=True),
  'pca_rotated': Fitted(_rotated(_pca), ranked=True, rotated=True),
  'procrustes': Fitted(_procrustes, ranked=True, rotated=True),
  'output_directions': Fitted(_output_directions, of_output=True),
}


def is_fitted(projection: str | None) -> bool:
  """True for the name of a fitted projection."""
  return isinstance(projection, str) and projection in FITTED


def is_rotated(projection: str | None) -> bool:
  """True for a fitted projection that needs the student's start."""
  return is_fitted(projection) and FITTED[str(projection)].rotated


def check_name(projection: str) -> None:
  """Raises UserError for a name that is no projection, random or fitted."""
  known = {**projections.PROJECTIONS, **FITTED}
  errors.lookup('projection', projection, known)


def matrix_shape(
  projection: str | None, shape: tuple[int, int]
) -> tuple[int, int]:
  """Shape of the array of a projection `(d_T, r)`, with its last row if any."""
  return shape[0] + is_fitted(projection), shape[1]


def directions(projection: str, teacher_width: int, outputs: int | None) -> int:
  """The largest width of a fitted projection; that of 'centered' has no end."""
  kind = FITTED[projection]
  if kind.of_output and outputs is not None:
    teacher_width = min(teacher_width, outputs)
  return projections.MOST if kind.drawn else teacher_width


def check_width(
  what: str,
  projection: str,
  shape: tuple[int, int],
  outputs: int,
  regressor: bool,
) -> None:
  """Checks the width of a fitted projection.

  Args:
    what: name of the stage, for messages.
    projection: name of the projection.
    shape: `(d_T, r)`.
    outputs: width of the teacher's output.
    regressor: whether the student has a regressor.

  Raises:
    UserError: more directions than there are, a rotation to a student with a
      regressor, or a target of more than 16,384 units.
  """
  size = 4 * shape[0] ** 2
  errors.require(
    size <= projections.LARGEST,
    f'{what} fits a projection {projection!r} of an activation {shape[0]:,} '
    f'wide, whose covariance takes {size / 1e9:,.1f} GB; at most '
    f'{projections.LARGEST / 1e9:.1f} GB are computed. Compare narrower '
    "activations, or give a random projection, as 'gaussian'.",
  )
  width, limit = shape[1], directions(projection, shape[0], outputs)
  errors.require(
    width <= limit,
    f'{what} projects to width {width} by {projection!r}, and there are '
    f'{limit} directions. Give a smaller width, with regressor=True, or '
    "projection='gaussian'.",
  )
  errors.require(
    not is_rotated(projection) or not regressor,
    f"{what} rotates its target to the student's start and has a regressor, "
    "which is trained to rotate: leave regressor out, or give 'pca'.",
  )


def check_examples(what: str, projection: str, width: int, count: int) -> None:
  """Raises UserError for a PCA of higher rank than its examples have.

  Args:
    what: name of the stage, for messages.
    projection: name of the projection.
    width: width of the projection.
    count: number of examples, or of tokens, that it is fitted on.
  """
  errors.require(
    count > (width if FITTED[projection].ranked else 1),
    f'{what} fits a projection {projection!r} of width {width} on {count} '
    'examples or tokens: it takes more of them than the width. Give a smaller '
    'width, with regressor=True, or fit it on more: larger batches, or '
    'distill(fit_on=BATCHES).',
  )


def fit(
  what: str,
  projection: str,
  key: jax.Array,
  moments: Moments,
  width: int,
  scale: float = 1.0,
  shared: Moments | None = None,
) -> np.ndarray:
  """Fits a projection.

  Args:
    what: name of the stage, for messages.
    projection: a name in `FITTED`.
    key: typed PRNG key, read by 'centered' alone.
    moments: moments over the batches.
    width: `r`.
    scale: factor of the projected target.
    shared: moments that the directions are fitted on, see `pooled`; None for
      those of the target alone.

  Returns:
    `[d_T + 1, r]` float32; the last row is added to the product with the
    others.

  Raises:
    UserError: the target is constant along the directions, or not finite.
  """
  known = (moments.mean, moments.covariance, moments.cross, moments.output)
  errors.require(
    all(np.isfinite(value).all() for value in known if value is not None),
    f'{what} fits a projection {projection!r} on values that are not finite: '
    "look for NaN in the batches, in the teacher and in the student's start.",
  )
  found = FITTED[projection].fit(key, shared or moments, width)
  matrix = np.asarray(found, np.float64)
  power = np.einsum('dr,de,er->', matrix, moments.covariance, matrix) / width
  whole = np.trace(moments.covariance) / len(moments.mean)
  size = whole + np.mean(moments.mean**2)
  errors.require(
    power > 1e-12 * max(size, 1e-30),
    f'{what} fits a projection {projection!r} on a target that is constant '
    'over the batches: it teaches nothing. Choose another layer, or other '
    'batches.',
  )
  matrix = matrix / np.sqrt(power)
  last = -moments.mean @ matrix * scale
  return np.concatenate([matrix, last[None]]).astype(np.float32)


def fit_projection(
  projection: str,
  target: Any,
  width: int,
  *,
  key: jax.Array | None = None,
  start: Any = None,
  output: Any = None,
) -> np.ndarray:
  """Fits a projection on activations, for terms with that projection.

  `cxjax.distill` and `launch.py` fit their projections themselves.

  Args:
    projection: 'centered', 'pca', 'output_directions', 'centered_rotated',
      'pca_rotated' or 'procrustes'.
    target: `[..., d_T]` activations of the teacher, of some batches.
    width: `r`, columns of the projection.
    key: typed PRNG key, for 'centered' and 'centered_rotated'.
    start: `[..., r]` activations of the student at its start on the same
      batches, for the last three projections.
    output: `[d_T, C]` matrix of the teacher's output, for 'output_directions'.

  Returns:
    `[d_T + 1, r]` float32; the last row is added to the product with the
    others.

  Raises:
    UserError: an unknown name, a rank above that of the examples, or something
      that is missing.
  """
  kind = errors.lookup('projection', projection, FITTED)
  width = arguments.integer('width', width, 1)
  needed = {
    'key': (key, kind.drawn),
    'start': (start, kind.rotated),
    'output': (output, kind.of_output),
  }
  for name, (value, is_read) in needed.items():
    errors.require(
      (value is not None) == is_read,
      f'The projection {projection!r} '
      f'{"needs" if is_read else "does not read"} {name}.',
    )
  given = {'target': target, 'start': start, 'output': output}
  for name, value in given.items():
    if name == 'target' or value is not None:
      arguments.arrays(**{name: value})
  rows = np.asarray(target, np.float64).reshape(-1, np.shape(target)[-1])
  what = 'The target'
  outputs = projections.MOST if output is None else np.shape(output)[-1]
  check_width(what, projection, (rows.shape[1], width), outputs, False)
  check_examples(what, projection, width, len(rows))
  cross = None
  centered = rows - rows.mean(axis=0)
  if start is not None:
    own = np.asarray(start, np.float64).reshape(-1, np.shape(start)[-1])
    errors.require(
      own.shape == (len(rows), width),
      f'start has {len(own)} rows of {own.shape[1]}: give {len(rows)}, those '
      f'of the target, of {width}, the width.',
    )
    cross = centered.T @ (own - own.mean(axis=0)) / len(rows)
  if output is not None:
    output = np.asarray(output, np.float64)
    errors.require(
      output.ndim == 2 and len(output) == rows.shape[1],
      f'output of shape {list(output.shape)} must have a row for each of the '
      f'{rows.shape[1]} units of the target.',
    )
  covariance = centered.T @ centered / len(rows)
  moments = Moments(rows.mean(axis=0), covariance, cross, output)
  unused = jax.random.key(0) if key is None else key
  return fit(what, projection, unused, moments, width)


def project(x: jax.Array, matrix: jax.Array) -> jax.Array:
  """Applies a fitted projection; constant to the gradient.

  Args:
    x: `[..., d_T]` targets.
    matrix: `[d_T + 1, r]` from `fit`.

  Returns:
    `[..., r]`.
  """
  arguments.arrays(x=x, matrix=matrix)
  errors.require(
    matrix.ndim == 2 and x.shape[-1] + 1 == matrix.shape[0],
    f'x of shape {list(x.shape)} and a fitted matrix of {list(matrix.shape)}: '
    'the matrix must have one row more than x is wide, as that of '
    'cxjax.fit_projection.',
  )
  x, matrix = jax.lax.stop_gradient((x, matrix))
  last = matrix[-1].reshape((*[1] * (x.ndim - 1), -1))
  return x @ matrix[:-1] + last


def apply(x: jax.Array, matrix: jax.Array, projection: str | None) -> jax.Array:
  """Applies the projection of a term, fitted or drawn."""
  if is_fitted(projection):
    return project(x, matrix)
  return projections.project(x, matrix)
