"""Checks of a user's optimizer before it trains: its state, its direction.

An optimizer lowers the loss if its updates go against the gradient. A trial
tells: the same updates with a gradient and with its opposite, on small arrays
in place of the parameters. Weight decay, noise and momentum are in both and
cancel; a learning rate of the wrong sign does not.
"""

from collections.abc import Callable
import functools
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cxjax import errors
from cxjax import types
from cxjax.methods import optax_adapter
from cxjax.methods import optimizer
from cxjax.methods import python_state
from cxjax.parallel import partition
from cxjax.training import run_spec

# The trial: longest side of an array; updates from the start, more than most
# optimizers accumulate; and steps of a schedule, with one update at each.
SIDE = 4
UPDATES = 8
STEPS = 9
# Cosine of the updates and the gradient above which the loss rises. It is
# below 0 for what descends.
ALONG = 0.1
# Names of the step of a schedule in states of optax, and states of which the
# count is another: of updates to accumulate, of gradients to remember.
COUNTS = ('count', 'step')
OTHERS = (optax.MultiStepsState, optax.ScaleByLBFGSState)
FAST = {'xla_backend_optimization_level': 0}  # Compiled to run a few times.
SHOWN = 3


def check(spec: run_spec.RunSpec) -> None:
  """Checks the optimizer of a run; warns if it raises the loss.

  Args:
    spec: specification of the run.

  Raises:
    UserError: the optimizer keeps a state in Python.
  """
  tx = spec.optimizer()
  if isinstance(tx, optimizer.Elementwise):
    return  # One of our own.
  shapes = optimizer.visible(spec.student_shapes)
  try:
    adapter = optax_adapter.adapt(tx, shapes)
  except errors.UserError:
    return  # It may train the parameters of a stage.
  value = jax.ShapeDtypeStruct((), jnp.float32)
  square = lambda leaf: jnp.sum(jnp.square(leaf.astype(jnp.float32)))
  loss = lambda tree: sum(map(square, jax.tree.leaves(tree)), jnp.zeros(()))
  update = lambda grads, state, params, value: adapter.update(
    grads, state, params, None, params, value, loss
  )
  state = jax.eval_shape(adapter.init, shapes)
  python_state.refuse('The optimizer', adapter.init, shapes)
  python_state.refuse('The optimizer', update, shapes, state, shapes, value)
  if not optax_adapter.reads_loss(adapter, shapes):  # It may search along it.
    _warn_of_ascent(spec, adapter, shapes)


def _warn_of_ascent(
  spec: run_spec.RunSpec, adapter: optax_adapter.Adapter, shapes: Any
) -> None:
  """Warns of trained parameters whose updates raise the loss."""
  lengths = [stage.steps for stage in spec.stages]
  last = (max if spec.restart_schedule else sum)(lengths) - 1
  try:
    found = ascents(adapter, shapes, last)
  except Exception:  # An optimizer may need arrays of their true shapes.
    return
  trained = _trained(spec)
  steps = {name: step for name, step in found.items() if name in trained}
  if not steps:
    return
  step = min(steps.values())
  names = [name for name, first in steps.items() if first == step]
  more = f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''
  logging.warning(
    'The optimizer raises the loss: from step %d of its schedule, or before, '
    'its updates of %s go along the gradient. Give a positive learning rate, '
    'and end a chain with optax.scale_by_learning_rate; in place of '
    'optax.masked, which leaves updates as they are where its mask is False, '
    'take optax.partition with optax.set_to_zero, or trainable=.',
    step,
    ', '.join(names[:SHOWN]) + more,
  )


def _trained(spec: run_spec.RunSpec) -> set[str]:
  """Names of the parameters that any stage trains."""
  return {
    partition.leaf_name(path)
    for planned in spec.plan()
    for path, marked in jax.tree.leaves_with_path(planned.mask)
    if marked
  }


