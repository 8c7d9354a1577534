"""Arrays of a user on any devices, and what has no values."""

import itertools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
from jax.sharding import SingleDeviceSharding
import numpy as np

from cxjax import errors
from cxjax.parallel import reception

TREE = {'a': np.ones((2, 3), np.float32), 'b': np.ones(3, np.float32)}


def apart(tree):
  """Each leaf committed to another device, as long as there are."""
  leaves, structure = jax.tree.flatten(tree)
  devices = jax.devices()[-len(leaves) :]
  return structure.unflatten(
    map(jax.device_put, leaves, itertools.cycle(devices))
  )


def everywhere(sharding):
  return lambda tree: jax.device_put(tree, sharding())


def explicit():
  mesh = jax.make_mesh((len(jax.devices()),), ('mine',))
  return NamedSharding(mesh, PartitionSpec())


def on_host():
  return SingleDeviceSharding(jax.devices()[-1], memory_kind='pinned_host')


class ReceivedTest(parameterized.TestCase):
  @parameterized.parameters(
    apart,
    everywhere(explicit),
    everywhere(on_host),
    lambda tree: jax.tree.map(lambda leaf: leaf.astype('>f4'), tree),
  )
  def test_one_program_takes_them(self, put):
    found = reception.received('params', put(TREE))
    total = jax.jit(lambda tree: tree['a'] @ tree['b'])(found)
    np.testing.assert_array_equal(total, 3 * np.ones(2))

  def test_what_any_program_takes_stays_as_it_is(self):
    tree = {'a': jnp.ones(2), 'b': jax.device_put(np.ones(2), jax.devices()[0])}
    found = reception.received('params', {**tree, 'c': TREE['a']})
    for name, leaf in {**tree, 'c': TREE['a']}.items():
      self.assertIs(found[name], leaf)

  @parameterized.parameters(
    ('float64', 'float32'),
    ('complex128', 'complex64'),
    ('int64', 'int32'),
    ('uint64', 'uint32'),
  )
  def test_numbers_of_64_bits_are_rounded(self, given, want):
    with jax.enable_x64(True):
      tree = jax.device_put({'a': jnp.arange(3, dtype=given)}, explicit())
      kept = reception.received('params', tree)['a']
    found = reception.received('params', tree)['a']
    self.assertEqual((str(kept.dtype), str(found.dtype)), (given, want))
    np.testing.assert_array_equal(found, np.arange(3))
    self.assertEqual(found.sharding.device_set, kept.sharding.device_set)

  def test_integers_that_would_change_are_refused(self):
    with jax.enable_x64(True):
      tree = {'a': jnp.full((2, 3), 2**40)}
    with self.assertRaisesRegex(
      errors.UserError, r'\[2, 3\] has integers that'
    ):
      reception.received('params', tree)

  def test_what_has_no_values_is_named(self):
    shapes = jax.eval_shape(lambda: TREE)
    with self.assertRaisesRegex(errors.UserError, "'a' of params has a shape"):
      reception.received('params', shapes)
    fun = jax.jit(lambda tree: reception.with_values('params', tree))
    with self.assertRaisesRegex(errors.UserError, "'a' of params is traced"):
      fun(TREE)

  def test_a_constant_on_a_mesh_of_the_user(self):
    constant = jax.device_put(np.ones(3, np.float32), explicit())
    made = jax.eval_shape(lambda x: x * constant, TREE['b'])
    with self.assertRaisesRegex(errors.UserError, 'The loss .* axes mine,'):
      reception.require_same_mesh('The loss', made)
    with jax.set_mesh(explicit().mesh):
      reception.require_same_mesh('The loss', made)
    reception.require_same_mesh('The loss', jax.eval_shape(jnp.exp, TREE['b']))


if __name__ == '__main__':
  absltest.main()
