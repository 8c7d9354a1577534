"""Divergences at high temperatures, computed without cancellation.

The higher the temperature `T`, the more alike the two distributions are: their
probabilities differ by `1/T`, their divergence is of size `1/T^2`, and the loss
is `T^2` times that. In float32 the difference is lost to rounding above some
hundreds. Here it is computed from the difference of the logits.
"""

from collections.abc import Callable
import numbers

import jax
import jax.numpy as jnp

from cxjax import checks
from cxjax import errors

# Below this the usual formulas are exact enough, and cheaper.
LOWEST = 64.0
# Temperatures that float32 can compute.
LEAST, MOST = 1e-30, 1e9


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
  others: jax.Array | None = None,
) -> jax.Array:
  """`T^2 KL(p || q)` of the teacher's `p` and the student's `q`.

  Args:
    student: `[..., C]` logits.
    teacher: `[..., C]` logits.
    temperature: `T`, large.
    others: `[...]` probability that the student gives to classes that are not
      among the `C`; None is 0.

  Returns:
    `[...]`.
  """
  q, ratio, out, _ = _compared(student, teacher, temperature)
  if others is not None:
    out = others + (1 - others) * out
  # p log(p / q) = q r e^r, and the sum of q (e^r - 1) is 0.
  value = jnp.sum(q * _squared(ratio, temperature, _kl_curve), axis=-1)
  value = value - temperature**2 * jnp.log1p(-out)
  excluded = (teacher > -jnp.inf) & (student == -jnp.inf)
  return jnp.where(jnp.any(excluded, axis=-1), jnp.inf, value)


def jensen_shannon(
  student: jax.Array, teacher: jax.Array, temperature: float
) -> jax.Array:
  """`T^2` times the Jensen-Shannon divergence; arguments as for `kl`."""
  q, ratio, out_q, out_p = _compared(student, teacher, temperature)
  q = q * jnp.expand_dims(1 - out_q, -1)
  offset = jnp.expand_dims(jnp.log1p(-out_p) - jnp.log1p(-out_q), -1)
  both = (student > -jnp.inf) & (teacher > -jnp.inf)
  ratio = jnp.where(both, ratio + offset, 0.0)
  value = jnp.sum(q * _squared(ratio, temperature, _js_curve), axis=-1)
  return value + temperature**2 * jnp.log(2.0) / 2 * (out_q + out_p)


def _compared(
  student: jax.Array, teacher: jax.Array, temperature: float
) -> tuple[jax.Array, ...]:
  """Probabilities of the classes that both allow, and their log ratio.

  Returns:
    `(q, log(p / q), out_q, out_p)`: of both distributions on the classes that
    both allow, where each sums to 1, and 0 elsewhere; and the probability that
    each gives to the other classes.
  """
  both = (student > -jnp.inf) & (teacher > -jnp.inf)
  keep = lambda x, other: jnp.where(both, x, other)
  # Exactly 0, with its gradient, where both allow all classes.
  out_q, out_p = (
    jnp.sum(jnp.where(both, 0.0, jax.nn.softmax(x / temperature)), axis=-1)
    for x in (student, teacher)
  )
  q = jax.nn.softmax(keep(student, -jnp.inf) / temperature)
  delta = (keep(teacher, 0.0) - keep(student, 0.0)) / temperature
  delta = keep(delta - jnp.sum(q * delta, axis=-1, keepdims=True), 0.0)
  mean = jnp.sum(q * jnp.expm1(delta), axis=-1, keepdims=True)
  return q, keep(delta - jnp.log1p(mean), 0.0), out_q, out_p


def _squared(
  ratio: jax.Array,
  temperature: float,
  curve: Callable[[jax.Array], jax.Array],
) -> jax.Array:
  """`T^2 f(r)` of a function `curve(r) = f(r) / r^2`."""
  return jnp.square(temperature * ratio) * curve(ratio)


def _kl_curve(r: jax.Array) -> jax.Array:
  """`(r e^r - e^r + 1) / r^2`."""
  small = jnp.abs(r) < 0.1
  series = 1 / 2 + r * (1 / 3 + r * (1 / 8 + r * (1 / 30 + r / 144)))
  r = jnp.where(small, 1.0, r)
  return jnp.where(
    small, series, (r * jnp.exp(r) - jnp.expm1(r)) / jnp.square(r)
  )


def _js_curve(r: jax.Array) -> jax.Array:
  """`(e^r (r - u) - u) / (2 r^2)`, `u = log((1 + e^r) / 2)`."""
  small = jnp.abs(r) < 1e-6
  series = 1 / 8 + r / 16
  r = jnp.where(small, 1.0, r)
  # u = r / 2 + log cosh(r / 2).
  half = jnp.log1p(2 * jnp.square(jnp.sinh(r / 4)))
  exact = r / 2 * jnp.expm1(r) - half * (jnp.exp(r) + 1)
  return jnp.where(small, series, exact / (2 * jnp.square(r)))
