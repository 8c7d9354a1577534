"""Models with several outputs, and with auxiliary losses.

A `ModelAdapter` has one output. The leaves of a tree of outputs, and scalars
that a model sows, become activations here, so that terms of a stage can name
them: 'output:boxes', 'auxiliary:losses/*'.
"""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
import dataclasses
import fnmatch
import functools
from typing import Any
from typing import TypeAlias

import jax
from jax.interpreters import partial_eval
import jax.numpy as jnp
import numpy as np

from cxjax import arguments
from cxjax import errors
from cxjax import types
from cxjax.methods import stage as stage_lib
from cxjax.methods import targets as targets_lib
from cxjax.models import adapters
from cxjax.models import modes
from cxjax.models import whole

OUTPUT, AUXILIARY = stage_lib.OUTPUT, 'auxiliary:'
Found: TypeAlias = Mapping[str, Any]
# From the leaves of the outputs, the activations and the number of examples to
# the output and more activations.
Choose: TypeAlias = Callable[[Any, Found, int], tuple[jax.Array, Found]]


@dataclasses.dataclass(frozen=True)
class Survey:
  """Outputs and sown values of a model, as shapes.

  Attributes:
    tree: its output.
    leaves: the leaves of the output by path; an array alone is 'logits'.
    scalars: floating-point values that are no activations, by name, those of
      the output among them.
  """

  tree: Any
  leaves: dict[str, Any]
  scalars: dict[str, Any]


def survey(
  model: adapters.ModelAdapter,
  x: types.Input,
  collections: tuple[str, ...],
  role: str,
) -> Survey:
  """Runs a model for the shapes of all that it returns and sows.

  It is in training mode if it has one.

  Args:
    model: the model.
    x: shapes of a batch.
    collections: names of the linen collections that are kept.
    role: role of the model, for messages.

  Returns:
    The shapes.

  Raises:
    UserError: the model does not run on the batch.
  """
  run, args = _call(model, x, collections)
  try:
    tree, found, *_ = jax.eval_shape(run, *args)
  except errors.UserError:
    raise
  except Exception as error:  # A model of the user may raise anything.
    raise errors.UserError(
      f'The {role} does not run on the example: {modes.reason(error)}.'
    ) from error
  flat = leaves(tree)
  values = {**found, **flat}
  scalars = {
    name: value
    for name, value in values.items()
    if whole.is_real(value) and not targets_lib.is_activation(value)
  }
  return Survey(tree, flat, scalars)


def _call(
  model: adapters.ModelAdapter, x: types.Input, collections: tuple[str, ...]
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
  """A model that keeps all, in its training mode if any, and its arguments."""
  fun, args = model.apply, arguments.shapes('x', (model.one, x))
  if model.training is not None:
    fun, args = model.training, (*args, jax.random.key(0))

  def run(*args: Any) -> Any:
    with whole.kept(collections):
      return fun(*args)

  return run, args


def apart(
  model: adapters.ModelAdapter, x: types.Input, used: Collection[str]
) -> list[str]:
  """Outputs with parameters that the outputs in use do not read.

  Args:
    model: the model.
    x: shapes of a batch.
    used: paths of the outputs in use.

  Returns:
    Paths of the others, without those that are no floating-point arrays of the
    examples; empty if the model does not run.
  """
  run, args = _call(model, x, ())
  try:
    closed, shapes = jax.make_jaxpr(
      lambda *args: leaves(run(*args)[0]), return_shape=True
    )(*args)
  except Exception:  # A model of the user may raise anything.
    return []
  names = sorted(shapes)  # As JAX sorts the keys of a dict.
  count = len(jax.tree.leaves(args[0]))

  def read(wanted: Collection[str]) -> Any:
    chosen = [name in wanted for name in names]
    _, found = partial_eval.dce_jaxpr(closed.jaxpr, chosen)
    return np.array(found[:count])

  known = read(used)
  others = [
    name
    for name in names
    if name not in used and targets_lib.is_activation(shapes[name], 1)
  ]
  if not np.any(read(others) & ~known):
    return []
  return [name for name in others if np.any(read((name,)) & ~known)]


def leaves(output: Any) -> dict[str, Any]:
  """The leaves of a tree of outputs by path; an array alone is 'logits'."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='/') or 'logits': leaf
    for path, leaf in jax.tree.leaves_with_path(output)
  }


def exposed(
  model: adapters.ModelAdapter, collections: tuple[str, ...], choose: Choose
) -> adapters.ModelAdapter:
  """The model with another output, and with more activations.

  Args:
    model: the model.
    collections: names of the linen collections that are kept.
    choose: finds the two in what the model returns.

  Returns:
    The model.
  """

  def run(fun: Callable[..., Any], params: Any, x: Any, *key: Any) -> Any:
    with whole.kept(collections):
      tree, found, *rest = fun(params, x, *key)
    size = jax.tree.leaves(x)[0].shape[0]
    output, more = choose(tree, found, size)
    kept = {k: v for k, v in found.items() if targets_lib.is_activation(v)}
    return output, {**kept, **more}, *rest

  training = model.training and functools.partial(run, model.training)
  return dataclasses.replace(
    model, apply=functools.partial(run, model.apply), training=training
  )


def columns(leaf: jax.Array) -> jax.Array:
  """An output with a width: `[B]` becomes `[B, 1]`."""
  return leaf[:, None] if leaf.ndim == 1 else leaf


def first_columns(
  model: adapters.ModelAdapter, count: int
) -> adapters.ModelAdapter:
  """The model whose output is the first `count` columns of its own."""

  def run(fun: Callable[..., Any], params: Any, x: Any, *key: Any) -> Any:
    output, *rest = fun(params, x, *key)
    return jax.lax.slice_in_dim(output, 0, count, axis=-1), *rest

  training = model.training and functools.partial(run, model.training)
  return dataclasses.replace(
    model, apply=functools.partial(run, model.apply), training=training
  )


def joined(tree: Any) -> jax.Array:
  """All outputs as one vector for each example, `[B, D]`."""
  return jnp.concatenate(
    [leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(tree)], axis=1
  )


def auxiliary(values: Found, pattern: str, size: int) -> jax.Array:
  """The sum of the auxiliary losses of a pattern, the same for each example.

  Args:
    values: scalars by name; sown in a scan, `[steps]`.
    pattern: pattern of their names.
    size: number of examples.

  Returns:
    `[size, 1]`; zeros if there are none, as at inference.
  """
  total: Any = jnp.zeros(())
  for name in matching(values, pattern):
    total = total + jnp.sum(values[name].astype(jnp.float32))
  return jnp.broadcast_to(total, (size, 1))


def matching(values: Found, pattern: str) -> list[str]:
  """Names of the scalars of a pattern, whose stars match slashes too."""
  return [
    name
    for name, value in values.items()
    if fnmatch.fnmatchcase(name, pattern)
    and whole.is_real(value)
    and not targets_lib.is_activation(value)
  ]
