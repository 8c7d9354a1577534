"""Checks of single arguments, one function for each kind of value.

Each returns the value as a plain Python one, whatever library it came from, or
raises a `UserError` that names the argument, its value and what is allowed.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import math
import numbers
import operator
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cxjax import errors

# Values of JSON, by their types in Python.
JSON_KINDS: dict[type, str] = {
  type(None): 'null',
  bool: 'a boolean',
  int: 'a number',
  float: 'a number',
  str: 'a string',
  list: 'an array',
  dict: 'an object',
}


@dataclasses.dataclass(frozen=True)
class Range:
  """Numbers from `low` to `high`.

  Attributes:
    low: the lower bound.
    high: the upper bound.
    ends: whether the range includes `low` and `high`.
    integer: whether only integers are allowed.
    infinite: whether infinity is allowed.
    optional: whether None is allowed.
  """

  low: float
  high: float = math.inf
  ends: tuple[bool, bool] = (True, True)
  integer: bool = False
  infinite: bool = False
  optional: bool = False

  def __contains__(self, value: Any) -> bool:
    """True if a value is a number of the range."""
    if value is None:
      return self.optional
    kind = numbers.Integral if self.integer else numbers.Real
    if not isinstance(value, kind) or isinstance(value, bool):
      return False
    value = typing.cast(float, value)
    return (
      (abs(value) < math.inf or (self.infinite and value == math.inf))
      and (self.low < value or (self.ends[0] and value == self.low))
      and (value < self.high or (self.ends[1] and value == self.high))
    )

  def __str__(self) -> str:
    """The range in words, for messages."""
    if self.integer:
      return f'a whole number from {self.low} to {self.high}'
    if math.isinf(self.high):
      kind = 'a number' if self.infinite else 'a finite number'
      if math.isinf(self.low):
        return f'{kind}, or None' if self.optional else kind
      return f'{kind} {"not below" if self.ends[0] else "above"} {self.low}'
    low, high = '(['[self.ends[0]], ')]'[self.ends[1]]
    return f'a number in {low}{self.low}, {self.high}{high}'


SHOWN = 6  # Parts of a long list that a message shows.


def plain(value: Any) -> Any:
  """Converts a scalar of numpy or JAX to one of Python; others stay."""
  if isinstance(value, np.generic):
    return value.item()
  concrete = hasattr(value, 'item') and hasattr(value, 'dtype')
  if concrete and getattr(value, 'shape', None) == ():
    try:
      return value.item()
    except Exception:  # A PRNG key, a tracer, a deleted array.
      return value
  return value


def number(name: str, value: Any, allowed: Range) -> float:
  """Checks a number.

  Args:
    name: the name of the argument, for the message.
    value: a number of Python, or a scalar of numpy or JAX.
    allowed: its range.

  Returns:
    The number, of Python.

  Raises:
    UserError: `value` is no number, or not in the range.
  """
  found = plain(value)
  errors.require(
    found in allowed, lambda: f'{name}={value!r} must be {allowed}.'
  )
  return found


def integer(
  name: str, value: Any, low: int | None = None, high: int = 2**63 - 1
) -> int:
  """Checks a whole number.

  Args:
    name: the name of the argument, for the message.
    value: an integer of any library.
    low: the lowest that is allowed; None is any.
    high: the highest that is allowed.

  Returns:
    The int.

  Raises:
    UserError: `value` is no whole number, or not from `low` to `high`.
  """
  try:
    found = int(operator.index(plain(value)))
  except TypeError:
    found = None
  kind = isinstance(found, int) and not isinstance(plain(value), bool)
  if low is None:
    errors.require(kind, lambda: f'{name}={value!r} must be a whole number.')
  else:
    errors.require(
      kind and low <= typing.cast(int, found) <= high,
      lambda: (
        f'{name}={value!r} must be a whole number, at least {low}'
        + (f' and at most {high}.' if high < 2**63 - 1 else '.')
      ),
    )
  return typing.cast(int, found)


def flag(name: str, value: Any) -> bool:
  """Checks an argument that is True or False."""
  found = plain(value)
  errors.require(
    isinstance(found, bool), lambda: f'{name}={value!r} must be True or False.'
  )
  return found


def function(name: str, value: Any, example: str) -> Callable[..., Any]:
  """Checks a function; `example` ends the message, as in 'print'."""
  errors.require(
    callable(value) and not isinstance(value, type),
    lambda: f'{name}={value!r} must be a function, as {example}.',
  )
  return value


def text(name: str, value: Any, example: str) -> str:
  """Checks a text; `example` ends the message, as in "'block*'"."""
  errors.require(
    isinstance(value, str),
    lambda: f'{name}={value!r} must be a string, as {example}.',
  )
  return value


def mapping(name: str, value: Any, example: str) -> dict[str, Any]:
  """Checks a dict by names; `example` ends the message, as in "{'data': 8}"."""
  errors.require(
    isinstance(value, Mapping) and all(isinstance(key, str) for key in value),
    lambda: f'{name}={value!r} must be a dict by names, as {example}.',
  )
  return dict(value)


def dtype(name: str, value: Any) -> np.dtype:
  """Checks a floating-point dtype, given as a type or by its name."""
  found = None
  if isinstance(value, str | type | np.dtype):
    with contextlib.suppress(TypeError, ValueError):
      found = jnp.dtype(value)
  errors.require(
    found is not None and jnp.issubdtype(found, jnp.floating),
    lambda: (
      f'{name}={value!r} is no floating-point dtype. Give jnp.bfloat16, for '
      'example.'
    ),
  )
  assert found is not None
  return found


def arrays(**values: Any) -> None:
  """Raises UserError unless all values are arrays of numbers.

  Args:
    **values: arrays of JAX or numpy, tracers among them, by their names.
  """
  for name, value in values.items():
    if not _is_numeric(value):
      raise errors.UserError(
        f'{name}={value!r} must be an array of numbers, of JAX or numpy.'
      )


def _is_numeric(value: Any) -> bool:
  """True of an array of numbers or of booleans."""
  if not isinstance(value, jax.Array | np.ndarray):
    return False
  return value.dtype == bool or jnp.issubdtype(value.dtype, jnp.number)


def equal_shapes(**values: Any) -> None:
  """Raises UserError unless all values are arrays of one shape."""
  arrays(**values)
  found = {name: list(value.shape) for name, value in values.items()}
  errors.require(
    len(set(map(str, found.values()))) == 1 and [] not in found.values(),
    'Shapes must be equal, with one axis at least: '
    + ', '.join(f'{name} is {shape}' for name, shape in found.items())
    + '.',
  )


def require_tree(name: str, tree: Any) -> None:
  """Raises a UserError for an iterator, which JAX may take for a leaf."""
  errors.require(
    not isinstance(tree, Iterator),
    f'{name} is a {type(tree).__name__}, not a tree of arrays. Give what it '
    'yields.',
  )


def shapes(name: str, tree: Any) -> Any:
  """Checks a tree of arrays.

  Args:
    name: the name of the argument, for the message.
    tree: arrays of JAX or numpy, numbers, or shapes of arrays.

  Returns:
    A tree of the same structure with the shapes.

  Raises:
    UserError: a leaf is none of these, or was deleted; the message has its
      path.
  """
  require_tree(name, tree)
  try:
    return jax.eval_shape(lambda tree: tree, tree)
  except Exception as error:
    for path, leaf in jax.tree.leaves_with_path(tree):
      try:
        jax.eval_shape(lambda leaf: leaf, leaf)
      except Exception as cause:
        where = jax.tree_util.keystr(path, simple=True, separator='/')
        where = f' at {where!r}' if where else ''
        raise errors.UserError(
          f'{name} has {described(leaf)}{where}, which is no array. '
          'Give arrays of JAX or numpy.'
        ) from cause
    raise errors.UserError(f'{name} is no tree of arrays: {error}') from error


def described(leaf: Any) -> str:
  """The type of a leaf, and its value if that is short."""
  kind = type(leaf).__name__
  try:
    text = repr(leaf)
  except Exception:  # A deleted array, or a class of the user.
    return f'a {kind}'
  if len(text) <= 40:
    return f'the {kind} {text}'
  dtype = f' of {leaf.dtype}' if isinstance(leaf, np.ndarray) else ''
  return f'a {kind}{dtype}'


def listed(parts: Sequence[str]) -> str:
  """Texts behind each other; of many the first ones and how many follow."""
  more = len(parts) - SHOWN
  shown = ', '.join(parts[:SHOWN] if more > 1 else parts)
  return f'{shown} and {more} more' if more > 1 else shown


def list_advice(tree: Any) -> str:
  """Advice for a tree with a list of many arrays of one shape; else ''.

  Args:
    tree: arrays or shapes, as a batch of a user.

  Returns:
    A sentence with a blank before it.
  """
  if isinstance(tree, Mapping):
    return next(filter(None, map(list_advice, tree.values())), '')
  if not isinstance(tree, list | tuple):
    return ''
  shapes = {getattr(leaf, 'shape', None) for leaf in tree}
  if len(tree) <= SHOWN or len(shapes) != 1 or None in shapes:
    return next(filter(None, map(list_advice, tree)), '')
  return (
    f' A list of {len(tree)} arrays is as many inputs: if they are examples, '
    'give one array, as np.array(rows).'
  )


def json_kind(value: Any) -> str:
  """The kind of a value of JSON with its article, for messages.

  Args:
    value: a value of Python, as `json.loads` returns it.

  Returns:
    The kind, as 'null' or 'an object', or else the type in Python.
  """
  return JSON_KINDS.get(type(value), f'a {type(value).__name__}')
