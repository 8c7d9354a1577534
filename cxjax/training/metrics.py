"""Held-out metrics, and the one registry of them.

A metric is computed from statistics of every example, or of every predicted
token, which are added up over the whole held-out set before the metric is made
of them. Hence a corpus metric such as perplexity or F1 is exact, however the
set is split. To add one, call `register`.

F1 is 0 if class 1 is neither among the labels nor among the outputs, as in
scikit-learn. Every metric is NaN where an output is, or where nothing counts.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import functools
import math
from typing import Any
from typing import TypeAlias

import jax
import jax.numpy as jnp

from cxjax import errors
from cxjax import registration
from cxjax.methods import losses
from cxjax.methods import other_sizes
from cxjax.methods import python_state
from cxjax.methods import top_class
from cxjax.methods import weights as weights_lib
from cxjax.models import probabilities

# `(output, reference, *others) -> [...]`, or a tree of such arrays.
Statistics: TypeAlias = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Metric:
  """A number that an output and its reference give over a held-out set.

  Attributes:
    statistics: `(output, reference, *others) -> tree of [...]`, one value per
      example, or per predicted token of a sequence.
    finish: function from the weighted sums of the statistics and the sum of the
      weights to the metric, a scalar; None is the weighted mean.
    reference: 'labels', or 'teacher', whose output is the reference.
    higher_is_better: whether more of it is better.
    limit: the best value that is possible; None if there is none, or if it is
      unknown. A threshold beyond it is never reached.
    others: more entries of the held-out batch that the statistics take.
    output: path of the output that it reads, as 'heads/boxes', and the
      teacher's beside it; '' is the one that the last stage learns first.
    rowwise: whether each value follows from its row of the output and of the
      reference alone. Outputs that are too large need not be whole then.
  """

  statistics: Statistics
  finish: Callable[[Any, jax.Array], jax.Array] | None = None
  reference: str = 'labels'
  higher_is_better: bool = True
  limit: float | None = None
  others: tuple[str, ...] = ()
  output: str = ''
  rowwise: bool = False

  def __post_init__(self) -> None:
    """Raises UserError for a metric that cannot be computed."""
    for name, fun in (
      ('statistics', self.statistics),
      ('finish', len if self.finish is None else self.finish),
    ):
      errors.require(
        callable(fun), f'{name}={fun!r} of a metric must be a function.'
      )
    errors.lookup(
      'reference', self.reference, dict.fromkeys(('labels', 'teacher'))
    )

  def better(self, a: float, b: float) -> bool:
    """True if a score `a` is better than `b`; NaN is worse than any other."""
    if math.isnan(a) or math.isnan(b):
      return not math.isnan(a)
    return a > b if self.higher_is_better else a < b

  def reaches(self, score: float, threshold: float) -> bool:
    """True if a score is at least as good as a threshold."""
    return score == threshold or self.better(score, threshold)

  def is_possible(self, threshold: float) -> bool:
    """True if a score can reach a threshold."""
    return self.limit is None or self.reaches(self.limit, threshold)

  def worst(self, scores: Iterable[float]) -> float:
    """The worst of several scores."""
    return functools.reduce(lambda a, b: b if self.better(a, b) else a, scores)

  def total(
    self, statistics: Any, weights: jax.Array | None, axis: Any = None
  ) -> jax.Array:
    """The metric of a set.

    Args:
      statistics: a tree of `[N, ...]`.
      weights: `[N, ...]` how much each counts; None is 1.
      axis: axis of the sums; None is all.

    Returns:
      A scalar; NaN where nothing counts.
    """
    leaf = jax.tree.leaves(statistics)[0]
    if weights is None:
      weights = jnp.ones(leaf.shape, jnp.float32)
    else:  # What does not count may be NaN.
      statistics = weights_lib.cleared(statistics, weights)
    weights = weights.astype(jnp.float32)
    count = jnp.sum(weights, axis=axis)
    sums = jax.tree.map(lambda x: jnp.sum(x * weights, axis=axis), statistics)
    return sums / count if self.finish is None else self.finish(sums, count)


def _known(value: jax.Array, *outputs: jax.Array) -> jax.Array:
  """A statistic as float32; NaN where an output is, whose top class is none."""
  value = value.astype(jnp.float32)
  for output in outputs:
    value = jnp.where(jnp.isnan(output).any(axis=-1), jnp.nan, value)
  return value


class Plain(Metric):
  """The mean of a function; it is unknown if more or less of it is better."""


def require_direction(name: str, metric: Metric) -> None:
  """Refuses a plain function as the metric that decides.

  Args:
    name: name of the metric that decides.
    metric: the metric.

  Raises:
    UserError: it is a plain function.
  """
  errors.require(
    not isinstance(metric, Plain),
    f'The metric {name!r} decides, and a function does not say if more or less '
    'of it is better. Give cxjax.Metric(function, higher_is_better=True), or '
    'higher_is_better=False if less is.',
  )


def _classes(labels: jax.Array, logits: jax.Array) -> jax.Array:
  """Labels as classes; of soft labels the likeliest."""
  return top_class.top_class(labels) if labels.ndim == logits.ndim else labels


def _top_label(logits: jax.Array, labels: jax.Array) -> jax.Array:
  right = top_class.top_class(logits) == _classes(labels, logits)
  return _known(right, logits)


def _same_top(ours: jax.Array, theirs: jax.Array) -> jax.Array:
  same = top_class.top_class(ours) == top_class.top_class(theirs)
  return _known(same, ours, theirs)


def _confusion(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
  said, true = top_class.top_class(logits) == 1, _classes(labels, logits) == 1
  return {
    'hit': _known(said & true, logits),
    'false alarm': _known(said & ~true, logits),
    'miss': _known(~said & true, logits),
  }


def _f1(sums: dict[str, jax.Array], count: jax.Array) -> jax.Array:
  """F1 of class 1; 0, as in scikit-learn, if it is neither said nor true."""
  hits = 2 * sums['hit']
  whole = hits + sums['false alarm'] + sums['miss']
  return hits / jnp.where((whole == 0) & (count > 0), 1.0, whole)


def _code_length(
  logits: jax.Array, labels: jax.Array, size: jax.Array
) -> dict[str, jax.Array]:
  return {'nats': losses.cross_entropy(logits, labels), 'bytes': size}


def _bits_per_byte(sums: dict[str, jax.Array], count: jax.Array) -> jax.Array:
  del count
  return sums['nats'] / (math.log(2) * sums['bytes'])


# Those of each row of the logits by itself.
_Rowwise = functools.partial(Metric, rowwise=True)

METRICS: dict[str, Metric] = {
  'accuracy': _Rowwise(_top_label, limit=1.0),
  'loss': _Rowwise(losses.cross_entropy, higher_is_better=False, limit=0.0),
  'perplexity': _Rowwise(
    losses.cross_entropy,
    lambda total, count: jnp.exp(total / count),
    higher_is_better=False,
    limit=1.0,
  ),
  # Of text whose tokens stand for different numbers of bytes.
  'bits_per_byte': _Rowwise(
    _code_length,
    _bits_per_byte,
    higher_is_better=False,
    limit=0.0,
    others=('bytes',),
  ),
  # F1 of class 1, of two classes or more; 0 if none is said or true.
  'f1': _Rowwise(_confusion, _f1, limit=1.0),
  'agreement': _Rowwise(_same_top, reference='teacher', limit=1.0),
  'teacher_kl': _Rowwise(
    losses.kl, reference='teacher', higher_is_better=False, limit=0.0
  ),
}
# From 0 to 1. Others of a limit of 1 may be negative.
SHARES = tuple(METRICS[name] for name in ('accuracy', 'f1', 'agreement'))
LABEL_METRICS = ('accuracy', 'loss', 'perplexity')
TEACHER_METRICS = ('agreement', 'teacher_kl')
Metrics: TypeAlias = Mapping[str, Metric | Statistics] | Iterable[str] | str


def register(name: str, metric: Metric) -> None:
  """Makes a metric known by a name, as tasks and configs give it.

  Raises:
    UserError: the name is taken by another metric.
  """
  errors.require(
    isinstance(metric, Metric),
    f'The metric {name!r} is a {type(metric).__name__}: give a cxjax.Metric.',
  )
  registration.add('metric', METRICS, name, metric, metric.statistics)


def resolve(metrics: Metrics) -> dict[str, Metric]:
  """Metrics by name.

  Args:
    metrics: names of registered metrics, or a mapping from names to `Metric`s
      or to functions `(output, reference) -> [...]`, whose mean is the metric;
      such a function cannot be the metric that decides.

  Returns:
    A `Metric` for each name.

  Raises:
    UserError: a name that is not registered, or a value that is no function.
  """
  if isinstance(metrics, str):
    metrics = (metrics,)
  errors.require(
    isinstance(metrics, Iterable) and getattr(metrics, 'ndim', 1) > 0,
    f'metrics={metrics!r} must be names, as ("accuracy", "loss"), or functions '
    'by name, as {"largest": fun}.',
  )
  if not isinstance(metrics, Mapping):
    return {n: _registered(n) for n in metrics}
  found = {}
  for name, metric in metrics.items():
    errors.require(
      isinstance(metric, Metric) or callable(metric),
      f'The metric {name!r} is {metric!r}: give a function of (output, labels) '
      'that returns a value per example, or a cxjax.Metric.',
    )
    found[name] = metric if isinstance(metric, Metric) else Plain(metric)
  return found


def _registered(name: Any) -> Metric:
  errors.require(
    isinstance(name, str),
    f'The metric {name!r} has no name: give functions by name, as {{"largest": '
    'fun}.',
  )
  other = 'functions of (output, labels) by name, as {"largest": fun}'
  return errors.lookup('metric', name, METRICS, other)


def check(
  metrics: Mapping[str, Metric],
  output: Any,
  reference: Any,
  counted: Any,
  batch: Mapping[str, Any] | None = None,
) -> None:
  """Checks that each metric makes one value per example, and then a number.

  Args:
    metrics: metrics from `resolve`, by name.
    output: shape of the model's output for a batch.
    reference: shape of the labels, or of the teacher's output.
    counted: the shape that the statistics of a batch must have.
    batch: shapes of the held-out batch; None has all that a metric reads, of
      the shape `counted`.

  Raises:
    UserError: a metric fails on those shapes, makes another shape, finishes as
      something else than a real scalar, keeps a state in Python, or reads what
      the batch does not have.
  """
  number = jax.ShapeDtypeStruct(counted, jnp.float32)
  for name, metric in metrics.items():
    there = dict.fromkeys(metric.others, number) if batch is None else batch
    for other in metric.others:
      errors.require(
        other in there,
        f'The metric {name!r} reads {other!r} of the held-out batch, which has '
        'none. Choose another metric, or a task that has it, as causal_text.',
      )
    args = (output, reference, *(there[other] for other in metric.others))
    with _reported(
      f'The metric {name!r} does not take an output of {list(output.shape)} '
      f'and a reference of {list(reference.shape)}'
    ):
      found = jax.eval_shape(metric.statistics, *args)
    python_state.refuse(f'The metric {name!r}', metric.statistics, *args)
    _check_counted(name, found, output.shape, counted)
    again = other_sizes.result(metric.statistics, counted, *args)
    if again is not None:
      shape = (*again[0], *output.shape[len(counted) :])
      _check_counted(name, again[1], shape, again[0])
    with _reported(f'The metric {name!r} cannot be made of its sums'):
      total = jax.eval_shape(
        lambda found, m=metric: m.total(found, None), found
      )
    errors.require(
      getattr(total, 'shape', None) == () and _is_real(total),
      f'The metric {name!r} finishes as {total}: it must be a real scalar. Its '
      '`finish` takes the sums of the statistics and the sum of the weights.',
    )


def _check_counted(
  name: str, found: Any, shape: Sequence[int], counted: Sequence[int]
) -> None:
  """Raises UserError unless a metric makes a number for each example."""
  leaves = jax.tree.leaves(found)
  shapes = {leaf.shape for leaf in leaves}
  made = ', '.join(str(list(shape)) for shape in shapes) or 'nothing'
  errors.require(
    shapes == {tuple(counted)} and all(map(_is_real, leaves)),
    f'The metric {name!r} makes {made} of an output of {list(shape)}: it must '
    f'make one real number for each example, {list(counted)}. It is averaged '
    'afterwards.',
  )


def reads_logits(metric: Metric) -> bool:
  """True for a metric that takes a softmax of an output."""
  own = probabilities.bare(metric.statistics) is _code_length
  return own or probabilities.reads_logits(metric.statistics)


def require_reference(metrics: Mapping[str, Metric], reference: str) -> None:
  """Checks that each metric reads the reference of the held-out set.

  Args:
    metrics: metrics from `resolve`, by name.
    reference: 'labels' or 'teacher'.

  Raises:
    UserError: a metric reads the other one.
  """
  reason = {
    'labels': 'has no labels: give (x, labels), and as the example of the plan '
    'too if it is a loader',
    'teacher': 'has labels: leave the metric out, the last record has it',
  }
  fitting = [n for n, m in METRICS.items() if m.reference == reference]
  for name, metric in metrics.items():
    errors.require(
      metric.reference == reference,
      f'The metric {name!r} compares with the {metric.reference}, and the '
      f'held-out set {reason[metric.reference]}; or choose of '
      f'{", ".join(fitting)}.',
    )


def _is_real(leaf: Any) -> bool:
  """True if a shape is of booleans, integers or floating-point numbers."""
  kinds = (jnp.bool_, jnp.integer, jnp.floating)
  return any(jnp.issubdtype(leaf.dtype, kind) for kind in kinds)


@contextlib.contextmanager
def _reported(what: str) -> Iterator[None]:
  """Makes one line of whatever a function of the user raises."""
  try:
    yield
  except Exception as error:
    reason = str(error).partition('\n')[0].rstrip('.')
    raise errors.UserError(f'{what}: {reason}.') from error
