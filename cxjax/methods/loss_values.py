"""Precision, lengths and NaN of the values that losses compare."""

import jax
import jax.numpy as jnp


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


def scaled(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  """The array divided by its norm over some axes; zeros stay.

  Args:
    x: the array.
    axes: axes of the norm.

  Returns:
    An array like `x`; NaN where a value is, or where the squares overflow.
  """
  square = jnp.sum(jnp.square(x), axis=axes, keepdims=True)
  # The root has no gradient at 0.
  nothing = square == 0
  # The root of infinity would be 0, and the array with it.
  safe = jnp.where(jnp.isinf(square), jnp.nan, jnp.where(nothing, 1.0, square))
  return jnp.where(nothing, 0.0, x * jax.lax.rsqrt(safe))
