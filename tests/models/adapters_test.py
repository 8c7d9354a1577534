"""Models as their users wrote them, and what can be seen of them."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from cxjax import errors
from cxjax.models import adapters
from cxjax.methods import train_step

B = 4


class Perceptron(nn.Module):
  widths: tuple[int, ...] = (16, 24)

  @nn.compact
  def __call__(self, x):
    for width in self.widths:
      x = nn.relu(nn.Dense(width)(x))
    return nn.Dense(3)(x)


class Convolutional(nn.Module):
  """Norms, a flag for training, a layer in a layer."""

  @nn.compact
  def __call__(self, x, train=False):
    for features in (4, 8):
      x = nn.Conv(features, (3, 3))(x)
      x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
      x = nn.avg_pool(x, (2, 2), (2, 2))
    return nn.Dense(3)(x.reshape(len(x), -1))


class Odd(nn.Module):
  """A layer that is called twice, one that returns two arrays, a sown value."""

  @nn.compact
  def __call__(self, x):
    dense = nn.Dense(5, name='dense')
    x = nn.Dropout(0.5, deterministic=not self.has_rng('dropout'))(x)
    x = dense(dense(nn.Dense(5, name='into')(x)))
    first, second = Pair(name='pair')(x)
    self.sow('intermediates', 'seen', first + second)
    return {'answer': second}


class Pair(nn.Module):
  def __call__(self, x):
    return x + 1, x + 2


class Nnx(nnx.Module):
  def __init__(self, rngs):
    self.layers = nnx.List([nnx.Linear(5, 8, rngs=rngs) for _ in range(1)])
    self.norm = nnx.BatchNorm(8, rngs=rngs)
    self.head = nnx.Linear(8, 3, rngs=rngs)

  def features(self, x):
    return nnx.relu(self.norm(self.layers[0](x)))

  def __call__(self, x):
    return self.head(self.features(x))


def of_linen(module, x, **kwargs):
  variables = jax.jit(module.init)(jax.random.key(0), x)
  return adapters.from_linen(module, variables, **kwargs), variables


class LinenTest(parameterized.TestCase):
  def test_computes_what_the_module_does(self):
    x = jax.random.normal(jax.random.key(1), (B, 5))
    network, variables = of_linen(Perceptron(), x)
    output, found = jax.jit(network.apply)(network.params, x)
    np.testing.assert_array_equal(
      output, jax.jit(Perceptron().apply)(variables, x)
    )
    first = variables['params']['Dense_0']
    np.testing.assert_allclose(
      found['Dense_0'], x @ first['kernel'] + first['bias'][None], rtol=1e-5
    )
    chex.assert_trees_all_equal(network.wrap(network.params), variables)

  def test_the_params_alone_come_back_alone(self):
    x = jnp.ones((B, 5))
    whole, variables = of_linen(Perceptron(), x)
    network = adapters.from_linen(Perceptron(), variables['params'])
    self.assertIs(network.wrap(network.params), variables['params'])
    np.testing.assert_array_equal(
      network.apply(network.params, x)[0], whole.apply(whole.params, x)[0]
    )

  def test_names_of_what_is_odd(self):
    x = jnp.ones((B, 5))
    take = lambda output: output['answer']
    network, _ = of_linen(Odd(), x, output=take)
    output, found = network.apply(network.params, x)
    self.assertSameElements(
      ('into', 'dense', 'dense#2', 'pair', 'pair/1', 'seen', 'Dropout_0'),
      found,
    )
    np.testing.assert_array_equal(found['pair'], found['dense#2'] + 1)
    np.testing.assert_array_equal(found['pair/1'], output)
    np.testing.assert_array_equal(found['seen'], found['pair'] + output)

  def test_statistics_are_no_parameters(self):
    x = jnp.ones((B, 8, 8, 1))
    network, variables = of_linen(Convolutional(), x)
    self.assertNotIn('batch_stats', network.params)
    back = network.wrap(jax.tree.map(lambda leaf: leaf + 1, network.params))
    chex.assert_trees_all_equal(back['batch_stats'], variables['batch_stats'])

  def test_students_of_other_statistics_are_refused(self):
    models = [Nnx(nnx.Rngs(seed)) for seed in range(2)]
    adapters.from_nnx(models)
    models[1].norm.mean[...] += 1
    with self.assertRaisesRegex(errors.UserError, 'Student 1.*batch_stats'):
      adapters.from_nnx(models)
    x = jnp.ones((B, 8, 8, 1))
    _, one = of_linen(Convolutional(), x)
    other = {**one, 'batch_stats': jax.tree.map(jnp.sin, one['batch_stats'])}
    adapters.from_linen(Convolutional(), [one, one])
    with self.assertRaisesRegex(errors.UserError, 'Student 1.*batch_stats'):
      adapters.from_linen(Convolutional(), [one, other])

  def test_several(self):
    x = jnp.ones((B, 5))
    keys = jax.random.split(jax.random.key(0))
    all_of = [Perceptron().init(key, x) for key in keys]
    network = adapters.from_linen(Perceptron(), all_of)
    self.assertTrue(network.several)
    self.assertLen(network.params, 2)
    chex.assert_trees_all_equal(network.one, all_of[0]['params'])

  def test_what_is_not_at_inference_is_told(self):
    x = jnp.ones((B, 8, 8, 1))
    network, _ = of_linen(Convolutional(), x)
    training = adapters.from_linen(
      Convolutional(), network.wrap(network.params), train=True
    )
    with self.assertRaisesRegex(
      errors.UserError, 'Convolutional is not at inf.*mean.*train=False'
    ):
      adapters.taps(training, x)
    noisy = nn.Sequential([nn.Dropout(0.5, deterministic=False)])
    with self.assertRaisesRegex(errors.UserError, 'Sequential is not at inf'):
      adapters.taps(adapters.from_linen(noisy, {}), x)

  def test_what_is_no_network_is_told(self):
    x = jnp.ones((B, 5))
    with self.assertRaisesRegex(errors.UserError, 'list is empty'):
      adapters.from_linen(nn.Dense(3), [])
    dense = nn.Dense(3)
    several = [dense.init(jax.random.key(0), jnp.ones((1, n))) for n in (5, 4)]
    with self.assertRaisesRegex(
      errors.UserError, 'model 1 have other shapes or'
    ):
      adapters.taps(adapters.from_linen(dense, several), x)
    alone = adapters.from_fn(lambda params, x: x @ params, jnp.ones((5, 3)))
    with self.assertRaisesRegex(errors.UserError, r'must return \(output, act'):
      adapters.taps(alone, x)

  def test_an_output_that_is_no_array_is_told(self):
    network, _ = of_linen(Odd(), jnp.ones((B, 5)))
    with self.assertRaisesRegex(errors.UserError, 'a dict, .*output=lambda'):
      adapters.taps(network, jnp.ones((B, 5)))


class NnxTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.x = jax.random.normal(jax.random.key(1), (B, 5))
    self.model = Nnx(nnx.Rngs(0))
    self.model.eval()
    self.network = adapters.from_nnx(self.model)

  def test_computes_what_the_module_does(self):
    before = nnx.to_pure_dict(nnx.state(self.model))
    output, found = self.network.apply(self.network.params, self.x)
    np.testing.assert_array_equal(output, self.model(self.x))
    np.testing.assert_array_equal(
      found['layers/0'], self.model.layers[0](self.x)
    )
    np.testing.assert_array_equal(
      found['features'], self.model.features(self.x)
    )
    chex.assert_trees_all_equal(nnx.to_pure_dict(nnx.state(self.model)), before)

  def test_comes_back_as_a_module(self):
    self.assertNotIn('mean', self.network.params['norm'])
    double = jax.tree.map(lambda leaf: 2 * leaf, self.network.params)
    new = self.network.wrap(double)
    self.assertIsInstance(new, Nnx)
    np.testing.assert_array_equal(
      new.head.kernel[...], 2 * self.model.head.kernel[...]
    )
    np.testing.assert_array_equal(
      new(self.x), self.network.apply(double, self.x)[0]
    )


class TapsTest(parameterized.TestCase):
  def test_a_perceptron(self):
    x = jnp.ones((B, 5))
    found = adapters.taps(of_linen(Perceptron(), x)[0], x)
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

  def test_a_convolution_and_its_norm_are_one_layer(self):
    x = jnp.ones((B, 16, 16, 3))
    found = adapters.taps(of_linen(Convolutional(), x)[0], x)
    names = [tap.name for tap in found]
    self.assertEqual(
      names, ['Conv_0', 'BatchNorm_0', 'Conv_1', 'BatchNorm_1', 'logits']
    )
    self.assertEqual(found[2].shape, (B, 8, 8, 8))
    self.assertEqual(found.layers, ('BatchNorm_0', 'BatchNorm_1'))

  def test_shapes_are_enough(self):
    x = jax.ShapeDtypeStruct((B, 5), jnp.float32)
    shapes = jax.eval_shape(Perceptron().init, jax.random.key(0), x)
    found = adapters.taps(adapters.from_linen(Perceptron(), shapes), x)
    self.assertLen(found, 3)

  def test_what_is_above_a_tap_is_not_computed(self):
    x = jnp.ones((B, 5))
    network, _ = of_linen(Perceptron(), x)
    costs = [
      train_step.flops(
        lambda params, x, name=name: train_step.activation(
          network.apply, params, x, name
        ),
        network.params,
        x,
      )
      for name in ('Dense_0', 'logits')
    ]
    self.assertLess(costs[0], 0.3 * costs[1])


class CastTest(absltest.TestCase):
  def test_computes_in_bfloat16_and_returns_float32(self):
    x = jax.random.normal(jax.random.key(1), (B, 5))
    network, _ = of_linen(Perceptron(), x)
    half = adapters.with_compute_dtype(network, jnp.bfloat16)
    output, found = half.apply(half.params, x)
    want, _ = network.apply(network.params, x)
    self.assertEqual(output.dtype, jnp.float32)
    self.assertEqual(found['Dense_0'].dtype, jnp.float32)
    np.testing.assert_allclose(output, want, atol=0.05)
    self.assertGreater(float(jnp.abs(output - want).max()), 1e-6)
    text = str(jax.make_jaxpr(half.apply)(half.params, x))
    self.assertRegex(text, r'bf16\[4,16\] = dot_general')


if __name__ == '__main__':
  absltest.main()
