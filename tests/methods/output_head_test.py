"""Tests for the head of a model."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import pytest

from cxjax.methods import output_head


class FindTest(absltest.TestCase):
  @pytest.mark.slow
  def test_is_the_last_product_and_what_follows(self):
    def model(kernel, bias, x):
      return 2.0 * (jnp.tanh(x @ kernel) @ kernel + bias)

    kernel, bias = jnp.ones((3, 3)), jnp.arange(3.0)[None, None]
    x = jnp.arange(12.0).reshape(2, 2, 3)
    jaxpr = jax.make_jaxpr(model)(kernel, bias, x).jaxpr
    features, head, weights = output_head.find(jaxpr, 2)
    self.assertEqual(features.aval.shape, (2, 2, 3))
    self.assertEqual([v.aval.shape for v in weights], [(1, 1, 3), (3, 3)])
    names = [equation.primitive.name for equation, _ in head.steps]
    self.assertEqual(names, ['dot_general', 'add', 'mul'])
    got = head([bias, kernel], jnp.tanh(x[:1, :1] @ kernel))
    self.assertEqual(got.tolist(), model(kernel, bias, x)[:1, :1].tolist())


if __name__ == '__main__':
  absltest.main()
