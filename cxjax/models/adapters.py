"""Model adapters: the form in which `plan` and `distill` take any model.

A `ModelAdapter` returns every activation of a model beside its output, whatever
library the model is written in; `linen_adapter` and its siblings make them of
modules.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cxjax import arguments
from cxjax import checks
from cxjax import deprecation
from cxjax import errors
from cxjax import pickling
from cxjax import types
from cxjax.methods import targets as targets_lib
from cxjax.methods import training_mode
from cxjax.models import base
from cxjax.models import examples
from cxjax.models import modes
from cxjax.parallel import partition


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class ModelAdapter(pickling.Picklable):
  """A model of any library, with its parameters.

  Attributes:
    apply: `(params, x) -> (output, activations)`, a pure function; the
      activations are a dict of arrays, `[B, ..., D]`.
    params: a tree of arrays, or a list of such trees for several students.
    wrap: converts a tree like `params` to the form in which the user gave it.
    abilities: optional features that the model declares.
    name: name of the model in messages.
    dropout_layers: dropout layers of an nnx module, with their rates.
    statistics: names of batch statistics that stay constant.
    ignored: constraints and regularizers of Keras, which are not applied, with
      the names of their variables or layers.
    training: `(params, x, key) -> (output, activations, changed)`, the model in
      training mode; `changed` holds the new values of the leaves of `params`
      that it changes, which are not trained otherwise. None trains it as it is
      at inference.
    kinds: types of the variables of an nnx module, by the paths of `params`.
    checkpoints: earlier parameters of a teacher, trees like `params` by step,
      oldest first; see `teacher_checkpoints`.
  """

  apply: types.Apply
  params: types.Params
  wrap: Callable[[types.Params], Any] = lambda params: params
  abilities: base.Abilities = base.Abilities()
  name: str = ''
  dropout_layers: tuple[str, ...] = ()
  statistics: tuple[str, ...] = ()
  ignored: tuple[str, ...] = ()
  training: types.Training | None = None
  kinds: Mapping[str, type[Any]] = dataclasses.field(default_factory=dict)
  checkpoints: Mapping[int, types.Params] = dataclasses.field(
    default_factory=dict
  )

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

    Training runs a model in its training mode, or as it is at inference without
    one: there a layer that the module's arguments turn off stays off. Dropout
    that a model declares in its abilities does act; the training loop gives it
    its keys.

    Finds `Dropout` and multi-head attention of linen and nnx with a positive
    rate. A jitted function that the model calls may hide linen layers; one that
    is given to `from_fn` does not.

    Args:
      x: a batch, or its shapes.

    Returns:
      Paths of the layers with their rates, as in 'Dropout_0 (rate 0.1)'; empty
      if all dropout acts.
    """
    found, _ = self._idle_layers(x)
    layers = (modes.with_rate(path, rate) for path, rate in found.items())
    if self.training is not None and self.dropout_layers:
      params = arguments.shapes('params', self.one)
      if modes.reads_key(self.training, params, arguments.shapes('x', x)):
        return tuple(layers)
    return (*self.dropout_layers, *layers)

  def constant_statistics(self, x: types.Input) -> tuple[str, ...]:
    """Batch statistics that training reads and does not update.

    Args:
      x: a batch, or its shapes.

    Returns:
      Paths of the layers that keep them; empty if there are none, or if they
      are updated.
    """
    _, found = self._idle_layers(x)
    return tuple(found) or self.statistics

  def draws_constants(self, x: types.Input) -> bool:
    """True if the model draws random numbers from a key of its own.

    They are the same at every call: a dropout mask that never changes.

    Args:
      x: a batch, or its shapes.
    """
    params = arguments.shapes('params', self.one)
    return modes.draws_constants(self.apply, params, arguments.shapes('x', x))

  def _idle_layers(
    self, x: types.Input
  ) -> tuple[dict[str, float], dict[str, float]]:
    """Linen layers that training runs at inference."""
    params = arguments.shapes('params', self.one)
    x = arguments.shapes('x', x)
    if self.training is None:
      return modes.idle_layers(self.apply, params, x)
    return modes.idle_layers(self.training, params, x, jax.random.key(0))


def _size(leaf: Any) -> int:
  """Number of elements of an array, a shape or a number."""
  return math.prod(getattr(leaf, 'shape', ()))


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
    'with cxjax.from_linen(module, variables), from_nnx(module), '
    'from_fn(apply, params), from_equinox, from_haiku or from_keras.',
  )
  params = arguments.shapes(
    f'The tree of parameters of the {role}', model.params
  )
  x = arguments.shapes('x', x)
  first(params)
  sets = params if model.several else [params]
  _require_equal_shapes(sets, role)
  try:
    found = jax.eval_shape(model.apply, sets[0], x)
  except errors.UserError:
    raise
  except Exception as error:  # A model of the user may raise anything.
    shapes = [f'{leaf.dtype}{list(leaf.shape)}' for leaf in jax.tree.leaves(x)]
    raise errors.UserError(
      f'The {role} does not run on an x of {arguments.listed(shapes)}: '
      f'{modes.reason(error)}. Give it the parameters of that model, and an x '
      "that it reads; several inputs are one dict, as in {'x': {...}}."
      f'{arguments.list_advice(x)}'
    ) from error
  errors.require(
    isinstance(found, tuple)
    and len(found) == 2
    and isinstance(found[0], jax.ShapeDtypeStruct)
    and isinstance(found[1], Mapping),
    lambda: (
      f'The {role} returns {_kind(found)}; it must return (output, '
      'activations), an array and a dict of arrays by name, {} if there are '
      'none.'
    ),
  )
  output, activations = found
  errors.require(
    all(isinstance(name, str) for name in activations),
    f'The {role} names its activations {list(activations)[:4]}: the names must '
    'be texts.',
  )
  is_activation = targets_lib.is_activation
  return output, {k: v for k, v in activations.items() if is_activation(v)}


