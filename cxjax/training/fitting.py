"""Projections that are fitted on the first batches of a run.

The batches, the teacher and the starts of the students decide them, so that a
run that goes on from a checkpoint fits the same ones again. All students have
the same batches here; what differs is the start that a projection follows, and
what is drawn at random.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import math
from typing import Any
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from cxjax import errors
from cxjax import types
from cxjax.methods import fitted
from cxjax.methods import output_split
from cxjax.methods import stage as stage_lib
from cxjax.methods import stage_plan
from cxjax.methods import targets as targets_lib
from cxjax.methods import weights as weights_lib
from cxjax.training import run_spec

# Moments of all terms that share a projection, one of each student; by the
# teacher's checkpoint, the projection and its shape.
Pools: TypeAlias = dict[
  tuple[int | None, str, tuple[int, int]], list[fitted.Moments]
]


@dataclasses.dataclass(frozen=True)
class Model:
  """A function and its parameters, which are made when they are needed.

  Attributes:
    apply: `(params, x) -> (output, activations)`.
    params: makes those of the teacher, or `[S, ...]` of the students.
  """

  apply: types.Apply
  params: Callable[[], types.Params]


def is_needed(stages: stage_lib.Curriculum) -> bool:
  """True if any term of a curriculum has a fitted projection."""
  return any(fitted.is_fitted(t.projection) for s in stages for t in s.terms)


def batches(spec: run_spec.RunSpec) -> Iterator[types.Batch]:
  """Yields the batches of a run that projections are fitted on, one stream."""
  read = spec.host.rows is not None
  draw = jax.jit(spec.draw, static_argnums=() if read else (2,))
  key = spec.keys.data[0]
  for at, rows in enumerate(_rows(spec)):
    yield draw(key, np.int32(at), rows)


def _rows(spec: run_spec.RunSpec) -> Iterable[Any]:
  """Rows of the first stream, or the batch size where batches are drawn."""
  if spec.host.fit_on:
    return spec.host.fit_on
  if spec.host.loader is None:
    return [spec.batch_size] * fitted.BATCHES
  found = []
  with spec.host.loader() as loader:
    for at in range(fitted.BATCHES):
      chunk, number = loader.rows(at), at % spec.loop.log_every
      found.append(jax.tree.map(lambda leaf, n=number: leaf[n, 0], chunk))
  return found


def check(
  spec: run_spec.RunSpec, planned: Iterable[stage_plan.StagePlan]
) -> None:
  """Checks the number of examples of all fitted projections of a run.

  Args:
    spec: the run; shapes are enough.
    planned: its stages.

  Raises:
    UserError: a projection of higher rank than its examples.
  """
  if not is_needed(spec.stages):
    return
  batch = jax.eval_shape(spec.batch, jax.random.key(0), 0, spec.host.rows)
  assert spec.teacher is not None
  check_examples(
    planned,
    spec.teacher_apply,
    spec.teacher.params,
    batch['x'],
    len(spec.host.fit_on) or fitted.BATCHES,
  )


def check_examples(
  planned: Iterable[stage_plan.StagePlan],
  apply: types.Apply,
  params: types.Params,
  x: Any,
  number: int,
) -> None:
  """Checks that fitted projections have as many examples as their rank.

  Args:
    planned: stages that may have them.
    apply: function of the teacher.
    params: its parameters; shapes are enough.
    x: inputs of a batch; shapes are enough.
    number: number of batches.

  Raises:
    UserError: a projection of higher rank than its examples, or a run of
      several processes.
  """
  errors.require(
    jax.process_count() == 1,
    'Projections that are fitted on batches are for one process: the others '
    'read batches of their own. Give a random one, as projection='
    "'orthogonal'.",
  )
  x = targets_lib.without_dropout(x)
  shapes = jax.eval_shape(
    lambda params, x: targets_lib.forward(apply, params, x), params, x
  )
  for one in planned:
    for name, term in one.stage.teacher_terms.items():
      if not fitted.is_fitted(term.projection):
        continue
      want = jax.eval_shape(
        lambda shapes, x, term=term: targets_lib.compared(
          shapes, x, term.target, term
        ),
        shapes,
        x,
      )
      count = number * math.prod(want.shape[:-1])
      width = one.projections[name][1]
      what = f'Stage {one.stage.name!r}'
      fitted.check_examples(what, str(term.projection), width, count)


def fit(
  spec: run_spec.RunSpec,
  planned: stage_plan.StagePlan,
  name: str,
  keys: jax.Array,
  teacher: Model,
  students: Model,
  pools: Pools,
) -> jax.Array:
  """Fits the projections of one term.

  Args:
    spec: the run.
    planned: the stage.
    name: name of the term.
    keys: PRNG keys `[S]` of the students.
    teacher: the teacher of the stage.
    students: where they start.
    pools: moments that terms share, which are added when first needed.

  Returns:
    `[S, d_T + 1, r]`.

  Raises:
    UserError: too few examples, a target that is constant, or a teacher whose
      output is no product of the target with a matrix.
  """
  term = planned.stage.named_terms[name]
  projection, shape = str(term.projection), planned.projections[name]
  what, width = f'Stage {planned.stage.name!r}', shape[1]
  examples = list(batches(spec))
  count, found = _moments(term, teacher, students, examples, len(keys))
  fitted.check_examples(what, projection, width, count)
  kind = fitted.FITTED[projection]
  if kind.of_output:
    output = _output(what, teacher, examples[0], shape[0])
    found = [dataclasses.replace(one, output=output) for one in found]
  shared: Sequence[fitted.Moments | None] = [None] * len(keys)
  if term.shared_projection and kind.follows_targets:
    group = planned.stage.checkpoint, projection, shape
    if group not in pools:
      every = (
        _moments(other, teacher, students, examples, len(keys))[1]
        for other in _sharing(spec, *group)
      )
      pools[group] = [
        fitted.pooled(parts) for parts in zip(*every, strict=True)
      ]
    shared = pools[group]
  return jnp.stack(
    [
      fitted.fit(what, projection, key, moments, width, term.scale, pool)
      for key, moments, pool in zip(keys, found, shared, strict=True)
    ]
  )


def _sharing(
  spec: run_spec.RunSpec,
  checkpoint: int | None,
  projection: str,
  shape: tuple[int, int],
) -> list[stage_lib.Term]:
  """The terms of a run that share a projection, of one teacher."""
  return [
    planned.stage.named_terms[name]
    for planned in spec.plan()
    if planned.stage.checkpoint == checkpoint
    for name, own in planned.projections.items()
    if own == shape
    and planned.stage.named_terms[name].shared_projection
    and planned.stage.named_terms[name].projection == projection
  ]


def _moments(
  term: stage_lib.Term,
  teacher: Model,
  students: Model,
  examples: list[types.Batch],
  number: int,
) -> tuple[int, list[fitted.Moments]]:
  """The number of examples, and the moments of a term for each student."""
  found = _Moments(term, teacher, students).of(examples)
  count, mean, covariance, cross = found
  crosses = [None] * number if cross is None else list(cross)
  return count, [fitted.Moments(mean, covariance, own) for own in crosses]


class _Moments:
  """Means and covariances of one term's target, and of the students' starts."""

  def __init__(
    self, term: stage_lib.Term, teacher: Model, students: Model
  ) -> None:
    """Compiles nothing yet."""
    # A fitted projection is scaled itself.
    self._term = dataclasses.replace(term, scale=1.0)
    self._teacher, self._students = teacher, students
    self._params: Any = teacher.params()
    self._starts: Any = None
    if fitted.is_rotated(term.projection):
      self._starts = students.params()

  def of(
    self, shared: list[types.Batch]
  ) -> tuple[int, np.ndarray, np.ndarray, np.ndarray | None]:
    """The number of examples, the mean, the covariance and the cross ones."""
    args = self._params, self._starts
    first = jax.jit(self._sums)
    sums = [jax.device_get(first(*args, batch)) for batch in shared]
    total, count, mean, middle = (
      _added([one[i] for one in sums]) for i in range(4)
    )
    mean = mean / max(total, 1e-30)
    if middle is not None:
      middle = middle / max(total, 1e-30)
    second = jax.jit(self._products)
    rounded = lambda leaf: np.asarray(leaf, np.float32)
    low = jax.tree.map(rounded, (mean, middle))
    found = [jax.device_get(second(*args, batch, *low)) for batch in shared]
    covariance, cross = (_added([one[i] for one in found]) for i in range(2))
    if cross is not None:
      cross = cross / max(total, 1e-30)
    return int(count), mean, covariance / max(total, 1e-30), cross

  def _sums(self, params: Any, starts: Any, batch: types.Batch) -> Any:
    want, own, weights = self._rows(params, starts, batch)
    middle = None
    if own is not None:
      middle = jnp.einsum('n,snd->sd', weights, own)
    return weights.sum(), (weights > 0).sum(), weights @ want, middle

  def _products(
    self,
    params: Any,
    starts: Any,
    batch: types.Batch,
    mean: jax.Array,
    middle: jax.Array | None,
  ) -> Any:
    want, own, weights = self._rows(params, starts, batch)
    want = want - mean[None]
    heavy = want * weights[:, None]
    cross = None
    if own is not None and middle is not None:
      cross = jnp.einsum('nd,sne->sde', heavy, own - middle[:, None])
    return heavy.T @ want, cross

  def _rows(
    self, params: Any, starts: Any, batch: types.Batch
  ) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """`[N, d_T]` targets, `[S, N, d_S]` of the students, and `[N]` weights."""
    term, x = self._term, batch['x']
    found = targets_lib.forward(self._teacher.apply, params, x)
    want = targets_lib.compared(found, x, term.target, term)
    shape = found[term.target].shape
    weights = weights_lib.loss_weights(batch, term, term.target, shape)
    want = targets_lib.transform(want, weights, term).astype(jnp.float32)
    if weights is None:
      weights = jnp.ones(want.shape[:-1])
    want = weights_lib.cleared(want, weights)
    own = None
    if starts is not None:
      see = lambda one: weights_lib.cleared(self._student(one, x), weights)
      own = jax.vmap(see)(starts)
      own = own.reshape(own.shape[0], -1, own.shape[-1])
    rows = want.reshape(-1, want.shape[-1])
    return rows, own, weights.reshape(-1).astype(jnp.float32)

  def _student(self, params: Any, x: types.Input) -> jax.Array:
    found = targets_lib.forward(self._students.apply, params, x)
    one = targets_lib.compared(found, x, self._term.student, self._term)
    return one.astype(jnp.float32)


def _added(parts: list[Any]) -> Any:
  """The sum of arrays in float64; None of none."""
  if parts[0] is None:
    return None
  return np.sum(np.stack([np.asarray(p, np.float64) for p in parts]), axis=0)


def _output(
  what: str, teacher: Model, batch: types.Batch, width: int
) -> np.ndarray:
  """`[d_T, C]` matrix of the teacher's output.

  Raises:
    UserError: it has none, or one of other rows than the target is wide.
  """
  params, x = teacher.params(), batch['x']
  found = output_split.kernel(teacher.apply, params, x)
  errors.require(
    found is not None and found.shape[0] == width,
    f"{what} has projection='output_directions', for which the teacher's "
    f'output must be a product of the target, {width} wide, with a matrix'
    f'{"" if found is None else f", and that has {found.shape[0]} rows"}. '
    "Compare the teacher's last layer, or give 'pca'.",
  )
  return np.asarray(found, np.float64)
