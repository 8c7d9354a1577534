"""Students in training mode, from the plan to the model that is returned."""

import functools
from unittest import mock

from absl import logging
from absl.testing import parameterized
import chex
from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cxjax import errors
from cxjax.api import distill as distill_lib
from cxjax.api import plan as plan_lib
from cxjax.methods import losses
from cxjax.models import adapters
from cxjax.models import linen_adapter
from cxjax.models import nnx_adapter

pytestmark = pytest.mark.slow

RANDOM = np.random.default_rng(0)
BATCHES = [
  (2 * RANDOM.normal(size=(4, 6)) + 3).astype(np.float32) for _ in range(6)
]
HELD_OUT = np.concatenate(BATCHES)
TEACHER = adapters.from_fn(
  lambda w, x: (jnp.tanh(x - 3) @ w, {}),
  RANDOM.normal(size=(6, 3)).astype(np.float32),
)


class Linen(nn.Module):
  rate: float = 0.5

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.Dense(8)(x)
    x = nn.BatchNorm(use_running_average=not train, momentum=0.8)(x)
    x = nn.Dropout(self.rate, deterministic=not train)(nn.relu(x))
    return nn.Dense(3)(x)


class Nnx(nnx.Module):
  def __init__(self, rngs):
    self.low = nnx.Linear(6, 8, rngs=rngs)
    self.norm = nnx.BatchNorm(8, momentum=0.8, rngs=rngs)
    self.drop = nnx.Dropout(0.5, rngs=rngs)
    self.high = nnx.Linear(8, 3, rngs=rngs)

  def __call__(self, x):
    return self.high(self.drop(nnx.relu(self.norm(self.low(x)))))


@functools.cache
def variables(seed=0):
  return jax.jit(Linen().init)(jax.random.key(seed), BATCHES[0])


def student(kind, rate=0.5, several=False):
  if kind == 'linen':
    given = [variables(), variables()] if several else variables()
    training = {'train': True}
    return linen_adapter.from_linen(Linen(rate), given, training=training)
  modules = [Nnx(nnx.Rngs(0)) for _ in range(2)]
  return nnx_adapter.from_nnx(modules if several else modules[0])


def run(model, **kwargs):
  plan = plan_lib.plan(TEACHER, model, BATCHES[0], num_steps=6, layers=())
  options = {'log_every': 2, 'held_out': HELD_OUT, **kwargs}
  return distill_lib.distill(plan, BATCHES, **options)


@functools.cache
def whole_run(kind):
  return run(student(kind), save_every=2)


def leaves(model):
  """All variables of a returned model, without its random streams."""
  if isinstance(model, nnx.Module):
    return nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngState)))
  return model


def loss_at_inference(model):
  if isinstance(model, nnx.Module):
    model = nnx.clone(model)
    model.eval()
    output = model(HELD_OUT)
  else:
    output = Linen().apply(model, HELD_OUT)
  return np.mean(losses.kl(output, TEACHER.apply(TEACHER.params, HELD_OUT)[0]))


class TrainingModeTest(parameterized.TestCase):
  @parameterized.parameters('linen', 'nnx')
  def test_statistics_make_no_student_larger_than_its_teacher(self, kind):
    if kind == 'nnx':
      module = Nnx(nnx.Rngs(0))
      module.eval()
      teacher = nnx_adapter.from_nnx(module)
    else:
      teacher = linen_adapter.from_linen(Linen(), variables())
    with mock.patch.object(logging, 'warning') as warning:
      plan_lib.plan(teacher, student(kind), BATCHES[0], num_steps=9, layers=())
    warning.assert_not_called()

  @parameterized.parameters('linen', 'nnx')
  def test_what_is_reported_is_what_is_returned(self, kind):
    model, records = whole_run(kind)
    if kind == 'nnx':
      self.assertFalse(model.drop.deterministic)
      self.assertFalse(model.norm.use_running_average)
      mean = model.norm.mean[...]
    else:
      mean = model['batch_stats']['BatchNorm_0']['mean']
    self.assertGreater(np.abs(mean).min(), 0)
    self.assertAlmostEqual(
      records[-1]['eval/loss'][0], loss_at_inference(model), places=5
    )

  @parameterized.parameters('linen', 'nnx')
  def test_an_interrupted_run_ends_where_a_whole_one_does(self, kind):
    whole, records = whole_run(kind)
    folder = self.create_tempdir().full_path

    def stop(record):
      if record['step'] == 4:
        raise KeyboardInterrupt

    with self.assertRaises(KeyboardInterrupt):
      run(student(kind), workdir=folder, save_every=2, on_record=stop)
    again, resumed = run(student(kind), workdir=folder, save_every=2)
    chex.assert_trees_all_equal(leaves(again), leaves(whole))
    self.assertEqual(resumed[-1]['eval/loss'], records[-1]['eval/loss'])
    if kind == 'linen':
      with self.assertRaisesRegex(errors.UserError, 'student.training'):
        run(student(kind, rate=0.4), workdir=folder, save_every=2)

  def test_is_the_run_that_is_written_out(self):
    got, _ = run(student('linen', rate=0.0), optimizer=optax.sgd(0.1))
    want = variables()

    @jax.jit
    def step(params, statistics, x):
      def loss(params):
        output, new = Linen(0.0).apply(
          {'params': params, 'batch_stats': statistics},
          x,
          True,
          mutable=['batch_stats'],
        )
        target, _ = TEACHER.apply(TEACHER.params, x)
        return jnp.mean(losses.kl(output, target)), new['batch_stats']

      grads, statistics_ = jax.grad(loss, has_aux=True)(params)
      new = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
      return new, statistics_

    params, statistics = want['params'], want['batch_stats']
    for x in BATCHES:
      params, statistics = step(params, statistics, x)
    want = {'params': params, 'batch_stats': statistics}
    chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-5)

  def test_every_student_has_masks_of_its_own(self):
    several, records = run(student('linen', several=True))
    for model, loss in zip(several, records[-1]['eval/loss'], strict=True):
      self.assertAlmostEqual(loss, loss_at_inference(model), places=5)
    differ = lambda a, b: float(jnp.abs(a - b).max())
    self.assertGreater(
      differ(*(m['params']['Dense_1']['kernel'] for m in several)), 1e-4
    )

  def test_integers_and_keys_come_back_as_they_were(self):
    fixed = {
      'order': np.arange(6)[::-1],
      'flag': np.array(True),
      'key': jax.random.key(3),
    }
    model = adapters.from_fn(
      lambda p, x: (x[:, p['order']] @ p['w'], {'none': None, 'count': 3}),
      {'w': np.ones((6, 3), np.float32), **fixed},
    )
    folder = self.create_tempdir().full_path
    got, _ = run(model, workdir=folder)
    self.assertGreater(np.abs(got['w'] - 1).min(), 0)
    for name in ('order', 'flag'):
      np.testing.assert_array_equal(got[name], fixed[name])
    self.assertEqual(got['key'], fixed['key'])
