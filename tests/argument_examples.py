"""Models, stages and files for calls of public functions. Not a test."""

import contextlib
import functools

from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

import bad_values
import cxjax
from cxjax.interop import huggingface
from tests.interop.huggingface import fixtures

X = np.linspace(-1.0, 1.0, 12, dtype=np.float32).reshape(4, 3)
Y = np.array([0, 1, 1, 0])
KEY = jax.random.key(0)


def apply(params, x):
  h = jnp.tanh(x @ params['in'])
  return h @ params['out'], {'h': h}


def parameters(width):
  draw = np.random.default_rng(width).normal
  tree = {'in': draw(size=(3, width)), 'out': draw(size=(width, 2))}
  return jax.tree.map(np.float32, tree)


class Planned(BaseException):
  """A comparison that would begin now."""


def stop_here(text):
  raise Planned(text)


def up_to_training(compare):
  """Compares without training anything."""

  @functools.wraps(compare)
  def run(*args, **kwargs):
    with contextlib.suppress(Planned):
      compare(*args, **kwargs)

  return run


TEACHER = cxjax.from_fn(apply, parameters(4))
STUDENT = cxjax.from_fn(apply, parameters(2))
PLAN = cxjax.plan(TEACHER, STUDENT, X, num_steps=4)
LINEN = nn.Dense(2)
VARIABLES = jax.jit(LINEN.init)(KEY, X)
NNX = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
# The parts of a stage.
STAGE = cxjax.Stage('a', 2, (cxjax.Term('h', 'h', projection='gaussian'),))
BATCH = {'x': X, 'y': Y}
TX = optax.sgd(0.1)
MASK = cxjax.trainable_mask(apply, STUDENT.params, X, STAGE)
PLANNED = cxjax.plan_stage(
  STAGE, BATCH, apply, STUDENT.params, apply, TEACHER.params
)
MATRICES = {
  name: cxjax.random_projection(KEY, 'gaussian', shape)
  for name, shape in PLANNED.projections.items()
}
INIT = dict(stage=STAGE, shapes={}, tx=TX, mask=MASK)
STATE = cxjax.init_stage(KEY, STUDENT.params, **INIT)
TARGETS = cxjax.make_targets(apply, TEACHER.params, MATRICES, BATCH, STAGE)
STATES, MANY = jax.tree.map(
  lambda leaf: jnp.asarray(leaf)[None], (STATE, MATRICES)
)
# A language model.
TOKENS = np.array([[1, 2, 3]])
SIZES = dict(
  vocab_size=5, max_length=8, num_classes=5, width=4, heads=2, depth=1
)
DECODER = cxjax.Decoder(**SIZES, mlp_width=4)
WEIGHTS = jax.jit(DECODER.init)(KEY, TOKENS)
GRAMMAR = ml_collections.ConfigDict(dict(d=4, k=2, depth=1, support='first'))
FOLDER = bad_values.kept_folder()
ENCODER = cxjax.Transformer(**SIZES, causal=False).clone(num_classes=0)
TRAINED = jax.tree.map(np.asarray, jax.jit(ENCODER.init)(KEY, TOKENS))
huggingface.write(FOLDER / 'bert', ENCODER, TRAINED)
CAUSAL = cxjax.Transformer(**SIZES, causal=True)
huggingface.write(
  FOLDER / 'gpt2', CAUSAL, jax.jit(CAUSAL.init)(KEY, TOKENS), model_type='gpt2'
)
(FOLDER / 'words').mkdir()
fixtures.wordpiece(FOLDER / 'words')
