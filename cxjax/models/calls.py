"""Calls of modules: inputs as their signatures have them, outputs as arrays."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import functools
import inspect
import types as types_lib
from typing import Any
from typing import NamedTuple
from typing import TypeAlias

from flax import traverse_util
import jax

from cxjax import arguments as arguments_lib
from cxjax import errors
from cxjax import types
from cxjax.methods import targets as targets_lib
from cxjax.models import captures
from cxjax.models import whole

# `(module, x, **kwargs) -> output`.
Call: TypeAlias = Callable[..., Any]


class Arguments(NamedTuple):
  """An input that is two positional arguments, whatever the signature."""

  first: Any
  second: Any


def chosen(own: Call | None) -> Call:
  """The call of the user, or else the usual one."""
  if own is None:
    return call
  return arguments_lib.function('call', own, 'lambda module, x: module(x)')


def call(module: Any, x: types.Input, **kwargs: Any) -> Any:
  """Calls a module on an input.

  A tuple is spread over the positional arguments if the module does not take
  one argument, and `Arguments` always; a dict is spread over the keyword
  arguments if the module has arguments of these names.

  Args:
    module: a module of linen or nnx.
    x: the input.
    **kwargs: other arguments.

  Returns:
    The output of the module.
  """
  if isinstance(x, Arguments):
    return module(*x, **kwargs)
  found = signature(module)
  if found is None:
    return module(x, **kwargs)
  if isinstance(x, Mapping) and _fits_names(found, x, kwargs):
    return module(**x, **kwargs)
  if (
    isinstance(x, tuple | list)
    and not _binds(found, x, **kwargs)
    and _binds(found, *x, **kwargs)
  ):
    return module(*x, **kwargs)
  return module(x, **kwargs)


def signature(module: Any) -> inspect.Signature | None:
  """Signature of calling a module or a function; None if it is not known."""
  known = isinstance(module, types_lib.FunctionType | functools.partial)
  try:
    return inspect.signature(module if known else module.__call__)
  except (TypeError, ValueError):
    return None


def _binds(signature: inspect.Signature, *args: Any, **kwargs: Any) -> bool:
  """True if arguments fit a signature."""
  try:
    signature.bind(*args, **kwargs)
  except TypeError:
    return False
  return True


def _fits_names(
  signature: inspect.Signature, x: Mapping[str, Any], kwargs: Any
) -> bool:
  """True if the entries of an input are arguments of a module by name."""
  if not set(x) <= set(signature.parameters) or set(x) & set(kwargs):
    return False
  if len(x) == 1 and _binds(signature, x, **kwargs):
    return False  # A module of one argument may read a dict.
  return _binds(signature, **x, **kwargs)


def arguments(
  name: str, training: Any, kwargs: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any] | None, tuple[str, ...]]:
  """Checks the arguments of a module, at inference and in training.

  Args:
    name: name of the adapter in messages.
    training: the arguments in training mode beside `kwargs`, or None. A bool is
      the module's own argument of this name.
    kwargs: the arguments at inference.

  Returns:
    The arguments at inference; those in training, or None; names of further
    random streams.

  Raises:
    UserError: they hold PRNG keys, or `training` is no dict.
  """
  errors.require(
    'rngs' not in kwargs,
    f'{name}: rngs would draw the same random numbers at every step. Leave '
    'rngs out; for dropout give the arguments of the training mode, as in '
    "training={'train': True}, and the keys are made for each step.",
  )
  if isinstance(training, bool):
    return {**kwargs, 'training': training}, None, ()
  if training is None:
    return kwargs, None, ()
  errors.require(
    isinstance(training, Mapping) and all(isinstance(k, str) for k in training),
    f'{name}: training={training!r} must be a dict of the arguments of the '
    "training mode, as {'train': True}; {} if there are none.",
  )
  given = dict(training)
  streams = given.pop('rngs', ())
  errors.require(
    isinstance(streams, tuple | list)
    and all(isinstance(stream, str) for stream in streams),
    f"{name}: 'rngs' in training must be names of random streams, as "
    "('noise',); their keys are made for each step.",
  )
  return kwargs, {**kwargs, **given}, tuple(streams)


def to_array(output: Any, name: str) -> Any:
  """The array that is the output of a module.

  Args:
    output: result of the module: an array, an object or a dict whose 'logits'
      are one, or a tuple or a list with one array and nothing else but None.
    name: name of the module, for the message.

  Returns:
    The array; inside of `whole.kept` all of them, as a tree or by path.

  Raises:
    UserError: there is no such array; the message lists those that there are.
  """
  if isinstance(output, jax.Array):
    return output
  found = dict(_leaves(output))
  if whole.is_kept():
    arrays = all(
      isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(output)
    )
    named = {path.lstrip('/'): leaf for path, leaf in found.items()}
    return output if arrays else named
  if isinstance(found.get('/logits'), jax.Array):
    return found['/logits']
  if isinstance(output, tuple | list):
    entries = [entry for entry in output if entry is not None]
    if len(entries) == 1 and isinstance(entries[0], jax.Array):
      return entries[0]
  names = [path.lstrip('/') for path in found if path]
  message = f'{name} returns a {type(output).__name__}, not an array'
  if not names:
    raise errors.UserError(f'{message}. Return one, or a dict with logits.')
  losses = ', '.join(
    f'{path!r}: {loss!r}'
    for path, loss in zip(names, ('kl', 'mse'), strict=False)
  )
  raise errors.UserError(
    f'{message}, with the arrays {", ".join(names[:8])}. Select the array that '
    f'is its output, as in output=lambda out: out{_access(output)}, or give '
    f'plan a loss for each, as in loss={{{losses}}}.'
  )


def _access(value: Any) -> str | None:
  """Python's expression behind a value for its first array, if it has one."""
  for path, leaf in jax.tree.leaves_with_path(value):
    here = jax.tree_util.keystr(path)
    if isinstance(leaf, jax.Array):
      return here
    if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
      for field in dataclasses.fields(leaf):
        part = getattr(leaf, field.name)
        inner = None if part is leaf else _access(part)
        if inner is not None:
          return f'{here}.{field.name}{inner}'
  return None


