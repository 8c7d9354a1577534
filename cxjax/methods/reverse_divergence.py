"""The reverse KL divergence, whose gradient in the student is written out.

That gradient is `T p (r - mean of r)`, where `p` is the student's distribution
and `r` the log of its ratio to the teacher's. Of logits near the largest number
`r` times `T` is infinite, while what it is multiplied by and less may be 0.
"""

import numbers
from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero
import jax.numpy as jnp

from cxjax.methods import high_temperature
from cxjax.methods import loss_values

# Everything is computed in it: differences of two logits do not overflow.
UNIT = 4


def kl(student: jax.Array, teacher: jax.Array, temperature: float) -> jax.Array:
  """`T^2 KL(p || q)` of the student's `p` and the teacher's `q`.

  Args:
    student: `[..., C]` logits in float32 or float64.
    teacher: `[..., C]` logits of the same type.
    temperature: `T > 0`.

  Returns:
    `[...]`; not infinite, its gradient is that of wider floats, or infinite
    where that is too large.
  """
  if not isinstance(temperature, numbers.Real):  # A tracer may be trained too.
    return _parts(student, teacher, temperature)[0]
  value = lambda s, t: _parts(s, t, temperature)[0]
  found = jax.custom_jvp(value)

  def derivative(primals: Any, tangents: Any) -> Any:
    (s, t), (ds, dt) = primals, tangents
    out, p, centered = _parts(s, t, temperature)
    tangent = jnp.zeros_like(out)
    if type(ds) is not SymbolicZero:
      tangent += jnp.sum(UNIT * (p * centered) * ds, axis=-1)
    if type(dt) is not SymbolicZero:
      tangent += jax.jvp(lambda t: value(s, t), (t,), (dt,))[1]
    return out, tangent

  found.defjvp(derivative, symbolic_zeros=True)
  return found(student, teacher)


def _parts(
  student: jax.Array, teacher: jax.Array, temperature: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The divergence, the student's distribution, and `T (r - mean of r)`."""
  high = high_temperature.applies(temperature)
  student, teacher = student / UNIT, teacher / UNIT
  temperature = temperature / UNIT
  if high:
    value, p, ratio = high_temperature.kl_parts(teacher, student, temperature)
    ratio = temperature * ratio
  else:
    log_p = loss_values.tempered_log_softmax(student, temperature)
    log_q = loss_values.tempered_log_softmax(teacher, temperature)
    p = jnp.exp(loss_values.over(log_p, temperature))
    # Before they meet: a NaN masked after the product is one of the gradient.
    log_p, log_q = (jnp.where(p > 0, x, 0.0) for x in (log_p, log_q))
    ratio = log_p - log_q
    value = temperature * jnp.sum(p * ratio, axis=-1)
  total = jnp.sum(p, axis=-1, keepdims=True)
  ratio = jnp.where(p > 0, ratio, 0.0)
  middle = jnp.sum(p * ratio, axis=-1, keepdims=True) / total
  centered = jnp.where(p > 0, ratio - middle, 0.0)
  return UNIT**2 * value, p, centered
