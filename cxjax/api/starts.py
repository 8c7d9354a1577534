"""Starts of several students: as they are given, or drawn from one of them."""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import math
from typing import Any
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from cxjax import arguments
from cxjax import errors
from cxjax import types
from cxjax.api import same_function
from cxjax.models import adapters
from cxjax.parallel import partition

# One student, several, a list of single ones, or `seed -> student`.
Student: TypeAlias = (
  adapters.ModelAdapter | Sequence[adapters.ModelAdapter] | Callable[[int], Any]
)
# Students are made one by one, in Python.
MOST_SEEDS = 10_000
# Smallest matrix, and rows and columns of a larger one, that are examined.
SMALLEST, LARGEST = 8, 256
# Draws that tell if a student was trained, and how many of their standard
# deviations, or of this part of their mean, it must be better by.
DRAWS, BETTER, PART = 15, 5, 0.02
# Norms of a matrix relative to that of its shuffled entries, if these are drawn
# independently.
USUAL = arguments.Range(0.6, 1.6)


ONE_EACH = (
  'Give one student for each seed, a function of the seed that makes it, or '
  'seeds=1.'
)


@dataclasses.dataclass(frozen=True)
class Starts:
  """A student, and where each seed begins.

  Attributes:
    student: the first student.
    params: parameters of the student of each seed.
    how: where they came from, in one sentence.
    applies: the function of the student of each seed, if they may differ.
    drawn: whether all but the first were drawn from it.
  """

  student: adapters.ModelAdapter
  params: list[types.Params]
  how: str
  applies: tuple[types.Apply, ...] = ()
  drawn: bool = False

  def require_one_function(self, x: Any) -> None:
    """Raises UserError if the students of two seeds are other functions.

    Args:
      x: shapes of an input, which is drawn.
    """
    seed = same_function.first_other(self.applies, self.params[0], x)
    errors.require(
      seed is None,
      f'student(0) and student({seed}) compute other outputs from the same '
      'parameters: all seeds must have one network.',
    )

  def require_untrained(
    self, score: Callable[[types.Params], float], examples: int
  ) -> None:
    """Raises UserError if starts were drawn from a trained student.

    Args:
      score: held-out score of a student; more is better.
      examples: number of held-out examples.
    """
    if not self.drawn:
      return
    random = np.random.default_rng(0)
    others = [score(_rolled(self.params[0], random)) for _ in range(DRAWS)]
    mean, own = float(np.mean(others)), score(self.params[0])
    # That of an accuracy of one half: few draws may have no spread at all.
    chance = 0.5 / math.sqrt(examples)
    width = max(float(np.std(others, ddof=1)), PART * abs(mean), chance)
    errors.require(
      not own > mean + BETTER * width,  # NaN says nothing.
      f'The student scores {abs(own):.4g} on held_out, and with its entries in '
      f'another order {abs(mean):.4g}: it was trained. {ONE_EACH}',
    )


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
  if isinstance(student, list | tuple):
    student = _one_of(student, seeds)
  if not isinstance(student, adapters.ModelAdapter) and callable(student):
    made = [_made(student, seed) for seed in range(seeds)]
    params = [one.one for one in made]
    for other in params[1:]:
      _require_same_form(params[0], other)
    first = dataclasses.replace(made[0], params=params[0])
    how = f'Each seed begins with a student of its own.{_alike(params)}'
    return Starts(first, params, how, tuple(one.apply for one in made))
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
    params = list(student.params[:seeds])
    how = f'Each seed begins with one of the students.{_alike(params)}'
    return Starts(one, params, how)
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
    drawn=True,
  )


def _one_of(students: Sequence[Any], seeds: int) -> Callable[[int], Any]:
  """Function that returns the student of a seed from a list of them."""
  errors.require(
    len(students) >= seeds,
    f'seeds={seeds}, and the list has {len(students)} students: give one for '
    'each seed, or fewer seeds.',
  )
  return lambda seed: students[seed]


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


def distinct(several: Sequence[types.Params]) -> list[int]:
  """Indices of the students whose parameters no student before them has."""
  found: list[int] = []
  for i, one in enumerate(several):
    if not any(_equal(several[j], one) for j in found):
      found.append(i)
  return found


def _equal(one: types.Params, other: types.Params) -> bool:
  leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
  return all(a is b or np.array_equal(a, b) for a, b in leaves)


def _alike(several: Sequence[types.Params]) -> str:
  """A sentence on students that begin with the same parameters, if any do."""
  if len(distinct(several)) == len(several):
    return ''
  return (
    ' Some begin alike: they differ by what training draws, as projections '
    'and dropout, and those that end alike count as one seed.'
  )


def _rolled(params: types.Params, random: np.random.Generator) -> types.Params:
  """Parameters whose arrays are rolled, which is cheaper than a shuffle."""

  def one(leaf: Any) -> Any:
    if not _is_real(leaf) or np.size(leaf) < 2:
      return leaf
    return np.roll(np.asarray(leaf), int(random.integers(1, np.size(leaf))))

  return jax.tree.map(one, params)


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
    whole = np.asarray(leaf, np.float32).reshape(-1, np.shape(leaf)[-1])
    matrix = whole[:LARGEST, :LARGEST]
    if min(matrix.shape) < SMALLEST or np.ptp(matrix) == 0:
      continue
    shuffled = random.permutation(matrix.ravel()).reshape(matrix.shape)
    norms = [np.linalg.norm(m - m.mean(), 2) for m in (matrix, shuffled)]
    errors.require(
      float(norms[0] / norms[1]) in USUAL and not _is_orthogonal(whole),
      f'{partition.leaf_name(path)!r} of the student is not as if drawn '
      'entry by entry, so that other starts cannot be drawn from this one: the '
      f'student was trained, or has a start of its own. {ONE_EACH}',
    )


def _is_orthogonal(matrix: np.ndarray) -> bool:
  """True if the shorter of rows and columns are orthogonal, of one length."""
  rows = matrix if len(matrix) <= matrix.shape[1] else matrix.T
  gram = rows[:LARGEST] @ rows[:LARGEST].T
  unit = np.mean(np.diag(gram)) * np.eye(len(gram))
  # Independent entries are as orthogonal as a matrix is long.
  near = min(1e-3, 0.1 / math.sqrt(max(rows.shape[1], 1)))
  return bool(np.abs(gram - unit).max() <= near * unit.max())
