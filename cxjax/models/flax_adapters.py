"""Adapters of flax modules, linen and nnx.

A model of flax becomes a `ModelAdapter`, which returns every activation beside
the output.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

from flax import errors as flax_errors
from flax import linen as nn
from flax import nnx
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from cxjax import errors
from cxjax import types
from cxjax.models import adapters
from cxjax.models import base


def from_linen(
  module: nn.Module,
  variables: Any,
  *,
  output: Callable[[Any], jax.Array] = lambda output: output,
  partition_rules: base.PartitionRules | None = None,
  **kwargs: Any,
) -> adapters.ModelAdapter:
  """Adapts a `flax.linen` module.

  The activations are what the submodules return, named by their paths:
  'Dense_0', 'encoder/layer_3/attention'; 'Dense_0#2' is the second call. If a
  submodule returns several arrays, 'lstm' is the first and 'lstm/1' the second.
  Values that the module sows as 'intermediates' are activations too. Only
  'params' are trained; other collections, such as 'batch_stats', stay constant.

  Args:
    module: the module.
    variables: the result of `module.init`, or its 'params'; a list of them
      trains several students.
    output: selects the output from what the module returns.
    partition_rules: as for `from_fn`.
    **kwargs: arguments of `module.apply` for inference, as in `train=False`.

  Returns:
    The model. `wrap` returns the trained variables in the form of `variables`.

  Raises:
    UserError: `rngs` is given; or, when the model runs, the module changes its
      variables or draws random numbers.
  """
  errors.require(
    'rngs' not in kwargs,
    'from_linen: rngs would draw the same random numbers at every step. Leave '
    'rngs out and run the module at inference; from_fn takes any function.',
  )
  first = adapters.first(variables)
  collections = isinstance(first, Mapping) and 'params' in first
  constant = (
    {k: v for k, v in first.items() if k != 'params'} if collections else {}
  )
  declared: dict[str, Any] = {
    'abilities': adapters.declare(module, partition_rules),
    'name': type(module).__name__,
  }
  apply = _linen_apply(module, constant, output, kwargs)
  if not collections:
    return adapters.ModelAdapter(apply, variables, **declared)
  params = first['params']
  if isinstance(variables, list):
    _require_equal_constants(
      {k: v for k, v in each.items() if k != 'params'} for each in variables
    )
    params = [each['params'] for each in variables]
  wrap = lambda params: {**constant, 'params': params}
  return adapters.ModelAdapter(apply, params, wrap, **declared)


def _linen_apply(
  module: nn.Module,
  constant: Mapping[str, Any],
  output: Callable[[Any], jax.Array],
  kwargs: Mapping[str, Any],
) -> types.Apply:
  """`(params, x) -> (output, activations)` of a linen module."""

  def apply(params: types.Params, x: types.Input) -> Any:
    try:
      out, state = module.apply(
        {**constant, 'params': params},
        x,
        capture_intermediates=True,
        mutable=['intermediates'],
        **kwargs,
      )
    except (
      flax_errors.ModifyScopeVariableError,
      flax_errors.InvalidRngError,
    ) as error:
      raise errors.UserError(
        f'{type(module).__name__} is not at inference '
        f'({adapters.reason(error)}). Give its arguments for inference, as in '
        'from_linen(module, variables, train=False).'
      ) from error
    return _require_array(output(out)), _activations(
      state.get('intermediates', {})
    )

  return apply


def _require_equal_constants(constants: Iterable[Any]) -> None:
  """Raises UserError if students differ in variables that are not trained."""
  first, *others = (jax.tree.leaves(constant) for constant in constants)
  for i, other in enumerate(others, 1):
    errors.require(
      all(map(np.array_equal, first, other)),
      f'Student {i} differs from the first in variables that are not trained, '
      'such as batch_stats; the students of a list share them. Train them one '
      'by one.',
    )


def from_nnx(
  model: nnx.Module | list[nnx.Module],
  *,
  output: Callable[[Any], jax.Array] = lambda output: output,
  partition_rules: base.PartitionRules | None = None,
  **kwargs: Any,
) -> adapters.ModelAdapter:
  """Adapts a `flax.nnx` module; the module itself is not changed.

  The activations are what the methods of the module and of its submodules
  return, named by their paths: 'layers/0', 'encoder/attention', and
  'encoder/features()' for a method other than `__call__`. Values that the
  module sows as `nnx.Intermediate` are activations too. Only `nnx.Param` is
  trained. Call `model.eval()` first.

  Args:
    model: the module; a list of modules trains several students.
    output: selects the output from what the module returns.
    partition_rules: as for `from_fn`.
    **kwargs: arguments of the call, for inference.

  Returns:
    The model. `wrap` returns the trained parameters in a new module.

  Raises:
    UserError: when the model runs, the module changes its variables or draws
      random numbers.
  """
  first = adapters.first(model)
  models = model if isinstance(model, list) else [model]
  kinds = (nnx.Param, nnx.RngState, ...)
  parts: list[Any] = [nnx.split(each, *kinds) for each in models]
  graph, state, *rest = parts[0]
  _require_equal_constants(part[-1] for part in parts)

  def merge(params: types.Params) -> nnx.Module:
    full = jax.tree.map(lambda leaf: leaf, state)
    nnx.replace_by_pure_dict(full, params)
    return nnx.merge(graph, full, *rest, copy=True)

  def apply(params: types.Params, x: types.Input) -> Any:
    module = merge(params)
    before = _nnx_variables(module)
    run = nnx.capture(module, nnx.Intermediate, method_outputs=nnx.Intermediate)
    out, found = run(x, **kwargs)
    _require_inference(module, before)
    return _require_array(output(out)), _activations(nnx.to_pure_dict(found))

  params = [nnx.to_pure_dict(state) for _, state, *_ in parts]
  return adapters.ModelAdapter(
    apply,
    params if isinstance(model, list) else params[0],
    merge,
    abilities=adapters.declare(first, partition_rules),
    name=type(first).__name__,
    dropout_layers=_nnx_dropout_layers(first),
  )


def _require_inference(module: nnx.Module, before: Mapping[str, Any]) -> None:
  """Raises UserError if a module has changed its variables since `before`."""
  after = _nnx_variables(module)
  changed = [path for path in after if after[path] is not before.get(path)]
  constant = _nnx_variables(module, nnx.Param, nnx.RngKey)
  if not constant.keys().isdisjoint(changed):
    # nnx.jit and nnx.remat assign all variables, changed or not.
    training = tuple(_nnx_training(module))
    changed = [
      path
      for path in changed
      if path not in constant and path.startswith(training)
    ]
  errors.require(
    not changed,
    f'{type(module).__name__} is not at inference: it changes '
    f'{", ".join(changed[:3])}. Call model.eval() before from_nnx, or give its '
    'arguments for inference, as in from_nnx(model, train=False).',
  )


def _nnx_training(module: nnx.Module) -> Iterator[str]:
  """Yields the paths of layers with dropout or batch norm in training mode."""
  for path, node in nnx.iter_graph(module):
    rate = getattr(node, 'rate', getattr(node, 'dropout_rate', 1.0))
    active = getattr(node, 'deterministic', None) is False and rate > 0
    if active or getattr(node, 'use_running_average', None) is False:
      yield ''.join(f'{key}/' for key in path)


def _require_array(output: Any) -> jax.Array:
  """Returns the output of a model; raises UserError if it is no array."""
  errors.require(
    isinstance(output, jax.Array),
    f'The model returns a {type(output).__name__}, not an array. Select the '
    'array that is its output, as in output=lambda out: out[0].',
  )
  return output


def _nnx_dropout_layers(module: nnx.Module) -> tuple[str, ...]:
  """Dropout layers of a module with a positive rate.

  A layer that acts draws random numbers, which `from_nnx` refuses, so that in a
  model that runs none of them acts.
  """
  found = []
  for path, node in nnx.iter_graph(module):
    rate = 0.0
    if isinstance(node, nnx.Dropout):
      rate = node.rate
    elif isinstance(node, nnx.MultiHeadAttention):
      rate = node.dropout_rate
    if rate > 0:
      name = '/'.join(map(str, path)) or type(node).__name__
      found.append(adapters.with_rate(name, rate))
  return tuple(found)


def _nnx_variables(module: nnx.Module, *kinds: Any) -> dict[str, Any]:
  """Values of the variables of a module, by path; of all kinds by default."""
  kinds = kinds or (nnx.Not(nnx.Intermediate),)
  state = nnx.to_pure_dict(nnx.state(module, nnx.Any(*kinds)))
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree.leaves_with_path(state)
  }


def _activations(intermediates: Mapping[Any, Any]) -> dict[str, jax.Array]:
  """Captured values by path, without the output of the whole model.

  Args:
    intermediates: nested dict of flax; its leaves are tuples, one entry per
      call, or single values.

  Returns:
    The floating-point arrays with at least two axes.
  """
  found = {}
  for path, values in traverse_util.flatten_dict(intermediates).items():
    *parents, last = map(str, path)
    if last == '__call__' and not parents:
      continue
    if last != '__call__':
      method = last.isidentifier() and not isinstance(values, tuple)
      parents.append(f'{last}()' if method else last)
    values = values if isinstance(values, tuple) else (values,)
    for call, value in enumerate(values, 1):
      name = '/'.join(parents) + (f'#{call}' if call > 1 else '')
      for suffix, leaf in _leaves(value):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.ndim > 1:
          found[name + suffix] = leaf
  return found


def _leaves(value: Any) -> Iterator[tuple[str, jax.Array]]:
  """Yields the arrays of a returned tree with the suffixes of their names."""
  for path, leaf in jax.tree.leaves_with_path(value):
    suffix = jax.tree_util.keystr(path, simple=True, separator='/')
    yield (f'/{suffix}' if suffix.strip('0/') else ''), leaf
