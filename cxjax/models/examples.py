"""Functions of one example, mapped over the first axis of a batch."""

import jax

from cxjax import types

AXIS = 'batch'


def apply(fun: types.Apply, axis_name: str = AXIS) -> types.Apply:
  """A model of a batch.

  Args:
    fun: a model of one example, whose activations have one axis at least.
    axis_name: name of the axis of the batch, for batch norms.

  Returns:
    The model.
  """

  def mapped(params: types.Params, x: types.Input) -> types.Params:
    return jax.vmap(lambda x: fun(params, x), axis_name=axis_name)(x)

  return mapped


def training(fun: types.Training, axis_name: str = AXIS) -> types.Training:
  """A model of a batch in training mode.

  Args:
    fun: a model of one example, with a key of its own. The leaves that it
      changes must be those of the whole batch, as with a batch norm that knows
      the name of the axis.
    axis_name: name of the axis of the batch.

  Returns:
    The model.
  """

  def mapped(
    params: types.Params, x: types.Input, key: jax.Array
  ) -> types.Params:
    keys = jax.random.split(key, len(jax.tree.leaves(x)[0]))
    return jax.vmap(
      fun, in_axes=(None, 0, 0), out_axes=(0, 0, None), axis_name=axis_name
    )(params, x, keys)

  return mapped
