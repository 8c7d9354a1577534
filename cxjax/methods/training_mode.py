"""Training mode: a forward pass with dropout that changes its statistics.

A model that differs while it is trained has a second function, `training`:
`(params, x, key) -> (output, activations, changed)`. `changed` holds the new
values of the leaves of `params` that are no parameters, as running means; all
else of it is None or absent. Such leaves are never given to the optimizer: a
step replaces them by the new values of its forward pass. The evaluation reads
them in the model's `apply`.
"""

from collections.abc import Callable
from collections.abc import Iterable
import functools
from typing import Any
from typing import TypeAlias

import jax
from jax.interpreters import partial_eval
import jax.numpy as jnp

from cxjax import errors
from cxjax import types
from cxjax.methods import targets as targets_lib
from cxjax.parallel import partition

# New values of leaves, by the name of their path in the parameters.
Changed: TypeAlias = dict[str, jax.Array]
# `(params, x, key) -> (activations, changed leaves)`.
Forward: TypeAlias = Callable[
  [types.Params, types.Input, Any], tuple[targets_lib.Activations, Changed]
]


def of_model(model: Any) -> types.Training | None:
  """A model in training mode, if it has one."""
  found = getattr(model, 'training', None)
  return found if callable(found) else None  # A flag of a user's model.


def by_name(tree: Any) -> dict[str, Any]:
  """The leaves of a tree by the names of their paths; None is no leaf."""
  return {
    partition.leaf_name(path): leaf
    for path, leaf in jax.tree.leaves_with_path(tree)
  }


def overlay(params: types.Params, changed: Changed) -> types.Params:
  """Replaces leaves by their new values, in the dtypes that they have."""
  if not changed:
    return params

  def one(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
    new = changed.get(partition.leaf_name(path))
    return leaf if new is None else jnp.asarray(new, leaf.dtype)

  return jax.tree.map_with_path(one, params)


def select(params: types.Params, names: Iterable[str]) -> Changed:
  """The leaves of some names, as they are."""
  leaves = by_name(params)
  return {name: leaves[name] for name in names}


def without_key(training: types.Training) -> types.Apply:
  """`(params, x) -> (output, activations)` in training mode, for its shapes."""

  def apply(params: types.Params, x: types.Input) -> Any:
    output, activations, _ = called(training, params, x, jax.random.key(0))
    return output, activations

  return apply


def called(
  training: types.Training, params: types.Params, x: types.Input, key: Any
) -> Any:
  """Calls a model in training mode, and checks what it returns."""
  with errors.calling('The training mode'):
    found = training(params, x, key)
  errors.require(
    isinstance(found, tuple | list) and len(found) == 3,
    'The training mode must return (output, activations, changed), an array '
    'and two dicts.',
  )
  return found


def changed_shapes(
  training: types.Training, params: types.Params, x: types.Input
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of the leaves that a model in training mode may change, by name."""
  run = functools.partial(called, training)
  _, _, changed = jax.eval_shape(run, params, x, jax.random.key(0))
  return by_name(changed)


def updated_names(
  training: types.Training,
  params: types.Params,
  x: types.Input,
  activations: Iterable[str],
) -> tuple[str, ...]:
  """Names of the leaves that a stage updates.

  A statistic of a layer above the highest activation that a stage compares
  would cost the forward pass up to that layer. It stays as it is until a stage
  reaches the layer.

  Args:
    training: the model in training mode.
    params: its parameters; shapes are enough.
    x: an input; its shape is enough.
    activations: activations that the stage compares.

  Returns:
    Names of the leaves whose new values depend on no parameter that these
    activations do not depend on.
  """
  activations = tuple(activations)

  def outputs(params: types.Params, x: types.Input, key: jax.Array) -> Any:
    logits, found, changed = called(training, params, x, key)
    found = targets_lib.by_name(logits, found)
    compared = [errors.lookup('activation', n, found) for n in activations]
    return compared, by_name(changed)

  shapes = jax.eval_shape(lambda tree: tree, (params, x))
  closed, (compared, changed) = jax.make_jaxpr(outputs, return_shape=True)(
    *shapes, jax.random.key(0)
  )
  paths = list(by_name(params))
  names = sorted(changed)  # The order of the leaves of a dict.
  size = len(compared)

  def parameters(first: int, last: int) -> set[str]:
    wanted = [first <= i < last for i in range(size + len(names))]
    _, used = partial_eval.dce_jaxpr(closed.jaxpr, wanted)
    return {
      path
      for path, needed in zip(paths, used, strict=False)
      if needed and path not in changed
    }

  allowed = parameters(0, size)
  if parameters(size, size + len(names)) <= allowed:
    return tuple(names)
  return tuple(
    name
    for i, name in enumerate(names, size)
    if parameters(i, i + 1) <= allowed
  )


def forward(
  apply: types.Apply,
  training: types.Training | None,
  names: Iterable[str] = (),
) -> Forward:
  """The forward pass of a train step.

  Args:
    apply: the student at inference, which trains as it is without `training`.
    training: the student in training mode, or None.
    names: leaves whose new values are returned, from `updated_names`.

  Returns:
    The function; it does not read its key without `training`.
  """

  def at_inference(params: types.Params, x: types.Input, _: Any) -> Any:
    return targets_lib.forward(apply, params, x), {}

  def in_training(params: types.Params, x: types.Input, key: Any) -> Any:
    assert training is not None
    logits, activations, changed = training(params, x, key)
    new = select(changed, names)
    return targets_lib.by_name(logits, activations), new

  return at_inference if training is None else in_training
