"""The model protocol, the abilities that a model declares, and the registry.

To add a model, write a class with the four members of `Model` and a builder,
and register the builder: `register('name', build)`. A config then selects it by
its name.
"""

from collections.abc import Callable
from collections.abc import Iterable
import dataclasses
import operator
import re
from typing import Any
from typing import Protocol
from typing import TypeAlias
from typing import runtime_checkable

import jax

from cxjax import errors
from cxjax import registration
from cxjax import types
from cxjax.models import modes

# Pairs of a regular expression of a parameter's path and the axis of the
# parameter that is sharded over the 'model' axis of the mesh; an axis of None
# keeps the parameter whole.
PartitionRules: TypeAlias = tuple[tuple[str, int | None], ...]


@dataclasses.dataclass(frozen=True)
class Abilities:
  """Optional features that a model declares.

  None means that the model does not say. Whoever needs the feature then raises
  an error, see `require`; nothing is assumed.

  Attributes:
    inputs: keys of the input dict that the model reads; `()` for a model that
      reads one array.
    dropout: dropout rate that acts when the input dict has 'dropout', one key
      per example; 0.0 for a model without dropout. In training, a model with a
      positive rate reads an array `x` as `{'tokens': x, 'dropout': keys}`.
    partition_rules: how the parameters are sharded over the 'model' axis of the
      mesh; `()` if none of them is.
    head: whether the model is a `ModelWithHead`.
    vocab_size: number of token ids, of a model that reads them.
    by_example: whether each example of a batch is computed by itself, unlike
      with statistics of the batch. Devices of a CPU then exchange the gradients
      of all parameters at once, which is faster. It is not checked: a device
      computes with its own examples alone. A subclass does not inherit it.
  """

  inputs: tuple[str, ...] | None = None
  dropout: float | None = None
  partition_rules: PartitionRules | None = None
  head: bool = False
  vocab_size: int | None = None
  by_example: bool | None = None


@runtime_checkable
class Model(Protocol):
  """A network as pure functions of its parameters."""

  @property
  def layers(self) -> tuple[str, ...]:
    """Names of the activations that count as layers, lowest first."""
    ...

  @property
  def abilities(self) -> Abilities:
    """Optional features that the model declares."""
    ...

  def init(self, key: jax.Array, x: types.Input, /) -> types.Params:
    """Returns initial parameters for inputs like `x`."""
    ...

  def apply(self, params: types.Params, x: types.Input, /) -> Any:
    """Returns `(output, activations)`.

    The output is an array `[B, ..., C]`; the activations are a dict of arrays
    `[B, ..., D]`.
    """
    ...


