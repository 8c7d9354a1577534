"""Float32 master weights of students in half precision.

An update is often smaller than the distance of two numbers of bfloat16, and
would be lost. So a run keeps parameters in float32, with the state of the
optimizer; the model gets them in its own dtypes, and so does the caller at the
end.
"""

from collections.abc import Collection
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cxjax import arguments
from cxjax import errors
from cxjax import types
from cxjax.methods import targets
from cxjax.methods import training_mode
from cxjax.models import adapters
from cxjax.models import modes
from cxjax.parallel import partition


def masters(params: types.Params) -> types.Params:
  """The parameters with half precision in float32; other leaves as they are."""
  return jax.tree.map(
    lambda leaf: leaf.astype(jnp.float32) if _is_half(leaf) else leaf, params
  )


def check(dtype: Any, what: str) -> None:
  """Raises UserError for float16, in which a student would train.

  Args:
    dtype: dtype of the computation.
    what: name of the field or the model with this dtype, for the message.
  """
  errors.require(
    dtype != jnp.float16,
    f'float16 of {what}: gradients vanish in it unless the loss is scaled, '
    'which it is not here. Train in bfloat16 or in float32; the parameters of '
    'a teacher may be float16.',
  )


def check_computation(
  model: adapters.ModelAdapter, x: types.Input, names: Collection[str]
) -> None:
  """Raises UserError for a student that computes in float16.

  Args:
    model: the student.
    x: shapes of a batch.
    names: activations that are compared.
  """

  def compared(params: types.Params, x: types.Input, key: jax.Array) -> Any:
    run = model.training or (lambda params, x, _: model.apply(params, x))
    found = targets.by_name(*run(params, x, key)[:2])
    return [value for name, value in found.items() if name in names]

  shapes = arguments.shapes('params', model.one), arguments.shapes('x', x)
  scope = modes.in_dtype(compared, jnp.float16, *shapes, jax.random.key(0))
  if scope is not None:
    layer = f'layer {scope!r}' if scope else 'computation'
    check(jnp.float16, f"the student's {layer}")


def with_master_weights(model: adapters.ModelAdapter) -> adapters.ModelAdapter:
  """A student that takes its parameters in float32.

  Args:
    model: the student, with its parameters as they came.

  Returns:
    A model whose `apply` and `training` cast `masters(params)` to the dtypes of
    `params`, and whose `wrap` does; `model` itself without half precision.
    Batch statistics that training updates are not cast on the way.

  Raises:
    UserError: a parameter is float16.
  """
  dtypes = {
    name: leaf.dtype
    for name, leaf in training_mode.by_name(model.one).items()
    if _is_half(leaf)
  }
  for name, dtype in dtypes.items():
    check(dtype, f"the student's parameter {name!r}")
  if not dtypes:
    return model

  def cast(params: types.Params, kept: Collection[str] = ()) -> types.Params:
    def one(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
      name = partition.leaf_name(path)
      return leaf if name in kept else leaf.astype(dtypes.get(name, leaf.dtype))

    return jax.tree.map_with_path(one, params)

  def updated(params: types.Params, x: types.Input) -> Collection[str]:
    """Names of the statistics."""
    if model.training is None:
      return ()
    return training_mode.changed_shapes(model.training, cast(params), x)

  def training(params: types.Params, x: types.Input, key: jax.Array) -> Any:
    assert model.training is not None
    return model.training(cast(params, updated(params, x)), x, key)

  return dataclasses.replace(
    model,
    apply=lambda params, x: model.apply(cast(params, updated(params, x)), x),
    training=model.training and training,
    wrap=lambda params: model.wrap(cast(params)),
  )


def _is_half(leaf: Any) -> bool:
  """True if a leaf has floating-point numbers of less than 32 bits."""
  dtype = getattr(leaf, 'dtype', jnp.float32)
  return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
