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
from collections.abc import Mapping
import dataclasses
import enum
import hashlib
from typing import Any
from typing import TypeAlias

from absl import logging
import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np

from cxjax import errors
from cxjax.methods import optax_adapter

LENGTH = 16  # Hexadecimal digits of a digest.
UNHASHABLE = 'unhashable'
# Parameters of primitives that change speed, memory or names, not the result.
IGNORED = frozenset(
  {
    'compiler_options_kvs',
    'copy_semantics',
    'ctx_mesh',
    'devices',
    'differentiated',
    'donated_invars',
    'in_layouts',
    'in_shardings',
    'inline',
    'keep_unused',
    'name',
    'out_layouts',
    'out_sharding',
    'out_shardings',
    'policy',
    'prevent_cse',
    'sharding',
    'srcs',
    'unroll',
  }
)
# Primitives that only call their jaxpr. `custom_*` ones also have a derivative
# of their own, which `_gradient` shows.
CUSTOM = ('custom_jvp_call', 'custom_vjp_call')
CALLS = ('jit', 'closed_call', 'core_call', 'remat2', 'checkpoint', *CUSTOM)
COMMUTATIVE = ('add', 'add_any', 'mul', 'max', 'min', 'and', 'or', 'xor')
# Effects that leave every value as it is.
HARMLESS = ('DebugEffect', 'OrderedDebugEffect', 'IOEffect', 'OrderedIOEffect')


class _Unhashable(Exception):
  """A value that depends on something without a digest; says on what."""


Value: TypeAlias = bytes | _Unhashable


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
  except _Unhashable as error:
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
    adapter = optax_adapter.adapt(tx, params)
  except errors.UserError as error:
    return _warn('the optimizer', _Unhashable(str(error)))
  square = lambda leaf: jnp.sum(jnp.square(leaf.astype(jnp.float32)))
  loss = lambda tree: sum(map(square, jax.tree.leaves(tree)), jnp.zeros(()))

  def update(grads: Any, state: Any, params: Any, value: jax.Array) -> Any:
    return adapter.update(grads, state, params, None, params, value, loss)

  try:
    init = _function(adapter.init, (params,))
    state = jax.eval_shape(adapter.init, params)
    value = jax.ShapeDtypeStruct((), jnp.float32)
    return _join(init, _function(update, (params, state, params, value)))
  except _Unhashable as error:
    return _warn('the optimizer', error)


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
      parts += [name, _array(leaf)]
    except _Unhashable as error:
      raise errors.UserError(
        f'{name} is a {type(leaf).__name__}; it must be an array or a number.'
      ) from error
  return _join(*parts)


def _warn(what: str, error: _Unhashable) -> str:
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
  return _hash(*parts).hex()[:LENGTH]


def _hash(*parts: str | bytes) -> bytes:
  """SHA-256 of several parts, each with its length."""
  digest = hashlib.sha256()
  for part in parts:
    data = part.encode() if isinstance(part, str) else part
    digest.update(len(data).to_bytes(8))
    digest.update(data)
  return digest.digest()


def _array(value: Any) -> bytes:
  """Hash of an array by its dtype, shape and bytes; raises _Unhashable."""
  dtype = getattr(value, 'dtype', None)
  if dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
    return _hash(str(dtype), _array(jax.random.key_data(value)))
  host = np.asarray(jax.device_get(value))
  if host.dtype == object:
    raise _Unhashable(f'it holds a {type(value).__name__}')
  return _hash(str(host.dtype), str(host.shape), host.tobytes())


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
    raise _Unhashable(f'it raises a {type(error).__name__}') from error


def _function(fun: Callable[..., Any], args: Iterable[Any]) -> str:
  """Implements `function_digest`; raises _Unhashable."""
  args = tuple(args)
  jaxpr, shape = _trace(fun, args)
  parts: list[str | bytes] = [
    jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(shape)
  ]
  parts.append(_closed(jaxpr))
  if _has_custom_derivative(jaxpr.jaxpr):
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
  except _Unhashable:  # It has no derivative, so that nothing trains on it.
    return b''
  return _closed(jaxpr)


def _inexact(tree: Any) -> list[Any]:
  """The leaves of a tree that can be differentiated."""
  return [
    leaf
    for leaf in jax.tree.leaves(tree)
    if jnp.issubdtype(leaf.dtype, jnp.inexact)
  ]


def _has_custom_derivative(jaxpr: core.Jaxpr) -> bool:
  return any(
    eqn.primitive.name in CUSTOM
    or any(map(_has_custom_derivative, core.jaxprs_in_params(eqn.params)))
    for eqn in jaxpr.eqns
  )


