"""Optimizers whose gradients are not taken at the parameters to evaluate.

`optax.contrib.schedule_free` evaluates an average, and `optax.contrib.sam` the
parameters before its ascent. Their states know them.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax.contrib

from cxjax import errors
from cxjax import types
from cxjax.parallel import partition


def evaluation_params(state: Any, params: types.Params) -> types.Params:
  """The parameters to evaluate, from those where the gradients are taken.

  Args:
    state: state of optax, however its parts are nested.
    params: where the gradients are taken.

  Returns:
    A tree like `params`: the averages of `optax.contrib.schedule_free`, the
    parameters before the ascent of `optax.contrib.sam`, or `params`.

  Raises:
    UserError: two parts of the state have parameters of their own, or they are
      not in the form of `params`.
  """
  leaves = {
    partition.leaf_name(path): leaf
    for path, leaf in jax.tree.leaves_with_path(params)
  }
  found: dict[str, jax.Array] = {}
  for part in averages(state):
    sam = isinstance(part, optax.contrib.SAMState)
    own = {
      partition.leaf_name(path): leaf
      for path, leaf in jax.tree.leaves_with_path(part.cache if sam else part.z)
    }
    errors.require(
      all(n in leaves and leaves[n].shape == own[n].shape for n in own)
      and not own.keys() & found.keys(),
      f'The optimizer has a {type(part).__name__} in a form in which the '
      'parameters to evaluate are not known. Wrap it in no transformation that '
      'flattens the parameters or averages them again.',
    )
    mine = {name: leaves[name] for name in own}
    if sam:
      at_rest = part.steps_since_sync == 0
      own = jax.tree.map(
        lambda a, b, rest=at_rest: jnp.where(rest, a, b), mine, own
      )
    else:
      own = optax.contrib.schedule_free_eval_params(part._replace(z=own), mine)
    found |= own
  if not found:
    return params

  def one(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
    own = found.get(partition.leaf_name(path))
    return leaf if own is None else own.astype(leaf.dtype)

  return jax.tree.map_with_path(one, params)


def parts(state: Any, kinds: Any) -> list[Any]:
  """The parts of a state of some types, however nested."""
  found = []
  is_leaf = lambda part: isinstance(part, kinds)
  for part in jax.tree.leaves(state, is_leaf=is_leaf):
    if is_leaf(part):
      found += [part, *parts(tuple(part), kinds)]
  return found


def averages(state: Any) -> list[Any]:
  """The parts of a state that have parameters to evaluate."""
  kinds = optax.contrib.ScheduleFreeState, optax.contrib.SAMState
  return [
    part
    for part in parts(state, kinds)
    if getattr(part, 'cache', part) is not None
  ]
