"""The head of a model: its last product and what follows, found in a trace."""

from collections.abc import Sequence
import dataclasses
from typing import Any
from typing import TypeAlias

import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np

from cxjax.methods import kernel_product

# Elementwise operations: a result needs its operands at the same index alone.
_ELEMENTWISE = frozenset(
  (
    'abs',
    'add',
    'clamp',
    'convert_element_type',
    'copy',
    'div',
    'exp',
    'integer_pow',
    'log',
    'logistic',
    'max',
    'min',
    'mul',
    'neg',
    'pow',
    'reduce_precision',
    'select_n',
    'sub',
    'tanh',
  )
)
_VALUE = object()  # The operand of a step that the step before made.


@dataclasses.dataclass(frozen=True)
class _Weight:
  """An operand of a step that depends on the parameters alone."""

  index: int


@dataclasses.dataclass(frozen=True)
class _Kernel:
  """The kernel of a product, `[D, C]` or `[C, D]`; `axis` is that of `D`."""

  index: int
  axis: int


@dataclasses.dataclass(frozen=True)
class _Columns:
  """The columns `start` to `stop` of the output, which a slice keeps."""

  start: int
  stop: int


Step: TypeAlias = tuple[core.JaxprEqn, tuple[Any, ...]]


@dataclasses.dataclass(frozen=True, eq=False)
class Head:
  """`(weights, features [..., D]) -> output [..., C]`, for any leading axes.

  Attributes:
    steps: the equations, first the product; operands are the value so far,
      weights or scalars.
  """

  steps: tuple[Step, ...]

  def __call__(
    self, weights: Sequence[jax.Array], features: jax.Array
  ) -> jax.Array:
    """Computes the output of some rows."""
    value = features
    for equation, operands in self.steps:
      first = operands[0]
      if isinstance(first, _Kernel):
        value = _product(equation, value, weights[first.index], first.axis)
        continue
      if isinstance(first, _Columns):
        value = value[..., first.start : first.stop]
        continue
      known = [
        weights[operand.index] if isinstance(operand, _Weight) else operand
        for operand in operands
      ]
      rows = [_as_row(operand, value) for operand in known]
      value = equation.primitive.bind(*rows, **equation.params)
    return value

  def kernel(self, weights: Sequence[jax.Array]) -> jax.Array:
    """The matrix of the product, `[D, C]`."""
    found = self.steps[0][1][0]
    return jnp.moveaxis(weights[found.index], found.axis, 0)


def _product(
  equation: core.JaxprEqn, features: jax.Array, kernel: jax.Array, axis: int
) -> jax.Array:
  """The product of some rows with the kernel, `[..., C]`."""
  params = dict(equation.params)
  del params['dimension_numbers']
  return kernel_product.product(features, kernel, axis, **params)


def _as_row(operand: Any, value: jax.Array) -> Any:
  """A weight or a scalar as an array of the shape of the output."""
  if operand is _VALUE:
    return value
  return jnp.broadcast_to(operand.reshape(-1), value.shape)


def find(jaxpr: core.Jaxpr, count: int) -> tuple[Any, Head, list[Any]] | None:
  """Finds the head of a model.

  Args:
    jaxpr: jaxpr of the model, without inner calls; the output comes first.
    count: number of its first inputs, which are the parameters.

  Returns:
    The variable of the features `[..., D]`, the head, and the variables of its
    weights; None if the output is not made of one product of features with a
    kernel and of elementwise operations with rows that are all alike.
  """
  walk = _Walk(jaxpr, count)
  features = walk.run()
  if features is None:
    return None
  return features, Head(tuple(reversed(walk.steps))), walk.weights


