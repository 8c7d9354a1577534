"""Adapter of linen modules, as their users wrote them."""

from absl.testing import parameterized
import chex
import flax
from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax import errors
from cxjax.models import adapters
from cxjax.models import linen_adapter
from cxjax.models import mlp
from cxjax.models import taps
import drawn
from tests.models import example_modules

B = 4
adapt, Perceptron = example_modules.adapt, example_modules.Perceptron
Convolutional = example_modules.Convolutional


class Unusual(nn.Module):
  """A layer called twice, a layer that returns two arrays, a sown value."""

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


@pytest.mark.slow
class LinenTest(parameterized.TestCase):
  def test_computes_what_the_module_computes(self):
    x = drawn.normal(B, 5, seed=1)
    model, variables = adapt(Perceptron(), x)
    output, found = jax.jit(model.apply)(model.params, x)
    np.testing.assert_array_equal(
      output, jax.jit(Perceptron().apply)(variables, x)
    )
    first = variables['params']['Dense_0']
    np.testing.assert_allclose(
      found['Dense_0'], x @ first['kernel'] + first['bias'][None], rtol=1e-5
    )
    chex.assert_trees_all_equal(model.wrap(model.params), variables)

  def test_wrap_returns_the_form_that_was_given(self):
    x = jnp.ones((B, 5))
    whole, variables = adapt(Perceptron(), x)
    model = linen_adapter.from_linen(Perceptron(), variables['params'])
    self.assertIs(model.wrap(model.params), variables['params'])
    np.testing.assert_array_equal(
      model.apply(model.params, x)[0], whole.apply(whole.params, x)[0]
    )

  def test_names_of_repeated_calls_several_arrays_and_sown_values(self):
    x = jnp.ones((B, 5))
    model, _ = adapt(Unusual(), x, output=lambda output: output['answer'])
    output, found = model.apply(model.params, x)
    self.assertSameElements(
      ('into', 'dense', 'dense#2', 'pair', 'pair/1', 'seen', 'Dropout_0'),
      found,
    )
    np.testing.assert_array_equal(found['pair'], found['dense#2'] + 1)
    np.testing.assert_array_equal(found['pair/1'], output)
    np.testing.assert_array_equal(found['seen'], found['pair'] + output)

  def test_batch_statistics_are_not_trained(self):
    x = jnp.ones((B, 8, 8, 1))
    model, variables = adapt(Convolutional(), x)
    self.assertNotIn('batch_stats', model.params)
    back = model.wrap(jax.tree.map(lambda leaf: leaf + 1, model.params))
    chex.assert_trees_all_equal(back['batch_stats'], variables['batch_stats'])

  def test_students_with_other_batch_statistics_are_an_error(self):
    x = jnp.ones((B, 8, 8, 1))
    _, one = adapt(Convolutional(), x)
    other = {**one, 'batch_stats': jax.tree.map(jnp.sin, one['batch_stats'])}
    linen_adapter.from_linen(Convolutional(), [one, one])
    with self.assertRaisesRegex(errors.UserError, 'Student 1.*batch_stats'):
      linen_adapter.from_linen(Convolutional(), [one, other])

  def test_several_students(self):
    x = jnp.ones((B, 5))
    init = Perceptron().init
    variables = [drawn.parameters(init, x, seed=seed) for seed in (0, 1)]
    model = linen_adapter.from_linen(Perceptron(), variables)
    self.assertTrue(model.several)
    self.assertLen(model.params, 2)
    chex.assert_trees_all_equal(model.one, variables[0]['params'])
    with self.assertRaisesRegex(errors.UserError, 'list is empty'):
      linen_adapter.from_linen(nn.Dense(3), [])

  def test_training_mode_is_an_error(self):
    x = jnp.ones((B, 8, 8, 1))
    model, variables = adapt(Convolutional(), x)
    training = linen_adapter.from_linen(Convolutional(), variables, train=True)
    with self.assertRaisesRegex(
      errors.UserError, 'Convolutional is not at inf.*mean.*train=False'
    ):
      taps.taps(training, x)
    noisy = nn.Sequential([nn.Dropout(0.5, deterministic=False)])
    with self.assertRaisesRegex(errors.UserError, 'Sequential is not at inf'):
      taps.taps(linen_adapter.from_linen(noisy, {}), x)

  def test_a_module_of_another_library(self):
    module = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    with self.assertRaisesRegex(errors.UserError, 'Linear is no .*from_nnx'):
      linen_adapter.from_linen(module, {})

  def test_rngs_are_an_error(self):
    with self.assertRaisesRegex(errors.UserError, 'same random numbers'):
      linen_adapter.from_linen(
        nn.Dropout(0.5, deterministic=False), {}, rngs=jax.random.key(0)
      )

  def test_output_that_is_not_an_array_is_an_error(self):
    model, _ = adapt(Unusual(), jnp.ones((B, 5)))
    with self.assertRaisesRegex(errors.UserError, 'a dict, .*output=lambda'):
      taps.taps(model, jnp.ones((B, 5)))

  def test_declares_what_the_module_declares(self):
    x = jnp.ones((B, 5))
    model, _ = adapt(mlp.MLP((4,), 3), x, output=lambda out: out[0])
    self.assertEqual(model.abilities.partition_rules, mlp.PARTITION_RULES)
    self.assertEqual(model.abilities.inputs, ())
    self.assertFalse(model.abilities.head)  # An adapter has none.
    # As `output` here, a function of the user may mix the examples.
    self.assertIsNone(model.abilities.by_example)
    rules = [('kernel$', 1)]
    other, _ = adapt(Perceptron(), x, partition_rules=rules)
    self.assertEqual(other.abilities.partition_rules, (('kernel$', 1),))
    self.assertIsNone(adapt(Perceptron(), x)[0].abilities.partition_rules)


