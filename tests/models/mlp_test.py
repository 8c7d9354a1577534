"""Tests of the models."""

import functools

from absl.testing import absltest
import jax
import numpy as np

from cxjax.models import mlp

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

  def test_a_layer_bears_the_name_of_its_activation(self):
    names = (*MODEL.layers, 'logits')
    self.assertSameElements(init()['params'], names)

  def test_is_linear_relu_layers_and_a_linear_head(self):
    # Away from zero biases, which could as well be left out.
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
  def test_kernels_begin_at_variance_1_over_fan_in_and_biases_at_0(self):
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


if __name__ == '__main__':
  absltest.main()
