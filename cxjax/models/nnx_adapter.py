"""Adapter of nnx modules, which become a `ModelAdapter`."""

from collections.abc import Callable
from collections.abc import Mapping
import functools
from typing import TYPE_CHECKING
from typing import Any

import jax

from cxjax import arguments
from cxjax import types
from cxjax.models import adapters
from cxjax.models import axis_names
from cxjax.models import base
from cxjax.models import calls
from cxjax.models import captures
from cxjax.models import modes

if TYPE_CHECKING:
  from flax import nnx


def from_nnx(
  model: 'nnx.Module | list[nnx.Module]',
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
    output: selects the output from what the module returns; by default all
      of it, its 'logits', or the only array of a tuple.
    partition_rules: sharding of the parameters, as for `from_fn`.
    call: `(module, x, **kwargs) -> output`, in place of calling the module on
      `x`. Without it a tuple is spread over the arguments of a module of
      several, and a dict over those of its names.
    training: arguments of the call in training mode, beside `kwargs`, as in
      `{'deterministic': False}`. Its entry `'rngs'` names the random streams of
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
  # Imported here, as nnx is slow to import.
  from cxjax.models import nnx_modules

  kwargs, in_training, streams = calls.arguments('from_nnx', training, kwargs)
  first = adapters.first(model)
  models = model if isinstance(model, list) else [model]
  nnx_modules.check_modules(models)
  active = tuple(nnx_modules.training_layers(first))
  trains = in_training is not None or bool(active)
  kinds = nnx_modules.kept_kinds(trains, isinstance(model, list))
  if not trains:
    adapters.require_equal_constants(
      [nnx_modules.variables(each, nnx_modules.CONSTANT) for each in models]
    )
  rebuild = functools.partial(nnx_modules.rebuilt, *nnx_modules.split(first))
  graph = nnx_modules.eval_graph(first) if active else None
  axes = 2 if arguments.flag('batched', batched) else 1
  run = functools.partial(nnx_modules.run, calls.chosen(call), output, axes)

  def at_inference(tags: bool, params: types.Params, x: types.Input) -> Any:
    module = rebuild(params, graph)
    before = nnx_modules.variables(module)
    out, found = run(module, x, kwargs, tags)
    plain = lambda params, x: run(rebuild(params, graph), x, kwargs, False)
    draws = lambda: modes.draws_constants(plain, params, x)
    nnx_modules.require_inference(module, before, draws)
    return out, found

  def in_training_mode(
    tags: bool, params: types.Params, x: types.Input, key: jax.Array
  ) -> Any:
    module = rebuild(params)
    own, other = jax.random.split(key)
    nnx_modules.reseed(module, own)
    given = dict(in_training if in_training is not None else kwargs)
    if streams:
      given['rngs'] = nnx_modules.random_streams(streams, other)
    out, found = run(module, x, given, tags)
    return out, found, nnx_modules.tree(module, nnx_modules.MUTABLE)

  captured = functools.partial(_captured, type(first).__name__, axes)
  params = [nnx_modules.tree(each, *kinds) for each in models]
  names = axis_names.of_module(first)
  found = adapters.ModelAdapter(
    lambda params, x: captured(at_inference, params, x),
    params if isinstance(model, list) else params[0],
    rebuild,
    abilities=base.declare(
      first, axis_names.rules(names, mesh_axes, partition_rules)
    ),
    name=type(first).__name__,
    dropout_layers=tuple(nnx_modules.dropout_layers(first)),
    statistics=() if trains else tuple(nnx_modules.statistics(first)),
    training=(
      (lambda params, x, key: captured(in_training_mode, params, x, key))
      if trains
      else None
    ),
    kinds=dict(nnx_modules.kinds(first, *kinds)),
  )
  return found if batched else adapters.per_example(found)


def _captured(title: str, axes: int, fun: Any, *args: Any) -> Any:
  """Runs a function with and without tags; the activations come second."""
  tags, plain = (functools.partial(fun, tags) for tags in (True, False))
  found = captures.captured(tags, plain, title, *args, axes=axes)
  (out, sown, *rest), activations = found
  return out, {**activations, **sown}, *rest