class Noisy(nn.Module):
  """Batch norm, dropout, a stream and a counter of its own, and a sown loss."""

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
    x = nn.Dropout(0.5, deterministic=not train)(x)
    calls = self.variable('counter', 'calls', lambda: jnp.zeros((), int))
    if train:
      calls.value += 1
      x = x + jax.random.normal(self.make_rng('noise'), x.shape)
    self.sow('losses', 'sum', jnp.sum(x))
    return nn.Dense(3)(x)


class Product(nn.Module):
  @nn.compact
  def __call__(self, a, b):
    return nn.Dense(3)(a * b)


class LinenTrainingTest(parameterized.TestCase):
  """One forward pass of a step, in training mode."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.x = drawn.normal(B, 5, seed=1) + 2
    cls.module = Noisy()
    cls.variables = drawn.parameters(cls.module.init, cls.x)

  def adapt(self, variables=None, **kwargs):
    return linen_adapter.from_linen(
      self.module,
      self.variables if variables is None else variables,
      **{'training': {'train': True}, **kwargs},
    )

  def run_once(self, model, seed=0):
    training = jax.jit(model.training)
    return training(model.params, self.x, jax.random.key(seed))

  def test_returns_the_new_values_of_all_collections(self):
    model = self.adapt()
    _, found, changed = self.run_once(model)
    chex.assert_trees_all_equal_shapes_and_dtypes(
      changed, {k: v for k, v in self.variables.items() if k != 'params'}
    )
    new = changed['batch_stats']['BatchNorm_0']['mean']
    np.testing.assert_allclose(new, 0.1 * self.x.mean(0), rtol=1e-5)
    self.assertEqual(changed['counter']['calls'], 1)
    self.assertIn('Dropout_0', found)
    chex.assert_trees_all_equal(model.wrap(model.params), self.variables)

  @pytest.mark.slow
  def test_inference_reads_the_statistics_of_the_parameters(self):
    model = self.adapt()
    _, _, changed = self.run_once(model)
    output, _ = model.apply({**model.params, **changed}, self.x)
    new = {**self.variables, **changed}
    np.testing.assert_allclose(
      output, self.module.apply(new, self.x), rtol=1e-6
    )

  @pytest.mark.slow
  def test_masks_hang_on_the_key_alone(self):
    model = self.adapt(training={'train': True, 'rngs': ('noise',)})
    one, again, other = (self.run_once(model, seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    self.assertGreater(float(jnp.abs(one - other).min()), 0)

  def test_the_paths_of_parameters_are_those_at_inference(self):
    plain = self.adapt(training=None)
    self.assertContainsSubset(plain.params, self.adapt().params)
    frozen = self.adapt(flax.core.freeze(self.variables))
    chex.assert_trees_all_equal(
      flax.core.unfreeze(frozen.wrap(frozen.params)), self.variables
    )

  def test_students_may_have_other_statistics(self):
    other = jax.tree.map(lambda leaf: leaf + 1, self.variables)
    model = self.adapt([self.variables, other])
    chex.assert_trees_all_equal(model.wrap(model.params[1]), other)
    with self.assertRaisesRegex(errors.UserError, "student must have 'params'"):
      self.adapt([self.variables, self.variables['params']])

  def test_a_name_of_a_collection_is_taken(self):
    module = nn.Sequential([nn.Dense(3, name='batch_stats')])
    variables = {'params': {'batch_stats': {}}, 'batch_stats': {}}
    with self.assertRaisesRegex(errors.UserError, 'same name, batch_stats'):
      linen_adapter.from_linen(module, variables, training={})

  def test_names_what_stays_constant(self):
    model = self.adapt(training=None)
    self.assertEqual(model.unused_dropout(self.x), ('Dropout_0 (rate 0.5)',))
    self.assertEqual(model.constant_statistics(self.x), ('BatchNorm_0',))
    self.assertEmpty(self.adapt().unused_dropout(self.x))
    self.assertEmpty(self.adapt().constant_statistics(self.x))
    same = self.adapt(training={})  # These arguments turn nothing on.
    self.assertEqual(same.constant_statistics(self.x), ('BatchNorm_0',))

  def test_statistics_in_the_memory_of_the_host(self):
    host = jax.sharding.SingleDeviceSharding(
      jax.devices()[0], memory_kind='pinned_host'
    )
    statistics = jax.device_put(self.variables['batch_stats'], host)
    given = {**self.variables, 'batch_stats': statistics}
    got, want = (
      jax.jit(model.apply)(model.params, self.x)[0]
      for model in (self.adapt(given, training=None), self.adapt(training=None))
    )
    np.testing.assert_array_equal(got, want)

  @pytest.mark.slow
  def test_half_precision_keeps_statistics_exact(self):
    model = self.adapt()
    half = adapters.with_compute_dtype(model, jnp.bfloat16)
    _, _, want = self.run_once(model)
    output, _, got = self.run_once(half)
    self.assertEqual(output.dtype, jnp.float32)
    chex.assert_trees_all_equal_dtypes(got, want)
    mean = lambda tree: tree['batch_stats']['BatchNorm_0']['mean']
    np.testing.assert_allclose(mean(got), mean(want), rtol=1e-2)

  @parameterized.parameters('tuple', 'dict', 'call')
  def test_several_inputs(self, form):
    a, b = self.x, self.x + 1
    variables = drawn.parameters(Product().init, a, b)
    call = None
    x = {'tuple': (a, b), 'dict': {'b': b, 'a': a}, 'call': {'u': a, 'v': b}}
    if form == 'call':
      call = lambda module, x: module(x['u'], b=x['v'])
    model = linen_adapter.from_linen(Product(), variables, call=call)
    output, found = model.apply(model.params, x[form])
    np.testing.assert_array_equal(output, Product().apply(variables, a, b))
    self.assertEqual(list(found), ['Dense_0'])


class ExampleTest(parameterized.TestCase):
  """A module of one example, mapped over the batch."""

  @pytest.mark.slow
  def test_the_same_as_of_a_batch(self):
    x = drawn.normal(B, 5, seed=1)
    whole, variables = adapt(Perceptron(), x)
    one = linen_adapter.from_linen(Perceptron(), variables, batched=False)
    output, found = one.apply(one.params, x)
    want, others = whole.apply(whole.params, x)
    np.testing.assert_allclose(output, want, rtol=1e-5)
    chex.assert_trees_all_close(found, others, rtol=1e-5)

  @pytest.mark.slow
  def test_statistics_are_those_of_the_batch(self):
    class Norm(nn.Module):
      axis: str | None

      @nn.compact
      def __call__(self, x, train=False):
        return nn.BatchNorm(not train, axis_name=self.axis)(x)

    x = drawn.normal(B, 5, seed=1)
    variables = drawn.parameters(Norm(None).init, x)
    training = {'train': True}
    results = []
    for axis, batched in ((None, True), ('batch', False)):
      model = linen_adapter.from_linen(
        Norm(axis), variables, training=training, batched=batched
      )
      results.append(model.training(model.params, x, jax.random.key(0)))
    chex.assert_trees_all_close(results[0][::2], results[1][::2], rtol=1e-4)
