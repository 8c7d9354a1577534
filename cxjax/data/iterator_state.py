"""States of iterators, as JSON.

JSON values stay as they are. What JSON does not know is an object with one key
that begins with '$': bytes, tuples, arrays, dicts of other keys.
"""

import base64
from collections.abc import Mapping
import math
from typing import Any

import jax
import numpy as np

from cxjax import errors

BYTES, TUPLE, ARRAY, DICT = '$bytes', '$tuple', '$array', '$dict'
FLOAT = '$float'  # JSON has no NaN and no infinity.


def encode(state: Any) -> Any:
  """Makes a state of an iterator a JSON value.

  Args:
    state: numbers, text, None, bytes and arrays, in lists, tuples and dicts.

  Returns:
    The JSON value; it shares nothing with `state`.

  Raises:
    UserError: a part of the state is none of these.
  """
  return _encode(state, 'get_state()')


def decode(value: Any) -> Any:
  """Returns the state that `encode` made a JSON value of."""
  if isinstance(value, list):
    return [decode(part) for part in value]
  if not isinstance(value, dict):
    return value
  kind = next(iter(value), '')
  if kind == BYTES:
    return base64.b64decode(value[kind])
  if kind == TUPLE:
    return tuple(decode(part) for part in value[kind])
  if kind == DICT:
    return {decode(key): decode(part) for key, part in value[kind]}
  if kind == FLOAT:
    return float(value[kind])
  if kind == ARRAY:
    data, dtype, shape = value[kind]
    flat = np.frombuffer(base64.b64decode(data), np.dtype(dtype))
    return flat.reshape(shape).copy()[()]  # A scalar if it has no axes.
  return {key: decode(part) for key, part in value.items()}


def _encode(value: Any, where: str) -> Any:
  """Implements `encode` for the part of a state that is at `where`."""
  kind = type(value)
  if value is None or kind in (bool, int, str):
    return value
  if kind is float:
    return value if math.isfinite(value) else {FLOAT: repr(value)}
  if isinstance(value, bytes | bytearray):
    return {BYTES: base64.b64encode(value).decode()}
  if kind in (list, tuple):
    parts = [_encode(part, f'{where}[{i}]') for i, part in enumerate(value)]
    return parts if kind is list else {TUPLE: parts}
  if isinstance(value, Mapping):
    return _encode_dict(value, where)
  if isinstance(value, np.ndarray | np.generic | jax.Array):
    return _encode_array(value, where)
  raise _unknown(value, where)


def _encode_dict(value: Mapping[Any, Any], where: str) -> dict[str, Any]:
  parts = [(key, _encode(value[key], f'{where}[{key!r}]')) for key in value]
  if all(type(key) is str and key[:1] != '$' for key in value):
    return dict(parts)
  return {DICT: [[_encode(key, f'a key of {where}'), p] for key, p in parts]}


def _encode_array(value: Any, where: str) -> dict[str, Any]:
  try:
    host = np.asarray(value)
    name = host.dtype.name if host.dtype.kind == 'V' else host.dtype.str
    known = np.dtype(name) == host.dtype
  except TypeError:  # PRNG keys, and dtypes that have no name.
    known = False
  if not known or host.dtype.hasobject:
    raise _unknown(value, where)
  data = base64.b64encode(host.tobytes()).decode()
  return {ARRAY: [data, name, list(host.shape)]}


def _unknown(value: Any, where: str) -> errors.UserError:
  return errors.UserError(
    f'The state of the loader cannot be saved: {where} is a '
    f'{type(value).__name__}. Make it of numbers, text, bytes and arrays, in '
    'lists and dicts; or leave get_state out, and a resumed run reads the '
    'batches again that it has seen.'
  )
