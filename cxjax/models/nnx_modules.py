"""Modules of nnx: their variables, modes and streams, and how they run."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import math
from typing import Any

from flax import nnx
import jax

from cxjax import errors
from cxjax import types
from cxjax.models import adapters
from cxjax.models import calls
from cxjax.models import modes
from cxjax.models import nnx_tags
from cxjax.parallel import reception

# What a step of a student in training mode updates.
MUTABLE = nnx.Not(nnx.Any(nnx.Param, nnx.RngState, nnx.Intermediate))
# What several students at inference share.
CONSTANT = nnx.Not(nnx.Any(nnx.Param, nnx.RngState))


def kept_kinds(trains: bool, several: bool) -> tuple[Any, ...]:
  """Kinds of variables that an adapter keeps in its parameters."""
  if trains:
    return (nnx.Not(nnx.Intermediate),)
  # Each of several keeps random streams of its own.
  return (nnx.Param, nnx.RngState) if several else (nnx.Param,)


def check_modules(models: list[Any]) -> None:
  """Raises UserError for what are no modules, or modules in other modes."""
  for i, model in enumerate(models):
    errors.require(
      isinstance(model, nnx.Module),
      f'from_nnx: a {type(model).__name__} is no nnx.Module. Give a module, or '
      'a list of modules.',
    )
    errors.require(
      tuple(training_layers(model)) == tuple(training_layers(models[0])),
      f'Student {i} is not in the mode of the first: call train() or eval() of '
      'all of them.',
    )


def split(module: nnx.Module) -> tuple[Any, Any]:
  """Graph and state of a module, in arrays that any program takes."""
  graph, state = nnx.split(module)
  return graph, reception.portable(state)


def eval_graph(module: nnx.Module) -> Any:
  """The graph of a module after `eval()`."""
  copy = nnx.clone(module)
  copy.eval()
  return nnx.split(copy)[0]


def rebuilt(
  graph: Any, state: Any, params: types.Params, other: Any = None
) -> nnx.Module:
  """A new module with other values of some variables.

  Args:
    graph: graph of the module that was given.
    state: its variables.
    params: new values, from `_tree`.
    other: a graph in its place.

  Returns:
    The module.
  """
  full = jax.tree.map(lambda leaf: leaf, state)
  old = nnx.to_pure_dict(full)
  nnx.replace_by_pure_dict(full, _with_keys(params, old))
  return nnx.merge(graph if other is None else other, full, copy=True)


def _with_keys(tree: Any, like: Any) -> Any:
  """A tree of `_tree`, with PRNG keys where `like` has them."""
  if isinstance(tree, Mapping):
    return {name: _with_keys(leaf, like[name]) for name, leaf in tree.items()}
  if adapters.is_key(like) and not adapters.is_key(tree):
    data = _replicated(tree)
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(like))
  return tree


def _replicated(leaf: Any) -> Any:
  """An array that every device holds whole: a key cannot be sharded."""
  if isinstance(leaf, jax.core.Tracer) or not isinstance(leaf, jax.Array):
    return leaf
  if not isinstance(leaf.sharding, jax.sharding.NamedSharding):
    return leaf
  whole = jax.sharding.NamedSharding(
    leaf.sharding.mesh, jax.sharding.PartitionSpec()
  )
  return jax.device_put(leaf, whole)


def tree(module: nnx.Module, *kinds: Any) -> Any:
  """Variables of a module as nested dicts; PRNG keys as their data."""
  state = nnx.to_pure_dict(nnx.state(module, nnx.Any(*kinds)))
  data = lambda leaf: (
    jax.random.key_data(leaf) if adapters.is_key(leaf) else leaf
  )
  return jax.tree.map(data, state)


def kinds(module: nnx.Module, *kinds: Any) -> Iterator[tuple[str, type[Any]]]:
  """Yields the paths of the variables of `_tree`, and their types."""
  for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Any(*kinds))):
    yield '/'.join(map(str, path)), type(variable)


def reseed(module: nnx.Module, key: jax.Array) -> None:
  """Gives every random stream of a module a key of its own."""
  state = nnx.state(module, nnx.RngKey)
  new = {}
  for i, (path, variable) in enumerate(sorted(nnx.to_flat_state(state))):
    shape = variable.get_value().shape
    keys = jax.random.split(jax.random.fold_in(key, i), math.prod(shape))
    new[path] = variable.replace(keys.reshape(shape))
  nnx.update(module, nnx.from_flat_state(new))


def random_streams(names: Iterable[str], key: jax.Array) -> nnx.Rngs:
  """Random streams of some names, each with a key of its own."""
  names = tuple(names)
  keys = jax.random.split(key, len(names))
  return nnx.Rngs(**dict(zip(names, keys, strict=True)))


def run(
  call: calls.Call,
  output: Callable[[Any], Any],
  axes: int,
  module: nnx.Module,
  x: types.Input,
  kwargs: Mapping[str, Any],
  tags: bool,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Output and sown values of a module, whose variables may change."""
  run = nnx.capture(
    lambda module, x: call(module, x, **kwargs), nnx.Intermediate
  )
  tagged = nnx_tags.tagging(module) if tags else contextlib.nullcontext()
  with nnx_tags.without_notes(), tagged:
    out, found = run(module, x)
  array = calls.to_array(output(out), type(module).__name__)
  return array, calls.activations(nnx.to_pure_dict(found), axes)


