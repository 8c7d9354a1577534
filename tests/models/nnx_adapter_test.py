"""Adapter of nnx modules, as their users wrote them."""

from absl.testing import parameterized
import chex
from flax import nnx
import jax
import numpy as np
import pytest

from cxjax import errors
from cxjax.models import adapters
from cxjax.models import nnx_adapter
from cxjax.models import nnx_modules
import drawn

B = 4


class Nnx(nnx.Module):
  def __init__(self, rngs, rate=0.0):
    self.layers = nnx.List([nnx.Linear(5, 8, rngs=rngs) for _ in range(1)])
    self.norm = nnx.BatchNorm(8, rngs=rngs)
    self.dropout = nnx.Dropout(rate, rngs=rngs)
    self.head = nnx.Linear(8, 3, rngs=rngs)

  def features(self, x):
    return nnx.relu(self.norm(self.layers[0](x)))

  def __call__(self, x):
    return self.head(self.dropout(self.features(x)))


class Rematerialized(nnx.Module):
  """nnx.remat assigns all variables of its module, changed or not."""

  def __init__(self, rngs, rate=0.0):
    self.linear = nnx.Linear(5, 8, rngs=rngs)
    self.dropout = nnx.Dropout(rate, rngs=rngs)

  def __call__(self, x):
    inner = lambda module, x: module.dropout(module.linear(x))
    return nnx.remat(inner)(self, x)


class NnxTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.x = drawn.normal(B, 5, seed=1)
    self.module = Nnx(nnx.Rngs(0))
    self.module.eval()
    self.model = nnx_adapter.from_nnx(self.module)

  def test_statistics_on_a_mesh_with_explicit_axes(self):
    mesh = jax.make_mesh((1,), ('mine',), devices=jax.devices()[:1])
    there = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    module = nnx.clone(self.module)
    kind = nnx.BatchStat
    nnx.update(module, jax.device_put(nnx.state(module, kind), there))
    model = nnx_adapter.from_nnx(module)
    want, _ = jax.jit(self.model.apply)(self.model.params, self.x)
    got, _ = jax.jit(model.apply)(model.params, self.x)
    np.testing.assert_array_equal(got, want)
    kinds = jax.typeof(got).sharding.mesh.axis_types
    self.assertNotIn(jax.sharding.AxisType.Explicit, kinds)

  def test_computes_what_the_module_computes(self):
    before = nnx.to_pure_dict(nnx.state(self.module))
    output, found = self.model.apply(self.model.params, self.x)
    np.testing.assert_array_equal(output, self.module(self.x))
    np.testing.assert_array_equal(
      found['layers/0'], self.module.layers[0](self.x)
    )
    np.testing.assert_array_equal(
      found['features'], self.module.features(self.x)
    )
    chex.assert_trees_all_equal(
      nnx.to_pure_dict(nnx.state(self.module)), before
    )

  def test_wrap_returns_a_new_module(self):
    self.assertNotIn('mean', self.model.params['norm'])
    double = jax.tree.map(lambda leaf: 2 * leaf, self.model.params)
    new = self.model.wrap(double)
    self.assertIsInstance(new, Nnx)
    np.testing.assert_array_equal(
      new.head.kernel[...], 2 * self.module.head.kernel[...]
    )
    np.testing.assert_array_equal(
      new(self.x), self.model.apply(double, self.x)[0]
    )

  @parameterized.parameters(True, False)
  def test_students_keep_their_own_random_streams(self, training):
    modules = [Nnx(nnx.Rngs(seed)) for seed in range(2)]
    if not training:
      for module in modules:
        module.eval()
    model = nnx_adapter.from_nnx(modules)
    for module, params in zip(modules, model.params, strict=True):
      chex.assert_trees_all_equal(
        nnx_modules.variables(model.wrap(params)),
        nnx_modules.variables(module),
      )

  def test_students_with_other_batch_statistics_are_an_error(self):
    modules = [Nnx(nnx.Rngs(seed)) for seed in range(2)]
    modules[1].norm.mean[...] += 1
    self.assertTrue(nnx_adapter.from_nnx(modules).several)
    with self.assertRaisesRegex(errors.UserError, 'Student 1.* the mode of'):
      modules[0].eval()
      nnx_adapter.from_nnx(modules)
    modules[1].eval()
    with self.assertRaisesRegex(errors.UserError, 'Student 1.*batch_stats'):
      nnx_adapter.from_nnx(modules)

  def test_anything_but_a_module_is_an_error(self):
    with self.assertRaisesRegex(errors.UserError, 'a dict is no nnx.Module'):
      nnx_adapter.from_nnx({})

  def test_declares_partition_rules(self):
    rules = ((r'head/kernel$', 1),)
    model = nnx_adapter.from_nnx(self.module, partition_rules=rules)
    self.assertEqual(model.abilities.partition_rules, rules)
    self.assertIsNone(self.model.abilities.partition_rules)


