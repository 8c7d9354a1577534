"""Adapter of nnx modules, which become a `ModelAdapter`."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import functools
import math
from typing import Any

from flax import nnx
import jax

from cxjax import errors
from cxjax import types
from cxjax.models import adapters
from cxjax.models import axis_names
from cxjax.models import base
from cxjax.models import calls
from cxjax.models import captures
from cxjax.models import modes
from cxjax.models import nnx_tags

# What a step of a student in training mode updates.
MUTABLE = nnx.Not(nnx.Any(nnx.Param, nnx.RngState, nnx.Intermediate))


def from_nnx(
  model: nnx.Module | list[nnx.Module],
  *,
  output: Callable[[Any], Any] = lambda output: output,
  partition_rules: base.PartitionRules | None = None,
  call: calls.Call | None = None,
  training: Mapping[str, Any] | bool | None = None,
  batched: bool = True,
  mesh_axes: axis_names.MeshAxes | None = None,
  **kwargs: Any,
) -> adapters.ModelAdapter:
  """Adapts a `flax.nnx` module; the module itself is not changed.

  The activations are what the methods of the module and of its submodules
  return, named by their paths: 'layers/0', 'encoder/attention', and
  'encoder/features' for a method other than `__call__`. Values that the module
  sows as `nnx.Intermediate` are activations too. Only `nnx.Param` is trained.

  A student that is given in training mode, as a new module is, or with
  `training`, trains in that mode: dropout draws from new keys at every step,
  and all other variables, such as batch statistics, are updated at every step,
  saved and returned, whatever `trainable` says. Evaluation runs it after
  `eval()`, with the statistics that it then has. Statistics are those of the
  whole batch, on any number of devices, or of each microbatch in turn; examples
  and tokens of weight 0 count in them. A student that is given after `eval()`
  trains at inference, and only its parameters change. A teacher always runs at
  inference.

  Args:
    model: the module; a list of modules trains several students.
    output: selects the output from what the module returns; by default it is
      that, or its 'logits'.
    partition_rules: as for `from_fn`.
    call: `(module, x, **kwargs) -> output`, in place of calling the module on
      `x`. Without it a tuple is spread over the arguments of a module of
      several, and a dict over those of its names.
    training: arguments of the call in training mode, beside `kwargs`, as in
      `{'deterministic': False}`. Names of random streams as `'rngs'` in it make
      the `nnx.Rngs` that the call then gets.
    batched: whether the module takes a batch; else it takes one example, and is
      mapped over the batch.
    mesh_axes: how the names of the axes of parameters are sharded, as in
      `from_linen`.
    **kwargs: arguments of the call for inference.

  Returns:
    The model. `wrap` returns the trained variables in a new module, in the mode
    and with the random streams of the one that was given.

  Raises:
    UserError: `rngs` is given, or a name of an axis is not mapped; or, when the
      model runs, the module changes its variables or draws random numbers at
      inference.
  """
  kwargs, in_training, streams = calls.arguments('from_nnx', training, kwargs)
  first = adapters.first(model)
  models = model if isinstance(model, list) else [model]
  _check_modules(models)
  active = tuple(_training_layers(first))
  trains = in_training is not None or bool(active)
  kinds = _kept_kinds(trains, isinstance(model, list))
  if not trains:
    others = (nnx.Not(nnx.Any(nnx.Param, nnx.RngState)),)
    adapters.require_equal_constants(
      [_variables(each, *others) for each in models]
    )
  rebuild = functools.partial(_rebuilt, *_split(first))
  graph = _eval_graph(first) if active else None
  axes = 2 if batched else 1
  run = functools.partial(_run, calls.chosen(call), output, axes)

  def at_inference(tags: bool, params: types.Params, x: types.Input) -> Any:
    module = rebuild(params, graph)
    before = _variables(module)
    out, found = run(module, x, kwargs, tags)
    plain = lambda params, x: run(rebuild(params, graph), x, kwargs, False)
    draws = lambda: modes.draws_constants(plain, params, x)
    _require_inference(module, before, draws)
    return out, found

  def in_training_mode(
    tags: bool, params: types.Params, x: types.Input, key: jax.Array
  ) -> Any:
    module = rebuild(params)
    own, other = jax.random.split(key)
    _reseed(module, own)
    given = dict(in_training if in_training is not None else kwargs)
    if streams:
      keys = jax.random.split(other, len(streams))
      given['rngs'] = nnx.Rngs(**dict(zip(streams, keys, strict=True)))
    out, found = run(module, x, given, tags)
    return out, found, _tree(module, MUTABLE)

  captured = functools.partial(_captured, type(first).__name__, axes)
  params = [_tree(each, *kinds) for each in models]
  names = axis_names.of_module(first)
  found = adapters.ModelAdapter(
    lambda params, x: captured(at_inference, params, x),
    params if isinstance(model, list) else params[0],
    rebuild,
    abilities=base.declare(
      first, axis_names.rules(names, mesh_axes, partition_rules)
    ),
    name=type(first).__name__,
    dropout_layers=tuple(_dropout_layers(first)),
    statistics=() if trains else tuple(_statistics(first)),
    training=(
      (lambda params, x, key: captured(in_training_mode, params, x, key))
      if trains
      else None
    ),
    kinds=dict(_kinds(first, *kinds)),
  )
  return found if batched else adapters.per_example(found)


def _kept_kinds(trains: bool, several: bool) -> tuple[Any, ...]:
  """Kinds of variables that an adapter keeps in its parameters."""
  if trains:
    return (nnx.Not(nnx.Intermediate),)
  # Each of several keeps random streams of its own.
  return (nnx.Param, nnx.RngState) if several else (nnx.Param,)


def _captured(title: str, axes: int, fun: Any, *args: Any) -> Any:
  """Runs a function with and without tags; the activations come second."""
  tags, plain = (functools.partial(fun, tags) for tags in (True, False))
  found = captures.captured(tags, plain, title, *args, axes=axes)
  (out, sown, *rest), activations = found
  return out, {**activations, **sown}, *rest


def _check_modules(models: list[Any]) -> None:
  """Raises UserError for what are no modules, or modules in other modes."""
  for i, model in enumerate(models):
    errors.require(
      isinstance(model, nnx.Module),
      f'from_nnx: a {type(model).__name__} is no nnx.Module. Give a module, or '
      'a list of modules.',
    )
    errors.require(
      tuple(_training_layers(model)) == tuple(_training_layers(models[0])),
      f'Student {i} is not in the mode of the first: call train() or eval() of '
      'all of them.',
    )


def _split(module: nnx.Module) -> tuple[Any, Any]:
  """Graph and state of a module."""
  graph, state = nnx.split(module)
  return graph, state


def _eval_graph(module: nnx.Module) -> Any:
  """The graph of a module after `eval()`."""
  copy = nnx.clone(module)
  copy.eval()
  return nnx.split(copy)[0]


def _rebuilt(
  graph: Any, state: Any, params: types.Params, other: Any = None
) -> nnx.Module:
  """A new module with other values of some variables.

  Args:
    graph: of the module that was given.
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


