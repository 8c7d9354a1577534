"""Every transformation of optax trains as optax says, or is one line.

Of those that are made from a learning rate alone every fourth is trained, all
with `OPTIMIZERS=all`.
"""

import collections
import functools
import inspect
import os
import warnings

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from cxjax import errors
from cxjax.methods import losses
from cxjax.methods import stage as stage_lib
from cxjax.methods import train_step

pytestmark = pytest.mark.slow

STEPS = 2
ALL = os.environ.get('OPTIMIZERS') == 'all'
RNG = np.random.default_rng(0)
random = lambda *shape: RNG.normal(size=shape).astype(np.float32) * 0.5
PARAMS = {
  'in': {'bias': random(4), 'kernel': random(6, 4)},
  'out': {'bias': random(3), 'kernel': random(4, 3)},
}
# A stage does not train the last bias.
MASK = {
  'in': {'bias': True, 'kernel': True},
  'out': {'bias': False, 'kernel': True},
}
LABELS = {'in': 'a', 'out': {'bias': 'b', 'kernel': 'b'}}
BATCHES = {'x': random(STEPS, 8, 6), 'y': np.zeros((STEPS, 8), np.int32)}
TARGETS = random(STEPS, 8, 3)
STAGE = stage_lib.Stage('s', STEPS, stage_lib.Term(loss=losses.mse))
SGD = functools.partial(optax.sgd, 0.1)
AT_2 = lambda step: step < 2
NORM = optax.tree.norm

# How to make those that need more than a learning rate.
MAKE = {
  'MultiSteps': lambda f: f(optax.adam(0.1), 2),
  'adaptive_grad_clip': lambda f: f(0.1),
  'add_noise': lambda f: f(0.1, 0.5, key=0),
  'apply_if_finite': lambda f: f(optax.adam(0.1), 3),
  'chain': lambda f: f(optax.clip(1.0), optax.adam(0.1)),
  'clip': lambda f: f(0.1),
  'clip_by_block_rms': lambda f: f(0.1),
  'clip_by_global_norm': lambda f: f(0.1),
  'conditionally_mask': lambda f: f(SGD(), AT_2),
  'conditionally_transform': lambda f: f(SGD(), AT_2),
  'differentially_private_aggregate': lambda f: f(1.0, 0.1, key=0),
  'dpsgd': lambda f: f(0.1, 1.0, 0.1, 0),
  'ema': lambda f: f(0.9),
  'flatten': lambda f: f(optax.adam(0.1)),
  'freeze': lambda f: f({'in': True, 'out': False}),
  'inject_hyperparams': lambda f: f(optax.adam)(learning_rate=0.1),
  'inject_stateful_hyperparams': lambda f: f(optax.adam)(learning_rate=0.1),
  'lookahead': lambda f: f(optax.adam(0.1), 2, 0.5),
  'masked': lambda f: f(optax.adam(0.1), jax.tree.map(bool, MASK)),
  'measure_with_ema': lambda f: f(NORM, 0.9),
  'mechanize': lambda f: f(optax.adam(1.0)),
  'monitor': lambda f: f({'norm': NORM}),
  'multi_transform': lambda f: f({'a': SGD(), 'b': optax.adam(0.1)}, LABELS),
  'named_chain': lambda f: f(('a', optax.clip(1.0)), ('b', optax.adam(0.1))),
  'noisy_sgd': lambda f: f(0.1, key=0),
  'partition': lambda f: f({'a': SGD(), 'b': optax.adam(0.1)}, LABELS),
  'sam': lambda f: f(SGD(), optax.chain(optax.contrib.normalize(), SGD())),
  'scale': lambda f: f(-0.1),
  'scale_by_backtracking_linesearch': lambda f: optax.chain(SGD(), f(5)),
  'scale_by_rprop': lambda f: f(0.1),
  'scale_by_schedule': lambda f: f(lambda step: -0.1 / (1 + step)),
  'scale_by_zoom_linesearch': lambda f: optax.chain(SGD(), f(5)),
  'schedule_free': lambda f: f(SGD(), 0.1),
  'selective_transform': lambda f: f(
    SGD(), freeze_mask={'in': True, 'out': False}
  ),
  'snapshot': lambda f: f('norm', NORM),
  'split_real_and_imaginary': lambda f: f(optax.adam(0.1)),
  'stateless': lambda f: f(lambda updates, _: updates),
  'stateless_with_tree_map': lambda f: f(lambda update, _: -update),
  'trace': lambda f: f(0.9),
  'with_extra_args_support': lambda f: f(optax.adam(0.1)),
}
# Functions of optax that say nothing of what they return and make none.
OTHERS = (
  'MaskOrFn',
  'OptState',
  'Params',
  'ScalarOrSchedule',
  'Schedule',
  'Updates',
  'WrappedSchedule',
  'bias_correction',
  'matrix_inverse_pth_root',
  'microbatch',
  'schedule_free_eval_params',
  'sigmoid_binary_cross_entropy',
  'update_infinity_moment',
  'update_moment',
  'update_moment_per_elem_norm',
)
CLASSES = ('GradientTransformation', 'GradientTransformationExtraArgs')
# Those that are refused, and why.
REFUSED = {
  'differentially_private_aggregate': 'gradient of every example',
  'dpsgd': 'gradient of every example',
  'measure_with_ema': 'form of its updates',
  'monitor': 'form of its state',
  'scale_by_muon': 'pytree structure',  # Of optax, for every dict.
}
# Those whose updates are no step on the loss, or none in two steps.
STILL = ('set_to_zero',)
# Those that optax itself cannot use on a tree with None.
WHOLE = ('galore', 'scale_by_galore')


