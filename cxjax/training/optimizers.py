"""Optax optimizers by name."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import copy
import dataclasses
import math
from typing import Any
from typing import NamedTuple
from typing import TypeVar

import jax
import jax.numpy as jnp
import ml_collections
import optax

from cxjax import arguments
from cxjax import errors
from cxjax.methods import optimizer


def _takes_a_step(warmup: float, length: Any) -> Any:
  """True unless a warm-up would end before the second step.

  It begins at the rate 0: as the first step, or the only one, it would teach
  nothing, so that a schedule of few steps has no warm-up.
  """
  return warmup * length >= 1 - 1e-4


def _with_warmup(
  warmup: float, peak: float, rest: optax.Schedule
) -> optax.Schedule:
  if not warmup:
    return rest
  rise = optax.linear_schedule(0.0, peak, warmup)  # type: ignore[arg-type]
  return optax.join_schedules([rise, rest], [warmup])  # type: ignore[list-item]


# Schedules over the fraction of the span that has passed, from 0 to 1, so that
# a stage of another length compiles nothing.
SCHEDULES: dict[str, Callable[[float, Any], optax.Schedule]] = {
  'constant': lambda peak, span: optax.constant_schedule(peak),
  'cosine': lambda peak, span: optax.cosine_decay_schedule(peak, span),
  'linear': lambda peak, span: optax.linear_schedule(peak, 0.0, span),
}

# The same in Python, as shares of the peak, for records: arrays would wait for
# the steps before them.
SHARES: dict[str, Callable[[float], float]] = {
  'constant': lambda passed: 1.0,
  'cosine': lambda passed: (1 + math.cos(math.pi * passed)) / 2,
  'linear': lambda passed: 1 - passed,
}

RATE = 1e-3  # Of the default optimizer.
POSITIVE = arguments.Range(0, ends=(False, False))
BELOW_1 = arguments.Range(0, 1, ends=(True, False))
# Ranges of the numbers of `default()`.
NUMBERS = {
  'warmup': BELOW_1,
  'momentum': BELOW_1,
  'b1': BELOW_1,
  'b2': BELOW_1,
  'weight_decay': arguments.Range(0),
}
# Fields of `default()` that are arguments of `distill`.
ARGUMENTS = ('learning_rate', 'restart_schedule', 'carry_state')
T = TypeVar('T')

OPTIMIZERS: dict[str, Callable[[Any, Any], optax.GradientTransformation]] = {
  'sgd': lambda rate, c: optax.sgd(rate, momentum=c.momentum or None),
  'adam': lambda rate, c: optax.adam(rate, b1=c.b1, b2=c.b2),
  'adamw': lambda rate, c: optax.adamw(
    rate, b1=c.b1, b2=c.b2, weight_decay=c.weight_decay
  ),
}
# Optimizers that read a field.
READERS = {
  'momentum': ('sgd',),
  'b1': ('adam', 'adamw'),
  'b2': ('adam', 'adamw'),
  'weight_decay': ('adamw',),
}
CHOICES: dict[str, dict[str, Any]] = {
  'name': OPTIMIZERS,
  'schedule': SCHEDULES,
}


def default() -> ml_collections.ConfigDict:
  """The block of a config that `make` reads, with every field of it."""
  return ml_collections.ConfigDict(
    dict(
      name='adam',  # sgd, adam, adamw
      learning_rate=RATE,  # Peak of the schedule.
      schedule='constant',  # constant, cosine, linear
      warmup=0.0,  # Share of the schedule in which the rate rises from 0; none
      # if that is less than a step.
      restart_schedule=True,  # At each stage; else one schedule for the run.
      carry_state=False,  # Into the next stage; else the moments start afresh.
      # Of the optimizers in READERS; to the others they mean nothing.
      momentum=0.0,
      b1=0.9,
      b2=0.999,
      weight_decay=0.0,
    )
  )


def make(
  config: ml_collections.ConfigDict,
  length: int | jax.Array = 1,
  offset: int | jax.Array = 0,
) -> optimizer.Elementwise:
  """The optimizer that a config names.

  Args:
    config: config of the optimizer, as from `default()`; its numbers are in the
      ranges of the configs.
    length: steps that the schedule spans; may be traced.
    offset: steps of the schedule that have passed; may be traced.

  Returns:
    The optax transformation.

  Raises:
    UserError: an unknown optimizer or schedule.
  """
  build = errors.lookup('optimizer', config.name, OPTIMIZERS)
  schedule = errors.lookup('schedule', config.schedule, SCHEDULES)
  peak, warmup = config.learning_rate, config.warmup
  rate = _with_warmup(warmup, peak, schedule(peak, 1 - warmup))
  if config.schedule == 'constant' and not warmup:
    return optimizer.Elementwise(*build(peak, config))
  at_once = schedule(peak, 1.0)

  def scheduled(count: Any) -> Any:
    passed = (count + offset) / length
    if not warmup:
      return rate(passed)
    rises = _takes_a_step(warmup, length)
    return jnp.where(rises, rate(passed), at_once(passed))

  return optimizer.Elementwise(*build(scheduled, config))


def named(fields: Mapping[str, Any] | None) -> ml_collections.ConfigDict:
  """The block of an optimizer of `distill`: Adam on a cosine, or as named.

  Args:
    fields: fields of `default()` that differ, without the learning rate and
      what is an argument of `distill`.

  Returns:
    The block.

  Raises:
    UserError: an unknown field, a value that it cannot have, or a field that
      the optimizer does not read.
  """
  config = default()
  config.schedule = 'cosine'
  known = [name for name in config if name not in ARGUMENTS]
  for name, value in (fields or {}).items():
    full = f'optimizer[{name!r}]'
    errors.lookup('field of optimizer', name, dict.fromkeys(known))
    if name in CHOICES:
      config[name] = arguments.text(full, value, repr(config[name]))
      errors.lookup(full, value, CHOICES[name])
    else:
      config[name] = float(arguments.number(full, value, NUMBERS[name]))
  require_read(config)
  return config


def require_read(config: Mapping[str, Any]) -> None:
  """Raises UserError for a field of `named` that its optimizer does not read.

  Args:
    config: values by field, as of `default()`.
  """
  for field, readers in unread(config).items():
    raise errors.UserError(
      f'optimizer[{field!r}]={config[field]!r} is a setting of {readers}, and '
      f"optimizer['name']={config['name']!r} does not read it. Choose "
      f'{readers}, or set it to {default()[field]}.',
    )


def unread(config: Mapping[str, Any]) -> dict[str, str]:
  """Fields that differ from their default and that the optimizer does not read.

  Args:
    config: values by field, as of `default()`.

  Returns:
    The optimizers that read them, by field.
  """
  name, defaults = config['name'], default()
  return {
    field: ' or '.join(readers)
    for field, readers in READERS.items()
    if name not in readers and config[field] != defaults[field]
  }


def describe(config: ml_collections.ConfigDict) -> str:
  """Line on a block, as 'adam with no warm-up, schedule cosine'."""
  percent = f'{100 * config.warmup:.3g}%'
  rise = f'a warm-up of {percent}' if config.warmup else 'no warm-up'
  return f'{config.name} with {rise}, schedule {config.schedule}'


def share_at(
  config: ml_collections.ConfigDict, step: int, length: int
) -> float:
  """The learning rate of a step, as a share of the peak.

  Args:
    config: config of the optimizer, as for `make`.
    step: number of steps before it.
    length: steps that the schedule spans.

  Returns:
    The share.
  """
  passed = step / length
  warmup = config.warmup if _takes_a_step(config.warmup, length) else 0.0
  if passed < warmup:
    return passed / warmup
  rest = min((passed - warmup) / (1 - warmup), 1.0)
  return SHARES[config.schedule](rest)


@dataclasses.dataclass(frozen=True, eq=False)
class Scheduled:
  """`make` of a block, as `RunSpec.optimizer`.

  Attributes:
    config: the block.
  """

  config: ml_collections.ConfigDict

  def __call__(self, length: Any = 1, offset: Any = 0) -> optimizer.Elementwise:
    """The optimizer of a student."""
    return make(self.config, length, offset)

  def rate(self, step: int, length: int) -> float:
    """The learning rate after some steps of a schedule."""
    return self.config.learning_rate * share_at(self.config, step, length)


def of_distill(
  tx: optax.GradientTransformation | Mapping[str, Any] | None,
  learning_rate: float | tuple[float, ...],
) -> Callable[..., optax.GradientTransformation]:
  """`RunSpec.optimizer` of a user's optimizer, or of the fields of `named`."""
  if tx is not None and not isinstance(tx, Mapping):
    return lambda length=1, offset=0: tx
  config = named(tx)
  if isinstance(learning_rate, tuple):
    return PerStudent(learning_rate, config)
  config.learning_rate = learning_rate
  return Scheduled(config)


