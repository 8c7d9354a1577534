"""Small transformers and their inputs. Not a test."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from cxjax.models import transformer
import drawn

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
  tokens = np.zeros((1, LENGTH), int)
  start = drawn.parameters(make(causal).init, tokens)
  rng = np.random.default_rng(1)
  # Away from where norms and biases start.
  noise = lambda leaf: 0.1 * rng.normal(size=leaf.shape).astype(np.float32)
  return jax.tree.map(lambda p: jnp.asarray(np.asarray(p) + noise(p)), start)
