"""Tests of the counts of FLOPs."""

import functools
from unittest import mock

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import pytest

from cxjax.methods import flops
from cxjax.parallel import mesh as mesh_lib
from cxjax.parallel import shard_sums

A = jax.ShapeDtypeStruct((8, 16), jnp.float32)
B = jax.ShapeDtypeStruct((16, 4), jnp.float32)
PRODUCT = 2 * 8 * 16 * 4


class FlopsTest(parameterized.TestCase):
  def test_a_product(self):
    for count in flops.compiled, flops.lowered, flops.counted:
      self.assertEqual(count(jnp.matmul, A, B), PRODUCT)

  def test_on_a_gpu_products_of_libraries_count(self):
    """XLA's own analysis there says 0 for them."""
    for count in flops.compiled, flops.lowered:
      with (
        mock.patch.object(jax, 'default_backend', lambda: 'gpu'),
        mock.patch.object(jax.stages.Traced, 'lower', side_effect=RuntimeError),
      ):
        self.assertEqual(count(jnp.matmul, A, B), PRODUCT)

  @parameterized.parameters(
    (flops.compiled, jax.stages.Compiled), (flops.lowered, jax.stages.Lowered)
  )
  def test_where_xla_tells_none_they_are_counted(self, count, stage):
    """It does not for a GPU, before it compiled; they were 0."""
    with mock.patch.object(stage, 'cost_analysis', return_value=None):
      self.assertEqual(count(jnp.matmul, A, B), PRODUCT)

  def test_what_is_not_used_costs_nothing_once_compiled(self):
    first = lambda a, b: (a @ b, a @ b @ b.T)[0]
    self.assertEqual(flops.compiled(first, A, B), PRODUCT)

  @pytest.mark.cpu
  def test_what_is_computed_twice_is_counted_once_compiled(self):
    """What is written is counted as it is written."""
    twice = lambda a, b: a @ b + (a + 0) @ b
    self.assertGreater(flops.lowered(twice, A, B), 2 * PRODUCT)
    self.assertLess(flops.compiled(twice, A, B), 1.2 * PRODUCT)

  @pytest.mark.slow
  def test_counted_as_compiled(self):
    """Within 2%, without compiling: products, what is not needed, gradients."""

    def loss(w, a):
      hidden = jax.nn.gelu(a @ w['low'])
      jnp.sum(hidden @ w['unused'])
      return jnp.sum(jax.nn.softmax(hidden @ w['high']) ** 2)

    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    w = {'low': shape(64, 96), 'high': shape(96, 8), 'unused': shape(96, 99)}
    args, grad = (w, shape(32, 64)), jax.value_and_grad(loss)
    want = flops.compiled(grad, *args)
    self.assertBetween(flops.counted(grad, *args) / want, 0.98, 1.02)

  def test_convolutions_without_their_padding(self):
    image = jax.ShapeDtypeStruct((2, 3, 9, 7), jnp.float32)
    for strides, padding, dilation, groups in (
      ((1, 1), 'SAME', (1, 1), 1),
      ((2, 3), 'VALID', (1, 2), 1),
      ((2, 2), 'SAME', (1, 1), 3),
    ):
      kernel = jax.ShapeDtypeStruct((6, 3 // groups, 3, 3), jnp.float32)
      conv = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=strides,
        padding=padding,
        rhs_dilation=dilation,
        feature_group_count=groups,
      )
      both = jax.grad(lambda *args, conv=conv: jnp.sum(conv(*args)), (0, 1))
      for fun in (conv, both):
        want = flops.lowered(fun, image, kernel)
        self.assertBetween(
          flops.counted(fun, image, kernel) / want, 0.99, 1.01, padding
        )

  def test_scans_count_as_often_as_they_run_and_remat_twice(self):
    def scanned(w, x):
      step = lambda x, w: (jnp.sin(x @ w), None)
      return jnp.sum(jax.lax.scan(jax.checkpoint(step), x, w)[0])

    w = jax.ShapeDtypeStruct((5, 16, 16), jnp.float32)
    x = jax.ShapeDtypeStruct((8, 16), jnp.float32)
    product = 2 * 8 * 16 * 16
    found = flops.counted(scanned, w, x) / product
    self.assertBetween(found, 5, 5.2)
    # Forward, again in the backward pass, and two products for the gradients.
    found = flops.counted(jax.grad(scanned), w, x) / product
    self.assertBetween(found, 5 * 4, 5 * 4.3)

  def test_xla_leaves_no_round_of_a_scan_out(self):
    """Scanned layers cost what the same layers cost one after the other."""

    def inner(x, w):
      return jax.lax.scan(lambda x, _: (x @ w, None), x, None, 3)[0], None

    def scanned(w, x):
      return jnp.sum(jax.lax.scan(inner, x, w)[0])

    def unrolled(w, x):
      for matrix in w:
        for _ in range(3):
          x = x @ matrix
      return jnp.sum(x)

    w = jax.ShapeDtypeStruct((5, 16, 16), jnp.float32)
    x = jax.ShapeDtypeStruct((8, 16), jnp.float32)
    for count in (flops.compiled, flops.lowered):
      for make in (lambda fun: fun, jax.value_and_grad):
        want = count(make(unrolled), w, x)
        self.assertBetween(count(make(scanned), w, x) / want, 0.95, 1.1)

  def test_of_branches_the_largest(self):
    branch = lambda p, a, b: jax.lax.cond(
      p, jnp.matmul, lambda a, b: a[:, :4], a, b
    )
    self.assertBetween(flops.counted(branch, True, A, B), PRODUCT, PRODUCT + 1)

  @pytest.mark.devices(2)
  def test_of_all_devices_that_share_a_batch(self):
    def fun(a, b):
      sums = lambda b, a: (jnp.sum(a @ b, axis=0), ())
      return shard_sums.over_shards(sums, b, a, axis=0)[0]

    alone = flops.counted(fun, A, B)
    with jax.set_mesh(mesh_lib.make({'data': 2}, batch_size=8)):
      self.assertBetween(flops.counted(fun, A, B) / alone, 0.99, 1.01)

  def test_of_nothing_it_is_0(self):
    for count in (flops.compiled, flops.counted):
      self.assertEqual(count(lambda a: a, A), 0)
