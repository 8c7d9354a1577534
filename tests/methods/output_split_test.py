"""Tests for models in two parts."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import chex
from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp
import pytest

from cxjax.methods import output_split

CLASSES, WIDTH = 11, 6
X = jnp.arange(6).reshape(2, 3)
ROWS = 4


class _Net(nn.Module):
  """A language model with one of several heads."""

  head: str

  @nn.compact
  def __call__(self, x):
    embed = nn.Embed(CLASSES, WIDTH)
    h = nn.tanh(nn.Dense(WIDTH)(embed(x)))
    bias = self.param('bias', nn.initializers.normal(), (1, 1, CLASSES))
    scale = self.param('scale', nn.initializers.ones, ())
    table = embed.embedding
    heads = {
      'dense': lambda: nn.Dense(CLASSES)(h),
      'tied': lambda: embed.attend(h),
      'capped': lambda: jnp.tanh(embed.attend(h) / 3.0) * 3.0,
      'bfloat16': lambda: nn.Dense(CLASSES, dtype='bfloat16')(h) + bias,
      'padded': lambda: jnp.where(
        (jnp.arange(CLASSES) < 9)[None, None], h @ table.T, -1e9
      ),
      'columns': lambda: (nn.Dense(CLASSES + 2)(h) + 1.0)[..., :CLASSES],
      'last rows': lambda: nn.Dense(CLASSES)(h)[:, -2:],
      'flat': lambda: (h.reshape(-1, WIDTH) @ table.T).reshape(2, 3, CLASSES),
      'einsum': lambda: jnp.einsum('bld,vd->blv', h, table) * scale + bias,
      'normalized': lambda: nn.log_softmax(nn.Dense(CLASSES)(h)),
      'of the input': lambda: h @ jnp.mean(h, (0, 1))[:, None],
      'by position': lambda: h @ table.T + jnp.arange(3.0)[None, :, None],
      'hidden': lambda: nn.silu(nn.Dense(CLASSES)(h)),
    }
    return heads[self.head](), {'h': h}


def per_row(params, x):
  """A model of one row, mapped as those of equinox and haiku are."""
  one = lambda h: params['kernel'] @ h + params['bias']
  return jax.vmap(jax.vmap(one))(jnp.tanh(params['embed'][x])), {}


class SplitTest(parameterized.TestCase):
  def check(self, fun, params):
    """Asserts that any rows of the head's output are those of the model."""
    found = output_split.split(jax.jit(fun), ROWS, params, X)
    self.assertIsNotNone(found)
    whole, activations = fun(params, X)
    out, others = found(params, X)
    self.assertEqual((out.shape, out.ndim), (whole.shape, whole.ndim))
    chex.assert_trees_all_close(others, activations, rtol=1e-6)
    got = out.head(out.weights, out.features[:, 1:])
    self.assertEqual(got.dtype, whole.dtype)
    chex.assert_trees_all_close(got, whole[:, 1:], rtol=1e-5, atol=1e-6)
    again = found.restorer(params)(out.features[:1])
    chex.assert_trees_all_close(
      again.head(again.weights, again.features), whole[:1], atol=1e-6
    )
    self.check_ending(fun, params, whole)

  def check_ending(self, fun, params, whole):
    """Asserts that the ending makes the output of the features alone."""
    out, activations = output_split.with_features(fun)(params, X)
    chex.assert_trees_all_close(out, whole, rtol=1e-5, atol=1e-6)
    features = activations[output_split.FEATURES]
    self.assertEqual(features.shape, (*whole.shape[:-1], WIDTH))
    end, weights = output_split.ending(fun, params, X)
    chex.assert_trees_all_close(end(weights, features), out, rtol=1e-6)
    few = dataclasses.replace(end, rows=ROWS)(weights, features)
    self.assertEqual((few.shape, few.rows), (whole.shape, ROWS))
    abstract = jax.eval_shape(lambda params: params, params)
    shapes = output_split.ending(fun, abstract, X)[1]
    chex.assert_trees_all_equal_shapes_and_dtypes(shapes, weights)

  @parameterized.parameters(
    'dense', 'tied', 'capped', 'bfloat16', 'padded', 'columns', 'flat', 'einsum'
  )
  @pytest.mark.slow
  def test_finds_the_head(self, head):
    net = _Net(head)
    self.check(net.apply, net.init(jax.random.key(0), X))

  @pytest.mark.slow
  def test_of_a_model_of_one_row(self):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = {
      'embed': (CLASSES, WIDTH),
      'kernel': (CLASSES, WIDTH),
      'bias': (CLASSES,),
    }
    self.check(
      per_row,
      {
        name: jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
      },
    )

  def test_of_nnx(self):
    embed = nnx.Embed(CLASSES, WIDTH, rngs=nnx.Rngs(0))
    model = nnx.Sequential(embed, nnx.Linear(WIDTH, CLASSES, rngs=nnx.Rngs(1)))
    graph, params = nnx.split(model)
    apply = lambda params, x: (nnx.merge(graph, params)(x), {})
    self.check(apply, params)

  @parameterized.parameters(
    'normalized', 'of the input', 'by position', 'hidden', 'last rows'
  )
  def test_of_others_there_is_none(self, head):
    """What other rows or operations are needed for is left whole."""
    net = _Net(head)
    params = net.init(jax.random.key(0), X)
    self.assertIsNone(output_split.split(net.apply, ROWS, params, X))
    self.assertIsNone(output_split.ending(net.apply, params, X))

  @pytest.mark.slow
  def test_other_arguments_and_results(self):
    """A student in training mode has a key, and changed statistics."""
    net = _Net('dense')
    params = net.init(jax.random.key(0), X)

    def training(params, x, key):
      out, found = net.apply(params, x)
      return out, found, {'seen': jax.random.uniform(key)}

    key = jax.random.key(1)
    found = output_split.split(training, ROWS, params, X, key)
    out, activations, changed = found(params, X, key)
    self.assertEqual(out.rows, ROWS)
    wanted = training(params, X, key)[1:]
    chex.assert_trees_all_close((activations, changed), wanted, rtol=1e-6)


if __name__ == '__main__':
  absltest.main()