def activations(
  intermediates: Mapping[Any, Any], axes: int = 2
) -> dict[str, jax.Array]:
  """Captured values by path, without the output of the whole model.

  Args:
    intermediates: nested dict of flax; its leaves are tuples, one entry per
      call, or single values.
    axes: least number of axes of an activation.

  Returns:
    The floating-point arrays with at least as many axes.
  """
  found = {}
  for path, values in traverse_util.flatten_dict(intermediates).items():
    *parents, last = map(str, path)
    if last == '__call__' and not parents:
      continue
    if last != '__call__':
      method = last.isidentifier() and not isinstance(values, tuple)
      parents.append(f'{last}()' if method else last)
    values = values if isinstance(values, tuple) else (values,)
    for number, value in enumerate(values, 1):
      for part, leaf in _leaves(value):
        if targets_lib.is_activation(leaf, 0 if whole.is_kept() else axes):
          name = captures.joined('/'.join(parents), number, part.lstrip('/'))
          found[name] = leaf
  return found


def _leaves(value: Any, prefix: str = '') -> Iterator[tuple[str, jax.Array]]:
  """Yields the arrays of a returned tree, with '/' and their paths.

  An object that is no tree of JAX counts by its fields.
  """
  for path, leaf in jax.tree.leaves_with_path(value):
    suffix = jax.tree_util.keystr(path, simple=True, separator='/')
    name = f'{prefix}/{suffix}' if suffix else prefix
    if isinstance(leaf, jax.Array):
      yield name, leaf
    elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
      for field in dataclasses.fields(leaf):
        part = getattr(leaf, field.name)
        if part is not leaf:
          yield from _leaves(part, f'{name}/{field.name}')
