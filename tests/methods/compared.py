""""""

import functools

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np

from cxjax.methods import losses
import drawn

LOG3 = np.log(3.0)
DIVERGENCES = (losses.kl, losses.reverse_kl, losses.jensen_shannon)
PAIRWISE = (
  *DIVERGENCES,
  losses.hard_kl,
  losses.mse,
  losses.l2,
  losses.cosine,
)
ALL = (losses.cross_entropy, *PAIRWISE)
# Compiled once for all tests.
jit = functools.cache(jax.jit)


def random(seed, shape=(3, 4)):
  return drawn.normal(*shape, seed=seed)


def target_of(loss, seed, shape=(3, 4)):
  target = random(seed, shape)
  likeliest = np.asarray(target).argmax(-1)
  return likeliest if loss is losses.cross_entropy else target


def softmax(x):
  e = np.exp(np.asarray(x) - np.max(x, -1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


@functools.partial(jax.jit, static_argnums=0)
def value_and_grads(loss, student, target):
  """Value per example, and the gradients of their sum in both arguments."""
  total = lambda s, t: jnp.sum(loss(s, t))
  grads = jax.grad(total, argnums=(0, 1))(student, target)
  return loss(student, target), *grads
