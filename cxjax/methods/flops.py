"""FLOPs of a function, compiled or as written."""

from collections.abc import Callable
from typing import Any

import jax


def compiled(fun: Callable[..., Any], *args: Any) -> float:
  """FLOPs of `fun(*args)` as XLA compiles it; shapes are enough."""
  analysis = jax.jit(fun).lower(*args).compile().cost_analysis()
  return float((analysis or {}).get('flops', 0.0))


def written(fun: Callable[..., Any], *args: Any) -> float:
  """FLOPs of `fun(*args)` before XLA optimizes it; compiles nothing."""
  analysis = jax.jit(fun).lower(*args).cost_analysis()
  return float((analysis or {}).get('flops', 0.0))
