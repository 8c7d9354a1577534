"""Meshes, and where arrays lie on them."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from cxjax import errors
from cxjax.parallel import mesh as mesh_lib
from cxjax.parallel import multihost

TENSOR = mesh_lib.ParameterSharding('tensor', ((r'hidden\d+/kernel$', 1),))
PARAMS = {
  'hidden0': {'kernel': np.arange(64.0).reshape(8, 8), 'bias': np.ones(8)},
  'out': {'kernel': np.ones((8, 3))},
}


def spec_of(array):
  """The names of the axes, one for each axis of the array."""
  spec = array.sharding.spec
  return P(*spec, *(None,) * (array.ndim - len(spec)))


@pytest.mark.devices(8)
class MakeTest(parameterized.TestCase):
  @parameterized.parameters(
    ({}, 8), ({'fsdp': 2}, 4), ({'model': 4, 'seed': 2}, 1), ({'fsdp': 8}, 1)
  )
  def test_data_takes_what_is_left(self, sizes, data):
    made = mesh_lib.make({'data': -1, **sizes}, batch_size=8)
    self.assertEqual(made.shape['data'], data)
    self.assertEqual(made.size, data * np.prod(list(sizes.values()), dtype=int))

  def test_data_divides_the_batch(self):
    self.assertEqual(mesh_lib.make({'data': -1}, 6).shape['data'], 6)
    sizes = {'data': -1, 'fsdp': 2}
    self.assertEqual(mesh_lib.make(sizes, 6).shape['data'], 3)

  @parameterized.parameters(
    (6, 16, 4, 2), (7, 128, 4, 1), (7, 14, 7, 7), (3, 8, 2, 1), (5, 1, 1, 1)
  )
  def test_data_takes_the_most_devices(self, number, batch, most, on_tpu):
    devices = jax.devices()[:number]
    made = mesh_lib.make({'data': -1}, batch, devices)
    self.assertEqual(list(made.devices.flat), devices[:most])
    # Of a TPU, a part of the chips may leave holes.
    chips = [mock.Mock(platform='tpu') for _ in devices]
    with mock.patch.object(jax, 'make_mesh') as make:
      mesh_lib.make({'data': -1}, batch, chips)
    self.assertLen(make.call_args.kwargs['devices'], on_tpu)

  def test_has_all_four_axes(self):
    made = mesh_lib.make({'student': 'tensor'}, 8)
    self.assertEqual(dict(made.shape), dict.fromkeys(mesh_lib.AXES, 1))

  @parameterized.parameters(
    ({'data': 16}, 'take 16 devices: this machine has 8.*mesh.cpu_devices'),
    ({'data': 3}, r'batch_size=8 is not a multiple of .* = 3\.$'),
    ({'data': 2, 'fsdp': 3}, r'batch_size=8 is not a multiple of .* = 6\.$'),
    ({'fsdp': 0}, 'mesh.fsdp=0 must be at least 1; mesh.data may be -1'),
    ({'seed': 0}, 'mesh.seed=0 must be at least 1'),
    ({'fsdp': -1}, 'mesh.fsdp=-1 must be at least 1'),
    ({'data': -2}, 'mesh.data=-2 must be at least 1'),
    ({'model': 2.0}, 'mesh.model=2.0 must be a whole number'),
    ({'data': 'all'}, "mesh.data='all' must be a whole number"),
  )
  @pytest.mark.cpu
  def test_mistake_is_one_line(self, sizes, message):
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      mesh_lib.make(sizes, 8)
    self.assertNotIn('\n', str(caught.exception))

  def test_topology_is_named(self):
    with self.assertRaisesRegex(errors.UserError, 'the topology has 2;'):
      mesh_lib.make({'data': 4}, 8, jax.devices()[:2])

  def test_every_process_has_a_device(self):
    with (
      mock.patch.object(multihost, 'count', lambda: 2),
      self.assertRaisesRegex(errors.UserError, 'none of them of process 1'),
    ):
      mesh_lib.make({'data': 1}, 8)

  @pytest.mark.cpu
  def test_describe(self):
    mesh = mesh_lib.make({'data': 2, 'model': 4}, 8)
    self.assertEqual(
      mesh_lib.describe(mesh), '8 devices (cpu), data=2, model=4'
    )
    one = mesh_lib.make({}, 8)
    self.assertEqual(mesh_lib.describe(one), '1 device (cpu), not sharded')
    self.assertEqual(
      mesh_lib.in_use(one), '1 device (cpu), not sharded; 7 more are idle'
    )
    self.assertEqual(mesh_lib.in_use(mesh), mesh_lib.describe(mesh))


@pytest.mark.devices(8)
class BatchTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    sizes = {'seed': 2, 'data': 2, 'fsdp': 2}
    self.mesh = mesh_lib.make(sizes, 8)

  @parameterized.parameters(
    ((2, 8, 3), 1, 0, P('seed', ('data', 'fsdp'), None)),
    ((8, 3), 0, None, P(('data', 'fsdp'), None)),
    # What the mesh does not divide is replicated.
    ((3, 8), 1, 0, P(None, ('data', 'fsdp'))),
    ((2, 6), 1, 0, P('seed', None)),
  )
  def test_is_sharded(self, shape, axis, seeds, expected):
    batch = {'x': np.arange(np.prod(shape)).reshape(shape)}
    placed = mesh_lib.place_batch(batch, self.mesh, axis, seeds)
    constrain = lambda b: mesh_lib.constrain_batch(b, axis, seeds)
    with jax.set_mesh(self.mesh):
      constrained = jax.jit(constrain)(batch)
    for found in (placed, constrained):
      chex.assert_trees_all_equal(jax.device_get(found), batch)
      self.assertEqual(spec_of(found['x']), expected)

  def test_nothing_happens_outside_a_mesh(self):
    batch = {'x': jnp.ones(8)}
    self.assertIs(mesh_lib.constrain_batch(batch, 0), batch)
    self.assertIs(mesh_lib.constrain_replicated(batch), batch)
    self.assertEqual(mesh_lib.num_batch_shards(), 1)

  def test_nothing_happens_in_the_mesh_of_a_user(self):
    batch = {'x': jnp.ones(8)}
    with jax.set_mesh(jax.make_mesh((2, 2), ('data', 'x'))):
      self.assertIs(mesh_lib.constrain_batch(batch, 0), batch)
      self.assertIs(mesh_lib.constrain_replicated(batch), batch)
      self.assertEqual(mesh_lib.num_batch_shards(), 1)

  def test_num_batch_shards(self):
    with jax.set_mesh(self.mesh):
      self.assertEqual(mesh_lib.num_batch_shards(), 4)

  def test_rows_of_a_process(self):
    self.assertEqual(mesh_lib.own_rows(self.mesh, 8), list(range(8)))
    # Half of the devices, as one of two processes has them.
    half = self.mesh.devices.flat[:4]
    mesh = mesh_lib.make({'data': 8}, 16)
    with mock.patch.object(
      jax.NamedSharding,
      'addressable_devices_indices_map',
      lambda self, shape: {
        device: index
        for device, index in self.devices_indices_map(shape).items()
        if device in half
      },
    ):
      self.assertEqual(mesh_lib.own_rows(mesh, 16), list(range(8)))
    with mock.patch.object(mesh_lib, '_rows') as sharding:
      sharding(mesh).addressable_devices_indices_map.return_value = {
        i: (slice(n, n + 2),) for i, n in enumerate((4, 0, 4))
      }
      self.assertEqual(mesh_lib.own_rows(mesh, 16), [0, 1, 4, 5])

  def test_the_lowest_process_that_holds_a_row(self):
    mesh = mock.Mock()
    place = lambda number: mock.Mock(process_index=number)
    rows = {place(2): (slice(0, 2),), place(1): (slice(2, 4),)}
    rows[place(3)] = rows[place(0)] = (slice(1, 3),)
    with mock.patch.object(mesh_lib, '_rows') as sharding:
      sharding(mesh).devices_indices_map.return_value = rows
      self.assertEqual(mesh_lib.first_holders(mesh, 4), [2, 0, 0, 1])

  def test_rows_of_several_batches(self):
    shapes = {'x': jax.ShapeDtypeStruct((3, 2, 8, 5), jnp.float32)}
    found = mesh_lib.abstract_rows(shapes, self.mesh)['x']
    self.assertEqual(found.sharding.spec, P(None, None, ('data', 'fsdp')))
    self.assertEqual(found.shape, (3, 2, 8, 5))


@pytest.mark.devices(8)
class ParametersTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.mesh = mesh_lib.make({'seed': 2, 'fsdp': 2, 'model': 2}, 8)

  def test_placed_constrained_and_abstract_agree(self):
    placed = mesh_lib.place(PARAMS, self.mesh, TENSOR)
    constrain = lambda p: mesh_lib.constrain(p, self.mesh, TENSOR)
    constrained = jax.jit(constrain)(PARAMS)
    shapes = mesh_lib.abstract(PARAMS, self.mesh, TENSOR)
    expected = {
      'hidden0': {'kernel': P('fsdp', 'model'), 'bias': P('fsdp')},
      'out': {'kernel': P('fsdp', None)},
    }
    for found in (placed, constrained, shapes):
      self.assertEqual(jax.tree.map(spec_of, found), expected)
    chex.assert_trees_all_equal(
      *map(jax.device_get, (placed, constrained)), PARAMS
    )

  @parameterized.parameters((2, 'seed'), (3, None))
  def test_students_are_sharded_over_seed(self, students, name):
    stack = lambda leaf: np.stack([leaf] * students)
    found = mesh_lib.place(
      jax.tree.map(stack, PARAMS), self.mesh, TENSOR, seeds=True
    )
    self.assertEqual(
      spec_of(found['hidden0']['kernel']), P(name, 'fsdp', 'model')
    )

  def test_bytes_per_device(self):
    """The arrays of numpy have 64 bits, which those of JAX do not."""
    shapes = mesh_lib.abstract(PARAMS, self.mesh, TENSOR)
    itemsize = 4
    self.assertEqual(
      mesh_lib.bytes_per_device(shapes), itemsize * (64 // 4 + 8 // 2 + 24 // 2)
    )
    replicated = mesh_lib.replicate(PARAMS, self.mesh)
    self.assertEqual(
      mesh_lib.bytes_per_device(replicated),
      itemsize * (64 + 8 + 24),
    )

  def test_replicated(self):
    placed = mesh_lib.replicate(PARAMS, self.mesh)
    with jax.set_mesh(self.mesh):
      sharded = mesh_lib.place(PARAMS, self.mesh, TENSOR)
      constrained = jax.jit(mesh_lib.constrain_replicated)(sharded)
    for found in (placed, constrained):
      for leaf in jax.tree.leaves(found):
        self.assertTrue(leaf.sharding.is_fully_replicated)
      chex.assert_trees_all_equal(jax.device_get(found), PARAMS)

  def test_keys_are_placed(self):
    keys = jax.random.split(jax.random.key(0), 3)
    found = mesh_lib.replicate(keys, self.mesh)
    self.assertTrue(found.sharding.is_fully_replicated)
    chex.assert_trees_all_equal(*map(jax.random.key_data, (found, keys)))


@pytest.mark.devices(8)
class GatheredTest(absltest.TestCase):
  def test_is_gathered_over_fsdp_alone(self):
    mesh = mesh_lib.make({'data': 2, 'fsdp': 2, 'model': 2}, 8)
    seen = []

    def apply(params, x):
      jax.debug.inspect_array_sharding(
        params['hidden0']['kernel'], callback=seen.append
      )
      return x @ params['hidden0']['kernel'], {}

    x = np.ones((8, 8), np.float32)
    with jax.set_mesh(mesh):
      params = mesh_lib.place(PARAMS, mesh, TENSOR)
      out, _ = jax.jit(mesh_lib.gathered(apply, TENSOR))(params, x)
    np.testing.assert_allclose(out, x @ PARAMS['hidden0']['kernel'])
    self.assertLen(seen, 1)
    self.assertEqual(seen[0].shard_shape((8, 8)), (8, 4))

  def test_replicated_and_without_a_mesh_nothing_happens(self):
    apply = lambda params, x: (params, {})
    self.assertIs(mesh_lib.gathered(apply, TENSOR)(PARAMS, 0)[0], PARAMS)
    with jax.set_mesh(mesh_lib.make({'data': 8}, 8)):
      wrapped = mesh_lib.gathered(apply, mesh_lib.REPLICATED)
      self.assertIs(wrapped(PARAMS, 0)[0], PARAMS)


if __name__ == '__main__':
  absltest.main()