def exported():
  """Everything of optax that may make a transformation, by name."""
  found = {}
  for module in (optax, optax.contrib):
    for name in dir(module):
      value = getattr(module, name)
      if name.startswith('_') or not callable(value) or name in OTHERS:
        continue
      if isinstance(value, type):
        if hasattr(value, 'update') and hasattr(value, 'init'):
          found[name] = value
      elif makes_some(value):
        found[name] = value
  return {name: found[name] for name in found if name not in CLASSES}


def makes_some(function):
  """Whether a function says that it returns a transformation, or nothing."""
  returned = inspect.signature(function).return_annotation
  text = str(returned)
  return returned is inspect.Signature.empty or 'GradientTransf' in text


def make(name, function):
  """An optimizer from an export; by its learning rate, if nothing is known."""
  if name in MAKE:
    return MAKE[name](function)
  parameters = inspect.signature(function).parameters
  return function(0.1) if 'learning_rate' in parameters else function()


def network(params, x):
  h = jnp.tanh(x @ params['in']['kernel'] + params['in']['bias'][None])
  return h @ params['out']['kernel'] + params['out']['bias'][None], {}


def ours(tx, params=PARAMS):
  """The students after every step, in one loop on the device."""

  @jax.jit
  def train(params, batches, targets):
    def step(i, carried):
      state, seen = carried
      at = jax.tree.map(lambda leaf: leaf[i], (batches, targets))
      state, _ = train_step.train_step(
        state, *at, apply=network, stage=STAGE, tx=tx, mask=MASK
      )
      put = lambda leaf, new: leaf.at[i].set(new)
      return state, jax.tree.map(put, seen, state.params)

    key = jax.random.key(0)
    state = train_step.init_stage(
      key, params, stage=STAGE, shapes={}, tx=tx, mask=MASK
    )
    seen = jax.tree.map(
      lambda leaf: jnp.zeros((STEPS, *leaf.shape), leaf.dtype), params
    )
    return jax.lax.fori_loop(0, STEPS, step, (state, seen))[1]

  return jax.device_get(train(params, BATCHES, TARGETS))


def loss_of(params, x, target):
  """The loss of a batch, of the parameters that are trained."""
  bias = {'bias': PARAMS['out']['bias']}
  params = {**params, 'out': {**params['out'], **bias}}
  got = network(params, x)[0]
  return jnp.mean(jnp.square(got - target))


value_and_grad = jax.jit(jax.value_and_grad(loss_of))


def as_optax_says(name, tx):
  """The students after every step of a loop like those in optax's docs."""
  params = PARAMS
  if name not in WHOLE:
    params = {**PARAMS, 'out': {**PARAMS['out'], 'bias': None}}
  params = jax.tree.map(jnp.asarray, params)
  pair = optax.LookaheadParams(params, params)
  state = tx.init(pair if name == 'lookahead' else params)
  seen = []
  for at in range(STEPS):
    batch = BATCHES['x'][at], TARGETS[at]
    loss = lambda params, batch=batch: loss_of(params, *batch)
    value, grad = value_and_grad(params, *batch)
    extra = {'value': value, 'grad': grad, 'value_fn': loss}
    if name in ('sophia', 'hutchinson_estimator_diag_hessian'):
      extra = {'obj_fn': loss}
    elif name == 'sam' or not isinstance(
      tx, optax.GradientTransformationExtraArgs
    ):
      extra = {}
    if name == 'lookahead':
      updates, state = tx.update(grad, state, pair)
      pair = optax.apply_updates(pair, updates)
      params, shown = pair.fast, pair.slow
    else:
      updates, state = tx.update(grad, state, params, **extra)
      shown = params = optax.apply_updates(params, updates)
    if name.startswith('schedule_free'):
      shown = optax.contrib.schedule_free_eval_params(state, params)
    if name == 'sam' and at % 2 == 0:  # The next one takes the ascent back.
      shown = state.cache
    seen.append(shown)
  seen = jax.tree.map(lambda *leaves: np.stack(leaves), *seen)
  bias = np.stack([PARAMS['out']['bias']] * STEPS)
  return {**seen, 'out': {**seen['out'], 'bias': bias}}


class MatrixTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    # Optax adds arrays of other ranks, and warns of what it has renamed.
    self.enter_context(jax.numpy_rank_promotion('allow'))
    self.enter_context(warnings.catch_warnings())
    warnings.simplefilter('ignore', DeprecationWarning)

  def test_every_export_trains_or_is_refused(self):
    outcomes = collections.Counter()
    alike = 0
    for name, function in exported().items():
      with self.subTest(name):
        tx = make(name, function)  # A new export: write in MAKE how.
        if name not in {*MAKE, *REFUSED, *STILL, *WHOLE}:
          alike += 1
          if alike % 4 and not ALL:
            outcomes['made'] += 1
            continue
        if name in REFUSED:
          with self.assertRaisesRegex(errors.UserError, REFUSED[name]) as found:
            ours(tx)
          self.assertNotIn('\n', str(found.exception))
          outcomes['refused'] += 1
          continue
        got, want = ours(tx), as_optax_says(name, tx)
        for a, b in zip(
          jax.tree.leaves(got), jax.tree.leaves(want), strict=True
        ):
          np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
        kernels = (got['in']['kernel'][-1], got['out']['kernel'][-1])
        still = np.array_equal(kernels[0], PARAMS['in']['kernel'])
        still &= np.array_equal(kernels[1], PARAMS['out']['kernel'])
        self.assertEqual(still, name in STILL)
        outcomes['trains'] += 1
    self.assertEqual(outcomes.pop('refused'), 5)
    self.assertEqual(outcomes.total(), 125)
    self.assertGreater(outcomes['trains'], 50)
