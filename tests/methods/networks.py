"""Small networks and batches that the tests of the methods share. Not a test.

`TEACHER` and `STUDENT` are perceptrons on vectors; `sequence_apply` is a
network on sequences that is written out, so that a test can write it again.
"""

import functools

import jax.numpy as jnp
import numpy as np

from cxjax.models import mlp
import drawn

B, D, C = 4, 8, 3
TEACHER, STUDENT = mlp.MLP((16, 12), C), mlp.MLP((6, 5), C)


@functools.cache
def params(model, seed=0):
  return drawn.parameters(model.init, np.zeros((B, D), np.float32), seed=seed)


def batch(seed=0, size=B):
  """Vectors, their labels, and no weights."""
  rng = np.random.default_rng(seed)
  return {
    'x': rng.normal(size=(size, D)).astype(np.float32),
    'y': rng.integers(0, C, size),
  }


def models(student=STUDENT, teacher=TEACHER):
  """Arguments of `plan_stage` after the batch."""
  return student.apply, params(student, 1), teacher.apply, params(teacher)


VOCABULARY, LENGTH, POSITIONS = 7, 6, 2


def sequence_params(width, seed):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(
    rng.normal(size=shape) / shape[0] ** 0.5, jnp.float32
  )
  return {
    'embedding': draw(VOCABULARY, width),
    'mix': draw(width, width),
    'head': draw(width, VOCABULARY),
  }


def sequence_apply(params, x):
  """Logits `[B, P, V]` at the target positions, activations `[B, L, width]`."""
  low = jnp.tanh(params['embedding'][x['tokens']])
  high = jnp.tanh(low @ params['mix'])
  chosen = jnp.take_along_axis(high, x['target_positions'][..., None], axis=1)
  return chosen @ params['head'], {'low': low, 'high': high}


def sequence_batch(seed=0):
  """Padded sequences, of which some target positions do not count."""
  random = np.random.default_rng(seed)
  return {
    'x': {
      'tokens': jnp.asarray(random.integers(0, VOCABULARY, (B, LENGTH))),
      'mask': jnp.asarray(np.arange(LENGTH) < np.array([[6], [3], [5], [1]])),
      'target_positions': jnp.array([[0, 5], [1, 2], [3, 0], [0, 0]]),
    },
    'y': jnp.asarray(random.integers(0, VOCABULARY, (B, POSITIONS))),
    'weights': jnp.array([[1.0, 0.5], [1.0, 0.0], [2.0, 1.0], [1.0, 0.0]]),
  }