def ascents(
  adapter: optax_adapter.Adapter, shapes: types.Params, last: int
) -> dict[str, int]:
  """Parameters whose updates go along the gradient.

  Args:
    adapter: the optimizer.
    shapes: shapes of the parameters that it trains.
    last: the last step of its schedule.

  Returns:
    The first step at which this is seen, by the name of each.
  """
  params, along, state, update = _trial(adapter, shapes)
  steps = np.linspace(0, last, STEPS).astype(int).tolist()
  begins = {step: (1, _at(state, step)) for step in steps if step}
  begins = {0: (UPDATES, state), **begins}
  found: dict[str, int] = {}
  for step, (updates, begin) in begins.items():
    ends = []
    for sign in (1.0, -1.0):
      carried = params, params, begin
      for _ in range(updates):
        carried = update(sign, *carried)
      # What lookahead evaluates moves only when it synchronizes.
      ends.append(carried[1] if adapter.pairs else carried[0])
    for path, cosine in jax.tree.leaves_with_path(
      jax.tree.map(_cosine, *ends, along)
    ):
      if cosine > ALONG:
        found.setdefault(partition.leaf_name(path), step)
  return found


def breaks_at(spec: run_spec.RunSpec, step: int) -> bool:
  """True if an update of finite gradients is not finite.

  Args:
    spec: specification of the run.
    step: step of the schedule of the optimizer.

  Returns:
    True if a trial shows it.
  """
  tx, shapes = spec.optimizer(), optimizer.visible(spec.student_shapes)
  if isinstance(tx, optimizer.Elementwise):
    return False
  try:
    adapter = optax_adapter.adapt(tx, shapes)
    params, _, state, update = _trial(adapter, shapes)
    end = update(1.0, params, params, _at(state, step))[0]
  except Exception:  # As in a check before training.
    return False
  return not all(
    bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(end)
  )


def _trial(
  adapter: optax_adapter.Adapter, shapes: types.Params
) -> tuple[Any, Any, Any, Callable[..., Any]]:
  """Small parameters, their gradient, the state, and `_update` of them."""
  draws = np.random.default_rng(0)
  small = lambda leaf: jnp.asarray(
    draws.normal(size=[min(size, SIDE) for size in leaf.shape]), leaf.dtype
  )
  params, along = (jax.tree.map(small, shapes) for _ in range(2))
  update = jax.jit(
    functools.partial(_update, adapter, params, along), compiler_options=FAST
  )
  return params, along, adapter.init(params), update


def _update(
  adapter: optax_adapter.Adapter,
  params: Any,
  along: Any,
  sign: jax.Array,
  trainable: Any,
  iterate: Any,
  state: Any,
) -> tuple[Any, Any, Any]:
  """One update on a loss whose gradient is `sign` times `along`, or less."""

  def loss(tree: Any) -> jax.Array:
    # Above 0 and without a minimum, as a step may be of any length.
    parts = jax.tree.map(
      lambda leaf, start, along: jnp.sum((leaf - start) * along) / leaf.size,
      tree,
      params,
      along,
    )
    total = sum(jax.tree.leaves(parts), jnp.zeros(()))
    return jax.nn.softplus(sign.astype(total.dtype) * total)

  value, grads = jax.value_and_grad(loss)(iterate)
  return adapter.update(grads, state, trainable, None, iterate, value, loss)


def _at(state: Any, step: int) -> Any:
  """The state of an optimizer whose schedules are at a step."""

  def at(path: Any, leaf: Any) -> Any:
    name = (
      getattr(path[-1], 'name', getattr(path[-1], 'key', '')) if path else ''
    )
    if name not in COUNTS or isinstance(leaf, OTHERS) or leaf.shape:
      return leaf
    integer = jnp.issubdtype(leaf.dtype, jnp.integer)
    return jnp.asarray(step, leaf.dtype) if integer else leaf

  return jax.tree.map_with_path(
    at, state, is_leaf=lambda part: isinstance(part, OTHERS)
  )


@np.errstate(all='ignore')
def _cosine(up: jax.Array, down: jax.Array, along: jax.Array) -> float:
  """Cosine of the difference of two arrays and another; NaN if one is 0."""
  up, down, along = (np.ravel(leaf).astype(float) for leaf in (up, down, along))
  moved = (up - down) / np.max(np.abs(up - down))  # Their squares may overflow.
  return float(moved @ along / np.linalg.norm(moved) / np.linalg.norm(along))
