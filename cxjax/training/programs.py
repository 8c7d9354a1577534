"""Compiled programs by name, each compiled once, some of them ahead of time."""

from collections.abc import Callable
from collections.abc import Mapping
from concurrent import futures
import time
from typing import Any

import jax
import jax.numpy as jnp

from cxjax import settings

Fun = Callable[..., Any]


def _shapes(args: Any) -> tuple[Any, Any]:
  """Structure, shapes and dtypes of arrays, or of their shapes."""
  leaves, treedef = jax.tree.flatten(args)
  return treedef, [(jnp.shape(x), jnp.result_type(x)) for x in leaves]


class Programs:
  """Compiles programs when they are called first, or in a thread before that.

  Attributes:
    compiled: programs by name.
    seconds: seconds in which the caller waited for compilation.
  """

  def __init__(self, options: Mapping[str, Any] | None = None) -> None:
    """Compiles nothing yet.

    Args:
      options: options of XLA's compiler, by name.
    """
    self._options = None if options is None else dict(options)
    self.compiled: dict[Any, Fun] = {}
    self.seconds = 0.0
    self._ahead: dict[Any, tuple[Any, futures.Future[Any]]] = {}

  def __contains__(self, name: Any) -> bool:
    """True for a program that is compiled, or about to be."""
    return name in self.compiled or name in self._ahead

  def compile(self, name: Any, fun: Fun, *args: Any, **kwargs: Any) -> Fun:
    """The program `name`, compiled if it is not yet.

    Args:
      name: key of the program: everything that decides it, apart from shapes.
      fun: a function of arrays.
      *args: its arguments, or their shapes.
      **kwargs: keyword arguments of `jax.jit`.

    Returns:
      The compiled program.
    """
    if name not in self.compiled:
      begin = time.perf_counter()
      found = self._from_ahead(name, args)
      if found is None:
        found = self._lowered(fun, *args, **kwargs).compile()
      self.compiled[name] = found
      self.seconds += time.perf_counter() - begin
    return self.compiled[name]

  def call(self, name: Any, fun: Fun, *args: Any, **kwargs: Any) -> Any:
    """The result of the program `name`, compiled if it is not yet."""
    return self.compile(name, fun, *args, **kwargs)(*args)

  def prepare(self, name: Any, fun: Fun, *args: Any, **kwargs: Any) -> None:
    """Lowers the program `name`, and begins to compile it in a thread.

    The thread has none of the caller's settings of JAX that hold in one thread
    only. Lowering, which most of them concern, is done in the caller's; where
    one that changes results is set, the program is compiled when called.

    Args:
      name: key of the program: everything that decides it, apart from shapes.
      fun: a function of arrays.
      *args: shapes of its arguments, with shardings.
      **kwargs: keyword arguments of `jax.jit`.
    """
    begin = time.perf_counter()
    lowered = self._lowered(fun, *args, **kwargs)
    self.seconds += time.perf_counter() - begin
    here = settings.recorded()

    def compiled() -> Fun | None:
      return lowered.compile() if settings.recorded() == here else None

    pool = futures.ThreadPoolExecutor(1, 'compile')
    self._ahead[name] = _shapes(args), pool.submit(compiled)
    pool.shutdown(wait=False)

  def _lowered(self, fun: Fun, *args: Any, **kwargs: Any) -> Any:
    """A function as XLA is to compile it."""
    jitted = jax.jit(fun, compiler_options=self._options, **kwargs)
    return jitted.lower(*args)

  def _from_ahead(self, name: Any, args: Any) -> Fun | None:
    """The program from the thread, if it is for these arguments."""
    shapes, future = self._ahead.pop(name, (None, None))
    if future is None or shapes != _shapes(args):
      return None
    return future.result()
