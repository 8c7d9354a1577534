"""Stages that move no parameter, which teach nothing."""

from absl import logging
import jax
import jax.numpy as jnp

from cxjax import types


@jax.jit
def _sums(params: types.Params) -> jax.Array | None:
  """Sums of the bits of `[S]` students, `[S]` uint32, modulo 2^32.

  Leaves that are not trained, as integers and keys, do not count; without
  others there is no sum.
  """
  found = None
  for leaf in jax.tree.leaves(params):
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
      parts = [leaf.real, leaf.imag]
    else:
      parts = [leaf] if jnp.issubdtype(leaf.dtype, jnp.floating) else []
    for part in parts:
      bits = jnp.dtype(f'uint{8 * part.dtype.itemsize}')
      part = jax.lax.bitcast_convert_type(part, bits).astype(jnp.uint32)
      part = part.reshape(part.shape[0], -1).sum(axis=1, dtype=jnp.uint32)
      found = part if found is None else found + part
  return found


@jax.jit
def _count_equal(before: jax.Array, after: jax.Array) -> jax.Array:
  """Number of students whose sums are equal."""
  return jnp.sum(before == after)


class Motion:
  """Students at the start of a stage, by the sums of their bits."""

  def __init__(self, params: types.Params) -> None:
    """Dispatches the sums; does not wait.

    Args:
      params: `[S, ...]` in every leaf; may be donated afterwards.
    """
    self._before = _sums(params)

  def check(self, params: types.Params, stage: str, steps: int) -> None:
    """Warns of students that are what they were.

    Args:
      params: parameters of the students at the end of the stage.
      stage: name of the stage.
      steps: number of steps of the stage.
    """
    if self._before is None:
      return
    still = int(_count_equal(self._before, _sums(params)))
    if still:
      logging.warning(
        'No parameter of %d of %d students moved in the %d steps of stage %r: '
        'the gradient of its loss is 0 (units that are never active, or a loss '
        'that does not depend on the student), or the learning rate is 0.',
        still,
        self._before.shape[0],
        steps,
        stage,
      )
