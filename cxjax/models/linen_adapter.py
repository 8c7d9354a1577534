"""Adapter of linen modules, which become a `ModelAdapter`."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import functools
from typing import Any

from flax import errors as flax_errors
from flax import linen as nn
import jax

from cxjax import arguments
from cxjax import errors
from cxjax import types
from cxjax.methods import training_mode
from cxjax.models import adapters
from cxjax.models import axis_names
from cxjax.models import base
from cxjax.models import calls
from cxjax.models import modes
from cxjax.models import whole
from cxjax.parallel import reception

CAPTURED = 'intermediates'
# Collections that hold statistics of the batches by convention.
STATISTICS = 'batch_stats'
# Streams that a module in training mode gets. linen draws from that of the
# parameters what it has no other stream for.
STREAMS = ('params', 'dropout')


def from_linen(
  module: nn.Module,
  variables: Any,
  *,
  output: Callable[[Any], Any] = lambda output: output,
  partition_rules: base.PartitionRules | None = None,
  call: calls.Call | None = None,
  training: Mapping[str, Any] | bool | None = None,
  batched: bool = True,
  mesh_axes: axis_names.MeshAxes | None = None,
  **kwargs: Any,
) -> adapters.ModelAdapter:
  """Adapts a `flax.linen` module.

  The activations are what the submodules return, named by their paths:
  'Dense_0', 'encoder/layer_3/attention'; 'Dense_0#2' is the second call. If a
  submodule returns several arrays, 'lstm' is the first and 'lstm/1' the second.
  Values that the module sows as 'intermediates' are activations too. Only
  'params' are trained; other collections, such as 'batch_stats', stay constant
  without `training`.

  With `training` a student trains in training mode: dropout draws from new keys
  at every step, and the other collections are updated at every step, saved and
  returned, whatever `trainable` says. Evaluation runs it at inference, with the
  statistics that it then has. Statistics are those of the whole batch, on any
  number of devices, or of each microbatch in turn; examples and tokens of
  weight 0 count in them. A teacher always runs at inference.

  Args:
    module: the module.
    variables: the result of `module.init`, or its 'params'; a list of them
      trains several students.
    output: selects the output from what the module returns; by default all
      of it, its 'logits', or the only array of a tuple.
    partition_rules: sharding of the parameters, as for `from_fn`.
    call: `(module, x, **kwargs) -> output`, in place of calling the module on
      `x`. Without it a tuple is spread over the arguments of a module of
      several, and a dict over those of its names.
    training: arguments of the call in training mode, beside `kwargs`, as in
      `{'train': True}`; `{}` if there are none. The module gets the random
      streams 'params' and 'dropout'; its entry `'rngs'` names others.
    batched: whether the module takes a batch; else it takes one example, and is
      mapped over the batch.
    mesh_axes: how the names of `nn.with_partitioning` are sharded, as `{'tp':
      'model', 'embed': None}`: over the 'model' axis of the mesh, or not.
      Without it they are ignored.
    **kwargs: arguments of the call for inference, as in `train=False`, or the
      `method` to call.

  Returns:
    The model. `wrap` returns the trained variables in the form of `variables`.

  Raises:
    UserError: it is no module of linen, `rngs` is given, or a name of an axis
      is not mapped; or, when the model runs, the module changes its variables
      or draws random numbers at inference.
  """
  errors.require(
    callable(getattr(module, 'apply', None)),
    f'from_linen: {type(module).__name__} is no module of flax.linen, it has '
    'no apply. For one of flax.nnx take cxjax.from_nnx(module).',
  )
  if 'method' in kwargs:
    call = _method(kwargs.pop('method'))
  kwargs, in_training, streams = calls.arguments('from_linen', training, kwargs)
  errors.require(
    not isinstance(variables, Iterator),
    'variables must be those of the module, not an iterator.',
  )
  boxed = adapters.first(variables)
  variables = axis_names.unboxed(variables)
  first = adapters.first(variables)
  collections = isinstance(first, Mapping) and 'params' in first
  names = axis_names.of_boxes(boxed['params'] if collections else boxed)
  rules = axis_names.rules(names, mesh_axes, partition_rules)
  sets = variables if isinstance(variables, list) else [variables]
  if collections:
    split = [_split(each) for each in sets]
  else:
    split = [(each, {}) for each in sets]
  axes = 2 if arguments.flag('batched', batched) else 1
  run = _Run(module, output, calls.chosen(call), axes)
  constant = reception.portable(split[0][1])
  declared: dict[str, Any] = {
    'abilities': base.declare(module, rules),
    'name': type(module).__name__,
  }
  form = functools.partial(axis_names.reboxed, boxed)
  batch = (lambda model: model) if batched else adapters.per_example
  if in_training is not None:
    trees = [_joined(*each) for each in split]
    model = adapters.ModelAdapter(
      lambda params, x: run.at_inference(*_unjoin(params, constant), x, kwargs),
      trees if isinstance(variables, list) else trees[0],
      lambda params: form(_variables(params, constant, collections)),
      training=lambda params, x, key: run.in_training(
        *_unjoin(params, constant), x, in_training, _keys(key, streams)
      ),
      **declared,
    )
    return batch(model)
  adapters.require_equal_constants([constant for _, constant in split])
  params = [params for params, _ in split]
  model = adapters.ModelAdapter(
    lambda params, x: run.at_inference(params, constant, x, kwargs),
    params if isinstance(variables, list) else params[0],
    lambda params: form(
      {**constant, 'params': params} if collections else params
    ),
    statistics=(STATISTICS,) if constant.get(STATISTICS) else (),
    **declared,
  )
  return batch(model)


def _method(method: Any) -> calls.Call:
  """The call of another method of a module, by its name or as a function."""
  if isinstance(method, str):
    return lambda module, x, **kwargs: getattr(module, method)(x, **kwargs)
  return method


def _split(variables: Any) -> tuple[Any, dict[str, Any]]:
  """The parameters of variables, and the other collections."""
  errors.require(
    isinstance(variables, Mapping) and 'params' in variables,
    "The variables of every student must have 'params', as those of the first.",
  )
  rest = {k: v for k, v in variables.items() if k != 'params'}
  return variables['params'], rest


def _joined(params: Any, rest: Mapping[str, Any]) -> Any:
  """One tree of parameters and collections, from which a step updates both."""
  if not rest:
    return params
  both = sorted(set(params) & set(rest))
  errors.require(
    not both,
    f'The module has a submodule and a collection of the same name, '
    f'{", ".join(both)}. Rename one of them to train in training mode.',
  )
  return {**params, **rest}


def _unjoin(tree: Any, rest: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
  """Undoes `_joined`."""
  if not rest:
    return tree, {}
  params = {name: leaf for name, leaf in tree.items() if name not in rest}
  return params, {name: tree[name] for name in rest}


def _variables(tree: Any, rest: Mapping[str, Any], collections: bool) -> Any:
  """The variables in the form in which the user gave them."""
  params, rest = _unjoin(tree, rest)
  return {**rest, 'params': params} if collections else params


def _keys(key: jax.Array, streams: tuple[str, ...]) -> dict[str, jax.Array]:
  """A key for each random stream of a module."""
  names = (*STREAMS, *streams)
  return dict(zip(names, jax.random.split(key, len(names)), strict=True))


class _Run:
  """Runs a linen module with all of its activations."""

  def __init__(
    self,
    module: nn.Module,
    output: Callable[[Any], Any],
    call: calls.Call,
    axes: int,
  ) -> None:
    self._module, self._output, self._call = module, output, call
    self._axes = axes
    self._name = type(module).__name__

  def _apply(
    self,
    params: Any,
    rest: Mapping[str, Any],
    x: types.Input,
    kwargs: Mapping[str, Any],
    mutable: tuple[str, ...],
    rngs: dict[str, jax.Array] | None,
  ) -> tuple[jax.Array, dict[str, jax.Array], Mapping[str, Any]]:
    """Output, activations and the collections that may change."""
    # Those of `module.init` would be taken for those of this call.
    kept = (CAPTURED, *whole.collections())
    rest = {name: leaf for name, leaf in rest.items() if name not in kept}
    out, state = self._module.apply(
      {**rest, 'params': params},
      x,
      capture_intermediates=True,
      mutable=[*mutable, *kept],
      rngs=rngs,
      method=self._call,
      **kwargs,
    )
    found = calls.activations(state.get(CAPTURED, {}), self._axes)
    found |= whole.sown(state)
    return calls.to_array(self._output(out), self._name), found, state

  def at_inference(
    self, params: Any, rest: Mapping[str, Any], x: types.Input, kwargs: Any
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Output and activations; raises UserError in training mode."""
    try:
      out, found, _ = self._apply(params, rest, x, kwargs, (), None)
    except (
      flax_errors.ModifyScopeVariableError,
      flax_errors.InvalidRngError,
    ) as error:
      raise errors.UserError(
        f'{self._name} is not at inference '
        f'({modes.reason(error)}). Give its arguments for inference, as in '
        'from_linen(module, variables, train=False), and those for training as '
        "training={'train': True}."
      ) from error
    return out, found

  def in_training(
    self,
    params: Any,
    rest: Mapping[str, Any],
    x: types.Input,
    kwargs: Any,
    rngs: dict[str, jax.Array],
  ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    """Output, activations and the new values of `rest`."""
    mutable = tuple(name for name in rest if name != CAPTURED)
    out, found, state = self._apply(params, rest, x, kwargs, mutable, rngs)
    # What the call sows or creates anew has no place in the variables.
    known = {name: rest[name] for name in mutable}
    new = {name: state.get(name, rest[name]) for name in mutable}
    return out, found, training_mode.overlay(known, training_mode.by_name(new))