class RatedState(NamedTuple):
  """State of the optimizer of a student with a learning rate of its own.

  Attributes:
    inner: state of optax.
    rate: the peak of the student's schedule.
  """

  inner: optax.OptState
  rate: jax.Array


@dataclasses.dataclass(frozen=True)
class PerStudent:
  """An optimizer with a peak learning rate for each student.

  Students that train side by side have one optimizer, so that the rate is part
  of each one's state. The updates of all of `OPTIMIZERS` are in proportion to
  their rate.

  Attributes:
    rates: the peak of each student's schedule.
    config: config of the optimizer; its learning rate is not read.
  """

  rates: tuple[float, ...]
  config: ml_collections.ConfigDict = dataclasses.field(
    default_factory=lambda: named(None)
  )

  def __call__(self, length: Any = 1, offset: Any = 0) -> optimizer.Elementwise:
    """The optimizer of one student, whose state `assign` completes."""
    config = copy.deepcopy(self.config)
    config.learning_rate = 1.0
    tx = make(config, length, offset)
    # A state without a rate of its own must not train silently.
    init = lambda params: RatedState(tx.init(params), jnp.full((), jnp.nan))

    def update(
      grads: Any, state: RatedState, params: Any = None, **unused: Any
    ) -> tuple[Any, RatedState]:
      updates, inner = tx.update(grads, state.inner, params)
      scaled = lambda leaf: leaf * state.rate.astype(leaf.dtype)
      return jax.tree.map(scaled, updates), RatedState(inner, state.rate)

    return optimizer.Elementwise(init, update)  # type: ignore[arg-type]

  def rate(self, step: int, length: int) -> list[float]:
    """The learning rate of each student after some steps of a schedule."""
    share = share_at(self.config, step, length)
    return [peak * share for peak in self.rates]

  def assign(self, state: RatedState) -> RatedState:
    """The `[S]` states of all students, each with its rate."""
    return state._replace(rate=jnp.asarray(self.rates, state.rate.dtype))


