"""FLOPs of a function: compiled, as written, or counted without XLA."""

from collections.abc import Callable
from collections.abc import Sequence
import math
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval
import numpy as np

# For a GPU, XLA counts no product that it leaves to a library.
_XLA_COUNTS = ('cpu', 'tpu')
# They move values and compute none.
_FREE = frozenset(
  (
    'bitcast_convert_type',
    'broadcast_in_dim',
    'concatenate',
    'copy',
    'copy_p',
    'device_put',
    'dynamic_slice',
    'dynamic_update_slice',
    'empty',
    'expand_dims',
    'gather',
    'iota',
    'name',
    'optimization_barrier',
    'pad',
    'pbroadcast',
    'pvary',
    'random_seed',
    'random_unwrap',
    'random_wrap',
    'reshape',
    'rev',
    'scatter',
    'sharding_constraint',
    'slice',
    'split',
    'squeeze',
    'stop_gradient',
    'transpose',
  )
)
# XLA counts these apart from FLOPs.
_TRANSCENDENTAL = frozenset(
  (
    'atan2',
    'cbrt',
    'cos',
    'exp',
    'exp2',
    'expm1',
    'log',
    'log1p',
    'pow',
    'rsqrt',
    'sin',
    'sqrt',
    'tanh',
  )
)
_REDUCTIONS = frozenset(
  (
    'argmax',
    'argmin',
    'reduce_and',
    'reduce_max',
    'reduce_min',
    'reduce_or',
    'reduce_prod',
    'reduce_sum',
    'reduce_xor',
  )
)
# Per value, as XLA expands them: a polynomial, rounds of a hash.
_EXPANDED = {'erf': 27, 'logistic': 3, 'random_bits': 57, 'threefry2x32': 57}


def compiled(fun: Callable[..., Any], *args: Any) -> float:
  """FLOPs of `fun(*args)` as XLA compiles it; shapes are enough.

  XLA counts the body of a loop once. The other rounds of a scan are added as
  `counted` has them; those of a loop whose trip count is known only when it
  runs are not. On a GPU, `counted`.
  """
  return _of_xla(fun, args, lambda traced: traced.lower().compile())


def lowered(fun: Callable[..., Any], *args: Any) -> float:
  """FLOPs of `fun(*args)` before XLA optimizes it; compiles nothing.

  Scans are as in `compiled`. XLA tells them on a CPU alone; on other devices
  they are those that `counted` has.
  """
  return _of_xla(fun, args, lambda traced: traced.lower())


def _of_xla(
  fun: Callable[..., Any], args: Sequence[Any], analyzed: Callable[[Any], Any]
) -> float:
  """FLOPs of XLA's analysis of what `analyzed` makes of the trace."""
  if jax.default_backend() not in _XLA_COUNTS:
    return counted(fun, *args)
  traced = jax.jit(fun).trace(*args)
  analysis, needed = analyzed(traced).cost_analysis(), _needed(traced)
  if analysis is None:
    return of_jaxpr(needed)
  return float(analysis.get('flops', 0.0)) + _later(needed)


def counted(fun: Callable[..., Any], *args: Any) -> float:
  """FLOPs of `fun(*args)`, counted from its jaxpr; neither lowers nor compiles.

  What the results do not need counts nothing, a scan as often as it runs, and
  what `jax.checkpoint` computes twice counts twice. The body of a loop whose
  trip count is known only when it runs counts once.

  Args:
    fun: any function.
    *args: its arguments; shapes are enough.

  Returns:
    FLOPs: those of matrix products and convolutions, and one for each value of
    another operation, as XLA counts them.
  """
  return of_jaxpr(_needed(jax.jit(fun).trace(*args)))


def _needed(traced: Any) -> core.Jaxpr:
  """The equations that the results of a traced function need."""
  jaxpr = traced.jaxpr.jaxpr
  return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def _later(jaxpr: core.Jaxpr) -> float:
  """FLOPs of the rounds of scans after their first, which XLA leaves out."""
  total = 0.0
  for equation in jaxpr.eqns:
    inner = [_later(one) for one in core.jaxprs_in_params(equation.params)]
    if equation.primitive.name == 'cond':
      total += max(inner)
      continue
    total += sum(inner)
    if equation.primitive.name == 'scan':
      body = of_jaxpr(equation.params['jaxpr'].jaxpr)
      total += (equation.params['length'] - 1) * body
  return total


