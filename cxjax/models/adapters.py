"""Models of any make as pure functions that return their activations."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
from typing import Any

from flax import errors as flax_errors
from flax import linen as nn
from flax import nnx
from flax import traverse_util
import jax
from jax.extend import core
from jax.interpreters import partial_eval
import jax.numpy as jnp
import numpy as np

from cxjax.methods import stage as stage_lib
from cxjax import errors
from cxjax.methods import train_step
from cxjax import tables

PRODUCTS = ('dot_general', 'conv_general_dilated')


@dataclasses.dataclass(frozen=True)
class ModelAdapter:
  """A model, whatever it was written in.

  Attributes:
    apply: `(params, x) -> (output, activations)`, pure; the activations are a
      dict of arrays, `[B, ..., D]`.
    params: a tree of arrays, or for several students at once a list of such.
    wrap: from a tree like `params` to what the user of the model works with.
  """

  apply: train_step.Apply
  params: train_step.Params
  wrap: Callable[[train_step.Params], Any] = lambda params: params

  @property
  def several(self) -> bool:
    """Whether there are several sets of parameters."""
    return isinstance(self.params, list)

  @property
  def one(self) -> train_step.Params:
    """The parameters, or the first of them."""
    return self.params[0] if self.several else self.params


def outputs(network: ModelAdapter, x: train_step.Input, role: str = 'model') -> Any:
  """Shapes of what a network returns for a batch.

  Args:
    network: of `from_linen`, `from_nnx` or `from_fn`.
    x: a batch, or its shapes.
    role: what it is to the caller, for the message.

  Returns:
    `(output, activations)`, as shapes.

  Raises:
    UserError: it is no network, it does not run on the batch, or it does not
      return those two.
  """
  errors.require(
    isinstance(network, ModelAdapter),
    f'The {role} is a {type(network).__name__}, not a network. Make it one: '
    'cxjax.from_linen(module, variables), from_nnx(module) or from_fn(apply, '
    'params).',
  )
  params, x = jax.eval_shape(lambda tree: tree, (network.params, x))
  sets = params if network.several else [params]
  tree: Any = jax.tree.structure(sets[0])
  alike = lambda tree: [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]
  for i, other in enumerate(sets[1:], 1):
    errors.require(
      tree == jax.tree.structure(other) and alike(other) == alike(sets[0]),
      f'The parameters of {role} {i} have other shapes or dtypes than those of '
      'the first: several at once must be alike. Train them one by one.',
    )
  try:
    found = jax.eval_shape(network.apply, sets[0], x)
  except errors.UserError:
    raise
  except Exception as error:  # Whatever a model of the user raises.
    shapes = ', '.join(
      f'{leaf.dtype}{list(leaf.shape)}' for leaf in jax.tree.leaves(x)
    )
    # A flax error ends with the address of its page.
    reason = str(error).partition('\n')[0].partition(' (http')[0].rstrip('.')
    raise errors.UserError(
      f'The {role} does not run on an x of {shapes}: {reason}. Give it the '
      'parameters of that model, and an x as it reads; several inputs are one '
      "dict, as {'x': {...}}."
    ) from error
  errors.require(
    isinstance(found, tuple)
    and len(found) == 2
    and isinstance(found[0], jax.ShapeDtypeStruct)
    and isinstance(found[1], Mapping),
    f'The {role} returns {jax.tree.structure(found)}; it must return '
    '(output, activations), an array and a dict of arrays.',
  )
  return found


def from_fn(apply: train_step.Apply, params: train_step.Params) -> ModelAdapter:
  """A pure function as a network.

  Args:
    apply: `(params, x) -> (output, activations)`: `[B, ..., C]`, and a dict of
      `[B, ..., D]`. The order of the keys does not matter.
    params: its parameters; of students, a list trains several at once.

  Returns:
    The network.
  """
  _first(params)
  return ModelAdapter(apply, params)


def _first(several: Any) -> Any:
  """The first of a list, or what is no list."""
  if not isinstance(several, list):
    return several
  errors.require(bool(several), 'There are no students: the list is empty.')
  return several[0]


def from_linen(
  module: nn.Module,
  variables: Any,
  *,
  output: Callable[[Any], jax.Array] = lambda output: output,
  **kwargs,
) -> ModelAdapter:
  """A `flax.linen` module as a network, as it is.

  What every submodule returns is an activation, by its path: 'Dense_0',
  'encoder/layer_3/attention'; at the second call 'Dense_0#2'; of several
  returned arrays 'lstm' is the first, 'lstm/1' the second. So is what the
  module sows as 'intermediates'. Only 'params' are trained: others, such as
  'batch_stats', stay as they are.

  Args:
    module: the module.
    variables: what `module.init` returns, or its 'params' alone; of students, a
      list trains several at once.
    output: takes the output from what the module returns.
    **kwargs: of `module.apply`: those of inference, as in `train=False`.

  Returns:
    The network. What is trained comes back in the form of `variables`.

  Raises:
    UserError: when it is used, if the module wants to change its variables or
      to draw random numbers.
  """
  first = _first(variables)
  whole = isinstance(first, Mapping) and 'params' in first
  rest = {k: v for k, v in first.items() if k != 'params'} if whole else {}

  def apply(params, x):
    try:
      out, state = module.apply(
        {**rest, 'params': params},
        x,
        capture_intermediates=True,
        mutable=['intermediates'],
        **kwargs,
      )
    except (
      flax_errors.ModifyScopeVariableError,
      flax_errors.InvalidRngError,
    ) as error:
      reason = str(error).split(' (http')[0].rstrip('.')
      raise errors.UserError(
        f'{type(module).__name__} is not at inference ({reason}). Give its '
        'arguments for that, as in from_linen(module, variables, train=False).'
      ) from error
    return _output(output(out)), _captured(state.get('intermediates', {}))

  if not whole:
    return ModelAdapter(apply, variables)
  if isinstance(variables, list):
    _require_alike(
      {k: v for k, v in each.items() if k != 'params'} for each in variables
    )
  params = first['params']
  if isinstance(variables, list):
    params = [each['params'] for each in variables]
  return ModelAdapter(apply, params, lambda params: {**rest, 'params': params})


def _require_alike(rests: Iterable[Any]) -> None:
  """Raises UserError if what is not trained differs between students."""
  first, *others = (jax.tree.leaves(rest) for rest in rests)
  for i, other in enumerate(others, 1):
    errors.require(
      all(map(np.array_equal, first, other)),
      f'Student {i} differs from the first in what is not trained, as '
      'batch_stats: all of a list share that. Train them one by one.',
    )


def from_nnx(
  model: nnx.Module | list[nnx.Module],
  *,
  output: Callable[[Any], jax.Array] = lambda output: output,
  **kwargs,
) -> ModelAdapter:
  """A `flax.nnx` module as a network; the module itself is not changed.

  What every method of it and of its submodules returns is an activation, by
  its path: 'layers/0', 'encoder/attention', 'encoder/features()' of a method
  that is not `__call__`. So is what it sows as `nnx.Intermediate`. Only
  `nnx.Param` is trained. Call `model.eval()` first.

  Args:
    model: the module; of students, a list trains several at once.
    output: takes the output from what the module returns.
    **kwargs: of the call: those of inference.

  Returns:
    The network. What is trained comes back as a new module.
  """
  _first(model)
  models = model if isinstance(model, list) else [model]
  kinds = (nnx.Param, nnx.RngState, ...)
  parts: list[Any] = [nnx.split(each, *kinds) for each in models]
  graph, state, *rest = parts[0]
  _require_alike(part[-1] for part in parts)

  def merge(params):
    full = jax.tree.map(lambda leaf: leaf, state)
    nnx.replace_by_pure_dict(full, params)
    return nnx.merge(graph, full, *rest, copy=True)

  def apply(params, x):
    module = merge(params)
    run = nnx.capture(module, nnx.Intermediate, method_outputs=nnx.Intermediate)
    out, found = run(x, **kwargs)
    return _output(output(out)), _captured(nnx.to_pure_dict(found))

  params = [nnx.to_pure_dict(state) for _, state, *_ in parts]
  several = isinstance(model, list)
  return ModelAdapter(apply, params if several else params[0], merge)


def _output(output):
  errors.require(
    isinstance(output, jax.Array),
    f'The model returns a {type(output).__name__}, not an array. Say which '
    'array is its output, as in output=lambda out: out[0].',
  )
  return output


def _captured(intermediates) -> dict[str, jax.Array]:
  """By path; without the output of the whole model."""
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


def _leaves(value) -> Iterator[tuple[str, jax.Array]]:
  leaves = jax.tree.leaves_with_path(value)
  for path, leaf in leaves:
    suffix = jax.tree_util.keystr(path, simple=True, separator='/')
    yield (f'/{suffix}' if suffix.strip('0/') else ''), leaf


def cast(network: ModelAdapter, dtype: jnp.dtype) -> ModelAdapter:
  """A network that computes in `dtype`; parameters and results are float32.

  Args:
    network: the network.
    dtype: as `jnp.bfloat16`.

  Returns:
    The network; integers and keys are left alone.
  """

  def to(tree, dtype):
    return jax.tree.map(
      lambda leaf: (
        leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
      ),
      tree,
    )

  def apply(params, x):
    return to(network.apply(to(params, dtype), to(x, dtype)), jnp.float32)

  return dataclasses.replace(network, apply=apply)


@dataclasses.dataclass(frozen=True)
class Tap:
  """An activation, and what it costs to compute.

  Attributes:
    name: its path.
    shape: `[B, ..., D]`.
    dtype: of its values.
    flops: of one batch up to there, as XLA counts them before it optimizes.
    layer: whether it is one of the layers that `plan` matches by itself.
  """

  name: str
  shape: tuple[int, ...]
  dtype: jnp.dtype
  flops: float
  layer: bool


class Taps(tuple[Tap, ...]):
  """The activations of a model in the order of computation; prints as a table.

  The last is the output.
  """

  @property
  def layers(self) -> tuple[str, ...]:
    """Names of the layers, lowest first."""
    return tuple(tap.name for tap in self if tap.layer)

  def __str__(self) -> str:
    """A row for each."""
    return tables.markdown(
      {
        'activation': tap.name,
        'shape': ' x '.join(map(str, tap.shape)),
        'dtype': str(tap.dtype),
        'FLOPs up to it': int(tap.flops),
        'layer': 'yes' if tap.layer else None,
      }
      for tap in self
    )

  _repr_markdown_ = __str__


def taps(network: ModelAdapter, x: train_step.Input) -> Taps:
  """Every activation of a network, without running it.

  The layers are the activations of the shortest paths, if there is more than
  one of them, without the output. A layer ends before the next matrix product
  or convolution, and where its shape changes: a convolution and its norm are
  one, embeddings and the mean of a sequence are none.

  Args:
    network: of `from_linen`, `from_nnx` or `from_fn`.
    x: a batch, or its shapes.

  Returns:
    The activations, lowest first, and the output as 'logits'.
  """
  outputs(network, x)
  shapes = jax.eval_shape(lambda tree: tree, (network.one, x))

  def apply(params, x):
    output, found = network.apply(params, x)
    return output, {k: v for k, v in found.items() if k != stage_lib.LOGITS}

  closed, (output, found) = jax.make_jaxpr(apply, return_shape=True)(*shapes)
  leaves = {'': output, **found}
  names = ['', *sorted(found)]  # As JAX flattens a dict.
  jaxpr = closed.jaxpr
  born = {v: i for i, eqn in enumerate(jaxpr.eqns) for v in eqn.outvars}
  place = {
    name: born.get(var, -1) if isinstance(var, core.Var) else -1
    for name, var in zip(names, jaxpr.outvars, strict=True)
  }
  same = {n for n in found if place[n] == place[''] >= 0}
  order = sorted(names, key=lambda name: (place[name], name == '', name))
  alone = {name: _alone(closed, names.index(name)) for name in order}
  costs = {name: _flops(one) for name, one in alone.items()}
  products = {name: _products(one.jaxpr) for name, one in alone.items()}
  shapes = {name: leaves[name].shape for name in order}
  chosen = _layers([n for n in order if n and n not in same], products, shapes)
  return Taps(
    Tap(
      name or stage_lib.LOGITS,
      leaves[name].shape,
      leaves[name].dtype,
      costs[name],
      name in chosen,
    )
    for name in order
    if name not in same
  )


def _alone(closed, index):
  """A jaxpr without what its output `index` does not need."""
  wanted = [i == index for i in range(len(closed.jaxpr.outvars))]
  jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, wanted)
  return core.ClosedJaxpr(jaxpr, closed.consts)


def _flops(closed):
  """Of a jaxpr."""
  shapes = [
    jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype)
    for v in closed.jaxpr.invars
  ]
  lowered = jax.jit(core.jaxpr_as_fun(closed)).lower(*shapes)
  return float((lowered.cost_analysis() or {}).get('flops', 0.0))


def _products(jaxpr):
  """How many matrix products and convolutions there are in a jaxpr."""
  inside = jax.tree.leaves(
    [list(eqn.params.values()) for eqn in jaxpr.eqns],
    is_leaf=lambda leaf: isinstance(leaf, core.Jaxpr | core.ClosedJaxpr),
  )
  inside = [getattr(leaf, 'jaxpr', leaf) for leaf in inside]
  own = sum(eqn.primitive.name in PRODUCTS for eqn in jaxpr.eqns)
  return own + sum(_products(j) for j in inside if isinstance(j, core.Jaxpr))


def _layers(names, products, shapes):
  """Of names in the order of computation, those that are layers."""
  depth = lambda name: name.count('/')
  names = [name for name in names if name not in stage_lib.READ]
  for level in sorted({depth(name) for name in names}):
    here = [name for name in names if depth(name) == level]
    if len(here) > 1:
      names = here
      break
  found: dict[int, str] = {}
  for name in names:
    same = found.setdefault(products[name], name)
    if shapes[name] == shapes[same]:
      found[products[name]] = name
  return tuple(name for number, name in found.items() if number)
