"""Model adapters: the form in which `plan` and `distill` take any model.

A `ModelAdapter` returns every activation of a model beside its output, whatever
library the model is written in; `flax_adapters` makes them of flax modules.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from cxjax import arguments
from cxjax import deprecation
from cxjax import errors
from cxjax import types
from cxjax.models import base


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class ModelAdapter:
  """A model of any library, with its parameters.

  Attributes:
    apply: `(params, x) -> (output, activations)`, a pure function; the
      activations are a dict of arrays, `[B, ..., D]`.
    params: a tree of arrays, or a list of such trees for several students.
    wrap: converts a tree like `params` to the form in which the user gave it.
    abilities: optional features that the model declares.
    name: name of the model in messages.
    dropout_layers: dropout layers of an nnx module, with their rates.
  """

  apply: types.Apply
  params: types.Params
  wrap: Callable[[types.Params], Any] = lambda params: params
  abilities: base.Abilities = base.Abilities()
  name: str = ''
  dropout_layers: tuple[str, ...] = ()

  def __repr__(self) -> str:
    """Name and number of parameters."""
    size = sum(_size(leaf) for leaf in jax.tree.leaves(self.one))
    students = f'{len(self.params)} x ' if self.several else ''
    name = f'{self.name}, ' if self.name else ''
    return f'{type(self).__name__}({name}{students}{size:,} parameters)'

  @property
  def several(self) -> bool:
    """True if there are several sets of parameters."""
    return isinstance(self.params, list)

  @property
  def one(self) -> types.Params:
    """The parameters, or the first set of them."""
    return self.params[0] if self.several else self.params

  def unused_dropout(self, x: types.Input) -> tuple[str, ...]:
    """Dropout layers that do not act in training.

    Training runs a model as it is: a layer that the module's arguments turn off
    for inference stays off. Dropout that a model declares in its abilities does
    act; the training loop gives it its keys.

    Finds `Dropout` and multi-head attention of linen and nnx with a positive
    rate. A jitted function that the model calls may hide linen layers; one that
    is given to `from_fn` does not.

    Args:
      x: a batch, or its shapes.

    Returns:
      Paths of the layers with their rates, as in 'Dropout_0 (rate 0.1)'; empty
      if all dropout acts.
    """
    found: dict[str, float] = {}
    apply = _without_jit(self.apply)
    params = arguments.shapes('params', self.one)
    x = arguments.shapes('x', x)
    with nn.intercept_methods(_dropout_recorder(found)):
      # The lambda is new, so JAX traces it again and does not use its cache.
      jax.eval_shape(lambda params, x: apply(params, x), params, x)
    layers = (with_rate(path, rate) for path, rate in found.items())
    return (*self.dropout_layers, *layers)


def _size(leaf: Any) -> int:
  """Number of elements of an array, a shape or a number."""
  return math.prod(getattr(leaf, 'shape', ()))


def with_rate(path: str, rate: float) -> str:
  """A dropout layer in messages."""
  return f'{path} (rate {rate:g})'


def _without_jit(fun: Callable[..., Any]) -> Callable[..., Any]:
  """The function inside `jax.jit`."""
  while isinstance(fun, jax.stages.Wrapped) and hasattr(fun, '__wrapped__'):
    fun = fun.__wrapped__
  return fun


def _dropout_recorder(found: dict[str, float]) -> Callable[..., Any]:
  """A flax interceptor that records dropout layers that are off, by path."""

  def record(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
    module = context.module
    if context.method_name == '__call__' and _is_off(module, args, kwargs):
      path = '/'.join(module.path) or type(module).__name__
      found[path] = getattr(module, 'rate', None) or module.dropout_rate
    return next_fun(*args, **kwargs)

  return record


def _is_off(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> bool:
  """Whether a call is of a linen layer with dropout that does not act."""
  off = kwargs.get('deterministic')
  if isinstance(module, nn.Dropout):
    rate = module.rate
    off = args[1] if len(args) > 1 else off  # After the inputs.
  elif isinstance(module, nn.MultiHeadDotProductAttention):
    rate = module.dropout_rate
  else:
    return False
  return rate > 0 and bool(module.deterministic if off is None else off)


def outputs(
  model: ModelAdapter, x: types.Input, role: str = 'model'
) -> tuple[jax.ShapeDtypeStruct, Mapping[str, Any]]:
  """Shapes of the output and the activations of a model for a batch.

  Args:
    model: a model of `from_linen`, `from_nnx` or `from_fn`.
    x: a batch, or its shapes.
    role: role of the model in messages, as in 'teacher'.

  Returns:
    `(output, activations)`, as shapes.

  Raises:
    UserError: `model` is not a `ModelAdapter`, does not run on the batch, or
      does not return `(output, activations)`.
  """
  errors.require(
    isinstance(model, ModelAdapter),
    f'The {role} is a {type(model).__name__}, not a ModelAdapter. Make one '
    'with cxjax.from_linen(module, variables), from_nnx(module) or '
    'from_fn(apply, params).',
  )
  params = arguments.shapes(
    f'The tree of parameters of the {role}', model.params
  )
  x = arguments.shapes('x', x)
  sets = params if model.several else [params]
  _require_equal_shapes(sets, role)
  try:
    found = jax.eval_shape(model.apply, sets[0], x)
  except errors.UserError:
    raise
  except Exception as error:  # A model of the user may raise anything.
    shapes = ', '.join(
      f'{leaf.dtype}{list(leaf.shape)}' for leaf in jax.tree.leaves(x)
    )
    raise errors.UserError(
      f'The {role} does not run on an x of {shapes}: {reason(error)}. Give it '
      'the parameters of that model, and an x that it reads; several inputs '
      "are one dict, as in {'x': {...}}."
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


def _require_equal_shapes(sets: Sequence[types.Params], role: str) -> None:
  """Raises UserError if sets of parameters differ in shapes or dtypes."""
  tree: Any = jax.tree.structure(sets[0])
  shapes = lambda tree: [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]
  for i, other in enumerate(sets[1:], 1):
    errors.require(
      tree == jax.tree.structure(other) and shapes(other) == shapes(sets[0]),
      f'The parameters of {role} {i} have other shapes or dtypes than those of '
      'the first; several at once must have the same. Train them one by one.',
    )


def reason(error: Exception) -> str:
  """First line of an exception, without the URL at the end of flax errors."""
  return str(error).partition('\n')[0].partition(' (http')[0].rstrip('.')


def from_fn(
  apply: types.Apply,
  params: types.Params,
  *,
  partition_rules: base.PartitionRules | None = None,
) -> ModelAdapter:
  """Adapts a pure function.

  If `apply` is the method of a model that declares its abilities, as of
  `cxjax.Transformer`, the adapter declares them too.

  Args:
    apply: `(params, x) -> (output, activations)`: an array `[B, ..., C]`, and a
      dict of arrays `[B, ..., D]`. The order of the keys does not matter.
    params: its parameters; a list of parameters trains several students.
    partition_rules: how the parameters are sharded over the 'model' axis of the
      mesh: pairs of a regular expression of the path, and the axis or None.

  Returns:
    The model.
  """
  first(params)
  fun = _without_jit(apply)
  owner = getattr(fun, '__self__', None)
  name = type(owner).__name__ if owner is not None else ''
  return ModelAdapter(
    apply,
    params,
    abilities=declare(owner, partition_rules),
    name=name or getattr(fun, '__name__', ''),
  )


def declare(
  model: Any, partition_rules: base.PartitionRules | None
) -> base.Abilities:
  """Abilities of an adapter of `model`; an adapter has no head of its own."""
  abilities = base.declared(model)
  if not isinstance(abilities, base.Abilities):
    abilities = base.Abilities()  # An attribute of the user, of another kind.
  if partition_rules is None:
    partition_rules = abilities.partition_rules
  else:
    partition_rules = tuple(partition_rules)
  return dataclasses.replace(
    abilities, partition_rules=partition_rules, head=False
  )


def first(params: Any) -> Any:
  """The first set of parameters of a list, or `params`."""
  if not isinstance(params, list):
    return params
  errors.require(bool(params), 'There are no students: the list is empty.')
  return params[0]


@deprecation.renamed_arguments(network='model')
def with_compute_dtype(model: ModelAdapter, dtype: jnp.dtype) -> ModelAdapter:
  """Returns a model that computes in another floating-point dtype.

  Parameters, outputs and activations stay float32; integers and PRNG keys are
  not converted.

  Args:
    model: the model.
    dtype: dtype of the computation, as in `jnp.bfloat16`.

  Returns:
    The model.

  Raises:
    UserError: `dtype` is not a floating-point dtype.
  """
  dtype = arguments.dtype('dtype', dtype)

  def convert(tree: Any, dtype: jnp.dtype) -> Any:
    return jax.tree.map(
      lambda leaf: (
        leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
      ),
      tree,
    )

  def apply(params: types.Params, x: types.Input) -> Any:
    out = model.apply(convert(params, dtype), convert(x, dtype))
    return convert(out, jnp.float32)

  return dataclasses.replace(model, apply=apply)
