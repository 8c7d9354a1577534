"""Tokens of functions: equal for those that trace alike. Not a test.

Two functions of one code trace alike if what they close over does, and so do
partials, methods and dataclasses of them. Arrays in closures are constants, and
are told apart by their values; where they are arguments, by their shapes.
"""

import dataclasses
import enum
import functools
import hashlib
import re
import sys
import types

from flax import linen as nn
import jax
import ml_collections
import numpy as np

from cxjax.models import adapters

ARRAYS = (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)
# Told apart by equality.
VALUES = (
  type(None),
  type(Ellipsis),
  bool,
  int,
  str,
  bytes,
  complex,
  type,
  range,
  enum.Enum,
  re.Pattern,
  np.dtype,
  np.ufunc,
  types.BuiltinFunctionType,
  types.ModuleType,
  jax.sharding.Mesh,
  jax.sharding.Sharding,
  jax.P,
  type(jax.jit(lambda: None)),
  jax.custom_jvp,
  jax.custom_vjp,
)


class Unknown(Exception):
  """Something that may be another next time."""


def shapes(tree):
  """Token of arrays that are arguments."""
  leaves, structure = jax.tree.flatten(tree)
  return structure, tuple(map(_shape, leaves))


def _shape(leaf):
  if isinstance(leaf, jax.core.Tracer):
    raise Unknown
  where = getattr(leaf, 'sharding', None)
  weak = getattr(leaf, 'weak_type', False)
  return np.shape(leaf), str(jax.dtypes.result_type(leaf)), weak, where


def _value(leaf):
  """Token of an array that is a constant."""
  if isinstance(leaf, jax.core.Tracer | jax.ShapeDtypeStruct):
    return _shape(leaf)
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.random.key_data(leaf)
  leaf = np.asarray(leaf)
  if leaf.dtype == object:
    raise Unknown
  return leaf.shape, str(leaf.dtype), hashlib.sha256(leaf.tobytes()).digest()


def of(value, arguments=False, inside=()):
  """Token of a value, hashable.

  Args:
    value: anything.
    arguments: whether arrays in it are arguments.
    inside: ids of the values that it lies in.

  Raises:
    Unknown: it may change, or there is no telling.
  """
  if isinstance(value, float):
    return float, repr(value)
  if isinstance(value, ARRAYS):
    return _shape(value) if arguments else _value(value)
  ours = type(value).__module__.partition('.')[0]
  if isinstance(value, VALUES) or ours in ('jax', 'jaxlib'):
    return type(value), value
  if id(value) in inside:
    return 'above', inside.index(id(value))
  token = functools.partial(
    of, arguments=arguments, inside=(*inside, id(value))
  )
  if isinstance(value, tuple | list):
    return type(value), tuple(map(token, value))
  if isinstance(value, dict | types.MappingProxyType):
    return type(value), tuple((k, token(v)) for k, v in value.items())
  if isinstance(value, frozenset):
    return frozenset, frozenset(map(token, value))
  return type(value), _parts(value, token)


def _parts(value, token):
  """Tokens of the parts of a function or an object."""
  if isinstance(value, types.FunctionType):
    return _function(value, functools.partial(token, arguments=False))
  if isinstance(value, types.MethodType):
    return token(value.__func__), token(value.__self__)
  if isinstance(value, functools.partial):
    return token((value.func, value.args, value.keywords))
  if isinstance(value, adapters.ModelAdapter):
    return (
      shapes(value.params),
      token((value.apply, value.training, value.abilities, value.name)),
    )
  if isinstance(value, ml_collections.ConfigDict):
    return value.to_json_best_effort()
  if dataclasses.is_dataclass(value):
    names = [field.name for field in dataclasses.fields(value)]
    if isinstance(value, nn.Module):
      names.remove('parent')
    return tuple(token(getattr(value, name, None)) for name in names)
  if type(value).__module__.startswith('cxjax.') or isinstance(
    value, types.SimpleNamespace
  ):
    return token(dict(vars(value)))
  raise Unknown(type(value))


def _function(value, token):
  module = sys.modules.get(value.__module__)
  if getattr(module, '__dict__', None) is not value.__globals__:
    raise Unknown(value)  # Its names may stand for others now.
  cells = []
  for cell in value.__closure__ or ():
    try:
      content = cell.cell_contents
    except ValueError:  # Not there yet.
      raise Unknown(value) from None
    empty = isinstance(content, dict) and not content
    if empty or isinstance(content, list | set):
      raise Unknown(value)  # It may collect what is seen.
    cells.append(token(content))
  return (
    value.__code__,
    value.__module__,
    tuple(cells),
    token((value.__defaults__, value.__kwdefaults__ or ())),
  )