class InsideTest(parameterized.TestCase):
  """Activations inside of what JAX transforms."""

  @parameterized.parameters(
    (jax.jit,), (jax.checkpoint,), (jax.vmap,), (nnx.remat,)
  )
  def test_they_are_captured(self, transform):
    class Net(nnx.Module):
      def __init__(self):
        self.a, self.b = (nnx.Linear(5, 5, rngs=nnx.Rngs(i)) for i in (0, 1))

      def __call__(self, x):
        if transform is nnx.remat:
          return self.b(transform(lambda module, x: module(x))(self.a, x))
        return self.b(transform(self.a)(x))

    module, x = Net(), drawn.normal(B, 5, seed=1)
    model = nnx_adapter.from_nnx(module)
    output, found = jax.jit(model.apply)(model.params, x)
    np.testing.assert_allclose(output, module(x), rtol=1e-5)
    np.testing.assert_allclose(found['a'], module.a(x), rtol=1e-5)

  @pytest.mark.slow
  def test_a_dict_of_modules_has_its_own_keys_alone(self):
    class Net(nnx.Module):
      def __init__(self):
        layer = lambda i: nnx.Linear(5, 5, rngs=nnx.Rngs(i))
        self.layers = nnx.Dict({f'l{i}': layer(i) for i in range(2)})

      def __call__(self, x):
        for layer in self.layers.values():
          x = nnx.tanh(layer(x))
        return x * len(self.layers)

    module, x = Net(), np.ones((B, 5), np.float32)
    model = nnx_adapter.from_nnx(module)
    output, found = model.apply(model.params, x)
    np.testing.assert_allclose(output, module(x), rtol=1e-5)
    self.assertCountEqual(found, ('layers/l0', 'layers/l1'))
    self.assertLen(module.layers, 2)

  @pytest.mark.slow
  def test_a_recurrent_layer_takes_keys_and_draws_nothing(self):
    module = nnx.RNN(nnx.GRUCell(5, 4, rngs=nnx.Rngs(0)))
    x = drawn.normal(B, 3, 5, seed=1)
    model = nnx_adapter.from_nnx(module)
    output, found = model.apply(model.params, x)
    np.testing.assert_allclose(output, module(x), rtol=1e-5)
    self.assertEqual(found['cell'].shape, (3, B, 4))  # The steps of a scan.

  def test_a_method_of_a_base_class_is_no_call_of_its_own(self):
    class Double(nnx.Linear):
      def __call__(self, x):
        return 2 * super().__call__(x)

    class Inherited(Double):
      pass

    layers = (nnx.Linear, Double, Inherited)
    module = nnx.Sequential(*(kind(5, 5, rngs=nnx.Rngs(0)) for kind in layers))
    x = drawn.normal(B, 5, seed=1)
    model = nnx_adapter.from_nnx(module)
    _, found = model.apply(model.params, x)
    self.assertCountEqual(found, ['layers/0', 'layers/1', 'layers/2'])
    np.testing.assert_allclose(found['layers/2'], module(x), rtol=1e-5)
    self.assertNotIn('__call__', vars(Inherited))  # As it was.

  @pytest.mark.slow
  def test_one_example(self):
    module = nnx.Sequential(
      nnx.Linear(5, 4, rngs=nnx.Rngs(0)),
      jax.numpy.tanh,
      lambda x: x.sum()[None],
    )
    x = drawn.normal(B, 5, seed=1)
    model = nnx_adapter.from_nnx(module, batched=False)
    output, found = model.apply(model.params, x)
    np.testing.assert_allclose(output, jax.vmap(module)(x), rtol=1e-5)
    np.testing.assert_allclose(found['layers/0'], module.layers[0](x), 1e-5)


