"""Warnings of layers that training runs at inference."""

import pathlib
from unittest import mock

from absl import logging
from absl.testing import parameterized
from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cxjax
from cxjax.api import mode_warnings
from cxjax.configs import contest
from cxjax.configs import experiment
from cxjax.models import adapters
from cxjax.models import linen_adapter
from cxjax.models import nnx_adapter
import drawn
import own_config

X = jnp.ones((4, 5))
KEY = jax.random.key(0)


class Linen(nn.Module):
  @nn.compact
  def __call__(self, x, train=False):
    x = nn.BatchNorm(use_running_average=not train)(x)
    return nn.Dropout(0.5, deterministic=not train)(x)


class Nnx(nnx.Module):
  def __init__(self):
    self.norm = nnx.BatchNorm(5, rngs=nnx.Rngs(0))
    self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

  def __call__(self, x, deterministic=None):
    return self.drop(self.norm(x), deterministic=deterministic)


PLAIN = adapters.from_fn(lambda p, x: (x * p, {}), jnp.ones((1, 1)))
NOISY = adapters.from_fn(
  lambda p, x: (x * p + jax.random.normal(KEY, x.shape), {}), jnp.ones((1, 1))
)
DROPOUT = 'without dropout: .*rop.* .rate 0.5.*training='
STATISTICS = 'statistics of the student are not updated: .*orm.*training='


def linen(**kwargs):
  variables = drawn.parameters(Linen().init, X)
  return linen_adapter.from_linen(Linen(), variables, **kwargs)


def module(evaluated, **kwargs):
  made = Nnx()
  if evaluated:
    made.eval()
  return nnx_adapter.from_nnx(made, **kwargs)


COUNTED = 'weight 0.* count in .* batch statistics: %s. Leave .*drop.*LayerNorm'


class Spectral(nn.Module):
  """Vectors that are updated by the kernel alone."""

  @nn.compact
  def __call__(self, x, train=False):
    return nn.SpectralNorm(nn.Dense(3))(x, update_stats=train)


class Normed(own_config.Plain):
  """A model of a config with batch statistics."""

  @nn.compact
  def __call__(self, x, train=False):
    hidden = nn.Dense(self.width, name='hidden')(x)
    hidden = nn.BatchNorm(use_running_average=not train)(hidden)
    return nn.Dense(self.num_classes, name='out')(hidden), {'hidden': hidden}

  def training(self, params, x, key):
    del key
    made, changed = self.apply(params, x, True, mutable=['batch_stats'])
    return *made, changed


class Weighted(own_config.Majority):
  def batch(self, key, step, batch_size):
    found = super().batch(key, step, batch_size)
    return {**found, 'weights': jnp.ones(batch_size)}


def training(module):
  variables = jax.jit(module.init)(KEY, X)
  return linen_adapter.from_linen(module, variables, training={'train': True})


