"""Divergences at high temperatures, computed without cancellation.

The higher the temperature `T`, the more alike the two distributions are: their
probabilities differ by `1/T`, their divergence is of size `1/T^2`, and the loss
is `T^2` times that. In float32 the difference is lost to rounding above some
hundreds. Here it is computed from the difference of the logits, and from the
probabilities wherever they differ, as logits larger than `T` make them.
"""

import numbers

import jax
import jax.numpy as jnp

from cxjax import checks
from cxjax import errors
from cxjax.methods import loss_values

# Below this the usual formulas are exact enough, and cheaper.
LOWEST = 64.0
# Temperatures that float32 can compute.
LEAST, MOST = 1e-30, 1e9
# Divergence of the student from the teacher below which the two are alike.
ALIKE = 0.5


def applies(temperature: float) -> bool:
  """Returns whether the usual formulas would round the loss away.

  Raises:
    UserError: a temperature that cannot be computed, or that is no number. The
      value of one that is traced is not checked.
  """
  checks.scalar('temperature', temperature)
  if not isinstance(temperature, numbers.Real):
    return False
  errors.require(
    LEAST <= temperature <= MOST,
    f'temperature={temperature!r} must be from {LEAST:g} to {MOST:g}.',
  )
  return temperature >= LOWEST


def kl(
  student: jax.Array,
  teacher: jax.Array,
  temperature: float,
  log_inside: jax.Array | None = None,
) -> jax.Array:
  """`T^2 KL(p || q)` of the teacher's `p` and the student's `q`.

  Args:
    student: `[..., C]` logits.
    teacher: `[..., C]` logits.
    temperature: `T`, large.
    log_inside: `[...]` log of the probability that the student gives to the
      `C` classes, if there are others.

  Returns:
    `[...]`.
  """
  return kl_parts(student, teacher, temperature, log_inside)[0]


