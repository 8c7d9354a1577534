"""Text for a network that compiles in a second: it sees one token."""

from flax import linen as nn
import jax.numpy as jnp

from cxjax.models import base as model_base
from experiments import text_bert


class Bigrams(nn.Module):
  """An embedding, a hidden layer, and a head at the positions to predict."""

  width: int
  num_classes: int
  layers = ('hidden',)
  abilities = model_base.Abilities(
    inputs=('tokens', 'segments', 'position_ids', 'mask', 'target_positions'),
    dropout=0.0,
  )

  @nn.compact
  def __call__(self, x):
    """Returns the logits of the target positions, and the hidden layer."""
    hidden = nn.Embed(self.num_classes, self.width, name='embed')(x['tokens'])
    hidden = nn.relu(nn.Dense(self.width, name='hidden')(hidden))
    at = jnp.take_along_axis(hidden, x['target_positions'][..., None], axis=1)
    return nn.Dense(self.num_classes, name='out')(at), {'hidden': hidden}


model_base.register(
  'own_bigrams',
  lambda block, task: Bigrams(block.width, task.num_classes),
)


def get_config(method='extracted'):
  c = text_bert.tiny(method)
  c.model = 'own_bigrams'
  c.student, c.teacher.width = dict(width=8), 16
  c.extracted.layers = (('hidden', 'hidden'),)
  c.num_seeds = 1
  for block in (c, c.teacher):
    block.num_steps, block.save_every = 8, 4
    block.log_every, block.eval_every = 2, 4
  return c