def _closed(closed: core.ClosedJaxpr) -> bytes:
  """Hash of a jaxpr as a function of its inputs; raises _Unhashable."""
  inputs: list[Value] = [
    _hash('input', str(i), str(getattr(aval, 'shape', '')), str(aval))
    for i, aval in enumerate(closed.in_avals)
  ]
  found = []
  for value in _outputs(closed, inputs):
    if isinstance(value, _Unhashable):
      raise value
    found.append(value)
  return _hash(*found)


def _outputs(closed: core.ClosedJaxpr, inputs: list[Value]) -> list[Value]:
  """Hashes of the outputs of a jaxpr, from those of its inputs."""
  jaxpr = closed.jaxpr
  known = dict(zip(jaxpr.invars, inputs, strict=True))
  known.update(zip(jaxpr.constvars, map(_array, closed.consts), strict=True))

  def value_of(atom: Any) -> Value:
    if isinstance(atom, core.Literal):
      return _array(np.asarray(atom.val, getattr(atom.aval, 'dtype', None)))
    return known[atom]

  for eqn in jaxpr.eqns:
    values = _equation(eqn, [value_of(atom) for atom in eqn.invars])
    known.update(zip(eqn.outvars, values, strict=True))
  return [value_of(atom) for atom in jaxpr.outvars]


def _equation(eqn: core.JaxprEqn, inputs: list[Value]) -> list[Value]:
  """Hashes of the outputs of an equation, from those of its inputs."""
  size, name = len(eqn.outvars), eqn.primitive.name
  hashed: list[bytes] = []
  for value in inputs:
    if isinstance(value, _Unhashable):
      return [value] * size
    hashed.append(value)
  try:
    for effect in map(type, eqn.effects):
      if effect.__name__ not in HARMLESS:
        raise _Unhashable('it changes arrays in place')
    if name in CALLS:
      key = 'jaxpr' if 'jaxpr' in eqn.params else 'call_jaxpr'
      return _outputs(_close(eqn.params[key]), list(inputs))
    if name in COMMUTATIVE:
      hashed.sort()
    params = [
      part
      for key in sorted(eqn.params.keys() - IGNORED)
      for part in (key, _encode(eqn.params[key], f'{key} of {name}'))
    ]
  except _Unhashable as error:
    return [error] * size
  whole = _hash(name, *params, 'inputs', *hashed)
  return [_hash(whole, str(i)) for i in range(size)]


def _close(jaxpr: core.Jaxpr | core.ClosedJaxpr) -> core.ClosedJaxpr:
  if isinstance(jaxpr, core.ClosedJaxpr):
    return jaxpr
  return core.ClosedJaxpr(jaxpr, ())


def _encode(value: Any, where: str) -> bytes:
  """Hash of a parameter of a primitive, the same in every process.

  Args:
    value: the parameter.
    where: its name, for the error.

  Returns:
    The hash.

  Raises:
    _Unhashable: the parameter is known only by its address.
  """
  if isinstance(value, core.Jaxpr | core.ClosedJaxpr):
    return _closed(_close(value))
  if isinstance(value, jax.Array | np.ndarray | np.generic):
    return _array(value)
  kind, parts = type(value).__qualname__, _parts(value)
  if parts is not None:
    hashed = [_encode(part, where) for part in parts]
    unordered = isinstance(value, set | frozenset | Mapping)
    return _hash(kind, *(sorted(hashed) if unordered else hashed))
  if isinstance(value, type):  # Its module is '__main__' in a script.
    return _hash(kind, value.__qualname__)
  text = repr(value)
  if ' at 0x' in text or callable(value):
    reason = 'a callback' if 'callback' in where else f'the parameter {where}'
    raise _Unhashable(f'it depends on {reason}, which only has an address')
  return _hash(kind, text)


def _parts(value: Any) -> list[Any] | None:
  """The parts that a parameter consists of; None if it is one piece."""
  if type(value).__qualname__ == 'PRNGImpl':  # A tuple of functions.
    return [value.name]
  if isinstance(value, jax.sharding.Mesh | jax.sharding.AbstractMesh):
    return list(value.shape.items())
  if isinstance(value, enum.Enum):
    return [value.name]
  if isinstance(value, list | tuple | set | frozenset):
    return list(value)
  if isinstance(value, Mapping):
    return list(value.items())
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    return [getattr(value, field.name) for field in dataclasses.fields(value)]
  return None
