"""Any optax transformation as the optimizer of a stage.

An optimizer sees the tree of the student's own parameters, with None for those
that the stage does not train, and without running statistics. Regressors are a
tree of their own, with a state of their own. Where the gradients are taken at
other parameters than those to evaluate (lookahead, schedule-free, SAM), the
state keeps the former, and the student always is the latter.
"""

from collections.abc import Iterator
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from cxjax import errors
from cxjax.methods import averages
from cxjax.methods import masks
from cxjax.methods import optax_adapter


class Elementwise(optax.GradientTransformationExtraArgs):
  """An optimizer, of `(init, update)`, to which all parameters are alike.

  Parameters and regressors have one state, that of optax.
  """


class OptimizerState(NamedTuple):
  """The state of the optimizer of one student.

  Attributes:
    params: state of optax for the parameters that the stage trains.
    regressors: state of optax for the regressors; None without any.
    iterates: where the gradients are taken, by 'params' and 'regressors'; empty
      if that is at the parameters of the student.
  """

  params: Any
  regressors: Any
  iterates: dict[str, Any]


def check(name: str, value: Any) -> None:
  """Raises UserError unless an argument is an optimizer of optax."""
  errors.require(
    callable(getattr(value, 'init', None))
    and callable(getattr(value, 'update', None))
    and not isinstance(value, type),
    f'{name}={value!r} must be an optimizer of optax, as optax.adam(1e-3).',
  )


def init(
  tx: Any, learned: tuple[Any, Any], frozen: Any, mask: masks.Mask = None
) -> optax.OptState:
  """State of an optimizer at the start of a stage.

  Args:
    tx: an optax transformation.
    learned: the parameters that are trained, None for the others; and the
      regressors.
    frozen: the parameters that are not trained.
    mask: mask of the stage, if some leaves are no parameters.

  Returns:
    An `OptimizerState`; of an `Elementwise` optimizer the state of optax, for
    `learned`.

  Raises:
    UserError: the optimizer cannot train them.
  """
  if isinstance(tx, Elementwise):
    return tx.init(learned)
  states: dict[str, Any] = {}
  iterates = {}
  for name, tree, *others in _groups(learned, frozen, mask):
    adapter = optax_adapter.adapt(tx, tree, *others)
    states[name] = adapter.init(tree, others[0])
    if adapter.pairs or averages.averages(states[name]):
      # A copy: a program may not donate an array twice.
      iterates[name] = jax.tree.map(jnp.copy, tree)
  return OptimizerState(states['params'], states.get('regressors'), iterates)


def visible(params: Any, mask: masks.Mask = None) -> Any:
  """The leaves that an optimizer may see; None in place of the others."""
  real = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
  params = jax.tree.map(lambda leaf: leaf if real(leaf) else None, params)
  return params if mask is None else masks.pruned(params, mask)


def iterate(state: optax.OptState, learned: tuple[Any, Any]) -> tuple[Any, Any]:
  """Returns where to take the gradients: at `learned`, most often."""
  if not isinstance(state, OptimizerState):
    return learned
  params, regressors = learned
  return (
    state.iterates.get('params', params),
    state.iterates.get('regressors', regressors),
  )


def update(
  tx: Any,
  grads: tuple[Any, Any],
  state: optax.OptState,
  learned: tuple[Any, Any],
  frozen: Any,
  value: jax.Array,
  loss: optax_adapter.Loss,
  mask: masks.Mask = None,
) -> tuple[tuple[Any, Any], optax.OptState]:
  """One update of the parameters and of the regressors.

  Args:
    tx: the optimizer.
    grads: gradients at `iterate(state, learned)`.
    state: state from `init`; or of optax, for `learned`.
    learned: parameters and regressors to evaluate.
    frozen: the parameters that are not trained.
    value: the loss there.
    loss: the loss of the batch, as a function of a tree like `learned`.
    mask: mask of the stage, as for `init`.

  Returns:
    The new `learned`, and the new state.
  """
  if not isinstance(state, OptimizerState):
    updates, state = tx.update(grads, state, learned)
    return optax.apply_updates(learned, updates), state
  at = dict(zip(('params', 'regressors'), iterate(state, learned), strict=True))
  given = dict(zip(at, grads, strict=True))
  new = dict(zip(at, learned, strict=True))
  states = {'params': state.params, 'regressors': state.regressors}
  iterates = dict(state.iterates)
  for name, tree, *others in _groups(learned, frozen, mask):
    adapter = optax_adapter.adapt(tx, tree, *others)

    def alone(tree: Any, name: str = name) -> jax.Array:
      return loss(tuple({**at, name: tree}.values()))

    if name == 'regressors' and optax_adapter.reads_loss(adapter, tree):
      # The length of the second step depends on where the first one led.
      value, given[name] = jax.value_and_grad(alone)(at[name])
    new[name], at[name], states[name] = adapter.update(
      given[name], states[name], tree, others[0], at[name], value, alone
    )
    if name in iterates:
      iterates[name] = at[name]
  learned = new['params'], new['regressors']
  return learned, OptimizerState(**states, iterates=iterates)


def learning_rate(state: optax.OptState) -> jax.Array | None:
  """The rate of the last update, as `optax.inject_hyperparams` keeps it.

  Args:
    state: state from `update`, of one student or of several.

  Returns:
    A number, or one for each student; None if the state keeps none, or several.
  """
  params = state.params if isinstance(state, OptimizerState) else state
  found = optax.tree_utils.tree_get_all_with_path(
    params,
    'learning_rate',
    lambda path, _: (
      'hyperparams' in [getattr(p, 'name', '') for p in path[-2:]]
    ),
  )
  return found[0][1] if len(found) == 1 else None


def _groups(
  learned: tuple[Any, Any], frozen: Any, mask: masks.Mask
) -> Iterator[tuple[str, Any, Any, masks.Mask]]:
  """The trees with a state of their own: name, leaves, other leaves, mask."""
  params, regressors = learned
  yield 'params', params, frozen, mask
  if regressors:
    yield 'regressors', regressors, None, None
