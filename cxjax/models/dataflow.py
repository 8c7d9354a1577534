"""Dataflow of a model: its equations in order, what each needs and costs.

Found in one pass over the jaxpr of the model.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Any
from typing import TypeAlias

import jax
from jax.extend import core

from cxjax.methods import flops as flops_lib
from cxjax.methods import jaxprs

# Calls whose equations count as those of the caller.
_CALLS = (
  'checkpoint',
  'closed_call',
  'composite',
  'core_call',
  'custom_jvp_call',
  'custom_vjp_call',
  'custom_vmap_call',
  'jit',
  'pjit',
  'remat2',
)
_BODIES = ('jaxpr', 'call_jaxpr', 'fun_jaxpr', 'call')
# Others with equations inside.
_INNER = ('cond', 'scan', 'shard_map', 'while')
_PRODUCTS = ('dot_general', 'conv_general_dilated')
# Their result is their operand, in another dtype, on other devices, ...
COPIES = (
  'convert_element_type',
  'copy',
  'copy_p',
  'name',
  'optimization_barrier',
  'reduce_precision',
  'sharding_constraint',
  'stop_gradient',
)
# ... or with its axes in another form.
_FORMS = (*COPIES, 'reshape', 'squeeze', 'expand_dims', 'transpose')

# Number of a node, and of one of its outputs; -1 is the slice of an operand
# that a step of a scan reads.
Value: TypeAlias = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Node:
  """An input or a constant of a jaxpr, or one of its equations.

  Attributes:
    equation: the equation; None for an input or a constant.
    operands: values that it reads; None for a literal. Those of a scan, a loop
      or a condition with its inner equations are its results inside.
  """

  equation: core.JaxprEqn | None
  operands: tuple[Value | None, ...] = ()


class Dataflow:
  """The equations of a jaxpr in order, with those of inner calls among them.

  A scan, a loop and a condition are one equation each.

  Attributes:
    nodes: inputs and constants, then the equations.
    outputs: the values that the jaxpr returns.
  """

  def __init__(self, closed: core.ClosedJaxpr, inner: bool = False) -> None:
    """Walks the jaxpr, with the bodies of its calls.

    Args:
      closed: the jaxpr.
      inner: adds the equations inside of conditions, of the first step of scans
        and loops, and of a shard of a `shard_map`, which costs do not count.
    """
    self.nodes: list[Node] = []
    self._inner = inner
    inputs = [*closed.jaxpr.invars, *closed.jaxpr.constvars]
    self.nodes.extend(Node(None) for _ in inputs)
    count, constants = len(closed.jaxpr.invars), len(closed.consts)
    values = [(i, 0) for i in range(count + constants)]
    self.outputs = self._walk(closed.jaxpr, values[:count], values[count:])

  def _walk(
    self,
    jaxpr: core.Jaxpr,
    inputs: Sequence[Value | None],
    constants: Sequence[Value | None],
  ) -> list[Value | None]:
    """Adds the equations of a jaxpr; returns the values of its outputs."""
    known: dict[core.Var, Value | None] = {}
    known.update(zip(jaxpr.invars, inputs, strict=True))
    known.update(zip(jaxpr.constvars, constants, strict=True))
    read = lambda atom: known[atom] if isinstance(atom, core.Var) else None
    for equation in jaxpr.eqns:
      operands = [read(atom) for atom in equation.invars]
      body = call_body(equation)
      if body is not None:
        results: Any = self._walk_body(body, operands)
      elif self._inner and equation.primitive.name == 'shard_map':
        results = self._walk(equation.params['jaxpr'], operands, ())
      else:
        if self._inner and equation.primitive.name in _INNER:
          operands = self._walk_inside(equation, operands)
        number = len(self.nodes)
        self.nodes.append(Node(equation, tuple(operands)))
        results = [(number, i) for i in range(len(equation.outvars))]
      known.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]

  def _walk_body(
    self, body: core.ClosedJaxpr, inputs: Sequence[Value | None]
  ) -> list[Value | None]:
    """Adds the equations of a jaxpr with its constants."""
    first = len(self.nodes)
    self.nodes.extend(Node(None) for _ in body.consts)
    held = [(first + i, 0) for i in range(len(body.consts))]
    return self._walk(body.jaxpr, inputs, held)

  def _walk_inside(
    self, equation: core.JaxprEqn, operands: Sequence[Value | None]
  ) -> list[Value | None]:
    """Adds the equations of a condition or a loop; returns its results."""
    params = equation.params
    if equation.primitive.name == 'cond':
      return [
        value
        for branch in params['branches']
        for value in self._walk_body(branch, operands[1:])
      ]
    if equation.primitive.name == 'while':
      own = operands[params['cond_nconsts'] :]
      return self._walk_body(params['body_jaxpr'], own)
    first = sum(jaxprs.scan_counts(equation))
    slices = [(len(self.nodes) + i, -1) for i in range(len(operands) - first)]
    self.nodes.extend(Node(equation, (one,)) for one in operands[first:])
    return self._walk_body(params['jaxpr'], [*operands[:first], *slices])

  def inside(self, value: Value | None) -> list[Value | None]:
    """Results inside of a condition or a loop that may become a value."""
    if not self._inner or value is None or value[1] < 0:
      return []
    node = self.nodes[value[0]]
    if node.equation is None or node.equation.primitive.name not in _INNER:
      return []
    found = list(node.operands[value[1] :: len(node.equation.outvars)])
    branch = node.equation.invars[0]
    if node.equation.primitive.name == 'cond' and isinstance(
      branch, core.Literal
    ):
      last = len(found) - 1
      return [found[min(max(int(branch.val), 0), last)]]
    return found

  @functools.cached_property
  def ancestors(self) -> list[int]:
    """Nodes that each node needs, as bits; itself is one of them."""
    found: list[int] = []
    for number, node in enumerate(self.nodes):
      needed = 1 << number
      for operand in node.operands:
        if operand is not None:
          needed |= found[operand[0]]
      found.append(needed)
    return found

  @functools.cached_property
  def products(self) -> int:
    """The equations with matrix products or convolutions, as bits."""
    return sum(
      1 << i
      for i, node in enumerate(self.nodes)
      if node.equation is not None and _has_product(node.equation)
    )

  @functools.cached_property
  def _costs(self) -> dict[int, float]:
    """FLOPs of the equations that have any, by their numbers."""
    costs = {
      i: flops_lib.of_equation(node.equation)
      for i, node in enumerate(self.nodes)
      if node.equation is not None
    }
    return {i: cost for i, cost in costs.items() if cost}

  def flops(self, value: Value | None) -> float:
    """FLOPs to compute a value, as `flops.counted`; a scan in full."""
    if value is None:
      return 0.0
    bits = f'{self.ancestors[value[0]]:b}'[::-1]
    return sum(
      cost for i, cost in self._costs.items() if bits[i : i + 1] == '1'
    )

  def read(
    self, value: Value | None, names: Mapping[int, str]
  ) -> tuple[str, ...]:
    """Names of the inputs that a value needs, of those with these numbers."""
    if value is None:
      return ()
    needed = self.ancestors[value[0]]
    return tuple(name for i, name in names.items() if needed >> i & 1)

  def source(self, value: Value | None, forms: bool = True) -> Value | None:
    """The value that this one is a copy of.

    Args:
      value: a value.
      forms: look through reshapes and transposes too, beside casts.

    Returns:
      The first value in the chain; itself if it is no copy.
    """
    names = _FORMS if forms else COPIES
    while value is not None:
      node = self.nodes[value[0]]
      if node.equation is None or node.equation.primitive.name not in names:
        break
      value = node.operands[value[1]]
    return value

  def name(self, value: Value | None) -> str:
    """Name of the primitive that makes a value; '' of an input."""
    equation = None if value is None else self.nodes[value[0]].equation
    return '' if equation is None else equation.primitive.name

  def rank(self, value: Value | None) -> int:
    """Number of axes of a value that an equation makes; 0 of an input."""
    equation = None if value is None else self.nodes[value[0]].equation
    if value is None or equation is None:
      return 0
    return len(shape(equation.outvars[value[1]]))

  def position(self, value: Value | None) -> tuple[int, int]:
    """When a value is computed; those of one scan in the order of its body."""
    if value is None:
      return (-1, -1)
    equation = self.nodes[value[0]].equation
    if equation is None:
      return (-1, value[0])
    if equation.primitive.name != 'scan':
      return value
    body = Dataflow(equation.params['jaxpr'])
    return (value[0], body.position(body.outputs[value[1]])[0])

  def stacked(self, value: Value | None) -> bool:
    """True if the first axis of a value is that of a scan."""
    value = self.source(value, forms=False)
    if value is None:
      return False
    node = self.nodes[value[0]]
    if node.equation is None:
      return False
    if node.equation.primitive.name == 'concatenate':  # A scan that was split.
      first = node.equation.params['dimension'] == 0
      return first and any(self.stacked(o) for o in node.operands)
    return (
      node.equation.primitive.name == 'scan'
      and value[1] >= jaxprs.scan_counts(node.equation)[1]
    )

  def determines(self, value: Value, output: Value) -> bool:
    """True if `output` follows from `value` without inputs and products."""
    seen, left = {value[0]}, [output[0]]
    while left:
      number = left.pop()
      if number in seen:
        continue
      seen.add(number)
      equation = self.nodes[number].equation
      if equation is None or self.products >> number & 1:
        return False
      left.extend(o[0] for o in self.nodes[number].operands if o is not None)
    return True


def alone(jaxpr: core.Jaxpr, equation: core.JaxprEqn) -> core.ClosedJaxpr:
  """A jaxpr of one equation.

  Args:
    jaxpr: any jaxpr.
    equation: an equation.

  Returns:
    A jaxpr whose inputs are the variables that the equation reads, each once.
  """
  inputs = [v for v in equation.invars if isinstance(v, core.Var)]
  inputs = list(dict.fromkeys(inputs))
  own = jaxpr.replace(
    constvars=[],
    invars=inputs,
    outvars=list(equation.outvars),
    eqns=[equation],
    debug_info=jaxpr.debug_info._replace(
      arg_names=('',) * len(inputs),
      result_paths=('',) * len(equation.outvars),
    ),
  )
  return core.ClosedJaxpr(own, [])


def shape(atom: Any) -> tuple[int, ...]:
  """Shape of a variable or a literal."""
  found: tuple[int, ...] = atom.aval.shape
  return found


def axis_below(equation: core.JaxprEqn, axis: int) -> int | None:
  """The axis of the operand of a reshape that is one of its result.

  Args:
    equation: a reshape.
    axis: axis of its result.

  Returns:
    The axis of the operand with as many values before it; None if it was cut or
    joined.
  """
  below, above = shape(equation.invars[0]), shape(equation.outvars[0])
  for i, size in enumerate(below):
    before = math.prod(below[:i]) == math.prod(above[:axis])
    if size == above[axis] and before:
      return i
  return None


def call_body(equation: core.JaxprEqn) -> core.ClosedJaxpr | None:
  """The jaxpr of a call whose equations count as those of the caller."""
  if equation.primitive.name not in _CALLS:
    return None
  bodies = [
    equation.params[name] for name in _BODIES if name in equation.params
  ]
  if not bodies:
    return None
  body = jaxprs.close(bodies[0])
  if len(body.jaxpr.invars) != len(equation.invars):
    return None
  return body


def _inside(equation: core.JaxprEqn) -> Iterator[core.Jaxpr]:
  """Yields the jaxprs in the parameters of an equation."""
  is_leaf = lambda leaf: isinstance(leaf, core.Jaxpr | core.ClosedJaxpr)
  for leaf in jax.tree.leaves(list(equation.params.values()), is_leaf=is_leaf):
    leaf = getattr(leaf, 'jaxpr', leaf)
    if isinstance(leaf, core.Jaxpr):
      yield leaf


def _has_product(equation: core.JaxprEqn) -> bool:
  """True if an equation, or one inside it, is a product or a convolution."""
  return equation.primitive.name in _PRODUCTS or any(
    _has_product(inner) for jaxpr in _inside(equation) for inner in jaxpr.eqns
  )
