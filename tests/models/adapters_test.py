"""Model adapters: checks, unused dropout, and computing in another dtype."""

from absl.testing import parameterized
from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax import errors
from cxjax.models import adapters
from cxjax.models import linen_adapter
from cxjax.models import nnx_adapter
from cxjax.models import transformer
from tests.models import example_modules

B = 4
X = jnp.ones((B, 5))


class OutputsTest(parameterized.TestCase):
  def test_returns_shapes_of_output_and_activations(self):
    model, _ = example_modules.adapt(example_modules.Perceptron(), X)
    output, found = adapters.outputs(model, X)
    self.assertEqual((output.shape, output.dtype), ((B, 3), jnp.float32))
    self.assertEqual(found['Dense_0'].shape, (B, 16))

  def test_anything_but_an_adapter_is_an_error(self):
    with self.assertRaisesRegex(
      errors.UserError, 'The teacher is a Dense, not a ModelAdapter.*from_linen'
    ):
      adapters.outputs(nn.Dense(3), X, 'teacher')

  @pytest.mark.slow
  def test_students_of_other_shapes_are_an_error(self):
    dense = nn.Dense(3)
    several = [dense.init(jax.random.key(0), jnp.ones((1, n))) for n in (5, 4)]
    with self.assertRaisesRegex(
      errors.UserError, 'student 1 have other shapes or'
    ):
      adapters.outputs(linen_adapter.from_linen(dense, several), X, 'student')

  @pytest.mark.slow
  def test_model_that_does_not_run_is_an_error(self):
    model, _ = example_modules.adapt(example_modules.Perceptron(), X)
    with self.assertRaisesRegex(
      errors.UserError, r'does not run on an x of float32\[4, 6\]'
    ):
      adapters.outputs(model, jnp.ones((B, 6)))

  def test_a_list_of_examples_is_told_from_an_array(self):
    alone = adapters.from_fn(
      lambda params, x: (x @ params, {}), jnp.ones((5, 3))
    )
    message = r'x of float32\[5\], .* and 2 more: .* A list of 8 arrays is'
    with self.assertRaisesRegex(errors.UserError, message):
      adapters.outputs(alone, [jnp.ones(5)] * 8)

  def test_output_without_activations_is_an_error(self):
    alone = adapters.from_fn(lambda params, x: x @ params, jnp.ones((5, 3)))
    with self.assertRaisesRegex(errors.UserError, r'must return \(output, act'):
      adapters.outputs(alone, X)


@pytest.mark.slow
class FromFnTest(parameterized.TestCase):
  def test_keeps_function_and_parameters(self):
    apply = lambda params, x: (x @ params, {})
    params = jnp.ones((5, 3))
    model = adapters.from_fn(apply, params, partition_rules=[('', 1)])
    self.assertIs(model.apply, apply)
    self.assertIs(model.wrap(model.params), params)
    self.assertEqual(model.abilities.partition_rules, (('', 1),))

  def test_a_function_of_one_example(self):
    def apply(params, x):
      hidden = jnp.tanh(x @ params)
      return hidden, {'hidden': hidden}

    model = adapters.from_fn(apply, jnp.ones((5, 3)), batched=False)
    output, found = model.apply(model.params, X)
    self.assertEqual((output.shape, found['hidden'].shape), ((B, 3), (B, 3)))

  def test_declares_what_the_model_of_a_method_declares(self):
    encoder = make_encoder(0.1)
    tokens = jnp.zeros((B, 5), int)
    params = jax.eval_shape(encoder.init, jax.random.key(0), tokens)
    for apply in (encoder.apply, jax.jit(encoder.apply)):
      abilities = adapters.from_fn(apply, params).abilities
      self.assertEqual(abilities.inputs, transformer.INPUTS)
      self.assertEqual(abilities.dropout, 0.1)
      self.assertFalse(abilities.head)


class ReprTest(parameterized.TestCase):
  def test_names_the_model_and_its_size(self):
    model, variables = example_modules.adapt(nn.Dense(300), X)
    self.assertEqual(repr(model), 'ModelAdapter(Dense, 1,800 parameters)')
    several = linen_adapter.from_linen(nn.Dense(300), [variables] * 2)
    self.assertEqual(repr(several), 'ModelAdapter(Dense, 2 x 1,800 parameters)')


def make_encoder(dropout):
  return transformer.Transformer(
    vocab_size=7,
    max_length=5,
    num_classes=3,
    width=4,
    heads=1,
    depth=1,
    causal=False,
    dropout=dropout,
  )


class Inner(nn.Module):
  rate: float = 0.2

  @nn.compact
  def __call__(self, x, train):
    return nn.Dropout(self.rate)(x, not train)