def peak_learning_rates(
  learning_rate: Any, count: int
) -> float | tuple[float, ...]:
  """The peak learning rate of the default optimizer.

  Args:
    learning_rate: a positive number, or a list with one for each student.
    count: number of students.

  Returns:
    A number for all students, or one for each.

  Raises:
    UserError: a schedule, a number that is not positive, or a list of another
      length.
  """
  if isinstance(learning_rate, Sequence) and not isinstance(learning_rate, str):
    rates = tuple(map(_peak, learning_rate))
    return for_each('learning_rate', rates, count)
  return _peak(learning_rate)


def _peak(learning_rate: Any) -> float:
  errors.require(
    not callable(learning_rate),
    'learning_rate is a function: give a schedule to an optimizer, as '
    'optimizer=optax.adam(schedule).',
  )
  return float(arguments.number('learning_rate', learning_rate, POSITIVE))


def for_each(name: str, values: tuple[T, ...], count: int) -> tuple[T, ...]:
  """The values of an argument; raises UserError unless each student has one."""
  errors.require(
    len(values) == count,
    f'{name}={list(values)!r} has {len(values)}, and there '
    f'{"are" if count > 1 else "is"} {count} student{"s" * (count > 1)}: give '
    'one for each, or one value for all.',
  )
  return values


def check(tx: Any, learning_rate: float | tuple[float, ...]) -> None:
  """Checks a user's optimizer; None is the default one.

  Args:
    tx: the optimizer, or fields of the default one.
    learning_rate: learning rate of the default optimizer.

  Raises:
    UserError: `tx` is no optimizer of optax, or one that was not called yet;
      fields that `named` refuses; or `learning_rate` is not the default, so
      that it would be ignored.
  """
  if tx is None or isinstance(tx, Mapping):
    named(tx)
    return
  functions = [getattr(tx, name, None) for name in ('init', 'update')]
  text = ' '.join(repr(tx).split())[:100]
  errors.require(
    not isinstance(tx, type) and all(map(callable, functions)),
    f'optimizer={text} must be one of optax, as optax.adam(1e-3), or a dict, '
    "as {'name': 'adamw', 'warmup': 0.05}"
    + (': it is a function or a class, call it.' if callable(tx) else '.'),
  )
  errors.require(
    learning_rate == RATE,
    f'learning_rate={learning_rate!r} belongs to the default optimizer. Give '
    f'it to yours, as optimizer=optax.adam({learning_rate!r}).',
  )
