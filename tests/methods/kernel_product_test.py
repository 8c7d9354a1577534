"""The product of features with a kernel, and its gradient."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np

from cxjax.methods import kernel_product

ROWS, WIDTH, CLASSES = (2, 3), 4, 7
RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(*ROWS, WIDTH)).astype(np.float32)
KERNEL = RNG.normal(size=(WIDTH, CLASSES)).astype(np.float32)
WEIGHTS = RNG.normal(size=(*ROWS, CLASSES)).astype(np.float32)


def kernels(classes=CLASSES):
  """A kernel in both layouts, with the axis of the features."""
  kernel = KERNEL[:, :classes]
  return (kernel, 0), (kernel.T, 1)


def summed(product, axis):
  """A scalar of a product, `(features, kernel) -> []`."""

  def fun(features, kernel):
    out = product(features, kernel, axis)
    return jnp.sum(jnp.sin(out) * WEIGHTS[..., : out.shape[-1]])

  return fun


def walk(jaxpr):
  """All equations, those of inner jaxprs too."""
  for equation in jaxpr.eqns:
    yield equation
    for inner in core.jaxprs_in_params(equation.params):
      yield from walk(inner)


def plain(features, kernel, axis):
  return features @ (kernel if axis == 0 else kernel.T)


class ProductTest(parameterized.TestCase):
  @parameterized.product(layout=(0, 1), classes=(CLASSES, WIDTH, 2))
  def test_value_and_gradient_are_those_of_jax(self, layout, classes):
    kernel, axis = kernels(classes)[layout]
    grad = lambda product: jax.jit(
      jax.value_and_grad(summed(product, axis), (0, 1))
    )(FEATURES, kernel)
    found, expected = grad(kernel_product.product), grad(plain)
    chex.assert_trees_all_close(found, expected, rtol=1e-5)
    self.assertEqual(found[1][1].shape, kernel.shape)

  @parameterized.parameters(0, 1)
  def test_of_every_seed(self, layout):
    kernel, axis = kernels()[layout]
    stacked = np.stack([kernel, -2 * kernel])
    grads = lambda product: jax.vmap(
      jax.grad(summed(product, axis), (0, 1)), (None, 0)
    )(FEATURES, stacked)
    chex.assert_trees_all_close(
      grads(kernel_product.product), grads(plain), rtol=1e-5
    )

  def test_of_bfloat16_in_float32(self):
    features, kernel = (jnp.bfloat16(x) for x in (FEATURES, KERNEL))
    dtype = jnp.float32
    out = kernel_product.product(
      features, kernel, 0, preferred_element_type=dtype
    )
    self.assertEqual(out.dtype, dtype)
    grads = jax.grad(
      lambda *args: jnp.sum(
        kernel_product.product(*args, 0, preferred_element_type=dtype)
      ),
      (0, 1),
    )(features, kernel)
    self.assertEqual({g.dtype for g in grads}, {jnp.dtype(jnp.bfloat16)})

  @parameterized.parameters(
    (0, 6, True), (1, 6, True), (0, 3, True), (1, 3, False)
  )
  def test_the_smaller_array_is_transposed(self, layout, rows, features_first):
    """That of the gradient of wide outputs, which JAX has first, is not."""
    kernel, axis = kernels()[layout]
    features = FEATURES.reshape(-1, WIDTH)[:rows]

    def first_operand(product):
      loss = lambda kernel: jnp.sum(jnp.sin(product(features, kernel, axis)))
      jaxpr = jax.make_jaxpr(jax.grad(loss))(kernel).jaxpr
      return [
        eqn.invars[0].aval.shape
        for eqn in walk(jaxpr)
        if eqn.primitive.name == 'dot_general'
      ][-1]

    self.assertEqual(first_operand(plain), (rows, CLASSES))
    width = WIDTH if features_first else CLASSES
    self.assertEqual(first_operand(kernel_product.product), (rows, width))


if __name__ == '__main__':
  absltest.main()