@runtime_checkable
class ModelWithHead(Model, Protocol):
  """A model whose logits can be computed apart from its trunk.

  `head(params, trunk(params, x)[0])` equals the output of `apply(params, x)`,
  and `head` accepts any part of the leading axes, so that large logits can be
  computed piece by piece.
  """

  def trunk(
    self, params: types.Params, x: types.Input, /
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the input of the head, `[..., D]`, and the activations."""
    ...

  def head(self, params: types.Params, h: jax.Array, /) -> jax.Array:
    """Returns the logits `[..., C]` of `h`, `[..., D]`."""
    ...


class HeadApart:
  """The trunk and the head of a linen module, each on its own.

  The module computes them in its methods `_trunk` and `_head`.
  """

  num_classes: int
  apply: Callable[..., Any]

  def trunk(
    self, params: types.Params, x: types.Input
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the embeddings and all blocks.

    Args:
      params: the variables, as for `apply`.
      x: input of the model, as for `__call__`.

    Returns:
      The input of the head, `[B, P, D]`, and the activations.
    """
    out: Any = self.apply(params, x, method='_trunk')
    return out

  def head(self, params: types.Params, h: jax.Array) -> jax.Array:
    """Computes the logits of any positions.

    Args:
      params: the variables, as for `apply`.
      h: `[..., D]`, from `trunk`.

    Returns:
      `[..., C]` logits in float32.

    Raises:
      UserError: the model has no head.
    """
    errors.require(
      self.num_classes > 0, 'num_classes=0: the model has no head.'
    )
    out: Any = self.apply(params, h, method='_head')
    return out


# A builder: `(config block, task) -> model`. The task has `num_classes`, and
# for sequences `vocab_size` and `length`.
Build: TypeAlias = Callable[[Any, Any], Model]

MODELS: dict[str, Build] = {}


def register(name: str, build: Build) -> None:
  """Adds a model to the registry.

  Registering the same builder again is allowed, because a config file may be
  imported twice.

  Args:
    name: name of the model in configs.
    build: makes the model, `(block, task) -> Model`. `block` is the config
      block of the teacher or the student.

  Raises:
    UserError: `build` is not callable, or the name is taken by another model.
  """
  registration.add('model', MODELS, name, build, build)


def make(name: str, block: Any, task: Any) -> Model:
  """Builds a registered model for a task.

  Args:
    name: name of the model.
    block: config block of the teacher or the student.
    task: the task, with `num_classes` and `inputs`, and for sequences
      `vocab_size` and `length`.

  Returns:
    The model.

  Raises:
    UserError: the name is unknown, the builder does not return a `Model`, the
      model does not read an input of the task, or `block.dropout` is positive
      and the model has no dropout.
  """
  build = errors.lookup('model', name, MODELS)
  errors.require(
    hasattr(task, 'num_classes') and hasattr(task, 'inputs'),
    lambda: f'task={task!r} must be a task, as of cxjax.tasks.make.',
  )
  try:
    model = build(block, task)
  except AttributeError as error:
    if error.obj is not block:
      raise
    raise errors.UserError(
      f'The block {block!r} has no field {error.name!r}, which the model '
      f'{name!r} needs.'
    ) from error
  missing = [
    member
    for member in ('layers', 'abilities', 'init', 'apply')
    if not hasattr(model, member)
  ]
  errors.require(
    not missing,
    f'The builder of model {name!r} returned a {type(model).__name__} without '
    f'{", ".join(missing)}; it must return a cxjax.models.base.Model.',
  )
  require_task(model, task)
  rate = getattr(block, 'dropout', 0)
  if rate:
    require(model, 'dropout', f'dropout={rate}')
  return model


def require_task(model: Any, task: Any) -> None:
  """Checks that a model can learn a task.

  Args:
    model: the model.
    task: the task. If it predicts the next token, its `causal` is true.

  Raises:
    UserError: the model does not read an input of the task, or would see the
      tokens that it is to predict.
  """
  name = type(task).__name__
  require_inputs(model, task.inputs, f'Task {name}')
  errors.require(
    not getattr(task, 'causal', False) or getattr(model, 'causal', False),
    f'Task {name} predicts the next token, and {_name(model)} has no '
    'causal=True: it may see that token. Choose a decoder, as '
    'model=rotary_decoder.',
  )


def declared(model: Any) -> Abilities:
  """Returns the abilities of a model; a model without any declares nothing."""
  return getattr(model, 'abilities', Abilities())


def require(model: Any, ability: str, purpose: str) -> Any:
  """Returns an ability of a model that something needs.

  Args:
    model: the model.
    ability: name of a field of `Abilities`.
    purpose: feature that needs the ability; begins the error message, as in
      'mesh.student=tensor'.

  Returns:
    The value of the field.

  Raises:
    UserError: the model does not declare the ability, or declares that it lacks
      it.
  """
  abilities = declared(model)
  fields = {
    field.name: getattr(abilities, field.name)
    for field in dataclasses.fields(abilities)
  }
  value = errors.lookup('ability', ability, fields)
  known = 'from_linen, from_nnx and from_fn take partition_rules=.'
  errors.require(
    value is not None,
    f'{purpose} needs the {ability} of {_name(model)}, which declares none. '
    f'Give its abilities: Abilities({ability}=...)'
    + (f'; {known}' if ability == 'partition_rules' else '.'),
  )
  errors.require(
    value is not False and (ability != 'dropout' or value > 0),
    f'{purpose} needs a model with {ability}; {_name(model)} has {value!r}. '
    f'Leave {purpose} out, or choose another model.',
  )
  return value


def require_inputs(model: Any, inputs: Iterable[str], purpose: str) -> None:
  """Checks that a model reads some keys of the input dict.

  Args:
    model: the model.
    inputs: the keys.
    purpose: setting that gives these inputs; begins the error message.

  Raises:
    UserError: the model does not read one of them, or does not declare what it
      reads.
  """
  inputs = tuple(inputs)
  if not inputs:
    return
  known = require(model, 'inputs', purpose)
  missing = [name for name in inputs if name not in known]
  reads = f'only {", ".join(known)}' if known else 'one array, not a dict'
  errors.require(
    not missing,
    f'{purpose} gives the input {", ".join(map(repr, missing))}, which '
    f'{_name(model)} does not read; it reads {reads}. Choose another model.',
  )


def _name(model: Any) -> str:
  """Name of a model in messages."""
  return getattr(model, 'name', None) or type(model).__name__


def declare(model: Any, partition_rules: PartitionRules | None) -> Abilities:
  """Abilities of an adapter of `model`, whose call may be the user's own.

  So it has no head of its own, and may compute examples together.
  """
  abilities = declared(model)
  if not isinstance(abilities, Abilities):
    abilities = Abilities()  # An attribute of the user, of another kind.
  if partition_rules is None:
    partition_rules = abilities.partition_rules
  else:
    partition_rules = _checked_rules(partition_rules)
  return dataclasses.replace(
    abilities, partition_rules=partition_rules, head=False, by_example=None
  )


def _checked_rules(rules: Any) -> PartitionRules:
  """Pairs of a regular expression and an axis, or one line."""
  try:
    pairs = tuple((pattern, axis) for pattern, axis in rules)
    for pattern, axis in pairs:
      re.compile(pattern)
      operator.index(0 if axis is None else axis)
  except Exception as error:
    raise errors.UserError(
      f'partition_rules={rules!r} must be pairs of a regular expression and an '
      f"axis or None, as (('kernel$', 1),): {modes.reason(error)}."
    ) from error
  return pairs
