"""The product of features with a kernel, with a gradient that copies less.

XLA multiplies matrices whose sum runs over the columns of the first and over
the rows of the second, and copies what is stored otherwise. JAX's gradient of a
kernel is such a product of the transposed gradient of the outputs; where those
are wider than the features, as logits are, that is the larger copy of the two.
"""

from typing import Any

import jax


def product(
  features: jax.Array, kernel: jax.Array, axis: int, **params: Any
) -> jax.Array:
  """The product of some rows with a kernel.

  Args:
    features: `[..., D]`.
    kernel: `[D, C]`, or `[C, D]`.
    axis: the axis of `D` in the kernel, 0 or 1.
    **params: parameters of `jax.lax.dot_general`, but for the dimensions.

  Returns:
    `[..., C]`. It cannot be differentiated in forward mode if all dtypes are
    the same and `C`, for `[C, D]` also the number of rows, is larger than `D`.
  """

  def plain(features: jax.Array, kernel: jax.Array) -> jax.Array:
    dimensions = (((features.ndim - 1,), (axis,)), ((), ()))
    return jax.lax.dot_general(features, kernel, dimensions, **params)

  out = jax.eval_shape(plain, features, kernel)
  same = features.dtype == kernel.dtype == out.dtype
  width, classes = kernel.shape[axis], kernel.shape[1 - axis]
  # Of a kernel [C, D], the gradient is transposed in place of that of the rows.
  most = classes if axis == 0 else min(classes, features.size // width)
  if not same or most <= width:
    return plain(features, kernel)

  def forward(features: jax.Array, kernel: jax.Array) -> Any:
    return plain(features, kernel), (features, kernel)

  def backward(kept: Any, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    features, kernel = kept
    last, rows = grad.ndim - 1, tuple(range(grad.ndim - 1))
    multiply = lambda *args: jax.lax.dot_general(*args, **params)
    ours = multiply(grad, kernel, (((last,), (1 - axis,)), ((), ())))
    found = multiply(features, grad, ((rows, rows), ((), ())))
    return ours, found if axis == 0 else found.T

  multiplied = jax.custom_vjp(plain)
  multiplied.defvjp(forward, backward)
  return multiplied(features, kernel)
