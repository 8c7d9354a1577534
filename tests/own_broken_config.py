"""A task and a model of one's own, of which one part raises."""

import dataclasses

from flax import linen as nn

from cxjax import tasks
from cxjax.models import base as model_base
import own_config

PARTS = ('make', 'batch', 'held_out', 'check', 'build', 'apply')


def fail(broken, part):
  """Raises, if it is this part that is broken."""
  if broken == part:
    raise LookupError(f'the {part} is broken\nin two lines')


@dataclasses.dataclass(frozen=True)
class Broken(own_config.Majority):
  """The task of `own_config`."""

  broken: str = ''

  def batch(self, key, step, batch_size):
    """Makes a batch."""
    fail(self.broken, 'batch')
    return super().batch(key, step, batch_size)

  def held_out(self, key, size):
    """Makes the held-out set."""
    fail(self.broken, 'held_out')
    return own_config.Majority(self.d).held_out(key, size)

  def check(self, batch_size):
    """Checks the size of a batch."""
    fail(self.broken, 'check')


def make(data, key):
  """Makes the task of a config."""
  del key
  fail(data.broken, 'make')
  return Broken(data.d, broken=data.broken)


class Plain(own_config.Plain):
  """The model of `own_config`."""

  broken: str = ''

  @nn.compact
  def __call__(self, x):
    """Returns the logits and the hidden layer."""
    fail(self.broken, 'apply')
    hidden = nn.relu(nn.Dense(self.width, name='hidden')(x))
    return nn.Dense(self.num_classes, name='out')(hidden), {'hidden': hidden}


def build(block, task):
  """Builds the model of a block for a task."""
  fail(task.broken, 'build')
  return Plain(block.width, task.num_classes, broken=task.broken)


tasks.register('own_broken', make)
model_base.register('own_broken', build)


def get_config(broken=''):
  """Returns the config whose part `broken` raises."""
  c = own_config.get_config('one_shot')
  c.task = c.model = 'own_broken'
  c.data.broken = broken
  return c
