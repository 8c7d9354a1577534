"""One context of MLIR for the programs of a thread. Not a test.

JAX makes a context for each program that it lowers, and loads all dialects into
it: a third of the time to compile one operation.
"""

import sys
import threading
from unittest import mock

from jax.interpreters import mlir

# Programs; constants of all of them stay in their context.
LONGEST = 1_000


class _Contexts(threading.local):
  """A thread's context, and for how many programs it will be used."""

  left = 0
  context = None

  def next(self, make):
    if not self.left:
      self.context, self.left = make(), LONGEST
    self.left -= 1
    return self.context


def install():
  """Shares contexts from here on, in this process."""
  make, contexts = mlir.make_ir_context, _Contexts()
  mock.patch.object(
    sys.modules[make.__module__], make.__name__, lambda: contexts.next(make)
  ).start()
