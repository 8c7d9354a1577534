"""Majority of bits: a task outside the package, in one file.

A config file imports it and sets `config.task = 'majority'`.
"""

import dataclasses

import jax
import jax.numpy as jnp

from cxjax import errors
from cxjax import tasks


@dataclasses.dataclass(frozen=True)
class Majority(tasks.SyntheticTask):
  """Uniform x in {-1, +1}^d; the class is 1 if its sum is positive.

  Attributes:
    d: number of bits, odd.
  """

  d: int
  num_classes = 2

  def batch(self, key, step, batch_size):
    """Makes `{'x': [B, d] float32 of +-1, 'y': [B] int32 classes}`."""
    key = jax.random.fold_in(key, step)
    x = jax.random.rademacher(key, (batch_size, self.d), jnp.float32)
    return {'x': x, 'y': (x.sum(-1) > 0).astype(jnp.int32)}


def make(data, key):
  """Makes the task of `config.data`, here `config.data.d`."""
  del key
  errors.require(data.d % 2 == 1, f'data.d={data.d} must be odd.')
  return Majority(data.d)


tasks.register('majority', make)
