"""Values that are probabilities, found in the dataflow of a model.

A value whose entries sum to 1 along an axis, as after a softmax, is followed
through casts, reshapes, slices, means and mixtures.
"""

from collections.abc import Callable
import math
from typing import TypeAlias

from jax.extend import core
import numpy as np

from cxjax.methods import jaxprs
from cxjax.models import dataflow

# Operations of a logsumexp, from its result back to the sum.
_LOGARITHM = ('log', 'abs', 'add', 'max')
_SAME = (*dataflow.COPIES, 'pvary')
# Between a sum and what is divided by it; a `psum` is that over the shards.
_REPEATED = (
  'add',
  'broadcast_in_dim',
  'max',
  'psum',
  'psum_invariant',
  'pvary',
)
# The sum of probabilities differs from 1 by rounding and by small constants.
_TOLERANCE = 0.01
# Of the walk: a softmax that ends a model is found in a few.
_STEPS = 200

# Sum of the entries of a value along an axis, if it is known and none of them
# is negative.
Total: TypeAlias = float | None


def has_softmax(flow: dataflow.Dataflow, value: dataflow.Value | None) -> bool:
  """True if a value is probabilities of the classes in its last axis."""
  axis = flow.rank(value) - 1
  total = _Walk(flow).total(value, axis) if axis >= 0 else None
  return total is not None and abs(total - 1) < _TOLERANCE


def has_sigmoid(flow: dataflow.Dataflow, value: dataflow.Value | None) -> bool:
  """True if a value is the result of a sigmoid."""
  left = [value]
  while left:
    source = flow.source(left.pop())
    if flow.name(source) == 'logistic':
      return True
    left.extend(flow.inside(source))
  return False


