"""Parameters that NumPy draws, for tests of what follows them. Not a test.

The `init` of a network is compiled for a tenth of a second or more, and many
tests want any parameters of the right shapes.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

ONES = ('scale', 'var')
ZEROS = ('bias', 'mean', 'b')


def normal(*shape, seed=0):
  """Standard normal numbers in float32."""
  values = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(values.astype(np.float32))


def parameters(init, *args, seed=0, **kwargs):
  """Arrays of the shapes that `init(key, *args)` returns."""
  key = jax.random.key(0)
  run = lambda *args: init(key, *args, **kwargs)
  return arrays(jax.eval_shape(run, *args), seed)


def arrays(tree, seed=0):
  """A tree with arrays in place of their shapes; other leaves stay.

  Matrices are normal, of a variance that keeps that of their input; biases and
  means are 0; scales and variances are 1.
  """
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    if not isinstance(leaf, jax.ShapeDtypeStruct):
      return leaf
    name = jax.tree_util.keystr(path[-1:], simple=True)
    if name in ONES or name in ZEROS:
      return jnp.asarray(np.full(leaf.shape, name in ONES, leaf.dtype))
    fan_in = math.prod(leaf.shape[:-1])
    values = rng.normal(size=leaf.shape) / fan_in**0.5
    return jnp.asarray(values.astype(leaf.dtype))

  return jax.tree.map_with_path(draw, tree)
