"""Precision, lengths and NaN of the values that losses compare.

And the divergence of two distributions, from their logs.
"""

import jax
import jax.numpy as jnp

# Squares of squares of larger values, summed over a width, overflow; those of
# smaller ones are 0.
LARGE, SMALL = 1e6, 1e-6


def precise(x: jax.Array) -> jax.Array:
  """The array in float32; float64 as it is."""
  x = jnp.asarray(x)
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def known(loss: jax.Array, *inputs: jax.Array) -> jax.Array:
  """The loss, and NaN wherever an input is.

  A comparison with NaN is false, so that NaN looks like an impossible class.
  And XLA's exponential of a NaN that it knows when it compiles is undefined on
  a CPU: the program of one process returns NaN, that of another a number.

  Args:
    loss: `[...]` loss per example.
    *inputs: `[..., C]` arrays that it follows from.

  Returns:
    `[...]`.
  """
  for x in inputs:
    loss = jnp.where(jnp.any(jnp.isnan(x), axis=-1), jnp.nan, loss)
  return loss


def over(x: jax.Array, temperature: float) -> jax.Array:
  """The array divided by a temperature, at no cost if that is 1."""
  traced = isinstance(temperature, jax.core.Tracer)
  return x / temperature if traced or temperature != 1 else x


def tempered_log_softmax(x: jax.Array, temperature: float = 1.0) -> jax.Array:
  """`T log softmax(x / T)` over the last axis, in the unit of the logits.

  Shifted before the division: `x / T` at a low temperature cannot overflow.

  Args:
    x: `[..., C]` logits; `-inf` marks an impossible class.
    temperature: `T > 0`.

  Returns:
    `[..., C]`.
  """
  most = jnp.max(x, axis=-1, keepdims=True, initial=-jnp.inf)
  x = x - jax.lax.stop_gradient(most)
  total = jnp.sum(jnp.exp(over(x, temperature)), axis=-1, keepdims=True)
  return x - temperature * jnp.log(total)


def divergence(
  log_q: jax.Array,
  log_p: jax.Array,
  temperature: float = 1.0,
) -> jax.Array:
  """`T^2 KL(p || q)` of `T log q` and `T log p`, with 0 log 0 = 0.

  Args:
    log_q: `[..., C]`, as of `tempered_log_softmax`.
    log_p: `[..., C]`.
    temperature: `T > 0`.

  Returns:
    `[...]`.
  """
  p = jnp.exp(over(log_p, temperature))
  possible = p > 0
  # Before they meet: a NaN masked after the product is one of the gradient.
  log_p = jnp.where(possible, log_p, 0.0)
  log_q = jnp.where(possible, log_q, 0.0)
  return temperature * jnp.sum(p * (log_p - log_q), axis=-1)


def standardized(x: jax.Array, epsilon: float = 1e-5) -> jax.Array:
  """The array less its mean and over its standard deviation, of the last axis.

  Args:
    x: `[..., D]`, of any magnitude: neither its squares nor its mean overflow,
      and a mean that is large beside the deviation costs no digits.
    epsilon: number that is added to the variance, of the array as it is.

  Returns:
    `[..., D]` in float32, or float64; NaN where a value is not finite.
  """
  x = precise(x)
  fixed = jax.lax.stop_gradient
  high = fixed(jnp.max(x, axis=-1, keepdims=True))
  largest = jnp.maximum(high, -fixed(jnp.min(x, axis=-1, keepdims=True)))
  # A power of two: no digit is lost.
  _, exponent = jnp.frexp(largest)
  unit = jnp.ldexp(jnp.ones_like(largest), 20 - exponent)
  unit = jnp.where(largest > LARGE, unit, 1.0)
  # From the largest: equal values are then 0, which their mean need not be.
  x = x * unit - high * unit
  x = x - jnp.mean(x, axis=-1, keepdims=True)
  variance = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
  # Where the unit is small, its square may be 0; the slope is that of epsilon.
  equal = variance == 0
  safe = jnp.where(equal, 1.0, variance + epsilon * jnp.square(unit))
  flat = epsilon**-0.5 / unit
  return x * jnp.where(equal, flat, jax.lax.rsqrt(safe))


def within_range(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  """The array, divided by its largest value where its squares leave the range.

  For losses that do not depend on the length of what they compare.

  Args:
    x: the array.
    axes: axes of the length.

  Returns:
    An array like `x`; the divisor is constant to the gradient.
  """
  largest = jnp.max(jnp.abs(x), axis=axes, keepdims=True, initial=0)
  largest = jax.lax.stop_gradient(largest)
  large, small = largest > LARGE, (largest < SMALL) & (largest > 0)
  # In two steps: the inverse of the largest numbers is taken for 0, and that of
  # the smallest for infinity.
  first = jnp.where(large, 2.0**-20, jnp.where(small, 2.0**20, 1.0))
  return x * first / jnp.where(large | small, largest * first, 1.0)


def scaled(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  """The array divided by its norm over some axes; zeros stay.

  Args:
    x: the array.
    axes: axes of the norm.

  Returns:
    An array like `x`; NaN where a value is not finite.
  """
  x = within_range(x, axes)
  square = jnp.sum(jnp.square(x), axis=axes, keepdims=True)
  # The root has no gradient at 0.
  nothing = square == 0
  safe = jnp.where(nothing, 1.0, square)
  return jnp.where(nothing, 0.0, x * jax.lax.rsqrt(safe))
