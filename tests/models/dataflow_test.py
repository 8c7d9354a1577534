"""The dataflow of a jaxpr: what values need, what they cost, when they are."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from cxjax.methods import flops
from cxjax.models import dataflow

X = jax.ShapeDtypeStruct((4, 8), jnp.float32)
W = jax.ShapeDtypeStruct((3, 8, 8), jnp.float32)
PRODUCT = 2 * 4 * 8 * 8


def flow(fun, *args):
  return dataflow.Dataflow(jax.make_jaxpr(fun)(*args))


class DataflowTest(absltest.TestCase):
  def test_flops_are_those_of_xla(self):
    def fun(w, x):
      gate = jax.nn.gelu(x @ w[0])
      block = jax.checkpoint(lambda h: jax.nn.softmax(h @ w[1], where=h > 0))
      return jax.jit(lambda h: block(h) ** 3 / h.std())(gate)

    found = flow(fun, W, X)
    want = flops.lowered(fun, W, X)
    np.testing.assert_allclose(found.flops(found.outputs[0]), want, rtol=0.01)

  def test_a_value_costs_what_it_needs(self):
    found = flow(lambda w, x: jax.jit(lambda: (x @ w[0], x @ w[1]))(), W, X)
    self.assertEqual([found.flops(v) for v in found.outputs], [PRODUCT] * 2)

  def test_calls_with_constants(self):
    """In place of a call there are its equations."""
    table = jnp.asarray(np.eye(8, dtype=np.float32))
    found = flow(jax.jit(lambda x: jnp.sin(x @ table)), X)
    self.assertEqual(found.name(found.outputs[0]), 'sin')
    self.assertEqual(found.flops(found.outputs[0]), PRODUCT)

  def test_a_scan_costs_its_steps(self):
    fun = lambda w, x: jax.lax.scan(lambda h, w: (h @ w, h), x, w)
    found = flow(fun, W, X)
    self.assertEqual(found.flops(found.outputs[0]), 3 * PRODUCT)
    self.assertEqual([found.stacked(v) for v in found.outputs], [False, True])

  def test_copies(self):
    def fun(w, x):
      h = x @ w[0]
      return h, h.astype(jnp.bfloat16).reshape(-1), h + 0

    found = flow(fun, W, X)
    a, b, c = map(found.source, found.outputs)
    self.assertEqual(a, b)
    self.assertNotEqual(a, c)

  def test_an_output_is_determined_by_what_it_follows_from_alone(self):
    def fun(w, x):
      h = x @ w[0]
      logits = h @ w[1]
      return h, logits, 30 * jax.nn.log_softmax(jnp.tanh(logits / 30))

    found = flow(fun, W, X)
    h, logits, out = found.outputs
    self.assertTrue(found.determines(logits, out))
    self.assertFalse(found.determines(h, out))


if __name__ == '__main__':
  absltest.main()
