"""Small transformers and their inputs. Not a test."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from cxjax.models import transformer

SIZES = dict(vocab_size=7, max_length=12, num_classes=5)
B, LENGTH, WIDTH, DEPTH = 3, 10, 16, 2
POSITIONS = np.array([[1, 4], [9, 0], [3, 3]])
TOKENS = np.random.default_rng(0).integers(0, 7, (B, LENGTH))
REAL = np.arange(LENGTH)[None] < np.array([10, 6, 4])[:, None]
KINDS = (('encoder', False), ('decoder', True))


def make(causal, **kwargs):
  sizes = dict(width=WIDTH, heads=4, depth=DEPTH, init_std=0.3)
  return transformer.Transformer(**{**SIZES, **sizes, **kwargs}, causal=causal)


@functools.cache
def params(causal):
  def init():
    tokens = jnp.zeros((1, LENGTH), int)
    start = make(causal).init(jax.random.key(0), tokens)
    # Away from where norms and biases start.
    leaves, structure = jax.tree.flatten(start)
    noise = jax.random.normal(jax.random.key(1), (sum(p.size for p in leaves),))
    ends = np.cumsum([p.size for p in leaves])[:-1]
    return structure.unflatten(
      p + 0.1 * n.reshape(p.shape)
      for p, n in zip(leaves, jnp.split(noise, ends), strict=True)
    )

  return jax.jit(init)()