# Counts by their names in `plan`.
COUNTS: dict[str, Callable[..., float]] = {
  'counted': counted,
  'compiled': compiled,
}


def of_jaxpr(jaxpr: core.Jaxpr) -> float:
  """FLOPs of all equations of a jaxpr."""
  return sum(map(of_equation, jaxpr.eqns))


def of_equation(equation: core.JaxprEqn) -> float:
  """FLOPs of one equation, with those inside it."""
  name, params = equation.primitive.name, equation.params
  if name == 'scan':
    return params['length'] * of_jaxpr(params['jaxpr'].jaxpr)
  if name == 'cond':
    return max(of_jaxpr(branch.jaxpr) for branch in params['branches'])
  if name == 'shard_map':
    axes = params.get('newly_manual_axes', params.get('manual_axes', ()))
    shards = math.prod(params['mesh'].shape[axis] for axis in axes)
    return shards * of_jaxpr(params['jaxpr'])
  if name in _PRODUCTS:
    return _PRODUCTS[name](equation)
  if name.startswith('scatter-') or name in _REDUCTIONS:
    return _reduction(equation)
  if inner := list(core.jaxprs_in_params(params)):
    grid = getattr(params.get('grid_mapping'), 'grid', ())  # Of Pallas.
    return math.prod(grid) * sum(map(of_jaxpr, inner))
  return _elementwise(equation)


def _elementwise(equation: core.JaxprEqn) -> float:
  """FLOPs of an equation that computes each value by itself."""
  name, size = equation.primitive.name, _size(equation.outvars)
  if name in _FREE or name in _TRANSCENDENTAL:
    return 0.0
  if name == 'integer_pow':
    power = abs(equation.params['y'])  # By squaring.
    return size * max(power.bit_length() + power.bit_count() - 2, 0)
  return size * _EXPANDED.get(name, 1)


def _reduction(equation: core.JaxprEqn) -> float:
  """FLOPs of a reduction, or of a scatter that adds."""
  if equation.primitive.name.startswith('scatter-'):
    return _size(equation.invars[2:])
  return _size(equation.invars) - _size(equation.outvars[:1])


def _shape(atom: Any) -> tuple[int, ...]:
  return getattr(atom.aval, 'shape', ())  # A token has none.


def _size(atoms: Sequence[Any]) -> float:
  return float(sum(math.prod(_shape(atom)) for atom in atoms))


def _product(equation: core.JaxprEqn) -> float:
  """FLOPs of a matrix product."""
  (contracted, _), _ = equation.params['dimension_numbers']
  shape = _shape(equation.invars[0])
  inner = math.prod(shape[axis] for axis in contracted)
  return 2 * inner * _size(equation.outvars)


def _ragged_product(equation: core.JaxprEqn) -> float:
  """FLOPs of a matrix product of groups of rows, each with its own matrix."""
  rows, matrices = map(_shape, equation.invars[:2])
  return 2.0 * math.prod(rows) * matrices[-1]


def _convolution(equation: core.JaxprEqn) -> float:
  """FLOPs of a convolution, without those on padding."""
  params = equation.params
  left, right = map(_shape, equation.invars[:2])
  numbers = params['dimension_numbers']
  total = 2.0 * left[numbers.lhs_spec[0]] * left[numbers.lhs_spec[1]]
  total *= right[numbers.rhs_spec[0]]
  total /= params['feature_group_count'] * params['batch_group_count']
  for i, (before, after) in enumerate(params['padding']):
    size, width = left[numbers.lhs_spec[2 + i]], right[numbers.rhs_spec[2 + i]]
    stride, spread = params['window_strides'][i], params['lhs_dilation'][i]
    taps = np.arange(width) * params['rhs_dilation'][i]
    last = (size - 1) * spread + 1 + before + after - (taps[-1] + 1)
    starts = np.arange(0, last + 1, stride)
    at = starts[:, None] + taps - before
    inside = (at >= 0) & (at <= (size - 1) * spread) & (at % spread == 0)
    total *= inside.sum()
  return total


_PRODUCTS: dict[str, Callable[[core.JaxprEqn], float]] = {
  'dot_general': _product,
  'conv_general_dilated': _convolution,
  'ragged_dot': _ragged_product,
  'ragged_dot_general': _ragged_product,
}
