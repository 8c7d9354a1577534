"""A task, a metric and a model of one's own, in one config file.

The task is decided by its error in percent, which is better when it is lower.
"""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from cxjax import tasks
from cxjax.models import base as model_base
from cxjax.training import metrics
from experiments import base


@dataclasses.dataclass(frozen=True)
class Majority(tasks.SyntheticTask):
  """Uniform x in {-1, +1}^d; the class is 1 if its sum is positive."""

  d: int
  num_classes = 2
  metrics = ('loss', 'error')
  primary_metric = 'error'

  def batch(self, key, step, batch_size):
    """Makes `{'x': [B, d] float32 of +-1, 'y': [B] int32 classes}`."""
    key = jax.random.fold_in(key, step)
    x = jax.random.rademacher(key, (batch_size, self.d), jnp.float32)
    return {'x': x, 'y': (x.sum(-1) > 0).astype(jnp.int32)}


def make(data, key):
  """Makes the task of a config."""
  del key
  return Majority(data.d)


def wrong(logits, labels):
  """Returns 100 where the most likely class is not the label, so percent."""
  return 100.0 * (logits.argmax(-1) != labels)


class Plain(nn.Module):
  """One hidden layer."""

  width: int
  num_classes: int
  layers = ('hidden',)
  abilities = model_base.Abilities(inputs=(), dropout=0.0)

  @nn.compact
  def __call__(self, x):
    """Returns the logits and the hidden layer."""
    hidden = nn.relu(nn.Dense(self.width, name='hidden')(x))
    return nn.Dense(self.num_classes, name='out')(hidden), {'hidden': hidden}


def build(block, task):
  """Builds the model of a block for a task."""
  return Plain(block.width, task.num_classes)


tasks.register('own_majority', make)
metrics.register(
  'error', metrics.Metric(wrong, higher_is_better=False, limit=0)
)
model_base.register('own_plain', build)


def get_config(method='extracted'):
  """Returns a config that trains in a few seconds."""
  c = base.tiny(base.get_config(method))
  c.task = 'own_majority'
  c.data = ml_collections.ConfigDict(dict(d=7, eval_size=256))
  c.model = 'own_plain'
  c.student = dict(width=8)
  c.teacher.width = 32
  c.keep_best = 'error'
  c.num_steps = c.teacher.num_steps = 200
  for block in (c, c.teacher):
    block.optimizer.learning_rate = 0.02
    block.stop_at = 3.0
    block.save_every = 200
  c.teacher.save_at = (40.0, 20.0, 10.0)
  c.progressive.scores = (20.0,)
  return c
