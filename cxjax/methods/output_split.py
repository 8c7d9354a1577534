"""Models in two parts: up to the features of their output, and their head.

The logits of a large vocabulary are the largest arrays of a training step. A
model whose output is a matrix product and elementwise operations, as that of
every language model, is taken apart here, so that they can be computed piece by
piece. Nobody has to declare anything.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval
import jax.numpy as jnp

from cxjax import types
from cxjax.methods import output_head

_CALLS = ('jit', 'pjit', 'closed_call', 'core_call')


@dataclasses.dataclass(frozen=True, eq=False)
class Apart:
  """An output `[..., C]` that is not computed yet.

  Attributes:
    features: `[..., D]`, what the head reads.
    weights: arrays that the head computes with, made from the parameters.
    head: the head.
    width: `C`.
    rows: number of rows of the output that may be held at once.
  """

  features: jax.Array
  weights: tuple[jax.Array, ...]
  head: output_head.Head
  width: int
  rows: int

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the output."""
    return (*self.features.shape[:-1], self.width)

  @property
  def ndim(self) -> int:
    """Number of axes of the output."""
    return self.features.ndim


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
  """A model, `(params, x, ...) -> (Apart, activations, ...)`.

  Attributes:
    fun: the model, which returns its output whole.
    rows: number of rows of the output that may be held at once.
    found: trace of the model, with its head.
  """

  fun: Callable[..., Any]
  rows: int
  found: '_Found'

  def __call__(self, params: types.Params, x: types.Input, *key: Any) -> Any:
    """Runs the model up to the features of its output."""
    found = _find(self.fun, params, x, *key)
    assert found is not None, 'The head depends on the shape of the input.'
    leaves = jax.tree.leaves((params, x, *key))
    features, *others = found.trunk(leaves)
    features = features.reshape(*found.shape[:-1], features.shape[-1])
    rest = jax.tree.unflatten(found.structure, [jnp.zeros(()), *others])
    return self._apart(features, found.weights(params)), *rest[1:]

  def restorer(self, params: types.Params) -> Callable[[jax.Array], Apart]:
    """Returns the function that makes an output of features again."""
    weights = self.found.weights(params)
    return lambda features: self._apart(features, weights)

  def _apart(
    self, features: jax.Array, weights: tuple[jax.Array, ...]
  ) -> Apart:
    width = self.found.shape[-1]
    return Apart(features, weights, self.found.head, width, self.rows)


def split(fun: Callable[..., Any], rows: int, *shapes: Any) -> Split | None:
  """Takes a model apart.

  Args:
    fun: `(params, x, ...) -> (output, ...)`.
    rows: number of rows of the output that may be held at once.
    *shapes: its arguments; shapes are enough.

  Returns:
    The model in two parts; None if its output is not made of one matrix product
    with a kernel and of elementwise operations.
  """
  found = _find(fun, *shapes)
  return None if found is None else Split(fun, rows, found)


def kernel(
  fun: Callable[..., Any], params: types.Params, x: types.Input
) -> jax.Array | None:
  """The matrix of a model's output.

  Args:
    fun: `(params, x) -> (output, ...)`.
    params: its parameters.
    x: an input; its shape is enough.

  Returns:
    `[D, C]`; None if the output is not made of one matrix product and of
    elementwise operations.
  """
  found = _find(fun, params, x)
  return None if found is None else found.head.kernel(found.weights(params))


@dataclasses.dataclass(frozen=True, eq=False)
class _Found:
  """A trace with its head.

  Attributes:
    head: the head.
    shape: shape of the output.
    structure: tree structure of the model's results.
    trunk: function from the leaves of the arguments to the features, and to
      what the model returns beside the output.
    make: function from the leaves of the parameters to what the head reads of
      them.
  """

  head: output_head.Head
  shape: tuple[int, ...]
  structure: Any
  trunk: Callable[[Sequence[Any]], list[Any]]
  make: Callable[[Sequence[Any]], list[Any]]

  def weights(self, params: types.Params) -> tuple[jax.Array, ...]:
    """Returns what the head reads of the parameters."""
    return tuple(self.make(jax.tree.leaves(params)))


def _find(fun: Callable[..., Any], *args: Any) -> _Found | None:
  """The head of a function for arguments of these shapes, or None."""
  # The lambda is new, so JAX keeps no trace that another mesh was set for.
  closed, shape = jax.make_jaxpr(lambda *a: fun(*a), return_shape=True)(*args)
  flat = jax.make_jaxpr(lambda *leaves: _inlined(closed, leaves))(
    *closed.in_avals
  )
  count = len(jax.tree.leaves(args[0]))
  found = output_head.find(flat.jaxpr, count)
  if found is None:
    return None
  features, head, weights = found
  return _Found(
    head,
    jax.tree.leaves(shape)[0].shape,
    jax.tree.structure(shape),
    _pruned(flat, [features, *flat.jaxpr.outvars[1:]]),
    _pruned(flat, weights),
  )


def _inlined(closed: core.ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
  """Evaluates a jaxpr, with the equations of inner calls among its own."""
  jaxpr = closed.jaxpr
  values = dict(zip(jaxpr.invars, args, strict=True))
  values.update(zip(jaxpr.constvars, closed.consts, strict=True))
  read = lambda atom: values[atom] if isinstance(atom, core.Var) else atom.val
  for equation in jaxpr.eqns:
    operands = [read(atom) for atom in equation.invars]
    primitive, params = equation.primitive, equation.params
    if primitive.name in _CALLS:
      results = _inlined(
        params.get('jaxpr', params.get('call_jaxpr')), operands
      )
    else:
      with equation.ctx.manager:
        found = primitive.bind(*operands, **primitive.get_bind_params(params))
      results = found if primitive.multiple_results else [found]
    values.update(zip(equation.outvars, results, strict=True))
  return [read(atom) for atom in jaxpr.outvars]


def _pruned(
  closed: core.ClosedJaxpr, outputs: Sequence[Any]
) -> Callable[[Sequence[Any]], list[Any]]:
  """A function of the leaves that computes some variables and no others."""
  jaxpr = closed.jaxpr
  paths = ('',) * len(outputs)
  own = jaxpr.replace(
    outvars=list(outputs),
    debug_info=jaxpr.debug_info._replace(result_paths=paths),
  )
  own, used = partial_eval.dce_jaxpr(own, [True] * len(outputs))
  run = core.jaxpr_as_fun(core.ClosedJaxpr(own, closed.consts))
  indices = [i for i, needed in enumerate(used) if needed]
  return lambda leaves: run(*(leaves[i] for i in indices))