class _Walk:
  """Walks back from the output of a jaxpr to the features of its head.

  Attributes:
    steps: equations with their operands, the last first.
    weights: variables that the head reads.
  """

  def __init__(self, jaxpr: core.Jaxpr, count: int) -> None:
    """Takes a jaxpr whose first `count` inputs are the parameters."""
    self.steps: list[Step] = []
    self.weights: list[core.Var] = []
    self._output = jaxpr.outvars[0]
    self._made = {v: eqn for eqn in jaxpr.eqns for v in eqn.outvars}
    self._varying = set(jaxpr.invars[count:])
    for equation in jaxpr.eqns:
      if any(map(self._varies, equation.invars)):
        self._varying.update(equation.outvars)

  def _varies(self, atom: Any) -> bool:
    """Returns whether a value depends on the input of the model."""
    return isinstance(atom, core.Var) and atom in self._varying

  def run(self) -> Any:
    """Returns the features, or None if the output has no head."""
    value, shape = self._output, _aval(self._output).shape
    order = list(range(len(shape)))  # Where the axes of the output are.
    width = shape[-1]
    while value in self._made:
      equation = self._made[value]
      name = equation.primitive.name
      if name == 'dot_general':
        return self._product(equation, order)
      if name == 'transpose':
        order = [equation.params['permutation'][axis] for axis in order]
        value = equation.invars[0]
        continue
      if name == 'slice':
        columns = _columns(equation, order[-1])
        if columns is None:
          return None
        self.steps.append((equation, (columns,)))
        value = equation.invars[0]
        width = _aval(value).shape[order[-1]]
        continue
      if name == 'reshape':
        below = _aval(equation.invars[0]).shape
        ordered = order == sorted(order) and len(below) > 1
        if not ordered or below[-1] != width:
          return None
        value, order = equation.invars[0], list(range(len(below)))
        continue
      operands = self._operands(equation, order[-1])
      if operands is None:
        return None
      self.steps.append((equation, operands))
      value = next(filter(self._varies, equation.invars))
    return None

  def _product(self, equation: core.JaxprEqn, order: list[int]) -> Any:
    """The features of a product with a kernel `[D, C]` or `[C, D]`."""
    (left, right), batch = equation.params['dimension_numbers']
    first = self._varies(equation.invars[0])
    operands: list[Any] = list(equation.invars)
    features, kernel = operands if first else operands[::-1]
    contracted, axis = (left, right) if first else (right, left)
    last = len(_aval(features).shape) - 1
    # A kernel on the left makes `[C, ...]`.
    axes = list(range(last + 1)) if first else [*range(1, last + 1), 0]
    if (
      not self._varies(features)
      or self._varies(kernel)
      or batch != ((), ())
      or len(_aval(kernel).shape) != 2
      or tuple(contracted) != (last,)
      or order != axes
    ):
      return None
    (axis,), made = axis, self._made.get(kernel)
    if made is not None and made.primitive.name == 'transpose':
      # A copy of it would take as much memory as the kernel.
      kernel, axis = made.invars[0], 1 - axis
    weight = self._weight(kernel)
    self.steps.append((equation, (_Kernel(weight.index, axis),)))
    return features

  def _operands(
    self, equation: core.JaxprEqn, axis: int
  ) -> tuple[Any, ...] | None:
    """Operands of an elementwise equation; None if it is none."""
    varying = [atom for atom in equation.invars if self._varies(atom)]
    if (
      equation.primitive.name not in _ELEMENTWISE
      or len(varying) != 1
      or _aval(varying[0]).shape != _aval(equation.outvars[0]).shape
    ):
      return None
    found = []
    for atom in equation.invars:
      operand = _VALUE if self._varies(atom) else self._row(atom, axis)
      if operand is None:
        return None
      found.append(operand)
    return tuple(found)

  def _row(self, atom: Any, axis: int) -> Any:
    """A value that is the same for all rows of the output, or None."""
    if not isinstance(atom, core.Var):
      return np.asarray(atom.val, _aval(atom).dtype)
    if _is_row(_aval(atom).shape, range(_aval(atom).ndim), axis):
      return self._weight(atom)
    equation = self._made.get(atom)
    if equation is None or equation.primitive.name != 'broadcast_in_dim':
      return None
    source = equation.invars[0]
    axes = equation.params['broadcast_dimensions']
    if not _is_row(_aval(source).shape, axes, axis):
      return None
    if isinstance(source, core.Var):
      return self._weight(source)
    return np.asarray(source.val, _aval(source).dtype)

  def _weight(self, variable: Any) -> _Weight:
    self.weights.append(variable)
    return _Weight(len(self.weights) - 1)


def _columns(equation: core.JaxprEqn, axis: int) -> _Columns | None:
  """The columns that a slice keeps of one axis; None if it cuts another."""
  starts, stops = (
    list(equation.params[f'{name}_indices']) for name in ('start', 'limit')
  )
  columns = _Columns(starts[axis], stops[axis])
  starts[axis], stops[axis] = 0, _aval(equation.invars[0]).shape[axis]
  strides = equation.params['strides'] or (1,)
  whole = not any(starts) and stops == list(_aval(equation.invars[0]).shape)
  return columns if whole and set(strides) == {1} else None


def _is_row(shape: Sequence[int], axes: Sequence[int], axis: int) -> bool:
  """True if an array has one value, or one for each index of one axis."""
  return all(
    size == 1 or at == axis for size, at in zip(shape, axes, strict=True)
  )


def _aval(atom: Any) -> Any:
  """Shape and dtype of a variable or a literal."""
  return atom.aval
