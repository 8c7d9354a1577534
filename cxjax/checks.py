"""Checks of all arguments of a function, by a decorator.

Each check is `(name, value)`, and raises a `UserError` that names the argument,
its value and what is allowed.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import inspect
import os
import pathlib
import typing
from typing import Any
from typing import TypeAlias
from typing import TypeVar

import jax
import jax.numpy as jnp

from cxjax import arguments
from cxjax import errors

Check: TypeAlias = Callable[[str, Any], Any]
Checked = TypeVar('Checked', bound=Callable[..., Any])


def checked(**checks: Check) -> Callable[[Checked], Checked]:
  """Decorates a function that checks its arguments at each call.

  Args:
    **checks: the check of each argument, by its name.

  Returns:
    The decorator.
  """

  def decorate(fun: Checked) -> Checked:
    signature = inspect.signature(fun)

    @functools.wraps(fun)
    def run(*args: Any, **kwargs: Any) -> Any:
      given = signature.bind(*args, **kwargs).arguments
      for name, check in checks.items():
        if name in given:
          check(name, given[name])
      return fun(*args, **kwargs)

    return typing.cast(Checked, run)

  return decorate


def optional(check: Check) -> Check:
  """The check of an argument that may be None."""
  return lambda name, value: None if value is None else check(name, value)


def function_like(example: str) -> Check:
  """The check of a function, as `example`."""
  return lambda name, value: arguments.function(name, value, example)


def instance(kind: type, example: str) -> Check:
  """The check of an argument of a class, made as `example`."""

  def check(name: str, value: Any) -> None:
    errors.require(
      isinstance(value, kind),
      f'{name} is {arguments.described(value)}; it must be a '
      f'{kind.__name__}, as of {example}.',
    )

  return check


def positive(name: str, value: Any) -> int:
  """Checks a whole number of at least 1 that fits 32 bits."""
  return arguments.integer(name, value, 1, 2**31 - 1)


def key(name: str, value: Any) -> None:
  """Checks one PRNG key, typed or not."""
  kind: Any = getattr(value, 'dtype', None)
  typed = kind is not None and jnp.issubdtype(kind, jax.dtypes.prng_key)
  shape = () if typed else (2,)
  errors.require(
    (typed or kind == jnp.uint32) and value.shape == shape,
    f'{name}={value!r} must be one PRNG key, as jax.random.key(0).',
  )


def batch(name: str, value: Any) -> None:
  """Checks a batch, `{'x': inputs}` with labels and weights or without."""
  allowed = "a dict as {'x': inputs, 'y': labels}"
  errors.require(
    isinstance(value, Mapping) and 'x' in value,
    f'{name} is {arguments.described(value)}; it must be {allowed}.',
  )
  found = arguments.shapes(name, dict(value))
  for path, leaf in jax.tree.leaves_with_path(found):
    errors.require(
      leaf.ndim > 0,
      f'{name} has a single number at '
      f'{jax.tree_util.keystr(path, simple=True, separator="/")!r}; it must be '
      f'{allowed}, arrays whose first axis is the examples.',
    )


def mapping_like(example: str) -> Check:
  """The check of a dict by names, as `example`."""
  return lambda name, value: arguments.mapping(name, value, example)


def scalar(name: str, value: Any) -> None:
  """Checks one real number, which may be traced."""
  found = arguments.shapes(name, value)
  errors.require(
    getattr(found, 'shape', None) == ()
    and not jnp.issubdtype(found.dtype, jax.dtypes.prng_key)
    and not jnp.issubdtype(found.dtype, jnp.complexfloating),
    f'{name} is {arguments.described(value)}; it must be one number.',
  )


def keys(name: str, value: Any) -> None:
  """Checks a list of typed PRNG keys, `[S]`."""
  kind: Any = getattr(value, 'dtype', None)
  errors.require(
    kind is not None
    and jnp.issubdtype(kind, jax.dtypes.prng_key)
    and value.ndim == 1
    and len(value) > 0,
    f'{name}={value!r} must be keys, as jax.random.key(0)[None].',
  )


def counter(name: str, value: Any) -> None:
  """Checks one whole number, which may be traced."""
  scalar(name, value)
  errors.require(
    jnp.issubdtype(jnp.result_type(value), jnp.integer),
    f'{name}={value!r} must be a whole number.',
  )


def path(name: str, value: Any) -> pathlib.Path:
  """Checks a path, given as a text or by pathlib."""
  found = value
  if isinstance(value, os.PathLike):
    with errors.calling(f'The path {name}'):
      found = os.fspath(value)
  errors.require(
    isinstance(found, str) and found != '' and '\0' not in found,
    f'{name}={value!r} must be a path.',
  )
  given = pathlib.Path(typing.cast(str, found))
  parts = [part.encode(errors='surrogatepass') for part in given.parts]
  errors.require(
    sum(map(len, parts)) <= 3500 and max(map(len, parts), default=0) <= 255,
    f'{name}={value!r} is too long for a path.',
  )
  return given


def file(name: str, value: Any) -> pathlib.Path:
  """Checks the path of a file, which has a name."""
  found = path(name, value)
  errors.require(
    found.name not in ('', '..'),
    f'{name}={value!r} is a folder: give the path of a file.',
  )
  return found


def texts(name: str, value: Any) -> None:
  """Checks a list of texts."""
  errors.require(
    isinstance(value, Sequence)
    and not isinstance(value, str | bytes)
    and all(isinstance(one, str) for one in value),
    f'{name}={value!r} must be a list of texts.',
  )


def stacked(name: str, value: Any) -> None:
  """Checks a tree whose arrays have steps and seeds as their first two axes."""
  for leaf in jax.tree.leaves(arguments.shapes(name, value)):
    errors.require(
      leaf.ndim > 1 and leaf.shape[0] > 0,
      f'{name} has an array {list(leaf.shape)}: its first two axes must be '
      'steps and seeds.',
    )


def pair(name: str, value: Any) -> None:
  """Checks two numbers."""
  errors.require(
    isinstance(value, tuple | list) and len(value) == 2,
    f'{name}={value!r} must be two numbers.',
  )
  for one in value:
    scalar(name, one)