def _tree(module: nnx.Module, *kinds: Any) -> Any:
  """Variables of a module as nested dicts; PRNG keys as their data."""
  state = nnx.to_pure_dict(nnx.state(module, nnx.Any(*kinds)))
  data = lambda leaf: (
    jax.random.key_data(leaf) if adapters.is_key(leaf) else leaf
  )
  return jax.tree.map(data, state)


def _kinds(module: nnx.Module, *kinds: Any) -> Iterator[tuple[str, type[Any]]]:
  """Yields the paths of the variables of `_tree`, and their types."""
  for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Any(*kinds))):
    yield '/'.join(map(str, path)), type(variable)


def _reseed(module: nnx.Module, key: jax.Array) -> None:
  """Gives every random stream of a module a key of its own."""
  state = nnx.state(module, nnx.RngKey)
  new = {}
  for i, (path, variable) in enumerate(sorted(nnx.to_flat_state(state))):
    shape = variable.get_value().shape
    keys = jax.random.split(jax.random.fold_in(key, i), math.prod(shape))
    new[path] = variable.replace(keys.reshape(shape))
  nnx.update(module, nnx.from_flat_state(new))


def _run(
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
  with nnx_tags.tagging(module) if tags else contextlib.nullcontext():
    out, found = run(module, x)
  array = calls.to_array(output(out), type(module).__name__)
  return array, calls.activations(nnx.to_pure_dict(found), axes)


def _require_inference(
  module: nnx.Module, before: Mapping[str, Any], draws: Callable[[], bool]
) -> None:
  """Raises UserError if a module has changed its variables since `before`.

  It may take keys that it draws nothing from, as recurrent layers do for the
  zeros that they begin with.
  """
  after = _variables(module)
  changed = [path for path in after if after[path] is not before.get(path)]
  counts = _variables(module, nnx.RngCount).keys()
  if changed and counts >= set(changed) and not draws():
    return
  constant = _variables(module, nnx.Param, nnx.RngKey)
  if not constant.keys().isdisjoint(changed):
    # nnx.jit and nnx.remat assign all variables, changed or not.
    training = tuple(_training_layers(module))
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


def _training_layers(module: nnx.Module) -> Iterator[str]:
  """Yields the paths of layers with dropout or batch norm in training mode."""
  for path, node in nnx.iter_graph(module):
    rate = getattr(node, 'rate', getattr(node, 'dropout_rate', 1.0))
    active = getattr(node, 'deterministic', None) is False and rate > 0
    if active or getattr(node, 'use_running_average', None) is False:
      yield ''.join(f'{key}/' for key in path)


def _dropout_layers(module: nnx.Module) -> Iterator[str]:
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


def _statistics(module: nnx.Module) -> Iterator[str]:
  """Yields the paths of layers that keep statistics of the batches."""
  paths = _variables(module, nnx.BatchStat)
  yield from dict.fromkeys(path.rpartition('/')[0] or path for path in paths)


def _variables(module: nnx.Module, *kinds: Any) -> dict[str, Any]:
  """Values of the variables of a module, by path; of all kinds by default."""
  kinds = kinds or (nnx.Not(nnx.Intermediate),)
  state = nnx.to_pure_dict(nnx.state(module, nnx.Any(*kinds)))
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree.leaves_with_path(state)
  }