def require_inference(
  module: nnx.Module, before: Mapping[str, Any], draws: Callable[[], bool]
) -> None:
  """Raises UserError if a module has changed its variables since `before`.

  It may take keys that it draws nothing from, as recurrent layers do for the
  zeros that they begin with.
  """
  after = variables(module)
  changed = [path for path in after if after[path] is not before.get(path)]
  counts = variables(module, nnx.RngCount).keys()
  if changed and counts >= set(changed) and not draws():
    return
  constant = variables(module, nnx.Param, nnx.RngKey)
  if not constant.keys().isdisjoint(changed):
    # nnx.jit and nnx.remat assign all variables, changed or not.
    training = tuple(training_layers(module))
    changed = [
      path
      for path in changed
      if path not in constant and path.startswith(training)
    ]
  errors.require(
    not changed,
    f'{type(module).__name__} is not at inference, even after eval(): it '
    f'changes {", ".join(changed[:3])}. Give its arguments for inference, as '
    'in from_nnx(model, train=False), and those for training as '
    "training={'train': True}.",
  )


def training_layers(module: nnx.Module) -> Iterator[str]:
  """Yields the paths of layers with dropout or batch norm in training mode."""
  for path, node in nnx.iter_graph(module):
    rate = getattr(node, 'rate', getattr(node, 'dropout_rate', 1.0))
    active = getattr(node, 'deterministic', None) is False and rate > 0
    if active or getattr(node, 'use_running_average', None) is False:
      yield ''.join(f'{key}/' for key in path)


def dropout_layers(module: nnx.Module) -> Iterator[str]:
  """Yields the dropout layers of a module with their positive rates."""
  for path, node in nnx.iter_graph(module):
    rate = 0.0
    if isinstance(node, nnx.Dropout):
      rate = node.rate
    elif isinstance(node, nnx.MultiHeadAttention):
      rate = node.dropout_rate
    if rate > 0:
      name = '/'.join(map(str, path)) or type(node).__name__
      yield modes.with_rate(name, rate)


def statistics(module: nnx.Module) -> Iterator[str]:
  """Yields the paths of layers that keep statistics of the batches."""
  paths = variables(module, nnx.BatchStat)
  yield from dict.fromkeys(path.rpartition('/')[0] or path for path in paths)


def variables(module: nnx.Module, *kinds: Any) -> dict[str, Any]:
  """Values of the variables of a module, by path; of all kinds by default."""
  kinds = kinds or (nnx.Not(nnx.Intermediate),)
  state = nnx.to_pure_dict(nnx.state(module, nnx.Any(*kinds)))
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree.leaves_with_path(state)
  }
