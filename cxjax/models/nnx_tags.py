"""Tags of what the methods of an nnx module return, while it is traced."""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import functools
import inspect
import threading
import types
from typing import Any

from flax import nnx

from cxjax.models import captures

# Classes are changed while a module is traced.
_LOCK = threading.RLock()
NAME = 'cxjax_name'
# Attributes of modules while they are traced; the second is that of flax.
_NOTES = (NAME, '__captures__')


@contextlib.contextmanager
def without_notes() -> Iterator[None]:
  """Leaves what tracing notes on an `nnx.Dict` out of its keys.

  Its attributes are its entries, so that a model that iterates over it would
  find the notes of `tagging` and of `nnx.capture`.

  Yields:
    Nothing.
  """
  with _LOCK:
    own = nnx.Dict.__iter__
    keys = lambda self: (key for key in own(self) if key not in _NOTES)
    nnx.Dict.__iter__ = keys  # type: ignore[method-assign]
    try:
      yield
    finally:
      nnx.Dict.__iter__ = own  # type: ignore[method-assign]


@contextlib.contextmanager
def tagging(module: nnx.Module) -> Iterator[None]:
  """Tags what the methods of a module and of its submodules return.

  A module carries its name, also where flax takes it apart and puts it together
  again, as in its scans.

  Args:
    module: a copy that nobody else has.

  Yields:
    Nothing.
  """
  changed = []
  active: set[tuple[int, str]] = set()
  with _LOCK:
    nodes = [(path, node) for path, node in nnx.iter_modules(module)]
    for path, node in nodes:
      name = '/'.join(map(str, path))
      setattr(node, NAME, name)
    for kind in {type(node) for _, node in nodes}:
      inherited = {'__call__': inspect.getattr_static(kind, '__call__', None)}
      for name, method in {**inherited, **vars(kind)}.items():
        public = name == '__call__' or not name.startswith('_')
        if public and isinstance(method, types.FunctionType):
          changed.append((kind, name, vars(kind).get(name)))
          setattr(kind, name, _tagged(name, method, active))
    try:
      yield
    finally:
      for kind, name, own in changed:
        if own is None:
          delattr(kind, name)
        else:
          setattr(kind, name, own)


def _is_module(node: Any) -> bool:
  return isinstance(node, nnx.Module)


def _tagged(
  name: str, method: Callable[..., Any], active: set[tuple[int, str]]
) -> Callable[..., Any]:
  """A method that tags what it returns; that of the whole model does not.

  Nor does that of a base class which it calls: `active` holds the calls that
  are under way.
  """
  suffix = '' if name == '__call__' else name

  @functools.wraps(method)
  def call(self: Any, *args: Any, **kwargs: Any) -> Any:
    if (id(self), name) in active:
      return method(self, *args, **kwargs)
    active.add((id(self), name))
    try:
      out = method(self, *args, **kwargs)
    finally:
      active.remove((id(self), name))
    path = getattr(self, NAME, None)
    full = '/'.join(part for part in (path, suffix) if part)
    if path is None or not full:
      return out
    return captures.tagged(full, out, _is_module)

  return call