def kl_parts(
  student: jax.Array,
  teacher: jax.Array,
  temperature: float,
  log_inside: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """`kl`, and what its gradient in the teacher follows from.

  Args:
    student: `[..., C]` logits.
    teacher: `[..., C]` logits.
    temperature: `T`, large.
    log_inside: `[...]` log of a probability, as for `kl`.

  Returns:
    `kl`; `[..., C]` the teacher's distribution on the classes that both allow,
    and the log of its ratio to the student's there.
  """
  q, p, ratio, out, _ = _compared(student, teacher, temperature)
  # p log(p / q) = q r e^r, and the sum of q (e^r - 1) is 0.
  small, r = _small(ratio)
  near = q * jnp.square(temperature * r) * _kl_curve(r)
  # From the probabilities: e^r may overflow, where q is 0.
  far = jnp.where(small | (p == 0), 0.0, ratio)
  value = temperature**2 * jnp.sum(p * far, axis=-1)
  rest = jnp.where(small, near, temperature**2 * (q - p))
  value = value + jnp.sum(rest, axis=-1)
  inside = _log_inside(student, teacher, out, temperature)
  if log_inside is not None:
    inside = inside + log_inside
  value = value - temperature**2 * inside
  excluded = (teacher > -jnp.inf) & (student == -jnp.inf)
  value = jnp.where(jnp.any(excluded, axis=-1), jnp.inf, value)
  return value, p, ratio


def jensen_shannon(
  student: jax.Array, teacher: jax.Array, temperature: float
) -> jax.Array:
  """`T^2` times the Jensen-Shannon divergence; arguments as for `kl`."""
  q, p, ratio, out_q, out_p = _compared(student, teacher, temperature)
  q = q * jnp.expand_dims(1 - out_q, -1)
  p = p * jnp.expand_dims(1 - out_p, -1)
  offset = _log_inside(teacher, student, out_p, temperature)
  offset = offset - _log_inside(student, teacher, out_q, temperature)
  both = (student > -jnp.inf) & (teacher > -jnp.inf)
  ratio = jnp.where(both, ratio + jnp.expand_dims(offset, -1), 0.0)
  small, r = _small(ratio)
  near = q * jnp.square(temperature * r) * _js_curve(r)
  r = jnp.where(small, 0.0, ratio)
  # The logs of p and q in their average: neither cancels.
  log_p = jnp.log(2.0) - jax.nn.softplus(-jnp.where(p > 0, r, 0.0))
  log_q = jnp.log(2.0) - jax.nn.softplus(jnp.where(q > 0, r, 0.0))
  far = temperature**2 * (p * log_p + q * log_q) / 2
  value = jnp.sum(jnp.where(small, near, far), axis=-1)
  return value + temperature**2 * jnp.log(2.0) / 2 * (out_q + out_p)


def _compared(
  student: jax.Array, teacher: jax.Array, temperature: float
) -> tuple[jax.Array, ...]:
  """Probabilities of the classes that both allow, and their log ratio.

  Returns:
    `(q, p, log(p / q), out_q, out_p)`: of both distributions on the classes
    that both allow, where each sums to 1, and 0 elsewhere; and the probability
    that each gives to the other classes.
  """
  both = (student > -jnp.inf) & (teacher > -jnp.inf)
  keep = lambda x, other: jnp.where(both, x, other)
  log = lambda x: _log_softmax(x, temperature)
  # Exactly 0, with its gradient, where both allow all classes.
  out_q, out_p = (
    jnp.sum(jnp.where(both, 0.0, jnp.exp(log(x))), axis=-1)
    for x in (student, teacher)
  )
  log_q, log_p = (log(keep(x, -jnp.inf)) for x in (student, teacher))
  plain = keep(log_p, 0.0) - keep(log_q, 0.0)
  q, p = jnp.exp(log_q), jnp.exp(log_p)
  from_q = -jnp.sum(q * jnp.where(q > 0, plain, 0.0), axis=-1, keepdims=True)
  delta = _difference(student, teacher, both, temperature)
  exact = _exact_ratio(delta, q, p, from_q)
  ratio = keep(jnp.where(from_q < ALIKE, exact, plain), 0.0)
  return q, p, ratio, out_q, out_p


def _log_softmax(x: jax.Array, temperature: float) -> jax.Array:
  return loss_values.tempered_log_softmax(x, temperature) / temperature


def _log_inside(
  x: jax.Array, other: jax.Array, out: jax.Array, temperature: float
) -> jax.Array:
  """Log of the probability of the classes that both allow, all but `out`."""
  both = (x > -jnp.inf) & (other > -jnp.inf)
  little = out < 0.5
  # Of the likeliest class that both allow, among all classes and among those.
  of_all, of_both = (
    jnp.max(jnp.where(both, _log_softmax(x, temperature), -jnp.inf), axis=-1)
    for x in (x, jnp.where(both, x, -jnp.inf))
  )
  none = jnp.all(~both, axis=-1)
  much = jnp.where(none, -jnp.inf, of_all - jnp.where(none, 0.0, of_both))
  return jnp.where(little, jnp.log1p(-jnp.where(little, out, 0.0)), much)


def _difference(
  student: jax.Array,
  teacher: jax.Array,
  both: jax.Array,
  temperature: float,
) -> jax.Array:
  """The teacher's logits less the student's, in temperatures, up to a shift."""

  def half(x: jax.Array) -> jax.Array:
    most = jnp.max(jnp.where(both, x, -jnp.inf), axis=-1, keepdims=True)
    return jnp.where(both, x / 2 - jax.lax.stop_gradient(most) / 2, 0.0)

  return (half(teacher) - half(student)) / (temperature / 2)


def _exact_ratio(
  delta: jax.Array, q: jax.Array, p: jax.Array, from_q: jax.Array
) -> jax.Array:
  """`log(p / q)` of distributions that are alike; any number for others.

  Args:
    delta: `[..., C]` ratio up to a shift.
    q: `[..., C]` the second distribution.
    p: `[..., C]` the first.
    from_q: `[..., 1]` their divergence, by which the ratio is shifted once its
      mean under `q` is 0.

  Returns:
    `[..., C]`.
  """
  counted = jnp.where(q > 0, delta, 0.0)
  delta = delta - jnp.sum(q * counted, axis=-1, keepdims=True)
  small, d = _small(delta)
  large = p * jnp.exp(jnp.minimum(from_q, 1.0)) - q
  mean = jnp.sum(jnp.where(small, q * jnp.expm1(d), large), axis=-1)
  shift = jnp.log1p(jnp.maximum(mean, -0.5))
  return delta - jnp.expand_dims(shift, -1)


def _small(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Marks of the numbers between -1 and 1, and those numbers, 0 elsewhere."""
  small = jnp.abs(x) <= 1
  return small, jnp.where(small, x, 0.0)


def _kl_curve(r: jax.Array) -> jax.Array:
  """`(r e^r - e^r + 1) / r^2`."""
  small = jnp.abs(r) < 0.1
  series = 1 / 2 + r * (1 / 3 + r * (1 / 8 + r * (1 / 30 + r / 144)))
  r = jnp.where(small, 1.0, r)
  less = jnp.expm1(r)
  return jnp.where(small, series, (r * (less + 1) - less) / jnp.square(r))


def _js_curve(r: jax.Array) -> jax.Array:
  """`(e^r (r - u) - u) / (2 r^2)`, `u = log((1 + e^r) / 2)`."""
  small = jnp.abs(r) < 1e-6
  series = 1 / 8 + r / 16
  r = jnp.where(small, 1.0, r)
  # u = r / 2 + log cosh(r / 2).
  half = jnp.log1p(2 * jnp.square(jnp.sinh(r / 4)))
  exact = r / 2 * jnp.expm1(r) - half * (jnp.exp(r) + 1)
  return jnp.where(small, series, exact / (2 * jnp.square(r)))
