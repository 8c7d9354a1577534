"""Digests of what decides the result of a run: functions, optimizers, arrays.

A function is hashed by what it computes, not by its code or its name: it is
traced to a jaxpr, and every value in it is hashed from its primitive, the
parameters of the primitive and the hashes of its inputs. So a digest depends on
closures, default arguments, globals and attributes that change the result, and
not on names, the order of independent equations, or `jax.jit`. It is the same
in another process with the same versions of jax and optax; another version may
trace another jaxpr.
"""

from collections.abc import Callable
from collections.abc import Iterable
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp

from cxjax import errors
from cxjax.methods import jaxprs
from cxjax.methods import optax_adapter

LENGTH = 16  # Hexadecimal digits of a digest.
UNHASHABLE = 'unhashable'


def function_digest(fun: Callable[..., Any], *shapes: Any) -> str:
  """Digest of what a function computes, and of its own derivative, if any.

  Args:
    fun: a function of trees of arrays that jax can trace.
    *shapes: its arguments, or their shapes; trees.

  Returns:
    16 hexadecimal digits; or a text that begins with 'unhashable', after a
    warning, if the result depends on a callback, on a mutable array, or on a
    function that cannot be traced.
  """
  try:
    return _function(fun, shapes)
  except jaxprs.Unhashable as error:
    name = getattr(fun, '__qualname__', type(fun).__qualname__)
    return _warn(f'the function {name}', error)


def optimizer_digest(tx: Any, params: Any) -> str:
  """Digest of an optimizer: its initial state and its update.

  Args:
    tx: an optax transformation.
    params: the parameters that it updates, or their shapes; None for those that
      it does not see.

  Returns:
    16 hexadecimal digits; or a text that begins with 'unhashable', after a
    warning, as of `function_digest`, or because it cannot train them.
  """
  try:
    return _optimizer(tx, params)
  except jaxprs.Unhashable as error:
    return _warn('the optimizer', error)


def _optimizer(tx: Any, params: Any) -> str:
  """Implements `optimizer_digest`; raises jaxprs.Unhashable."""
  try:
    adapter = optax_adapter.adapt(tx, params)
  except errors.UserError as error:
    raise jaxprs.Unhashable(str(error)) from error
  square = lambda leaf: jnp.sum(jnp.square(leaf.astype(jnp.float32)))
  loss = lambda tree: sum(map(square, jax.tree.leaves(tree)), jnp.zeros(()))

  def update(grads: Any, state: Any, params: Any, value: jax.Array) -> Any:
    return adapter.update(grads, state, params, None, params, value, loss)

  init = _function(adapter.init, (params,))
  state = jax.eval_shape(adapter.init, params)
  value = jax.ShapeDtypeStruct((), jnp.float32)
  return _join(init, _function(update, (params, state, params, value)))


def tree_digest(tree: Any) -> str:
  """Digest of a tree of arrays: paths, dtypes, shapes and values.

  Args:
    tree: arrays or numbers that this process can read.

  Returns:
    16 hexadecimal digits.

  Raises:
    UserError: a leaf is no array and no number.
  """
  parts: list[str | bytes] = []
  for path, leaf in jax.tree.leaves_with_path(tree):
    name = jax.tree_util.keystr(path)
    try:
      parts += [name, jaxprs.hash_array(leaf)]
    except jaxprs.Unhashable as error:
      raise errors.UserError(
        f'{name} is a {type(leaf).__name__}; it must be an array or a number.'
      ) from error
  return _join(*parts)


def _warn(what: str, error: jaxprs.Unhashable) -> str:
  """Warns once about something without a digest; returns its stand-in."""
  logging.warning(
    'A change of %s cannot be noticed when a run goes on in its workdir (%s). '
    'If you change it, choose another workdir.',
    what,
    error,
  )
  return f'{UNHASHABLE}: {error}'


def _join(*parts: str | bytes) -> str:
  """Digest of several parts."""
  return jaxprs.hash_parts(*parts).hex()[:LENGTH]


def _trace(fun: Callable[..., Any], args: Iterable[Any]) -> tuple[Any, Any]:
  """The jaxpr of a function and the shapes of its output."""
  # JAX keeps the jaxpr of a function that it has traced, although a global that
  # the function reads may have changed. It does not know a new function.
  fresh = lambda *args: fun(*args)
  try:
    return jax.make_jaxpr(fresh, return_shape=True)(*args)
  except errors.UserError:
    raise
  # Whatever a user's function raises; the run raises it again.
  except Exception as error:
    raise jaxprs.Unhashable(f'it raises a {type(error).__name__}') from error


def _function(fun: Callable[..., Any], args: Iterable[Any]) -> str:
  """Implements `function_digest`; raises jaxprs.Unhashable."""
  args = tuple(args)
  jaxpr, shape = _trace(fun, args)
  parts: list[str | bytes] = [
    jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(shape)
  ]
  parts.append(jaxprs.hash_jaxpr(jaxpr))
  if jaxprs.has_custom_derivative(jaxpr.jaxpr):
    parts.append(_gradient(fun, args, shape))
  return _join(*parts)


def _gradient(fun: Callable[..., Any], args: Any, shape: Any) -> bytes:
  """Hash of the vector-Jacobian product of a function, if it has one."""
  leaves, structure = jax.tree.flatten(args)
  real = [jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in leaves]

  def backward(leaves: Any, cotangents: Any) -> Any:
    def forward(inputs: Any) -> Any:
      given = iter(inputs)
      mixed = [
        next(given) if differentiable else leaf
        for leaf, differentiable in zip(leaves, real, strict=True)
      ]
      return _inexact(fun(*jax.tree.unflatten(structure, mixed)))

    inputs = [leaf for leaf, yes in zip(leaves, real, strict=True) if yes]
    return jax.vjp(forward, inputs)[1](cotangents)

  try:
    jaxpr, _ = _trace(backward, (leaves, _inexact(shape)))
  except jaxprs.Unhashable:  # Nothing trains on it.
    return b''
  return jaxprs.hash_jaxpr(jaxpr)


def _inexact(tree: Any) -> list[Any]:
  """The leaves of a tree that can be differentiated."""
  return [
    leaf
    for leaf in jax.tree.leaves(tree)
    if jnp.issubdtype(leaf.dtype, jnp.inexact)
  ]
