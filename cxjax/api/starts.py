"""Starts of several students: as they are given, or drawn from one of them."""

from collections.abc import Callable
import dataclasses
from typing import Any
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from cxjax import arguments
from cxjax import errors
from cxjax import types
from cxjax.models import adapters
from cxjax.parallel import partition

# One student, several, or `seed -> student`.
Student: TypeAlias = adapters.ModelAdapter | Callable[[int], Any]
# Smallest matrix, and rows and columns of a larger one, that are examined.
SMALLEST, LARGEST = 8, 256
# Norms of a matrix relative to that of its shuffled entries, if these are drawn
# independently.
USUAL = arguments.Range(0.6, 1.6)


@dataclasses.dataclass(frozen=True)
class Starts:
  """A student, and where each seed begins.

  Attributes:
    student: the first student.
    params: parameters of the student of each seed.
    how: where they came from, in one sentence.
  """

  student: adapters.ModelAdapter
  params: list[types.Params]
  how: str


def starts(student: Student, seeds: int) -> Starts:
  """The starts of a number of students.

  Args:
    student: one student; several, of which the first are taken; or a function
      that makes the student of a seed.
    seeds: how many.

  Returns:
    The starts. Of one student the others are drawn by shuffling the entries of
    each of its arrays: where these are independent, as in a fresh network, it
    is another draw.

  Raises:
    UserError: too few students, students of different forms, or one that does
      not look freshly initialized.
  """
  if not isinstance(student, adapters.ModelAdapter) and callable(student):
    made = [_made(student, seed) for seed in range(seeds)]
    params = [one.one for one in made]
    for other in params[1:]:
      _require_same_form(params[0], other)
    first = dataclasses.replace(made[0], params=params[0])
    return Starts(first, params, 'Each seed begins with student(seed).')
  if not isinstance(student, adapters.ModelAdapter):
    raise errors.UserError(
      f'The student is a {type(student).__name__}: give cxjax.from_linen, '
      'from_nnx or from_fn of it, or a function of a seed that returns that.'
    )
  one = dataclasses.replace(student, params=student.one)
  if student.several:
    errors.require(
      len(student.params) >= seeds,
      f'seeds={seeds}, and there are {len(student.params)} students: give one '
      'for each seed, or fewer seeds.',
    )
    how = 'Each seed begins with one of the students.'
    return Starts(one, list(student.params[:seeds]), how)
  if seeds == 1:
    return Starts(one, [student.params], 'It begins with the student as it is.')
  _require_fresh(student.params)
  drawn = [redraw(student.params, seed) for seed in range(1, seeds)]
  return Starts(
    one,
    [student.params, *drawn],
    'The first seed begins with the student as it is, the others with its '
    'arrays shuffled, which is another draw of a fresh network; give several '
    'students, or a function of the seed, for others.',
  )


def _made(student: Callable[[int], Any], seed: int) -> adapters.ModelAdapter:
  with errors.calling(f'student({seed})'):
    found = student(seed)
  errors.require(
    isinstance(found, adapters.ModelAdapter)
    and not (found.several and len(found.params) > 1),
    f'student({seed}) is a {type(found).__name__}: it must return one student, '
    'as lambda seed: cxjax.from_linen(module, module.init(key(seed), x)).',
  )
  return found


def _require_same_form(a: types.Params, b: types.Params) -> None:
  form = lambda tree: jax.tree.map(lambda leaf: np.shape(leaf), tree)
  errors.require(
    form(a) == form(b),
    'The students have parameters of different forms: all must be the same '
    'network.',
  )


def redraw(params: types.Params, seed: int) -> types.Params:
  """Parameters whose arrays have the same entries in another order."""
  random = np.random.default_rng(seed)

  def one(leaf: Any) -> Any:
    if not _is_real(leaf) or leaf.ndim == 0:
      return leaf
    host = np.asarray(leaf)
    return random.permutation(host.ravel()).reshape(host.shape)

  return jax.tree.map(one, params)


def _is_real(leaf: Any) -> bool:
  return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def _require_fresh(params: types.Params) -> None:
  """Raises UserError for a matrix whose entries depend on each other.

  Its largest singular value then is not that of its entries in another order.
  """
  random = np.random.default_rng(0)
  for path, leaf in jax.tree.leaves_with_path(params):
    if not _is_real(leaf) or leaf.ndim < 2:
      continue
    matrix = np.asarray(leaf, np.float32)
    matrix = matrix.reshape(-1, matrix.shape[-1])[:LARGEST, :LARGEST]
    if min(matrix.shape) < SMALLEST or np.ptp(matrix) == 0:
      continue
    shuffled = random.permutation(matrix.ravel()).reshape(matrix.shape)
    norms = [np.linalg.norm(m - m.mean(), 2) for m in (matrix, shuffled)]
    errors.require(
      float(norms[0] / norms[1]) in USUAL,
      f'{partition.leaf_name(path)!r} of the student is not as if drawn '
      'entry by entry, so that other starts cannot be drawn from this one: the '
      'student was trained, or has a start of its own. Give one student for '
      'each seed, a function of the seed that makes it, or seeds=1.',
    )
