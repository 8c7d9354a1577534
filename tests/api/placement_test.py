"""Parameters on any devices, and meshes of the user."""

from unittest import mock

from absl import logging
from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np
import pytest

import cxjax
from cxjax import errors
from cxjax.api import placement
from cxjax.parallel import mesh as mesh_lib
from cxjax.parallel import multihost
from small_networks import X
from small_networks import Y
from small_networks import parameters
from small_networks import two_layers


def on_mesh(params):
  """Sharded by explicit axes over the mesh of a user."""
  mesh = jax.make_mesh((len(jax.devices()),), ('mine',))
  sharding = NamedSharding(mesh, PartitionSpec())
  return jax.tree.map(lambda leaf: jax.device_put(leaf, sharding), params)


def mixed(params):
  """Each leaf committed to another device."""
  leaves, structure = jax.tree.flatten(params)
  devices = jax.devices()
  return structure.unflatten(
    jax.device_put(leaf, devices[-i % len(devices)])
    for i, leaf in enumerate(leaves)
  )


def on_host(params):
  """In the memory of the host of another device."""
  place = jax.sharding.SingleDeviceSharding
  there = place(jax.devices()[-1], memory_kind='pinned_host')
  return jax.tree.map(lambda leaf: jax.device_put(leaf, there), params)


def doubled(params, only=''):
  """In float64, as `jax.enable_x64` makes them."""

  def double(path, leaf):
    chosen = only in jax.tree_util.keystr(path)
    return jnp.asarray(leaf, jnp.float64) if chosen else leaf

  with jax.enable_x64(True):
    return jax.tree.map_with_path(double, params)


def some_doubled(params):
  return doubled(params, 'low')


def over_my_mesh(p, x):
  mesh = jax.sharding.Mesh(jax.devices()[:1], ('mine',))
  first = PartitionSpec('mine')
  run = lambda p, x: two_layers(p, x)[0]
  specs = (PartitionSpec(), first)
  mapped = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=first)
  return mapped(p, x), {}


def deleted(params):
  params = jax.tree.map(jnp.array, params)
  jax.tree.leaves(params)[0].delete()
  return params


def make(teacher, student):
  return cxjax.plan(
    cxjax.from_fn(two_layers, teacher),
    cxjax.from_fn(two_layers, student),
    (X, Y),
    num_steps=2,
    layers=(),
  )


def run(teacher, student):
  plan = make(teacher, student)
  return cxjax.distill(plan, [(X, Y)], held_out=(X, Y))[0]


class PlacementTest(parameterized.TestCase):
  def test_processes_that_would_split_a_batch_are_refused(self):
    plan = mock.Mock(batch={'x': np.zeros((8, 2))})
    every_device = f"'model': {jax.device_count()}}}, or"
    with (
      mock.patch.object(multihost, 'count', lambda: 2),
      mock.patch.object(mesh_lib, 'make') as make,
      mock.patch.object(mesh_lib, 'own_rows', lambda *_: [0, 1, 2, 3]),
      self.assertRaisesRegex(
        errors.UserError,
        f'data=4, fsdp=2 splits a batch over 2 processes.*{every_device}',
      ) as caught,
    ):
      make.return_value.shape = {'data': 4, 'fsdp': 2}
      placement.layout(plan, None)
    self.assertNotIn('data.shards', str(caught.exception))

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.params = [jax.tree.map(np.asarray, parameters(seed)) for seed in (0, 1)]
    cls.want = run(*cls.params)

  @parameterized.parameters(on_mesh, mixed, on_host, doubled, some_doubled)
  @pytest.mark.slow
  def test_parameters_on_devices_of_the_user(self, put):
    got = run(*map(put, self.params))
    jax.tree.map(np.testing.assert_array_equal, got, self.want)

  @pytest.mark.slow
  def test_a_mesh_of_the_user_in_force(self):
    mesh = jax.make_mesh((1,), ('data',), devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
      got = run(*self.params)
    jax.tree.map(np.testing.assert_array_equal, got, self.want)

  @pytest.mark.slow
  def test_byte_order_and_double_precision(self):
    other = jax.tree.map(lambda leaf: leaf.astype('>f8'), self.params[1])
    with mock.patch.object(logging, 'warning') as warning:
      plan = make(self.params[0], other)
    self.assertIn('float64', str(warning.call_args))
    for leaf in jax.tree.leaves(plan.student.params):
      self.assertTrue(leaf.dtype.isnative)

  def test_numbers_of_python_are_arrays(self):
    given = {'a': 1.5, 'b': 2, 'c': np.int64(3), 'd': np.arange(3)}
    found = placement.received(cxjax.from_fn(two_layers, given), 'student')
    kinds = {name: str(leaf.dtype) for name, leaf in found.params.items()}
    want = {'a': 'float32', 'b': 'int64', 'c': 'int64', 'd': 'int64'}
    self.assertEqual(kinds, want)

  @parameterized.parameters(
    (np.full(3, 2**40), 'has integers that int32 does not hold'),
    (2**40, 'has integers that int32 does not hold'),
    (jnp.ones(3, jnp.int4), 'is int4, and numbers of less than 8 bits'),
  )
  def test_numbers_that_would_change_are_refused(self, leaf, message):
    model = cxjax.from_fn(two_layers, {'w': {'a': leaf}})
    with self.assertRaisesRegex(errors.UserError, f"'w/a' of the .* {message}"):
      placement.received(model, 'teacher')

  def test_deleted_parameters_are_named(self):
    with self.assertRaisesRegex(errors.UserError, 'student was deleted'):
      make(self.params[0], deleted(self.params[1]))
    alive = jax.tree.map(jnp.array, self.params[0])
    plan = make(alive, self.params[1])
    jax.tree.leaves(alive)[0].delete()
    with self.assertRaisesRegex(errors.UserError, 'teacher was deleted'):
      cxjax.distill(plan, [(X, Y)])

  def test_shapes_are_planned_and_not_run(self):
    plan = make(self.params[0], jax.eval_shape(lambda: self.params[1]))
    with self.assertRaisesRegex(errors.UserError, 'student has a shape and no'):
      cxjax.distill(plan, [(X, Y)])

  def test_a_tensor_of_another_library(self):
    tensor = mock.Mock(dtype='float32, as no array', spec=['dtype'])
    with self.assertRaisesRegex(errors.UserError, "student has .* at 'w'"):
      make(self.params[0], {**self.params[1], 'w': tensor})

  @parameterized.parameters(jax.jit, jax.vmap, jax.grad)
  def test_under_a_transformation_of_jax(self, transform):
    scaled = lambda scale: jax.tree.map(lambda p: p * scale, self.params[1])
    fun = transform(
      lambda scale: make(self.params[0], scaled(scale)).stage_plans
    )
    with self.assertRaisesRegex(errors.UserError, 'Called under jax.jit'):
      fun(jnp.ones(1) if transform is jax.vmap else 1.0)

  def test_a_model_with_a_mesh_of_its_own(self):
    teacher = cxjax.from_fn(two_layers, self.params[0])
    student = cxjax.from_fn(over_my_mesh, self.params[1])
    plan = cxjax.plan(teacher, student, (X, Y), num_steps=2, layers=())
    with self.assertRaisesRegex(errors.UserError, 'The student raises .* mesh'):
      cxjax.distill(plan, [(X, Y)])


if __name__ == '__main__':
  absltest.main()
