"""Roles of the axes of the values of a model, found from its jaxpr.

Two axes have one role if an operation makes one of the other: elementwise, by a
transposition, or by a layer, whose product makes features of features. So the
features of a model keep their role from its first layer to its last, and its
tokens and its grid have others.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import itertools
import math
import re
from typing import Any
from typing import TypeAlias

from jax.extend import core

from cxjax.methods import jaxprs
from cxjax.models import axis_graph
from cxjax.models import dataflow

# They may change the length of an axis.
_RESIZING = ('concatenate', 'dynamic_slice', 'pad', 'slice', 'split')
_REDUCES = re.compile('reduce_|argmax|argmin')
# A value that no input of the model reaches, as parameters, is None.
Known: TypeAlias = 'Value | None'


@dataclasses.dataclass(frozen=True)
class Value:
  """A value that depends on the input of the model.

  Attributes:
    axes: number of each axis, of which several may have one role.
    before: shape and axes before a reshape that cut or joined some, as in a
      group norm; None without one.
  """

  axes: tuple[int, ...]
  before: tuple[tuple[int, ...], tuple[int, ...]] | None = None


class Roles:
  """Roles of axes, as a model is walked through.

  Attributes:
    outputs: the values that the jaxpr returns.
  """

  def __init__(self, closed: core.ClosedJaxpr, num_params: int) -> None:
    """Walks through a jaxpr whose first inputs are the parameters."""
    self._graph = axis_graph.Graph()
    inputs = closed.jaxpr.invars
    data = [self._fresh(dataflow.shape(v)) for v in inputs[num_params:]]
    self.outputs = self._walk(closed.jaxpr, [*[None] * num_params, *data])

  def channels(
    self, value: Known, outputs: Iterable[Known] = ()
  ) -> tuple[int | None, tuple[int, int] | None]:
    """The axis of a value with the channels of convolutions.

    Args:
      value: one of the outputs of the jaxpr.
      outputs: those that are outputs of the model.

    Returns:
      The axis; None if no convolution says so. And two axes, if the layers do
      not tell which of them it is.
    """
    if value is None:
      return None, None
    ends = [axis for each in outputs if each for axis in each.axes[1:]]
    return self._graph.channels(value.axes, ends)

  def _fresh(self, shape: Sequence[int]) -> Value:
    """A value with axes of new roles."""
    return Value(self._graph.fresh(len(shape)))

  def _join_all(self, a: Known, b: Known) -> None:
    """Gives the axes of two values of one form the same roles."""
    if a is not None and b is not None:
      for one, other in zip(a.axes, b.axes, strict=True):
        self._graph.join(one, other)

  def _walk(self, jaxpr: core.Jaxpr, inputs: Sequence[Known]) -> list[Known]:
    """The values of the outputs of a jaxpr."""
    known: dict[core.Var, Known] = {}
    known.update(zip(jaxpr.invars, inputs, strict=True))
    read = lambda atom: known.get(atom) if isinstance(atom, core.Var) else None
    for equation in jaxpr.eqns:
      operands = [read(atom) for atom in equation.invars]
      if all(each is None for each in operands):
        continue
      results = self._results(equation, operands)
      known.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]

  def _results(
    self, equation: core.JaxprEqn, operands: Sequence[Known]
  ) -> Sequence[Known]:
    """The values of the results of an equation."""
    if (body := dataflow.call_body(equation)) is not None:
      return self._walk(body.jaxpr, operands)
    name = equation.primitive.name
    if name in _INNER:
      return _INNER[name](self, equation, operands)
    results = [self._fresh(dataflow.shape(v)) for v in equation.outvars]
    if name in _MOVED or _REDUCES.match(name) and 'axes' in equation.params:
      operand = operands[0]
      assert operand is not None
      for below, above in _MOVED.get(name, _reduced)(equation):
        self._graph.join(operand.axes[below], results[0].axes[above])
    elif name == 'reshape':
      results = [self._reshaped(equation, operands[0], results[0])]
    elif name == 'dot_general':
      self._product(equation, operands, results[0])
    elif name == 'conv_general_dilated':
      self._convolution(equation, operands[0], results[0])
    elif name == 'gather':
      self._gathered(equation, operands[0], results[0])
    else:
      results = self._elementwise(equation, operands, results)
    return results

  def _elementwise(
    self,
    equation: core.JaxprEqn,
    operands: Sequence[Known],
    results: Sequence[Value],
  ) -> list[Known]:
    resizing, found = equation.primitive.name in _RESIZING, list[Known]()
    if equation.primitive.name.startswith('scatter'):
      operands = operands[:1]
    for result, variable in zip(results, equation.outvars, strict=True):
      shape, before = dataflow.shape(variable), None
      for operand, atom in zip(operands, equation.invars, strict=False):
        own = dataflow.shape(atom)
        if operand is None or len(own) != len(shape):
          continue
        for i, size in enumerate(own):
          if size == shape[i] or resizing:
            self._graph.join(operand.axes[i], result.axes[i])
          if resizing and shape[i] == 1 < size:
            self._graph.pick(operand.axes[i])
        if own == shape:
          before = before or operand.before
      found.append(Value(result.axes, before))
    return found

  def _reshaped(
    self, equation: core.JaxprEqn, operand: Known, result: Value
  ) -> Value:
    below, above = (
      dataflow.shape(v) for v in (equation.invars[0], equation.outvars[0])
    )
    assert operand is not None
    if operand.before is not None and operand.before[0] == above:
      return Value(operand.before[1])
    kept = _kept(below, above)
    for i, j in kept.items():
      self._graph.join(operand.axes[i], result.axes[j])
    for i, j in _overlapping(below, above):
      self._graph.cut(operand.axes[i], result.axes[j])
    for i, parts in _divided(below, above):
      self._graph.divide(operand.axes[i], [result.axes[j] for j in parts])
    for j, parts in _divided(above, below):
      self._graph.unite([operand.axes[i] for i in parts], result.axes[j])
    cut = any(size > 1 and i not in kept for i, size in enumerate(below))
    before = (below, operand.axes) if cut else None
    return Value(result.axes, operand.before or before)

  def _product(
    self, equation: core.JaxprEqn, operands: Sequence[Known], result: Value
  ) -> None:
    contracted, batch = equation.params['dimension_numbers']
    shapes = [dataflow.shape(atom) for atom in equation.invars]
    free = [
      [i for i in range(len(shapes[n])) if i not in (*contracted[n], *batch[n])]
      for n in (0, 1)
    ]
    made = [
      range(len(batch[0]), len(batch[0]) + len(free[0])),
      range(len(batch[0]) + len(free[0]), len(result.axes)),
    ]
    for n, operand in enumerate(operands):
      if operand is None:
        continue
      for i, j in itertools.chain(
        zip(batch[n], range(len(batch[n])), strict=True),
        zip(free[n], made[n], strict=True),
      ):
        self._graph.join(operand.axes[i], result.axes[j])
      if operands[1 - n] is None and len(contracted[n]) == 1:
        read, one = contracted[n][0], len(free[1 - n]) == 1
        features = result.axes[made[1 - n][0]] if one else None
        sizes = shapes[n][read], shapes[1 - n][free[1 - n][0]] if one else 0
        layer = axis_graph.Layer(operand.axes[read], features, sizes)
        self._graph.add(layer)

  def _convolution(
    self, equation: core.JaxprEqn, operand: Known, result: Value
  ) -> None:
    spec = equation.params['dimension_numbers']
    below, above = (
      dataflow.shape(v) for v in (equation.invars[0], equation.outvars[0])
    )
    operand = operand or self._fresh(below)
    batch, features, *positions = zip(spec.lhs_spec, spec.out_spec, strict=True)
    for i, j in (batch, *positions):
      self._graph.join(operand.axes[i], result.axes[j])
    kernel = dataflow.shape(equation.invars[1])
    window = math.prod(kernel[i] for i in spec.rhs_spec[2:])
    axis, made = operand.axes[features[0]], result.axes[features[1]]
    grid = tuple(operand.axes[i] for i, _ in positions)
    sizes = below[features[0]], above[features[1]]
    size = max(kernel[i] for i in spec.rhs_spec[:2])
    self._graph.add(axis_graph.Layer(axis, made, sizes, window, size, grid))

  def _gathered(
    self, equation: core.JaxprEqn, operand: Known, result: Value
  ) -> None:
    """Joins the axes of which a gather takes all positions."""
    if operand is None:
      return
    numbers, shape = (
      equation.params['dimension_numbers'],
      dataflow.shape(equation.invars[0]),
    )
    for i in numbers.collapsed_slice_dims:
      self._graph.pick(operand.axes[i])
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    left = [i for i in range(len(shape)) if i not in gone]
    for i, j in zip(left, numbers.offset_dims, strict=True):
      if equation.params['slice_sizes'][i] == shape[i]:
        self._graph.join(operand.axes[i], result.axes[j])

  def _scan(
    self, equation: core.JaxprEqn, operands: Sequence[Known]
  ) -> list[Known]:
    constants, carried = jaxprs.scan_counts(equation)
    first, body = constants + carried, equation.params['jaxpr'].jaxpr
    rest = [
      None if each is None else Value(each.axes[1:])
      for each in operands[first:]
    ]
    carry = self._carry(equation.invars[constants:], operands[constants:first])
    results = self._walk(body, [*operands[:constants], *carry, *rest])
    self._close(carry, results)
    stacked: list[Known] = []
    for each in results[carried:]:
      step = self._fresh([1]).axes
      stacked.append(None if each is None else Value((*step, *each.axes)))
    return [*carry, *stacked]

  def _while(
    self, equation: core.JaxprEqn, operands: Sequence[Known]
  ) -> list[Known]:
    start = equation.params['cond_nconsts']
    first = start + equation.params['body_nconsts']
    carry = self._carry(equation.invars[first:], operands[first:])
    body = equation.params['body_jaxpr'].jaxpr
    self._close(carry, self._walk(body, [*operands[start:first], *carry]))
    return list(carry)

  def _carry(
    self, atoms: Iterable[Any], operands: Sequence[Known]
  ) -> list[Value]:
    """The carry of a loop, whose steps may reach all of it."""
    carry = []
    for atom, operand in zip(atoms, operands, strict=False):
      carry.append(self._fresh(dataflow.shape(atom)))
      self._join_all(operand, carry[-1])
    return carry

  def _close(self, carry: Iterable[Value], results: Iterable[Known]) -> None:
    """Joins the carry of a step with that of the next."""
    for before, after in zip(carry, results, strict=False):
      self._join_all(after, before)

  def _cond(
    self, equation: core.JaxprEqn, operands: Sequence[Known]
  ) -> list[Known]:
    results = [self._fresh(dataflow.shape(v)) for v in equation.outvars]
    for branch in equation.params['branches']:
      outputs = self._walk(branch.jaxpr, operands[1:])
      for made, result in zip(outputs, results, strict=True):
        self._join_all(made, result)
    return list(results)

  def _shard_map(
    self, equation: core.JaxprEqn, operands: Sequence[Known]
  ) -> list[Known]:
    """The values of a function of the shards, whose shapes are smaller."""
    whole = lambda value: None if value is None else Value(value.axes)
    body = equation.params['jaxpr']
    return [*map(whole, self._walk(body, [*map(whole, operands)]))]


def _kept(below: tuple[int, ...], above: tuple[int, ...]) -> dict[int, int]:
  """Axes that a reshape neither cuts nor joins, by those of its operand.

  Those of length 1 correspond from the right.
  """
  kept: dict[int, int] = {}
  for i in reversed(range(len(below))):
    before = math.prod(below[:i])
    fitting = [
      j
      for j, size in enumerate(above)
      if size == below[i]
      and math.prod(above[:j]) == before
      and j not in kept.values()
    ]
    if fitting:
      kept[i] = fitting[-1]
  return kept


def _divided(
  below: tuple[int, ...], above: tuple[int, ...]
) -> Iterable[tuple[int, list[int]]]:
  """Yields an axis of a reshape with the several that are made of all of it."""
  for i, size in enumerate(below):
    start = math.prod(below[:i])
    parts = [
      j
      for j, part in enumerate(above)
      if part > 1
      and start <= math.prod(above[:j])
      and math.prod(above[: j + 1]) <= start * size
    ]
    if len(parts) > 1 and math.prod(above[j] for j in parts) == size:
      yield i, parts


def _overlapping(
  below: tuple[int, ...], above: tuple[int, ...]
) -> Iterable[tuple[int, int]]:
  """Yields pairs of an axis of a reshape and one made of a part of it."""
  for i, j in itertools.product(range(len(below)), range(len(above))):
    steps = math.prod(below[i + 1 :]), math.prod(above[j + 1 :])
    if max(steps) < min(steps[0] * below[i], steps[1] * above[j]):
      yield i, j


def _transposed(equation: core.JaxprEqn) -> Iterable[tuple[int, int]]:
  return zip(equation.params['permutation'], itertools.count(), strict=False)


def _broadcast(equation: core.JaxprEqn) -> Iterable[tuple[int, int]]:
  below, above = (
    dataflow.shape(v) for v in (equation.invars[0], equation.outvars[0])
  )
  for i, j in enumerate(equation.params['broadcast_dimensions']):
    if below[i] == above[j]:
      yield i, j


def _squeezed(equation: core.JaxprEqn) -> Iterable[tuple[int, int]]:
  return _without(equation, equation.params['dimensions'])


def _reduced(equation: core.JaxprEqn) -> Iterable[tuple[int, int]]:
  return _without(equation, equation.params.get('axes', ()))


def _without(
  equation: core.JaxprEqn, axes: Sequence[int]
) -> Iterable[tuple[int, int]]:
  rank = len(dataflow.shape(equation.invars[0]))
  gone = {axis % rank for axis in axes}
  left = (i for i in range(rank) if i not in gone)
  return zip(left, itertools.count(), strict=False)


# Pairs of an axis of the operand and one of the result.
_MOVED: dict[str, Callable[..., Iterable[tuple[int, int]]]] = {
  'broadcast_in_dim': _broadcast,
  'squeeze': _squeezed,
  'transpose': _transposed,
}
_INNER: dict[str, Callable[..., list[Known]]] = {
  'cond': Roles._cond,
  'scan': Roles._scan,
  'shard_map': Roles._shard_map,
  'while': Roles._while,
}
