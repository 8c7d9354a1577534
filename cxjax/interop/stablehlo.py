"""Exporting a function as StableHLO: one file that runs without cxjax."""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import jax
from jax import export as jax_export

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
  for platform in platforms:
    errors.lookup('platform', platform, dict.fromkeys(PLATFORMS))
  shapes = jax.eval_shape(lambda x: x, x)
  if batch:
    (size,) = jax_export.symbolic_shape('b')
    shapes = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype),
      shapes,
    )
  run = jax_export.export(jax.jit(fun), platforms=platforms)
  try:
    exported = run(shapes)
  except (
    jax.errors.InconclusiveDimensionOperation,
    TypeError,
    ValueError,
  ) as error:
    if not batch:
      raise
    raise errors.UserError(
      'The function does not run on an unknown batch size '
      f'({str(error).splitlines()[0]}). Export it for the batch size of x '
      'alone, with batch=False.'
    ) from error
  return bytes(exported.serialize())
