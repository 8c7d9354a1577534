"""Hashes of jaxprs: the same for functions that compute the same.

Every value of a jaxpr is hashed from its primitive, the parameters of the
primitive and the hashes of its inputs.
"""

from collections.abc import Mapping
import dataclasses
import enum
import hashlib
from typing import Any
from typing import TypeAlias

import jax
from jax.extend import core
import numpy as np

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


class Unhashable(Exception):
  """A value that depends on something without a digest; says on what."""


Value: TypeAlias = bytes | Unhashable


def hash_parts(*parts: str | bytes | memoryview) -> bytes:
  """SHA-256 of several parts, each with its length."""
  digest = hashlib.sha256()
  for part in parts:
    data = part.encode() if isinstance(part, str) else part
    digest.update(len(data).to_bytes(8))
    digest.update(data)
  return digest.digest()


def hash_array(value: Any) -> bytes:
  """Hash of an array by its dtype, shape and bytes; raises Unhashable."""
  dtype = getattr(value, 'dtype', None)
  if dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
    return hash_parts(str(dtype), hash_array(jax.random.key_data(value)))
  host = np.asarray(jax.device_get(value))
  if host.dtype == object:
    raise Unhashable(f'it holds a {type(value).__name__}')
  # Not `tobytes`: the copy would take as long as the hash.
  data = np.ascontiguousarray(host).reshape(-1).view(np.uint8).data
  return hash_parts(str(host.dtype), str(host.shape), data)


def has_custom_derivative(jaxpr: core.Jaxpr) -> bool:
  """True if a function in a jaxpr has a derivative of its own."""
  return any(
    eqn.primitive.name in CUSTOM
    or any(map(has_custom_derivative, core.jaxprs_in_params(eqn.params)))
    for eqn in jaxpr.eqns
  )


def scan_counts(equation: core.JaxprEqn) -> tuple[int, int]:
  """Numbers of constants and of carries, the first operands of a scan."""
  params = equation.params
  if 'ft_in' in params:  # From jax 0.11 on: constants, carries, the others.
    constants, carries, _ = params['ft_in'].unpack()
    return len(constants), len(carries)
  return params['num_consts'], params['num_carry']


def hash_jaxpr(closed: core.ClosedJaxpr) -> bytes:
  """Hash of a jaxpr as a function of its inputs; raises Unhashable."""
  inputs: list[Value] = [
    hash_parts('input', str(i), str(getattr(aval, 'shape', '')), str(aval))
    for i, aval in enumerate(closed.in_avals)
  ]
  found = []
  for value in _outputs(closed, inputs):
    if isinstance(value, Unhashable):
      raise value
    found.append(value)
  return hash_parts(*found)


def _outputs(closed: core.ClosedJaxpr, inputs: list[Value]) -> list[Value]:
  """Hashes of the outputs of a jaxpr, from those of its inputs."""
  jaxpr = closed.jaxpr
  known = dict(zip(jaxpr.invars, inputs, strict=True))
  known.update(
    zip(jaxpr.constvars, map(hash_array, closed.consts), strict=True)
  )

  def value_of(atom: Any) -> Value:
    if isinstance(atom, core.Literal):
      return hash_array(np.asarray(atom.val, getattr(atom.aval, 'dtype', None)))
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
    if isinstance(value, Unhashable):
      return [value] * size
    hashed.append(value)
  try:
    for effect in map(type, eqn.effects):
      if effect.__name__ not in HARMLESS:
        raise Unhashable('it changes arrays in place')
    if name in CALLS:
      key = 'jaxpr' if 'jaxpr' in eqn.params else 'call_jaxpr'
      return _outputs(close(eqn.params[key]), list(inputs))
    if name in COMMUTATIVE:
      hashed.sort()
    named = _params(eqn)
    params = [
      part
      for key in sorted(named.keys() - IGNORED)
      for part in (key, _encode(named[key], f'{key} of {name}'))
    ]
  except Unhashable as error:
    return [error] * size
  whole = hash_parts(name, *params, 'inputs', *hashed)
  return [hash_parts(whole, str(i)) for i in range(size)]


def _params(eqn: core.JaxprEqn) -> dict[str, Any]:
  """Parameters of an equation, by names that are the same in every jax."""
  if eqn.primitive.name != 'scan':
    return dict(eqn.params)
  counts = dict(zip(('num_consts', 'num_carry'), scan_counts(eqn), strict=True))
  others = eqn.params.keys() - {'ft_in', 'ft_out'}
  return {**{key: eqn.params[key] for key in others}, **counts}


def close(jaxpr: core.Jaxpr | core.ClosedJaxpr) -> core.ClosedJaxpr:
  """A jaxpr with its constants, which from jax 0.11 on every one has."""
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
    Unhashable: the parameter is known only by its address.
  """
  if isinstance(value, core.Jaxpr | core.ClosedJaxpr):
    return hash_jaxpr(close(value))
  if isinstance(value, jax.Array | np.ndarray | np.generic):
    return hash_array(value)
  kind, parts = type(value).__qualname__, _parts(value)
  if parts is not None:
    hashed = [_encode(part, where) for part in parts]
    unordered = isinstance(value, set | frozenset | Mapping)
    return hash_parts(kind, *(sorted(hashed) if unordered else hashed))
  if isinstance(value, type):  # Its module is '__main__' in a script.
    return hash_parts(kind, value.__qualname__)
  text = repr(value)
  if ' at 0x' in text or callable(value):
    reason = 'a callback' if 'callback' in where else f'the parameter {where}'
    raise Unhashable(f'it depends on {reason}, which only has an address')
  return hash_parts(kind, text)


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
