"""Refusal of functions that keep a state in Python.

A compiled step keeps what a function did when it was traced: a count in Python
stands still, and a random number of NumPy is drawn once.
"""

from collections.abc import Callable
from typing import Any

import jax

from cxjax import errors
from cxjax.methods import jaxprs


def refuse(what: str, fun: Callable[..., Any], *shapes: Any) -> None:
  """Checks that a function is the same whenever it is traced.

  Args:
    what: name of the function, for the message.
    fun: a function of trees of arrays that JAX can trace.
    *shapes: its arguments, or their shapes.

  Raises:
    UserError: it computes something else the second time.
  """

  def traced() -> bytes:
    # JAX keeps the trace of a function that it knows.
    fresh = lambda *args: fun(*args)
    return jaxprs.hash_jaxpr(jax.make_jaxpr(fresh)(*shapes))

  try:
    same = traced() == traced()
  except jaxprs.Unhashable:  # What it computes is not known.
    return
  errors.require(
    same,
    f'{what} computes something else each time it is called: it keeps a state '
    'in Python, or draws random numbers of Python or NumPy, and a compiled '
    'step would repeat what it did once. Make it of its arguments alone, or '
    'keep the state of an optimizer in that of optax.',
  )
