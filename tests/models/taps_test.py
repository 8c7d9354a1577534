"""The list of a model's activations: order, shapes, FLOPs and layers."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax.methods import flops
from cxjax.methods import targets
from cxjax.models import adapters
from cxjax.models import linen_adapter
from cxjax.models import taps
from tests.models import example_modules

B = 4


class TapsTest(parameterized.TestCase):
  def test_perceptron(self):
    x = jnp.ones((B, 5))
    model, _ = example_modules.adapt(example_modules.Perceptron(), x)
    found = taps.taps(model, x)
    self.assertEqual(
      [(tap.name, tap.shape) for tap in found],
      [('Dense_0', (B, 16)), ('Dense_1', (B, 24)), ('logits', (B, 3))],
    )
    self.assertEqual(found.layers, ('Dense_0', 'Dense_1'))
    # Products, biases, and the ReLUs below.
    products = [2 * B * 5 * 16, 2 * B * 16 * 24, 2 * B * 24 * 3]
    biases, relus = [B * 16, B * 24, B * 3], [0, B * 16, B * 24]
    want = np.cumsum(np.sum([products, biases, relus], axis=0))
    np.testing.assert_array_equal([tap.flops for tap in found], want)
    self.assertRegex(str(found), r'Dense_1 +\| 4 x 24 +\| float32 .*\| yes')

  @pytest.mark.slow
  def test_convolution_and_its_norm_are_one_layer(self):
    x = jnp.ones((B, 16, 16, 3))
    model, _ = example_modules.adapt(example_modules.Convolutional(), x)
    found = taps.taps(model, x)
    names = [tap.name for tap in found]
    self.assertEqual(
      names, ['Conv_0', 'BatchNorm_0', 'Conv_1', 'BatchNorm_1', 'logits']
    )
    self.assertEqual(found[2].shape, (B, 8, 8, 8))
    self.assertEqual(found.layers, ('BatchNorm_0', 'BatchNorm_1'))

  def test_shapes_are_enough(self):
    x = jax.ShapeDtypeStruct((B, 5), jnp.float32)
    module = example_modules.Perceptron()
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    found = taps.taps(linen_adapter.from_linen(module, shapes), x)
    self.assertLen(found, 3)

  def test_activation_that_is_the_output_is_listed_once(self):
    def apply(params, x):
      hidden = x @ params
      out = jnp.tanh(hidden)
      return out, {'last': out, 'hidden': hidden, 'logits': out}

    found = taps.taps(
      adapters.from_fn(apply, jnp.ones((5, 3))), jnp.ones((B, 5))
    )
    self.assertEqual([tap.name for tap in found], ['hidden', 'logits'])

  def test_traces_do_not_grow_with_the_number_of_activations(self):
    def traces(depth):
      calls = []

      def apply(params, x):
        calls.append(1)
        found = {}
        for i in range(depth):
          x = found[f'h{i}'] = jnp.tanh(x @ params)
        return x @ params, found

      taps.taps(adapters.from_fn(apply, jnp.eye(5)), jnp.ones((B, 5)))
      return len(calls)

    self.assertEqual(traces(2), traces(8))

  def test_the_input_of_a_head_of_ours_is_not_a_layer(self):
    for name, layers in {'head_input': (), 'final': ('final',)}.items():

      def apply(params, x, name=name):
        hidden = jnp.tanh(x @ params)
        last = jnp.tanh(hidden @ params)
        return last @ params, {'hidden': hidden, name: last}

      found = taps.taps(adapters.from_fn(apply, jnp.eye(5)), jnp.ones((B, 5)))
      self.assertEqual([tap.name for tap in found], ['hidden', name, 'logits'])
      self.assertEqual(found.layers, ('hidden', *layers))

  @pytest.mark.slow
  def test_layers_above_a_tap_are_not_computed(self):
    x = jnp.ones((B, 5))
    model, _ = example_modules.adapt(example_modules.Perceptron(), x)
    costs = [
      flops.compiled(
        lambda params, x, name=name: targets.activation(
          model.apply, params, x, name
        ),
        model.params,
        x,
      )
      for name in ('Dense_0', 'logits')
    ]
    self.assertLess(costs[0], 0.3 * costs[1])
