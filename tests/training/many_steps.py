"""Students of three seeds, and programs of many of their steps. Not a test."""

import functools

import chex
import jax
import jax.numpy as jnp
import optax

from cxjax.methods import curricula
from cxjax.methods import projections
from cxjax.methods import stage as stage_lib
from cxjax.methods import stage_plan
from cxjax.methods import train_step
from cxjax.models import mlp
from cxjax.tasks import parity
from cxjax.training import multi_step

Stage, Term = stage_lib.Stage, stage_lib.Term
D, B, SEEDS = 8, 4, 3
TEACHER, STUDENT = mlp.MLP((16, 12), 2), mlp.MLP((6, 5), 2)
TASK = parity.Parity(D, ((0, 3),))
HIDDEN, OUTPUT = curricula.extracted((('hidden0', 'hidden0'),), (5, 5))
LABELS = curricula.supervised(5)[0]
FADE = optax.linear_schedule(1.0, 0.0, 1.0)
JOINT = Stage(
  'joint',
  8,
  (
    Term(target='labels', weight=0.3),
    Term(weight=optax.linear_schedule(0.0, 1.0, 1.0)),
    Term('hidden0', 'hidden1', weight=FADE, projection='gaussian'),
    Term(
      'hidden1',
      'hidden0',
      projection='gaussian',
      regressor=True,
      width=7,
      centered=True,
      norm='layer',
      weight=0.5,
    ),
  ),
)
SPAN = (0, JOINT.steps)


def draw(key, t, rows=None):
  del rows
  return TASK.batch(key, t, B)


def tx():
  return optax.adamw(1e-2, weight_decay=0.1)


@functools.cache
def stack(key):
  """`[S]` keys."""
  fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
  return fold(jax.random.key(key), jnp.arange(SEEDS))


@functools.cache
def params_of(model, seed):
  init = jax.vmap(lambda key: model.init(key, jnp.zeros((B, D))))
  return jax.jit(init)(stack(seed))


def teacher_params(seed=0):
  return jax.tree.map(lambda leaf: leaf[0], params_of(TEACHER, seed))


def params():
  return params_of(STUDENT, 1)


@functools.cache
def planned(stage):
  batch = jax.eval_shape(draw, jax.random.key(0), 0)
  one = jax.eval_shape(lambda p: jax.tree.map(lambda a: a[0], p), params())
  return stage_plan.plan_stage(
    stage, batch, STUDENT.apply, one, TEACHER.apply, teacher_params()
  )


@functools.cache
def fresh(stage):
  """States, projections and keys of all students."""
  one = planned(stage)
  init = functools.partial(
    train_step.init_stage,
    stage=stage,
    shapes=one.regressors,
    tx=tx(),
    mask=one.mask,
  )

  @jax.jit
  @jax.vmap
  def make(key, student):
    matrices = {
      name: projections.random_projection(key, 'gaussian', shape)
      for name, shape in one.projections.items()
    }
    return init(key, student), matrices, key

  return make(stack(2), params())


def begin(stage, seeds=SEEDS):
  """States, projections and keys of the first `seeds` students."""
  return jax.tree.map(lambda leaf: leaf[:seeds], fresh(stage))


def options(stage):
  """Keyword arguments of `train_many_steps` but the look-ahead."""
  return dict(
    draw=draw,
    student=STUDENT.apply,
    teacher=TEACHER.apply,
    stage=stage,
    tx=tx(),
    mask=planned(stage).mask,
  )


@functools.cache
def program(stage, lookahead=1, devices=1, microbatches=1):
  del devices  # Of the mesh in force.
  return jax.jit(
    functools.partial(
      multi_step.train_many_steps,
      **options(stage),
      lookahead=lookahead,
      microbatches=microbatches,
    )
  )


def args_of(stage, start, stop, seeds=SEEDS, keys=None):
  states, matrices, own = begin(stage, seeds)
  keys = own if keys is None else keys
  args = states, start, stop, teacher_params(), matrices, keys
  return (*args, None, None, SPAN)


def train(stage, start, stop, *, seeds=SEEDS, keys=None, **kwargs):
  args = args_of(stage, start, stop, seeds, keys)
  return program(stage, **kwargs)(*args)


def assert_close(a, b):
  chex.assert_trees_all_close(a, b, rtol=1e-5, atol=1e-6)


def pick(tree, i):
  return jax.tree.map(lambda leaf: leaf[i], tree)
