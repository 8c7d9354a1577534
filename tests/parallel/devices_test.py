"""Devices: those of this process and those of a topology."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import pytest

from cxjax import errors
from cxjax.parallel import devices as devices_lib
from cxjax.parallel import mesh as mesh_lib


class SplitCpuTest(parameterized.TestCase):
  @parameterized.parameters(
    (2, 8, -1, '', 2),
    (16, 8, -1, '', 8),
    (2, 1, -1, '', -1),
    (1, 8, -1, '', -1),
    (2, 8, 4, '', 4),
    (2, 8, -1, '--xla_force_host_platform_device_count=3', -1),
  )
  def test_splits_unless_told_otherwise(self, count, cores, told, flags, made):
    config = mock.Mock(jax_num_cpu_devices=told)
    config.update = lambda name, value: setattr(config, name, value)
    with (
      mock.patch.object(devices_lib.jax, 'config', config),
      mock.patch.object(
        devices_lib.os, 'sched_getaffinity', lambda _: [0] * cores, create=True
      ),
      mock.patch.dict(devices_lib.os.environ, XLA_FLAGS=flags),
    ):
      devices_lib.split_cpu(count)
    self.assertEqual(config.jax_num_cpu_devices, made)

  def test_one_of_several_processes_is_not_split(self):
    config = mock.Mock(jax_num_cpu_devices=-1)
    with (
      mock.patch.object(devices_lib.jax, 'config', config),
      mock.patch.dict(devices_lib.os.environ, XLA_FLAGS=''),
      mock.patch.object(jax.distributed, 'is_initialized', lambda: True),
    ):
      devices_lib.split_cpu(2)
    config.update.assert_not_called()

  def test_too_late_is_no_error(self):
    config = mock.Mock(jax_num_cpu_devices=-1)
    config.update.side_effect = RuntimeError
    with (
      mock.patch.object(devices_lib.jax, 'config', config),
      mock.patch.dict(devices_lib.os.environ, XLA_FLAGS=''),
    ):
      devices_lib.split_cpu(2)


class TopologyTest(parameterized.TestCase):
  def test_cpu_is_this_machine(self):
    self.assertEqual(devices_lib.topology('cpu'), jax.devices())

  def test_a_gpu_is_not_planned_for(self):
    with self.assertRaisesRegex(errors.UserError, '=h100 is not a known.*v5e'):
      devices_lib.topology('h100')

  def test_a_tpu_needs_libtpu(self):
    with (
      mock.patch.object(
        devices_lib.importlib.util, 'find_spec', return_value=None
      ),
      self.assertRaisesRegex(
        errors.UserError, "^--dry_run=v5e:4x4 needs TPU's compiler.*pip install"
      ),
    ):
      devices_lib.topology('v5e:4x4')


@pytest.mark.cpu
@pytest.mark.devices(8)
class ChipTest(parameterized.TestCase):
  def test_devices_of_a_cpu_share_its_memory(self):
    one, many = (
      devices_lib.chip(mesh_lib.make({'data': n}, 8)) for n in (1, 8)
    )
    self.assertEqual(one.memory, 8 * many.memory)
    self.assertIsNone(one.flops)

  def test_known_and_unknown_kinds(self):
    mesh = lambda kind: mock.Mock(
      devices=mock.Mock(flat=[mock.Mock(platform='tpu', device_kind=kind)])
    )
    found = devices_lib.chip(mesh('TPU v5 lite'))
    self.assertEqual(found, devices_lib.CHIPS['TPU v5 lite'])
    self.assertEqual(devices_lib.chip(mesh('TPU v99')), devices_lib.Chip())

  def test_describe(self):
    self.assertEqual(devices_lib.describe(), 'cpu x 8 (cpu)')
    self.assertEqual(devices_lib.host().platform, 'cpu')


if __name__ == '__main__':
  absltest.main()
