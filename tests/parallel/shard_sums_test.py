"""Sums over the examples of a batch, each device over its own."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax.parallel import mesh as mesh_lib
from cxjax.parallel import shard_sums

ROWS = np.arange(48.0, dtype=np.float32).reshape(2, 8, 3)


def loop(whole, split):
  """The sum of `whole * rows` over two turns, and each product."""

  def add(total, rows):
    each = whole * rows
    return total + jnp.sum(each, axis=0), each

  return jax.lax.scan(add, jnp.zeros(3), split)


def summed(whole, split):
  return shard_sums.over_shards(loop, whole, split, axis=1)


@pytest.mark.devices(8)
class OverShardsTest(parameterized.TestCase):
  @parameterized.parameters(
    {'data': 8}, {'data': 2, 'fsdp': 2}, {'data': 2, 'model': 2}, {'seed': 2}
  )
  def test_is_that_of_one_device(self, **sizes):
    expected = loop(2.0, ROWS)
    with jax.set_mesh(mesh_lib.make(sizes, batch_size=8)):
      found = jax.jit(summed)(2.0, ROWS)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])

  def test_of_every_seed(self):
    scales = np.float32([1, 2])
    with jax.set_mesh(mesh_lib.make({'data': 2, 'seed': 2}, batch_size=8)):
      found = jax.jit(jax.vmap(summed, (0, None)))(scales, ROWS)
    expected = jax.vmap(loop, (0, None))(scales, ROWS)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])

  def test_examples_that_do_not_divide(self):
    rows = ROWS[:, :7]
    with jax.set_mesh(mesh_lib.make({'data': 2}, batch_size=8)):
      found = jax.jit(summed)(2.0, rows)
    np.testing.assert_array_equal(found[0], loop(2.0, rows)[0])

  def test_devices_exchange_after_the_loop(self):
    mesh = mesh_lib.make({'data': 2}, batch_size=8)
    with jax.set_mesh(mesh):
      rows = mesh_lib.place_batch(ROWS, mesh, axis=1)
      count = lambda fun: _exchanges_in_loops(jax.jit(fun), 2.0, rows)
      self.assertGreater(count(loop), 0)
      self.assertEqual(count(summed), 0)


def _exchanges_in_loops(fun, *args):
  """Number of exchanges in the computations that are not the program's own."""
  text = fun.lower(*args).compile().as_text()
  inner = text[: text.index('\nENTRY ')]
  return inner.count(' all-reduce(') + inner.count(' all-reduce-start(')


if __name__ == '__main__':
  absltest.main()
