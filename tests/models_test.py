"""Tests of the models."""

import functools

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from cxjax.models import mlp

MODEL = mlp.MLP((6, 5), 3)
X = jax.random.normal(jax.random.key(1), (2, 7, 4))


@functools.cache
def params():
  return jax.jit(MODEL.init)(jax.random.key(0), X)


class MLPTest(absltest.TestCase):
  def test_layers_are_the_activations_lowest_first(self):
    _, activations = jax.eval_shape(MODEL.apply, params(), X)
    self.assertEqual(MODEL.layers, ('hidden0', 'hidden1'))
    self.assertEqual(tuple(activations), MODEL.layers)

  def test_a_layer_bears_the_name_of_its_activation(self):
    names = (*MODEL.layers, 'logits')
    self.assertSameElements(params()['params'], names)

  def test_is_linear_relu_layers_and_a_linear_head(self):
    # Not at its zeros, where a bias could be left out.
    moved = jax.tree.map(lambda p: np.asarray(p) + 0.1, params())
    logits, activations = jax.jit(MODEL.apply)(moved, X)
    want = np.asarray(X)
    for name in MODEL.layers:
      layer = moved['params'][name]
      want = np.maximum(want @ layer['kernel'] + layer['bias'], 0)
      np.testing.assert_allclose(activations[name], want, rtol=1e-4, atol=1e-6)
    head = moved['params']['logits']
    want = want @ head['kernel'] + head['bias']
    np.testing.assert_allclose(logits, want, rtol=1e-4, atol=1e-6)
    self.assertEqual(logits.shape, (2, 7, 3))

  # The variance of N entries is within 5 standard errors, sqrt(2/N) for
  # gaussian ones and less for these, which are truncated.
  def test_kernels_begin_at_variance_1_over_fan_in_and_biases_at_0(self):
    model = mlp.MLP((64, 256), 64)
    init = jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 100)))
    for layer in init['params'].values():
      kernel = layer['kernel']
      scaled = kernel.var() * kernel.shape[0]
      delta = 5 * np.sqrt(2 / kernel.size)
      self.assertAlmostEqual(float(scaled), 1, delta=delta)
      np.testing.assert_array_equal(layer['bias'], 0)

  def test_without_hidden_layers_it_is_linear(self):
    model = mlp.MLP((), 3)
    init = jax.jit(model.init)(jax.random.key(0), X)
    logits, activations = model.apply(init, X)
    self.assertEqual(model.layers, ())
    self.assertEmpty(activations)
    kernel = np.asarray(init['params']['logits']['kernel'])
    np.testing.assert_allclose(logits, X @ kernel, rtol=1e-4, atol=1e-6)


if __name__ == '__main__':
  absltest.main()
