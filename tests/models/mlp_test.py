"""The MLP: layers, initialization, head, abilities."""

import functools
import types

from absl.testing import absltest
import jax
import numpy as np
import pytest

from cxjax import errors
from cxjax.models import base
from cxjax.models import mlp
from cxjax.parallel import partition

pytestmark = pytest.mark.slow

MODEL = mlp.MLP((64, 128), 32)
X = np.random.default_rng(0).normal(size=(2, 3, 100)).astype(np.float32)


@functools.cache
def init():
  variables = jax.jit(MODEL.init)(jax.random.key(0), X)
  return jax.tree.map(np.asarray, variables)


class MLPTest(absltest.TestCase):
  def test_layers_are_the_activations_lowest_first(self):
    _, activations = jax.eval_shape(MODEL.apply, init(), X)
    self.assertEqual(MODEL.layers, ('hidden0', 'hidden1'))
    self.assertEqual(tuple(activations), MODEL.layers)

  def test_parameters_are_named_by_activation(self):
    names = (*MODEL.layers, 'logits')
    self.assertSameElements(init()['params'], names)

  def test_computes_linear_relu_layers_and_a_linear_head(self):
    # Biases of 0 would not be seen.
    moved = jax.tree.map(lambda p: p + np.float32(0.1), init())
    logits, activations = jax.jit(MODEL.apply)(moved, X)
    want = X
    for name in MODEL.layers:
      layer = moved['params'][name]
      want = np.maximum(want @ layer['kernel'] + layer['bias'], 0)
      np.testing.assert_allclose(activations[name], want, rtol=1e-4, atol=1e-4)
    head = moved['params']['logits']
    want = want @ head['kernel'] + head['bias']
    np.testing.assert_allclose(logits, want, rtol=1e-4, atol=1e-4)
    self.assertEqual(logits.shape, (2, 3, 32))

  # The variance of N entries is within 5 standard errors, sqrt(2/N) for
  # gaussian ones and less for these, which are truncated.
  def test_kernels_start_at_variance_1_over_fan_in_and_biases_at_0(self):
    for layer in init()['params'].values():
      kernel = layer['kernel']
      scaled = kernel.var() * kernel.shape[0]
      delta = 5 * np.sqrt(2 / kernel.size)
      self.assertAlmostEqual(scaled, 1, delta=delta)
      np.testing.assert_array_equal(layer['bias'], 0)

  def test_without_hidden_layers_it_is_linear(self):
    model = mlp.MLP((), 32)
    kernel, bias = X[0, 0, :, None] * np.ones(32), np.arange(32.0)
    head = {'logits': {'kernel': kernel, 'bias': bias}}
    logits, activations = model.apply({'params': head}, X)
    self.assertEqual(model.layers, ())
    self.assertEmpty(activations)
    np.testing.assert_allclose(logits, X @ kernel + bias, rtol=1e-4, atol=1e-4)

  def test_head_of_trunk_is_apply(self):
    for widths in ((), (8,), (8, 6)):
      model = mlp.MLP(widths, 5)
      variables = jax.jit(model.init)(jax.random.key(0), X)
      want, activations = jax.jit(model.apply)(variables, X)
      h, found = jax.jit(model.trunk)(variables, X)
      np.testing.assert_array_equal(
        h,
        found['hidden1']
        if len(widths) > 1
        else (found['hidden0'] if widths else X),
      )
      self.assertSameElements(found, activations)
      logits = jax.jit(model.head)(variables, h)
      np.testing.assert_allclose(logits, want, rtol=1e-6, atol=1e-6)

  def test_declares_its_abilities(self):
    self.assertIsInstance(MODEL, base.ModelWithHead)
    abilities = MODEL.abilities
    self.assertEqual((abilities.inputs, abilities.dropout), ((), 0.0))
    sharding = partition.ParameterSharding('tensor', abilities.partition_rules)
    self.assertEmpty(partition.unmatched(init(), sharding))
    sizes = {'model': 2, 'fsdp': 3}  # 3 divides no axis.
    for name in (*MODEL.layers, 'logits'):
      for leaf, spec in (('kernel', (None, 'model')), ('bias', ('model',))):
        found = partition.partition_spec(
          f'params/{name}/{leaf}', (2, 4)[-len(spec) :], sharding, sizes
        )
        self.assertEqual(tuple(found), spec)

  def test_input_dict_is_an_error(self):
    with self.assertRaisesRegex(errors.UserError, 'reads one array'):
      MODEL.apply(init(), {'tokens': X})

  def test_builds_from_a_config_block(self):
    task = types.SimpleNamespace(num_classes=3, inputs=())
    block = types.SimpleNamespace(width=7, depth=2)
    self.assertEqual(base.make('mlp', block, task), mlp.MLP((7, 7), 3))
    block.width = 0
    with self.assertRaisesRegex(errors.UserError, 'width=0 and depth=2 must'):
      base.make('mlp', block, task)


if __name__ == '__main__':
  absltest.main()