class NnxTrainingTest(parameterized.TestCase):
  """A module in training mode: one forward pass of a step, one at inference."""

  def setUp(self):
    super().setUp()
    self.x = drawn.normal(B, 5, seed=1)

  @parameterized.parameters(Nnx, Rematerialized)
  def test_inference_is_that_after_eval(self, kind):
    module = kind(nnx.Rngs(0), rate=0.5)
    model = nnx_adapter.from_nnx(module)
    output, _ = model.apply(model.params, self.x)
    module.eval()
    np.testing.assert_allclose(output, module(self.x), rtol=1e-6)

  @pytest.mark.slow
  def test_statistics_are_those_of_the_module(self):
    module = Nnx(nnx.Rngs(0))
    model = nnx_adapter.from_nnx(module)
    key = jax.random.key(0)
    out, found, changed = model.training(model.params, self.x, key)
    np.testing.assert_array_equal(out, module(self.x))  # It updates itself.
    self.assertEqual(found['layers/0'].shape, (B, 8))
    self.assertEqual(list(changed), ['norm'])
    np.testing.assert_array_equal(changed['norm']['mean'], module.norm.mean)
    np.testing.assert_array_equal(changed['norm']['var'], module.norm.var)

  @pytest.mark.slow
  def test_masks_differ_by_key_and_layer(self):
    class Twice(nnx.Module):
      def __init__(self, rngs):
        self.a = nnx.Dropout(0.5, rngs=rngs)
        self.b = nnx.Dropout(0.5, rngs=rngs)

      def __call__(self, x):
        return self.a(x) + 3 * self.b(x)

    model = nnx_adapter.from_nnx(Twice(nnx.Rngs(0)))
    x = np.ones((8, 16), np.float32)
    one, other = (
      model.training(model.params, x, jax.random.key(seed))[0]
      for seed in range(2)
    )
    self.assertGreater(np.abs(one - other).max(), 0)
    self.assertLen(np.unique(one), 4)  # Two masks that do not hang together.
    again = model.training(model.params, x, jax.random.key(0))[0]
    np.testing.assert_array_equal(one, again)

  def test_returns_the_mode_and_the_random_streams(self):
    modules = [Nnx(nnx.Rngs(seed), rate=0.5) for seed in range(2)]
    model = nnx_adapter.from_nnx(modules)
    for module, params in zip(modules, model.params, strict=True):
      back = model.wrap(params)
      self.assertFalse(back.dropout.deterministic)
      self.assertFalse(back.norm.use_running_average)
      chex.assert_trees_all_equal(
        jax.random.key_data(back.dropout.rngs.key[...]),
        jax.random.key_data(module.dropout.rngs.key[...]),
      )

  @pytest.mark.slow
  def test_arguments_of_the_training_mode(self):
    class Flag(nnx.Module):
      def __init__(self, rngs):
        self.linear = nnx.Linear(5, 5, rngs=rngs)
        self.drop = nnx.Dropout(0.5)

      def __call__(self, x, train=False, rngs=None):
        return self.drop(self.linear(x), deterministic=not train, rngs=rngs)

    module = Flag(nnx.Rngs(0))
    module.eval()
    training = {'train': True, 'rngs': ('dropout',)}
    model = nnx_adapter.from_nnx(module, training=training)
    output, _ = model.apply(model.params, self.x)
    np.testing.assert_array_equal(output, module(self.x))
    out, _, _ = model.training(model.params, self.x, jax.random.key(0))
    self.assertEqual(float((out == 0).mean() > 0.2), 1.0)

  def test_a_module_that_changes_at_inference_is_an_error(self):
    class Counts(nnx.Module):
      def __init__(self):
        self.calls = nnx.Variable(jax.numpy.zeros((), int))

      def __call__(self, x):
        self.calls[...] += 1
        return x

    with self.assertRaisesRegex(
      errors.UserError, 'Counts is not at inf.*changes calls.*training='
    ):
      adapters.outputs(nnx_adapter.from_nnx(Counts()), self.x)
