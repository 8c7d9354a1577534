"""Exporting a function as StableHLO: one file that runs without cxjax."""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import jax
from jax import export as jax_export

from cxjax import arguments
from cxjax import checks
from cxjax import errors
from cxjax import types

PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')


def export(
  fun: Callable[[types.Input], Any],
  x: types.Input,
  *,
  batch: bool = True,
  platforms: Sequence[str] = PLATFORMS,
) -> bytes:
  """Exports a function of an input, its parameters included, as StableHLO.

  The result needs JAX alone: `jax.export.deserialize(data).call(x)`.

  Args:
    fun: `x -> output`, as in `lambda x: module.apply(variables, x)`.
    x: an example input, a tree of arrays `[B, ...]`; shapes are enough.
    batch: whether the exported function accepts any batch size, or `B` alone.
    platforms: platforms that it can run on.

  Returns:
    The bytes that `jax.export` serializes, to be written to a file.

  Raises:
    UserError: `fun` depends on the batch size, or a platform is unknown.
  """
  arguments.function('fun', fun, 'lambda x: module.apply(variables, x)')
  batch = arguments.flag('batch', batch)
  checks.texts('platforms', platforms)
  errors.require(len(platforms) > 0, 'platforms is empty: give one.')
  for platform in platforms:
    errors.lookup('platform', platform, dict.fromkeys(PLATFORMS))
  shapes = arguments.shapes('x', x)
  if batch:
    checks.batch('The input', {'x': x})
    (size,) = jax_export.symbolic_shape('b')
    shapes = jax.tree.map(
      lambda leaf: types.shape_struct((size, *leaf.shape[1:]), leaf.dtype),
      shapes,
    )
  run = jax_export.export(jax.jit(fun), platforms=platforms)
  try:
    exported = run(shapes)
  except Exception as error:  # A function of the user may raise anything.
    reason = str(error).partition('\n')[0]
    size = 'an unknown batch size' if batch else 'x'
    raise errors.UserError(
      f'The function does not run on {size} '
      f'({type(error).__name__}: {reason}).'
      + (' Export it for the batch size of x, with batch=False.' * batch)
    ) from error
  return bytes(exported.serialize())
