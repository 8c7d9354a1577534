"""Adapter of equinox modules, which become a `ModelAdapter`."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import functools
import inspect
import re
from typing import Any

from flax import traverse_util
import jax

from cxjax import arguments
from cxjax import errors
from cxjax import types
from cxjax.models import adapters
from cxjax.models import base
from cxjax.models import calls
from cxjax.models import captures
from cxjax.models import modes
from cxjax.models import optional
from cxjax.parallel import partition

# Of a State, beside the parameters.
STATE = 'state'


def from_equinox(
  module: Any,
  *,
  state: Any = None,
  output: Callable[[Any], Any] = lambda output: output,
  partition_rules: base.PartitionRules | None = None,
  call: calls.Call | None = None,
  training: Mapping[str, Any] | bool | None = None,
  batched: bool = False,
  **kwargs: Any,
) -> adapters.ModelAdapter:
  """Adapts an equinox module, of one example as they usually are.

  The activations are what its modules return, named by their paths:
  'layers/0', 'encoder/attention'. The parameters are its arrays, in nested
  dicts; all other fields stay as they are.

  A student that is given in training mode, as a new module with dropout or
  batch norm is, or with `training`, trains in that mode: it gets a new `key` at
  every step, one for each example, and its `state` is updated at every step,
  saved and returned. Evaluation runs it after `inference_mode`. A module that
  is given after `inference_mode` trains at inference. A teacher always runs at
  inference.

  Args:
    module: the module; a list of modules trains several students.
    state: its `equinox.nn.State`, if it has one, or a list of them.
    output: selects the output from what the module returns, without its state;
      by default all of it, its 'logits', or the only array of a tuple.
    partition_rules: sharding of the parameters, as for `from_fn`.
    call: `(module, x, **kwargs) -> output`, in place of calling the module on
      `x`; it gets `key` and `state` if it has arguments of these names, and
      then returns `(output, state)`. Without it a tuple is spread over the
      arguments of a module of several, and a dict over those of its names.
    training: arguments of the call in training mode, beside `kwargs`.
    batched: whether the module takes a batch. By default it takes one example,
      and is mapped over the batch.
    **kwargs: arguments of the call for inference.

  Returns:
    The model. `wrap` returns the trained module in the mode of the one that was
    given, or `(module, state)`.

  Raises:
    UserError: equinox is not installed, `module` is no module, or its state is
      missing.
  """
  eqx = optional.imported('equinox', 'equinox', 'from_equinox')
  kwargs, in_training, _ = calls.arguments('from_equinox', training, kwargs)
  first = adapters.first(module)
  modules = module if isinstance(module, list) else [module]
  states = state if isinstance(state, list) else [state] * len(modules)
  for each in modules:
    _check_module(eqx, each, state)
  errors.require(
    len(states) == len(modules),
    f'from_equinox: {len(modules)} modules have {len(states)} states. Give a '
    'state for each.',
  )
  for each in states:
    errors.require(
      each is None or isinstance(each, eqx.nn.State),
      f'from_equinox: the state is a {type(each).__name__}. Give that of '
      'equinox.nn.make_with_state.',
    )
  run = _Run(eqx, first, states[0], output, call)
  active = run.trains or in_training is not None
  params = [run.params(*each) for each in zip(modules, states, strict=True)]
  if not active:
    adapters.require_equal_constants([each.pop(STATE, {}) for each in params])
  given = in_training if in_training is not None else kwargs
  axes = 2 if arguments.flag('batched', batched) else 1

  def train(params: types.Params, x: types.Input, key: jax.Array) -> Any:
    out, found, new = run(params, x, given, axes, key)
    return out, found, {STATE: new} if new else {}

  model = adapters.ModelAdapter(
    lambda params, x: run(params, x, kwargs, axes)[:2],
    params if isinstance(module, list) else params[0],
    run.wrap,
    abilities=base.declare(first, partition_rules),
    name=type(first).__name__,
    dropout_layers=() if active else tuple(run.dropout()),
    statistics=() if active else tuple(params[0].get(STATE, run.statistics)),
    training=train if active else None,
  )
  return model if batched else adapters.per_example(model, run.axis_name)


def _check_module(eqx: Any, module: Any, state: Any) -> None:
  """Raises UserError for what is no module, or one without its state."""
  errors.require(
    isinstance(module, eqx.Module) and callable(module),
    f'from_equinox: a {type(module).__name__} is no equinox.Module that can be '
    'called. Give a module, or a list of modules.',
  )
  indices = [
    name for name, node in _nodes(module) if isinstance(node, eqx.nn.StateIndex)
  ]
  errors.require(
    state is not None or not indices,
    f'{type(module).__name__} has a state, of {", ".join(indices[:3])}. Give '
    'it as from_equinox(module, state=state), where module, state = '
    'equinox.nn.make_with_state(Class)(...).',
  )
  names = [name for name, _ in _arrays(eqx, module)]
  errors.require(
    len(set(names)) == len(names)
    and not (state is not None and STATE in dir(module)),
    f'{type(module).__name__} has two arrays of one name, or a field '
    f'{STATE!r} beside its state. Rename one of them.',
  )


def _children(node: Any) -> tuple[list[tuple[Any, Any]], Any]:
  """The children of a node of a tree with their keys, and its structure."""
  return jax.tree.flatten_with_path(node, is_leaf=lambda each: each is not node)


def _nodes(node: Any, name: str = '') -> Iterator[tuple[str, Any]]:
  """Yields all nodes of a tree with their paths, the outer ones first."""
  yield name, node
  for path, child in _children(node)[0]:
    if path:
      key = partition.leaf_name(path)
      yield from _nodes(child, f'{name}/{key}' if name else key)


def _arrays(eqx: Any, tree: Any) -> Iterator[tuple[str, Any]]:
  """Yields the arrays of a tree that are no PRNG keys, with their paths."""
  for path, leaf in jax.tree.leaves_with_path(tree):
    array = eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)
    if array and not adapters.is_key(leaf):
      yield partition.leaf_name(path), leaf


def _skip(eqx: Any, node: Any) -> bool:
  """True for a state, and for a module that another one returns."""
  module = isinstance(node, eqx.Module) and callable(node)
  return module or isinstance(node, eqx.nn.State)


@functools.cache
def _named_class(eqx: Any, kind: Any) -> Any:
  """A subclass of a module that tags what it returns; None if there is none.

  It has the path as a static field, which stays where equinox takes a module
  apart and puts it together again, as in its `filter_jit`.
  """

  def tagged(self: Any, *args: Any, **kwargs: Any) -> Any:
    out = kind.__call__(self, *args, **kwargs)
    return captures.tagged(self.cxjax_name, out, functools.partial(_skip, eqx))

  fields = {
    '__module__': kind.__module__,
    '__annotations__': {'cxjax_name': str},
    'cxjax_name': eqx.field(static=True, default=''),
    '__call__': tagged,
  }
  try:
    return type(kind)(kind.__name__, (kind,), fields)
  except Exception:  # A class that does not want to be inherited from.
    return None


def _named(eqx: Any, node: Any, name: str = '') -> Any:
  """The module with submodules that tag what they return."""
  children, structure = _children(node)
  if any(not path for path, _ in children):
    return node  # A leaf.
  parts = [
    _named(eqx, child, f'{name}/{key}' if name else key)
    for path, child in children
    for key in [partition.leaf_name(path)]
  ]
  node = jax.tree.unflatten(structure, parts)
  if not name or not isinstance(node, eqx.Module) or not callable(node):
    return node
  original: Any = type(node)
  kind = _named_class(eqx, original)
  if kind is None:
    return node
  new = object.__new__(kind)
  for field in dataclasses.fields(node):
    if hasattr(node, field.name):
      object.__setattr__(new, field.name, getattr(node, field.name))
  object.__setattr__(new, 'cxjax_name', name)
  return new


class _Run:
  """Runs an equinox module with all of its activations.

  Attributes:
    trains: whether the module is in training mode.
    statistics: values of its state by name.
    axis_name: name of the axis of the batch.
  """

  def __init__(
    self,
    eqx: Any,
    module: Any,
    state: Any,
    output: Callable[[Any], Any],
    call: calls.Call | None,
  ) -> None:
    self._eqx, self._module, self._state = eqx, module, state
    self._eval = eqx.nn.inference_mode(module)
    self._output, self._title = output, type(module).__name__
    self._call = calls.chosen(call)
    self._own = call is not None
    nodes = [node for _, node in _nodes(module)]
    self.trains = any(
      getattr(node, 'inference', None) is False and getattr(node, 'p', 1) > 0
      for node in nodes
    )
    names = {
      node.axis_name for node in nodes if isinstance(node, eqx.nn.BatchNorm)
    }
    errors.require(
      len(names) < 2,
      f'{self._title} has batch norms of the axes {sorted(map(str, names))}; '
      'they must share one axis_name.',
    )
    self.axis_name = next(iter(names), 'batch')
    self.statistics = self._state_dict(state)

  def _state_dict(self, state: Any) -> dict[str, Any]:
    """Values of a state by the path of their module."""
    if state is None:
      return {}
    values, markers = state.tree_flatten()
    found = {}
    for i, (value, marker) in enumerate(zip(values, markers, strict=True)):
      parts = re.findall(r'\w+', marker)[1:] if isinstance(marker, str) else []
      name = '/'.join(parts) or str(i)
      for path, leaf in jax.tree.leaves_with_path(value):
        part = partition.leaf_name(path)
        found[f'{name}/{part}' if part else name] = leaf
    return found

  def params(self, module: Any, state: Any) -> dict[str, Any]:
    """Arrays of a module in nested dicts, and those of its state."""
    flat = dict(_arrays(self._eqx, module))
    params = traverse_util.unflatten_dict(flat, sep='/')
    known = self._state_dict(state)
    return {**params, STATE: known} if known else params

  def _joined(self, module: Any, params: types.Params) -> tuple[Any, Any]:
    """A module and a state with other arrays."""
    params = dict(params)
    known = params.pop(STATE, None) if self._state is not None else None
    flat = traverse_util.flatten_dict(params, sep='/')
    module = jax.tree.map_with_path(
      lambda path, leaf: flat.get(partition.leaf_name(path), leaf), module
    )
    if self._state is None:
      return module, None
    values = [(known or self.statistics)[name] for name in self.statistics]
    return module, jax.tree.unflatten(jax.tree.structure(self._state), values)

  def wrap(self, params: types.Params) -> Any:
    """The module with other parameters, with its state if it has one."""
    module, state = self._joined(self._module, params)
    return module if state is None else (module, state)

  def dropout(self) -> Iterator[str]:
    """Yields the dropout layers with their positive rates."""
    for name, node in _nodes(self._module):
      if isinstance(node, self._eqx.nn.Dropout) and node.p > 0:
        yield modes.with_rate(name or type(node).__name__, node.p)

  def __call__(
    self,
    params: types.Params,
    x: types.Input,
    kwargs: Mapping[str, Any],
    axes: int,
    key: jax.Array | None = None,
  ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    """Output, activations and the new state; in training mode with a key."""
    base_module = self._eval if key is None else self._module

    def run(
      named: bool, params: types.Params, x: types.Input, *key: Any
    ) -> Any:
      module, state = self._joined(base_module, params)
      if named:
        module = _named(self._eqx, module)
      given = {**kwargs, **self._arguments(module, state, *key)}
      out = self._call(self._signed(module), x, **given)
      if state is not None:
        out, state = self._split(out)
      return calls.to_array(self._output(out), self._title), self._state_dict(
        state
      )

    (out, state), found = captures.captured(
      functools.partial(run, True),
      functools.partial(run, False),
      self._title,
      params,
      x,
      *([] if key is None else [key]),
      axes=axes,
    )
    return out, found, state

  def _signed(self, module: Any) -> Any:
    """The module; as a function with its signature for the usual call."""
    if self._own:
      return module
    method = inspect.unwrap(type(module).__call__)
    return functools.partial(
      functools.wraps(method)(lambda self, *a, **k: self(*a, **k)), module
    )

  def _arguments(self, module: Any, state: Any, *key: Any) -> dict[str, Any]:
    """The key and the state, if the call has arguments of these names."""
    target = self._call if self._own else self._signed(module)
    found = calls.signature(target)
    known = found.parameters if found is not None else {}
    given: dict[str, Any] = {}
    if 'key' in known and (key or known['key'].default is known['key'].empty):
      given['key'] = key[0] if key else jax.random.key(0)
    if state is not None:
      errors.require(
        STATE in known,
        f'{self._title} has a state, and its call has no argument of that '
        'name. Give call=lambda module, x, state, key=None: module(...), which '
        'returns (output, state).',
      )
      given[STATE] = state
    return given

  def _split(self, out: Any) -> tuple[Any, Any]:
    """Output and state of a call."""
    errors.require(
      isinstance(out, tuple)
      and len(out) == 2
      and isinstance(out[1], self._eqx.nn.State),
      f'{self._title} has a state; its call must return (output, state).',
    )
    return out
