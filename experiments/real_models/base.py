"""Cases of this folder: a teacher, a student and their data."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

import cxjax

# Examples of a batch, length of a sequence, words of a vocabulary, classes.
BATCH, LENGTH, VOCABULARY, CLASSES = 4, 6, 16, 3


@dataclasses.dataclass(frozen=True)
class Case:
  """A teacher and a student of one kind.

  Attributes:
    teacher: the teacher.
    student: the student.
    x: a batch.
    pairs: layers that a plan is to match, teacher's and student's.
    plan: options of `cxjax.plan`.
    distill: options of `cxjax.distill`.
  """

  teacher: cxjax.ModelAdapter
  student: cxjax.ModelAdapter
  x: Any
  pairs: tuple[tuple[str, str], ...]
  plan: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  distill: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# Builders of cases by name.
Cases: TypeAlias = Mapping[str, Callable[[], Case]]


def pairs(teacher: str, student: str) -> tuple[tuple[str, str], ...]:
  """The pairs of four layers and two, matched at their depth fractions.

  Args:
    teacher: pattern of its layers, as 'blocks/*'.
    student: the same of the student.
  """
  name = lambda pattern, number: pattern.replace('*', str(number))
  return tuple((name(teacher, 2 * i + 1), name(student, i)) for i in range(2))


def floats(*shape: int) -> np.ndarray:
  """Standard normal numbers, the same at every call."""
  rng = np.random.default_rng(0)
  return rng.standard_normal(shape, np.float32)


def tokens(*shape: int) -> np.ndarray:
  """Random words of the vocabulary, the same at every call."""
  return np.random.default_rng(0).integers(VOCABULARY, size=shape, dtype='i4')


def weights(shapes: Any) -> Any:
  """Random parameters of some shapes, which cost nothing to make.

  Args:
    shapes: a tree of shapes, as from `jax.eval_shape` of an initializer.

  Returns:
    Matrices of random numbers; vectors of one value, statistics among them.
  """
  rng = np.random.default_rng(0)

  def one(shape: Any) -> Any:
    if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
      return jax.random.split(jax.random.key(0), shape.shape)
    if not jnp.issubdtype(shape.dtype, jnp.floating):
      return np.zeros(shape.shape, shape.dtype)
    if len(shape.shape) < 2 or shape.shape[0] == 1:
      return np.full(shape.shape, 0.5, shape.dtype)
    scale = np.prod(shape.shape[:-1]) ** -0.5
    return (scale * rng.standard_normal(shape.shape)).astype(shape.dtype)

  return jax.tree.map(one, shapes)


def make_plan(case: Case, num_steps: int) -> cxjax.Plan:
  """The plan of a case."""
  return cxjax.plan(
    case.teacher, case.student, case.x, num_steps=num_steps, **case.plan
  )


def matched(plan: cxjax.Plan) -> tuple[tuple[str, str], ...]:
  """Layers that a plan matches, teacher's and student's; not the output."""
  return tuple(
    (term.target, term.student)
    for stage in plan.stages[:-1]
    for term in stage.terms
  )
