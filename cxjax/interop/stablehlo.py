"""Models that leave: one file that runs without the code that made them."""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import jax
from jax import export as jax_export

from cxjax import errors

PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')


def export(
  fun: Callable[[Any], Any],
  x: Any,
  *,
  batch: bool = True,
  platforms: Sequence[str] = PLATFORMS,
) -> bytes:
  """A function of an input as StableHLO, its parameters within.

  It needs JAX alone to run: `jax.export.deserialize(data).call(x)`.

  Args:
    fun: `x -> output`, as in `lambda x: module.apply(variables, x)`.
    x: an example, a tree of arrays `[B, ...]`; shapes are enough.
    batch: whether it is to run on any number of examples, or on `B` alone.
    platforms: where it is to run.

  Returns:
    What `jax.export` serializes, to be written to a file.

  Raises:
    UserError: `fun` depends on the number of examples, or an unknown platform.
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
      'The function does not run on an unknown number of examples '
      f'({str(error).splitlines()[0]}). Export it for the number of x alone, '
      'with batch=False.'
    ) from error
  return bytes(exported.serialize())
