"""Distillation of sequences: which tokens count in which term."""

import functools

from absl.testing import parameterized
import jax
import numpy as np
import optax
import pytest

import cxjax
from cxjax.methods import losses
import drawn

# Compiling a transformer; train_step_touched_test.py has it for functions.
pytestmark = pytest.mark.slow

B, LENGTH, SLOTS, IDS = 4, 7, 3, 8
MODEL = cxjax.Transformer(
  vocab_size=IDS,
  max_length=LENGTH,
  num_classes=IDS,
  width=8,
  heads=2,
  depth=2,
  causal=False,
  init_std=0.2,
)
# Networks of one size need no projection, so that all can be computed again.
JOINT = cxjax.Stage(
  'joint',
  2,
  terms=(
    cxjax.Term(),
    cxjax.Term(target='labels'),
    cxjax.Term(top_k=3, name='top 3'),
    cxjax.Term('block0', 'block0'),
    cxjax.Term('block0', 'block1', tokens='predicted', name='predicted'),
    cxjax.Term('block1', 'block1', pool='mean', name='pooled'),
    cxjax.Term(
      'block1', 'block0', norm='layer', centered=True, scale=0.5, name='formed'
    ),
  ),
)


@functools.cache
def batch():
  """Sequences of other lengths, of which some tokens are predicted."""
  rng = np.random.default_rng(0)
  lengths = np.array([[7], [5], [3], [6]])
  real = np.arange(LENGTH) < lengths
  counts = np.arange(SLOTS) < [[3], [1], [2], [2]]
  positions = rng.integers(0, lengths, counts.shape)
  return {
    'x': {
      'tokens': np.where(real, rng.integers(1, IDS, real.shape), 0),
      'mask': real,
      'target_positions': np.where(counts, positions, 0),
    },
    'y': np.where(counts, rng.integers(1, IDS, counts.shape), 0),
    'weights': counts.astype(np.float32),
  }


@functools.cache
def model(seed):
  params = drawn.parameters(MODEL.init, batch()['x'], seed=seed)
  return cxjax.from_fn(MODEL.apply, params)


@functools.cache
def activations(seed):
  net = model(seed)
  logits, found = jax.jit(net.apply)(net.params, batch()['x'])
  return jax.device_get({**found, 'logits': logits})


@functools.cache
def distill(stage, rate=0.0):
  """With a rate of 0 every record has the losses of the fresh student."""
  plan = cxjax.plan(model(0), model(1), batch(), stages=stage)
  return cxjax.distill(
    plan,
    [batch()],
    optimizer=optax.sgd(rate),
    log_every=2,
  )


def by_hand():
  ours, theirs = activations(1), activations(0)
  x, y = batch()['x'], batch()['y']
  real, counts = x['mask'], batch()['weights'] > 0
  assert 0 < real.mean() < 1  # Otherwise nothing is tested.
  assert 0 < counts.mean() < 1
  examples = np.arange(B)[:, None]
  at = lambda value: value[examples, x['target_positions']]
  square = lambda a, b: np.square(a - b).sum(-1)
  pool = lambda value: (value * real[..., None]).sum(1) / real.sum(1)[:, None]
  formed = theirs['block0'].astype(np.float64)
  formed -= formed.mean(-1, keepdims=True)
  formed /= np.sqrt(formed.var(-1, keepdims=True) + 1e-5)
  formed -= formed[real].mean(0)  # Over the real tokens, feature by feature.
  few = losses.top_k(theirs['logits'], 3)
  each = {
    'output': losses.kl(ours['logits'], theirs['logits'])[counts],
    'labels': losses.cross_entropy(ours['logits'], y)[counts],
    'top 3': losses.top_k_kl(ours['logits'], few)[counts],
    'block0': square(ours['block0'], theirs['block0'])[real],
    'predicted': square(at(ours['block0']), at(theirs['block1']))[counts],
    'pooled': square(pool(ours['block1']), pool(theirs['block1'])),
    'formed': square(ours['block1'], 0.5 * formed)[real],
  }
  return {name: np.asarray(values).mean() for name, values in each.items()}


class LossTest(parameterized.TestCase):
  def test_every_term_counts_its_tokens(self):
    _, history = distill(JOINT)
    expected = by_hand()
    self.assertEqual(list(expected), list(JOINT.named_terms))
    for name, value in expected.items():
      np.testing.assert_allclose(
        history[-1][f'loss/{name}'], value, rtol=1e-4, err_msg=name
      )
    np.testing.assert_allclose(
      history[-1]['loss'], sum(expected.values()), rtol=1e-4
    )

  def test_evaluation_counts_the_predicted_tokens(self):
    _, history = distill(JOINT)
    counts = batch()['weights'] > 0
    said = activations(1)['logits'].argmax(-1)
    theirs = activations(0)['logits'].argmax(-1)
    last = history[-1]
    right = (said == batch()['y'])[counts].mean()
    np.testing.assert_allclose(last['eval/accuracy'][0], right, rtol=1e-5)
    same = (said == theirs)[counts].mean()
    np.testing.assert_allclose(last['eval/agreement'][0], same, rtol=1e-5)


class HiddenTest(parameterized.TestCase):
  def test_leaves_what_is_above_alone(self):
    stage = cxjax.Stage('block0', 2, terms=cxjax.Term('block0', 'block0'))
    after, _ = distill(stage, rate=0.1)
    before, after = model(1).params['params'], after['params']
    moved = {
      name: any(
        not np.array_equal(a, b)
        for a, b in zip(
          *map(jax.tree.leaves, (before[name], after[name])), strict=True
        )
      )
      for name in before
    }
    low = {'tokens', 'position_embedding', 'embeddings_norm', 'block0'}
    self.assertEqual({name for name, changed in moved.items() if changed}, low)
    self.assertContainsSubset(('block1', 'logits'), moved)