class WeightsTest(parameterized.TestCase):
  @parameterized.parameters(
    (lambda: training(Linen()), r'batch_stats/BatchNorm_0/mean, .*0/var'),
    (lambda: module(False), r'norm/mean, norm/var'),
    (lambda: training(Spectral()), None),
    (lambda: linen(), None),
    (lambda: module(True), None),
    (lambda: PLAIN, None),
  )
  @pytest.mark.slow
  def test_statistics_of_the_batch_are_named(self, model, names):
    with self.assertLogs(level='WARNING') as caught:
      logging.warning('first')
      mode_warnings.warn_of_weights(model(), X)
    self.assertLen(caught.output, 1 + (names is not None))
    if names is not None:
      self.assertRegex(caught.output[1], COUNTED % names)
      self.assertNotIn('\n', caught.output[1])

  @parameterized.parameters(
    (X, {}, {}, 0),
    (X, {}, dict(last_batch='drop'), 0),
    (X, {}, dict(last_batch='pad'), 1),
    ({'x': X, 'weights': np.ones(4, np.float32)}, {}, {}, 1),
    (X, dict(mask=lambda batch: batch['x'][:, 0] != 0), {}, 1),
  )
  @pytest.mark.slow
  def test_a_run_of_two_stages_warns_once(self, batch, planned, options, count):
    student = training(Linen())
    plan = cxjax.plan(
      training(Linen()),
      student,
      batch,
      num_steps=2,
      layers=(('BatchNorm_0', 'BatchNorm_0'),),
      loss='mse',
      **planned,
    )
    self.assertLen(plan.stages, 2)
    with self.assertLogs(level='WARNING') as caught:
      logging.warning('first')
      cxjax.distill(plan, [batch], **options)
    found = [line for line in caught.output if 'of weight 0' in line]
    self.assertLen(found, count)

  @pytest.mark.slow
  def test_a_comparison_warns_once(self):
    batch = {'x': X, 'weights': np.ones(4, np.float32)}
    with self.assertLogs(level='WARNING') as caught:
      cxjax.compare(
        training(Linen()),
        training(Linen()),
        [batch],
        held_out=X,
        num_steps=8,
        methods=('one_shot', 'fitnets'),
        layers=(('BatchNorm_0', 'BatchNorm_0'),),
        loss='mse',
        rates=(1e-3, 1e-2),
        seeds=1,
        costs='counted',
        report=lambda line: None,
      )
    found = [line for line in caught.output if 'of weight 0' in line]
    self.assertLen(found, 1)
    self.assertLen(set(caught.output), len(caught.output))

  @parameterized.parameters(False, True)
  @pytest.mark.slow
  def test_the_runs_of_a_config_warn_once(self, searches):
    for task, count in ((own_config.Majority, 0), (Weighted, 1)):
      folder = pathlib.Path(self.create_tempdir().full_path)
      with (
        mock.patch.object(own_config, 'Plain', Normed),
        mock.patch.object(own_config, 'Majority', task),
        self.assertLogs(level='WARNING') as caught,
      ):
        logging.warning('first')
        config = own_config.get_config('one_shot')
        names = ['one_shot', 'supervised']
        # Ends before it trains.
        ran = mock.Mock(side_effect=KeyError('ran'))
        with (
          mock.patch.object(experiment, '_run', ran),
          mock.patch.object(contest, 'compare', ran),
          self.assertRaisesRegex(KeyError, 'ran'),
        ):
          if searches:
            config.stop_at = None
            contest.search(config, names, folder, rates=(1e-3, 1e-2))
          else:
            experiment.compare(config, names, folder)
      if searches:
        (setting,) = ran.call_args.args
        self.assertIsNotNone(setting.student(0).training)
      found = [line for line in caught.output if 'of weight 0' in line]
      self.assertLen(found, count)


class WarnTest(parameterized.TestCase):
  @parameterized.parameters(
    (lambda: (PLAIN, PLAIN), ()),
    (lambda: (PLAIN, linen()), (DROPOUT, STATISTICS)),
    (lambda: (linen(), PLAIN), ()),  # A teacher is at inference.
    (lambda: (PLAIN, linen(training={'train': True})), ()),
    (lambda: (PLAIN, linen(training={})), (DROPOUT, STATISTICS)),
    (lambda: (PLAIN, module(True)), (DROPOUT, STATISTICS)),
    (lambda: (PLAIN, module(False)), ()),
    (lambda: (module(False), PLAIN), ()),
    (lambda: (PLAIN, module(False, deterministic=True)), (DROPOUT,)),
    (lambda: (PLAIN, NOISY), ('student draws .* same at every call',)),
    (lambda: (NOISY, PLAIN), ('teacher draws .* same at every call',)),
  )
  def test_names_what_does_not_act(self, models, messages):
    if not messages:
      with self.assertNoLogs():
        mode_warnings.warn(*models(), X)
      return
    with self.assertLogs(level='WARNING') as caught:
      mode_warnings.warn(*models(), X)
    self.assertLen(caught.output, len(messages))
    for got, message in zip(caught.output, messages, strict=True):
      self.assertRegex(got, message)