def _kind(found: Any) -> str:
  """The result of a model, in words if it is an array alone."""
  alone = isinstance(found, jax.ShapeDtypeStruct)
  return 'one array' if alone else str(jax.tree.structure(found))


def check_training(
  model: ModelAdapter, x: types.Input, role: str = 'student'
) -> None:
  """Raises UserError if the training mode of a model does not fit it.

  Args:
    model: the model.
    x: a batch, or its shapes.
    role: role of the model in messages.
  """
  if model.training is not None:
    output, _ = outputs(model, x, role)
    params = arguments.shapes('params', model.one)
    x = arguments.shapes('x', x)
    modes.check_training(model.training, params, x, output, role)


def require_equal_constants(constants: Sequence[Any]) -> None:
  """Raises UserError if students differ in variables that are not trained."""
  first, *others = (jax.tree.leaves(constant) for constant in constants)
  for i, other in enumerate(others, 1):
    errors.require(
      len(first) == len(other) and all(map(np.array_equal, first, other)),
      f'Student {i} differs from the first in variables that are not trained, '
      'such as batch_stats; the students of a list share them at inference. '
      'Train them one by one, or in training mode.',
    )


def is_key(leaf: Any) -> bool:
  """True for an array of typed PRNG keys."""
  dtype = getattr(leaf, 'dtype', None)
  return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


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


def from_fn(
  apply: types.Apply,
  params: types.Params,
  *,
  partition_rules: base.PartitionRules | None = None,
  training: types.Training | None = None,
  batched: bool = True,
) -> ModelAdapter:
  """Adapts a pure function.

  If `apply` is the method of a model that declares its abilities, as of
  `cxjax.Transformer`, the adapter declares them too.

  Args:
    apply: `(params, x) -> (output, activations)`: an array `[B, ..., C]`, and a
      dict of arrays `[B, ..., D]`, at inference. The order of the keys does not
      matter. Entries that are no such arrays, as None, are left out.
    params: its parameters; a list of parameters trains several students. Only
      floating-point leaves are trained, the others stay as they are.
    partition_rules: how the parameters are sharded over the 'model' axis of the
      mesh: pairs of a regular expression of the path, and the axis or None.
    training: the function in training mode, `(params, x, key) -> (output,
      activations, changed)`: with dropout from a key that is new at every step,
      and with the new values of leaves of `params` that are not trained by the
      gradient, as `{'batch_stats': {...}}`; `{}` if there are none. Weights of
      examples are not known to it.
    batched: whether the function takes a batch; else it takes one example, and
      is mapped over the batch.

  Returns:
    The model.

  Raises:
    UserError: `params` is an empty list, or `training` is no function.
  """
  first(params)
  if training is not None:
    arguments.function(
      'training', training, 'lambda params, x, key: (output, {}, {})'
    )
  fun = modes.without_jit(apply)
  owner = getattr(fun, '__self__', None)
  name = type(owner).__name__ if owner is not None else ''
  model = ModelAdapter(
    apply,
    params,
    abilities=base.declare(owner, partition_rules),
    name=name or getattr(fun, '__name__', ''),
    training=training,
  )
  batched = arguments.flag('batched', batched)
  return model if batched else per_example(model)


def per_example(
  model: ModelAdapter, axis_name: str = examples.AXIS
) -> ModelAdapter:
  """The model of a batch, from that of one example; see `examples`."""
  training = model.training and examples.training(model.training, axis_name)
  return dataclasses.replace(
    model, apply=examples.apply(model.apply, axis_name), training=training
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

  Parameters, outputs and activations stay float32. Integers and PRNG keys are
  not converted, nor is an input with one number for each example, such as a
  time step.

  Args:
    model: the model.
    dtype: dtype of the computation, as in `jnp.bfloat16`.

  Returns:
    The model.

  Raises:
    UserError: `dtype` is not a floating-point dtype.
  """
  dtype = arguments.dtype('dtype', dtype)
  checks.instance(ModelAdapter, 'cxjax.from_fn')('model', model)

  def convert(tree: Any, dtype: jnp.dtype, kept: Any = ()) -> Any:
    def one(path: Any, leaf: Any) -> Any:
      real = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
      kept_ = partition.leaf_name(path) in kept
      return jnp.asarray(leaf, dtype) if real and not kept_ else leaf

    return jax.tree.map_with_path(one, tree)

  def scalars(x: types.Input) -> Any:
    """Names of inputs that half precision would round, of no layer's width."""
    leaves = training_mode.by_name(x).items()
    return [n for n, leaf in leaves if math.prod(leaf.shape[1:]) == 1]

  def statistics(params: types.Params, x: types.Input) -> Any:
    """Leaves whose small steps half precision would lose."""
    if model.training is None:
      return ()
    return training_mode.changed_shapes(model.training, params, x)

  def apply(params: types.Params, x: types.Input) -> Any:
    kept = statistics(params, x)
    out = model.apply(
      convert(params, dtype, kept), convert(x, dtype, scalars(x))
    )
    return convert(out, jnp.float32)

  def training(params: types.Params, x: types.Input, key: jax.Array) -> Any:
    assert model.training is not None
    kept = statistics(params, x)
    *out, changed = model.training(
      convert(params, dtype, kept), convert(x, dtype, scalars(x)), key
    )
    return *convert(out, jnp.float32), changed

  return dataclasses.replace(
    model, apply=apply, training=model.training and training
  )
