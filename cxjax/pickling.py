"""Pickles of objects that hold functions defined inside of others.

The `pickle` module refuses such a function; cloudpickle, which grain brings,
writes its code. Reading a pickle executes it: only read your own.
"""

import copy
import threading
from typing import Any

from cxjax import errors

_writing = threading.local()


class Picklable:
  """An object that `pickle` writes by cloudpickle; copies share functions."""

  def __reduce_ex__(self, protocol: Any) -> Any:
    """Returns what `pickle` writes.

    Raises:
      UserError: something in the object cannot be written.
    """
    if getattr(_writing, 'nested', False):
      return super().__reduce_ex__(protocol)
    name = type(self).__name__
    _writing.nested = True
    try:
      import cloudpickle  # Slow, and seldom needed.

      written = cloudpickle.dumps(self.__dict__, protocol)
    except Exception as error:
      raise errors.UserError(
        f'A {name} cannot be pickled: {type(error).__name__}: {error}. Pickle '
        'the parameters, as trees of arrays, and make it anew.'
      ) from error
    finally:
      _writing.nested = False
    return _read, (type(self), written)

  def __copy__(self) -> Any:
    """Returns a copy with the same attributes."""
    return _made(type(self), self.__dict__)

  def __deepcopy__(self, memo: dict[int, Any]) -> Any:
    """Returns a copy with copies of the attributes, and the same functions."""
    return _made(type(self), copy.deepcopy(self.__dict__, memo))


def _read(kind: type, written: bytes) -> Any:
  """Makes the object that was pickled."""
  import cloudpickle

  return _made(kind, cloudpickle.loads(written))


def _made(kind: type, attributes: dict[str, Any]) -> Any:
  """An object of a class, without a call of its constructor."""
  made: Any = object.__new__(kind)
  made.__dict__.update(attributes)
  return made