class _Walk:
  """Walks back from a value to the softmax that made it."""

  def __init__(self, flow: dataflow.Dataflow) -> None:
    self._flow, self._steps = flow, 0
    self._rules: dict[str, Callable[..., Total]] = {
      'add': self._add,
      'broadcast_in_dim': self._broadcast,
      'clamp': self._clamp,
      'concatenate': self._concatenate,
      'div': self._div,
      'dot_general': self._mixture,
      'exp': self._exp,
      'max': self._bound,
      'min': self._bound,
      'mul': self._mul,
      'reduce_sum': self._sum,
      'reshape': self._reshape,
      'select_n': self._select,
      'slice': self._first,
      'squeeze': self._squeeze,
      'transpose': self._transpose,
      **dict.fromkeys(_SAME, self._first),
      **dict.fromkeys(('cond', 'scan', 'while'), self._inside),
    }

  def total(self, value: dataflow.Value | None, axis: int) -> Total:
    """Sum of a value along an axis."""
    if value is None or (equation := self._equation(value)) is None:
      return None
    rule = self._rules.get(equation.primitive.name)
    if rule is None or self._steps > _STEPS:
      return None
    self._steps += 1
    return rule(value, equation, axis)

  def _equation(self, value: dataflow.Value) -> core.JaxprEqn | None:
    return self._flow.nodes[value[0]].equation

  def _operand(
    self, value: dataflow.Value | None, *names: str, at: int = 0
  ) -> dataflow.Value | None:
    """An operand of the equation behind copies; None if it is of no such."""
    value = self._flow.source(value)
    if value is None or self._flow.name(value) not in names:
      return None
    operands = self._flow.nodes[value[0]].operands
    return operands[at] if at < len(operands) else None

  def _operands(
    self, value: dataflow.Value
  ) -> tuple[dataflow.Value | None, ...]:
    return self._flow.nodes[value[0]].operands

  def _first(
    self, value: dataflow.Value, equation: core.JaxprEqn, axis: int
  ) -> Total:
    del equation
    return self.total(self._operands(value)[0], axis)

  def _transpose(
    self, value: dataflow.Value, equation: core.JaxprEqn, axis: int
  ) -> Total:
    return self._first(value, equation, equation.params['permutation'][axis])

  def _squeeze(
    self, value: dataflow.Value, equation: core.JaxprEqn, axis: int
  ) -> Total:
    size = len(dataflow.shape(equation.invars[0]))
    gone = {i % size for i in equation.params['dimensions']}
    left = [i for i in range(size) if i not in gone]
    return self._first(value, equation, left[axis])

  def _broadcast(
    self, value: dataflow.Value, equation: core.JaxprEqn, axis: int
  ) -> Total:
    axes = equation.params['broadcast_dimensions']
    if axis not in axes:
      return None
    below = axes.index(axis)
    shapes = (
      dataflow.shape(equation.invars[0]),
      dataflow.shape(equation.outvars[0]),
    )
    same = shapes[0][below] == shapes[1][axis]
    return self._first(value, equation, below) if same else None

  def _reshape(
    self, value: dataflow.Value, equation: core.JaxprEqn, axis: int
  ) -> Total:
    below = dataflow.axis_below(equation, axis)
    return None if below is None else self._first(value, equation, below)

  def _sum(
    self, value: dataflow.Value, equation: core.JaxprEqn, axis: int
  ) -> Total:
    """Sum after a sum over another axis, as over the members of an ensemble."""
    shape, gone = dataflow.shape(equation.invars[0]), equation.params['axes']
    left = [i for i in range(len(shape)) if i not in gone]
    below = self._first(value, equation, left[axis])
    return None if below is None else below * math.prod(shape[i] for i in gone)

  def _inside(
    self, value: dataflow.Value, equation: core.JaxprEqn, axis: int
  ) -> Total:
    """Sum of a result of a loop, or of the branch where it is nearest to 1."""
    if value[1] < 0:  # What a step reads.
      return self.total(self._operands(value)[0], axis + 1)
    if equation.primitive.name == 'scan':
      stacked = value[1] >= jaxprs.scan_counts(equation)[1]
      if stacked and axis == 0:
        return None
      axis -= stacked
    totals = [self.total(each, axis) for each in self._flow.inside(value)]
    known = [each for each in totals if each is not None]
    return min(known, key=lambda each: abs(each - 1), default=None)

  def _add(
    self, value: dataflow.Value, equation: core.JaxprEqn, axis: int
  ) -> Total:
    a, b = self._operands(value)
    number = _literal(equation)
    if number is not None and number >= 0:
      below = self.total(a if b is None else b, axis)
      size = dataflow.shape(equation.outvars[0])[axis]
      return None if below is None else below + number * size
    below = self.total(a, axis)
    other = None if below is None else self.total(b, axis)
    return None if below is None or other is None else below + other

  def _bound(
    self, value: dataflow.Value, equation: core.JaxprEqn, axis: int
  ) -> Total:
    """Sum of probabilities that are kept away from 0 or 1."""
    del equation
    known = [o for o in self._operands(value) if not self._is_constant(o)]
    return self.total(known[0], axis) if len(known) == 1 else None

  def _clamp(
    self, value: dataflow.Value, equation: core.JaxprEqn, axis: int
  ) -> Total:
    del equation
    return self.total(self._operands(value)[1], axis)

  def _concatenate(
    self, value: dataflow.Value, equation: core.JaxprEqn, axis: int
  ) -> Total:
    totals = [self.total(each, axis) for each in self._operands(value)]
    if equation.params['dimension'] == axis or None in totals:
      return None
    return totals[0] if len(set(totals)) == 1 else None

  def _select(
    self, value: dataflow.Value, equation: core.JaxprEqn, axis: int
  ) -> Total:
    """Sum of probabilities with zeros where a class is excluded."""
    del equation
    found = set()
    for case in self._operands(value)[1:]:
      if not self._is_constant(case):
        found.add(self.total(case, axis))
    return found.pop() if len(found) == 1 else None

  def _mul(
    self, value: dataflow.Value, equation: core.JaxprEqn, axis: int
  ) -> Total:
    a, b = self._operands(value)
    number = _literal(equation)
    if number is not None:
      below = self.total(a if b is None else b, axis)
      return None if below is None or number < 0 else below * number
    for one, other in ((a, b), (b, a)):  # By the reciprocal of the sum.
      below = self._operand(self._inner(other), 'div', at=1)
      if below is not None and self._is_sum(below, one, axis):
        return 1.0
    return None

  def _div(
    self, value: dataflow.Value, equation: core.JaxprEqn, axis: int
  ) -> Total:
    a, b = self._operands(value)
    if b is None:
      below, number = self.total(a, axis), _literal(equation)
      return below / number if below is not None and number else None
    return 1.0 if self._is_sum(b, a, axis) else None

  def _exp(
    self, value: dataflow.Value, equation: core.JaxprEqn, axis: int
  ) -> Total:
    """Sum of the exponential of a log softmax, which is 1."""
    del equation
    operand = self._operands(value)[0]
    logits = self._operand(operand, 'sub')
    norm = self._operand(operand, 'sub', at=1)
    base, left = self._base(logits), [norm]
    while left and self._steps < _STEPS:
      self._steps += 1
      one = self._inner(left.pop())
      if one is None or self._flow.name(one) not in _LOGARITHM:
        continue
      for below in self._operands(one):
        inner = self._inner(below)
        exp = self._operand(inner, 'reduce_sum')
        if exp is None:
          left.append(below)
        elif (
          self._reduces(inner, axis)
          and self._base(self._operand(exp, 'exp')) == base
        ):
          return 1.0
    return None

  def _mixture(
    self, value: dataflow.Value, equation: core.JaxprEqn, axis: int
  ) -> Total:
    """Sum of a mixture of distributions by weights that sum to 1."""
    contracted, batch = equation.params['dimension_numbers']
    ranks = [len(dataflow.shape(atom)) for atom in equation.invars]
    free = [
      [i for i in range(ranks[n]) if i not in (*contracted[n], *batch[n])]
      for n in (0, 1)
    ]
    axes = [(n, i) for n in (0, 1) for i in free[n]]
    if axis < len(batch[0]) or len(contracted[0]) != 1:
      return None
    side, own = axes[axis - len(batch[0])]
    operands = self._operands(value)
    mixed = self.total(operands[side], own)
    if mixed is None:
      return None
    weights = self.total(operands[1 - side], contracted[1 - side][0])
    return None if weights is None else mixed * weights

  def _inner(self, value: dataflow.Value | None) -> dataflow.Value | None:
    """The value that this one repeats along an axis, bounds, or sums up."""
    while (value := self._flow.source(value)) is not None:
      name = self._flow.name(value)
      if name not in _REPEATED:
        break
      known = [o for o in self._operands(value) if o is not None]
      if len(known) != 1:
        break
      value = known[0]
    return value

  def _base(self, value: dataflow.Value | None) -> dataflow.Value | None:
    """The logits of which a maximum is subtracted, or the value itself."""
    value = self._flow.source(value)
    if value is not None and self._flow.name(value) == 'sub':
      return self._base(self._operands(value)[0])
    return value

  def _reduces(self, value: dataflow.Value | None, axis: int) -> bool:
    equation = None if value is None else self._equation(value)
    return equation is not None and tuple(equation.params['axes']) == (axis,)

  def _is_sum(
    self,
    value: dataflow.Value | None,
    summed: dataflow.Value | None,
    axis: int,
  ) -> bool:
    """True if a value is the sum of another along an axis."""
    value = self._inner(value)
    operand = self._flow.source(self._operand(value, 'reduce_sum'))
    summed = self._flow.source(summed)
    if operand is None or summed is None or not self._reduces(value, axis):
      return False
    if self._flow.name(operand) == 'select_n':  # Classes that are excluded.
      cases = self._operands(operand)[1:]
      return any(self._flow.source(case) == summed for case in cases)
    return operand == summed

  def _is_constant(self, value: dataflow.Value | None) -> bool:
    """True if a value is a number that is repeated."""
    value = self._flow.source(value)
    if value is not None and self._flow.name(value) == 'broadcast_in_dim':
      return self._is_constant(self._operands(value)[0])
    return value is None


def _literal(equation: core.JaxprEqn) -> float | None:
  """The number among the operands of an equation, if one is a literal."""
  for atom in equation.invars:
    if isinstance(atom, core.Literal) and np.ndim(atom.val) == 0:
      return float(atom.val)
  return None
