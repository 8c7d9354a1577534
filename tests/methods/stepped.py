"""Stages, and steps of them, that tests share. Not a test."""

import functools

import jax
import optax

from cxjax.methods import curricula
from cxjax.methods import stage as stage_lib
from cxjax.methods import stage_plan
from cxjax.methods import targets as targets_lib
from cxjax.methods import train_step
import drawn
from tests.methods import networks

Stage, Term = stage_lib.Stage, stage_lib.Term
FADE = optax.linear_schedule(1.0, 0.0, 1.0)


def dense(params, name, x):
  layer = params['params'][name]
  return x @ layer['kernel'] + layer['bias'][None]


def random(seed, *shape):
  return drawn.normal(*shape, seed=seed)


TX = optax.sgd(1.0)  # An update is the gradient.


def planned(stage, trainable=''):
  shapes = jax.eval_shape(networks.batch)
  return stage_plan.plan_stage(
    stage, shapes, *networks.models(), trainable=trainable
  )


@functools.cache
def trained(stage, trainable=''):
  """A state before and after three steps of AdamW, and its mask."""
  one = planned(stage, trainable)
  tx = optax.adamw(1e-2, weight_decay=0.1)
  params, matrices = networks.params(networks.STUDENT, 1), {}
  for i, (name, shape) in enumerate(one.projections.items()):
    matrices[name] = random(i, *shape)
  state = train_step.init_stage(
    jax.random.key(2),
    params,
    stage=stage,
    shapes=one.regressors,
    tx=tx,
    mask=one.mask,
  )

  @jax.jit
  def step(state, batch):
    want = targets_lib.make_targets(
      networks.TEACHER.apply,
      networks.params(networks.TEACHER),
      matrices,
      batch,
      stage,
    )
    return train_step.train_step(
      state,
      batch,
      want,
      apply=networks.STUDENT.apply,
      stage=stage,
      tx=tx,
      mask=one.mask,
    )

  before = state
  for seed in range(3):
    state, _ = step(state, networks.batch(seed))
  return before, state, one.mask


PAIRS = (('hidden0', 'hidden0'), ('hidden1', 'hidden1'))
HIDDEN, TOP, OUTPUT = curricula.extracted(PAIRS, (5, 5, 5))
FROZEN = curricula.extracted(PAIRS, (5, 5, 5), freeze=True)[2]
REGRESSOR = curricula.extracted(
  (('hidden1', 'hidden0'),), (5, 5), regressor=True, width=7
)[0]
LOW_TERMS = Stage(
  's',
  5,
  (
    Term('hidden0', 'hidden0', projection='gaussian', weight=FADE),
    Term('hidden0', 'hidden1', projection='gaussian', regressor=True),
  ),
)
