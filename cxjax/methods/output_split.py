"""Models in two parts: up to the features of their output, and their head.

The logits of a large vocabulary are the largest arrays of a training step. A
model whose output is a matrix product and elementwise operations, as that of
every language model, is taken apart here, so that they can be computed piece by
piece. Nobody has to declare anything.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval
import jax.numpy as jnp

from cxjax import types
from cxjax.methods import output_head

# Name of the activation that `with_features` adds.
FEATURES = 'features of the output'
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
class Ending:
  """The end of a model, `(weights, features) -> output`.

  Attributes:
    head: the head.
    width: width `C` of the output.
    rows: number of rows of the output that may be held at once; None is all.
    gather: `weights -> weights`, applied to sharded weights before use, or
      None.
  """

  head: output_head.Head
  width: int
  rows: int | None = None
  gather: Callable[[Any], Any] | None = None

  def __call__(
    self, weights: tuple[jax.Array, ...], features: jax.Array
  ) -> Any:
    """The output `[..., C]` of features; an `Apart` if rows are limited."""
    if self.gather is not None:
      weights = self.gather(weights)
    if self.rows is None:
      return self.head(weights, features)
    return Apart(features, weights, self.head, self.width, self.rows)


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
    features, rest = found.run(params, x, *key)
    return self._ending(found.weights(params), features), *rest

  def reads(self, params: types.Params) -> Any:
    """A tree of booleans: the parameters that the features depend on."""
    leaves, structure = jax.tree.flatten(params)
    read = [i in self.found.reads for i in range(len(leaves))]
    return jax.tree.unflatten(structure, read)

  def restorer(self, params: types.Params) -> Callable[[jax.Array], Apart]:
    """Returns the function that makes an output of features again."""
    return functools.partial(self._ending, self.found.weights(params))

  @property
  def _ending(self) -> Ending:
    return Ending(self.found.head, self.found.shape[-1], self.rows)


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


def ending(
  fun: Callable[..., Any], params: types.Params, x: types.Input
) -> tuple[Ending, Any] | None:
  """The end of a model, and the weights that it computes with.

  Args:
    fun: `(params, x) -> (output, ...)`.
    params: its parameters; if they are shapes, so are the weights.
    x: an input; its shape is enough.

  Returns:
    The two; None if the output is not made of one matrix product and of
    elementwise operations.
  """
  found = _find(fun, params, x)
  if found is None:
    return None
  make = found.weights
  if any(isinstance(p, jax.ShapeDtypeStruct) for p in jax.tree.leaves(params)):
    make = functools.partial(jax.eval_shape, make)
  return Ending(found.head, found.shape[-1]), make(params)


def with_features(fun: Callable[..., Any]) -> Callable[..., Any]:
  """The model, with the features of its output among its activations.

  Args:
    fun: `(params, x) -> (output, activations)`; its output has a head.

  Returns:
    The same function; the activation `FEATURES` is `[..., D]`. A caller that
    reads no output does not compute it, under `jit`.
  """

  def run(params: types.Params, x: types.Input) -> Any:
    found = _find(fun, params, x)
    assert found is not None, 'The model has no head.'
    features, (activations,) = found.run(params, x)
    output = found.head(found.weights(params), features)
    return output, {**activations, FEATURES: features}

  return run


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
    reads: numbers of the leaves that `trunk` reads.
    make: function from the leaves of the parameters to what the head reads of
      them.
  """

  head: output_head.Head
  shape: tuple[int, ...]
  structure: Any
  trunk: Callable[[Sequence[Any]], list[Any]]
  reads: frozenset[int]
  make: Callable[[Sequence[Any]], list[Any]]

  def weights(self, params: types.Params) -> tuple[jax.Array, ...]:
    """Returns what the head reads of the parameters."""
    return tuple(self.make(jax.tree.leaves(params)))

  def run(self, *args: Any) -> tuple[jax.Array, list[Any]]:
    """Returns the features, and what the model returns beside its output."""
    features, *others = self.trunk(jax.tree.leaves(args))
    features = features.reshape(*self.shape[:-1], features.shape[-1])
    rest = jax.tree.unflatten(self.structure, [jnp.zeros(()), *others])
    return features, list(rest[1:])


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
    *_pruned(flat, [features, *flat.jaxpr.outvars[1:]]),
    _pruned(flat, weights)[0],
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
) -> tuple[Callable[[Sequence[Any]], list[Any]], frozenset[int]]:
  """A function of the leaves that computes some variables and no others.

  With the numbers of the leaves that it reads.
  """
  jaxpr = closed.jaxpr
  paths = ('',) * len(outputs)
  own = jaxpr.replace(
    outvars=list(outputs),
    debug_info=jaxpr.debug_info._replace(result_paths=paths),
  )
  own, used = partial_eval.dce_jaxpr(own, [True] * len(outputs))
  run = core.jaxpr_as_fun(core.ClosedJaxpr(own, closed.consts))
  indices = [i for i, needed in enumerate(used) if needed]
  pruned = lambda leaves: run(*(leaves[i] for i in indices))
  return pruned, frozenset(indices)