class WithDropout(nn.Module):
  rate: float = 0.5

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.Dropout(self.rate, deterministic=not train)(x)
    x = nn.MultiHeadDotProductAttention(
      num_heads=1, dropout_rate=0.1, deterministic=not train
    )(x[:, None])[:, 0]
    x = nn.Dropout(0.0, deterministic=True)(x)
    return Inner(name='inner')(x, train)


@pytest.mark.slow
class UnusedDropoutTest(parameterized.TestCase):
  UNUSED = (
    'Dropout_0 (rate 0.5)',
    'MultiHeadDotProductAttention_0 (rate 0.1)',
    'inner/Dropout_0 (rate 0.2)',
  )

  def test_finds_linen_layers_whenever_it_is_asked(self):
    model, variables = example_modules.adapt(WithDropout(), X)
    adapters.outputs(model, X)  # Fills the cache of JAX.
    for _ in range(2):
      self.assertCountEqual(model.unused_dropout(X), self.UNUSED)
    several = linen_adapter.from_linen(WithDropout(), [variables] * 2)
    self.assertCountEqual(several.unused_dropout(X), self.UNUSED)

  def test_finds_linen_layers_in_a_jitted_function(self):
    apply = jax.jit(lambda params, x: (WithDropout().apply(params, x), {}))
    variables = jax.jit(WithDropout().init)(jax.random.key(0), X)
    apply(variables, X)
    model = adapters.from_fn(apply, variables)
    self.assertCountEqual(model.unused_dropout(X), self.UNUSED)

  def test_dropout_that_acts_is_not_listed(self):
    def apply(params, x):
      rngs = {'dropout': x['dropout'][0]}
      return WithDropout().apply(params, x['x'], True, rngs=rngs), {}

    variables = jax.jit(WithDropout().init)(jax.random.key(0), X)
    x = {'x': X, 'dropout': jax.random.split(jax.random.key(0), B)}
    self.assertEmpty(adapters.from_fn(apply, variables).unused_dropout(x))

  def test_finds_nnx_layers(self):
    rngs = nnx.Rngs(0)
    attention = nnx.MultiHeadAttention(
      num_heads=1, in_features=5, dropout_rate=0.3, decode=False, rngs=rngs
    )
    module = nnx.Sequential(
      nnx.Dropout(0.5, rngs=rngs),
      nnx.Linear(5, 5, rngs=rngs),
      nnx.Dropout(0.0, rngs=rngs),
      attention,
    )
    module.eval()
    model = nnx_adapter.from_nnx(module)
    x = X[:, None]
    adapters.outputs(model, x)
    self.assertEqual(
      model.unused_dropout(x),
      ('layers/0 (rate 0.5)', 'layers/3 (rate 0.3)'),
    )

  def test_declared_dropout_acts(self):
    tokens = jnp.zeros((B, 5), int)
    model, _ = example_modules.adapt(
      make_encoder(0.1), tokens, output=lambda out: out[0]
    )
    self.assertEmpty(model.unused_dropout(tokens))


class ComputeDtypeTest(parameterized.TestCase):
  @pytest.mark.slow
  def test_computes_in_bfloat16_and_returns_float32(self):
    x = jax.random.normal(jax.random.key(1), (B, 5))
    model, _ = example_modules.adapt(example_modules.Perceptron(), x)
    half = adapters.with_compute_dtype(model, jnp.bfloat16)
    output, found = half.apply(half.params, x)
    want, _ = model.apply(model.params, x)
    self.assertEqual(output.dtype, jnp.float32)
    self.assertEqual(found['Dense_0'].dtype, jnp.float32)
    np.testing.assert_allclose(output, want, atol=0.05)
    self.assertGreater(float(jnp.abs(output - want).max()), 1e-6)
    text = str(jax.make_jaxpr(half.apply)(half.params, x))
    self.assertRegex(text, r'bf16\[4,16\] = dot_general')
    self.assertEqual(half.abilities, model.abilities)

  @pytest.mark.slow
  def test_numbers_of_examples_are_not_rounded(self):
    """A time of 257 would become 256; features are computed with."""

    def apply(params, x):
      wide = (x['x'] * params['scale']).astype(jnp.float32)
      return wide + x['t'] + x['u'][:, None], {}

    params = {'scale': jnp.ones((1, 1))}
    x = {'x': jnp.full((2, 3), 1 / 3), 't': jnp.full((2, 1), 257.0)}
    x['u'] = jnp.full(2, 513.0)
    model = adapters.from_fn(apply, params)
    half = adapters.with_compute_dtype(model, jnp.bfloat16)
    output, _ = half.apply(half.params, x)
    third = jnp.float32(jnp.bfloat16(1 / 3))
    np.testing.assert_array_equal(output, jnp.full((2, 3), third + 770))

  def test_integer_dtype_is_an_error(self):
    model, _ = example_modules.adapt(example_modules.Perceptron(), X)
    with self.assertRaisesRegex(errors.UserError, 'int32.* is no floating'):
      adapters.with_compute_dtype(model, jnp.int32)
