"""Tests of sweeps, and of the variants that the scripts run."""

import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import pytest

from cxjax import errors
from cxjax.configs import builders
from experiments import ablations
from experiments import parity_mlp
from experiments import pcfg_bert
from experiments import sweeps
from experiments import text_bert

WORKDIR = pathlib.Path('/somewhere')


class VariantTest(parameterized.TestCase):
  def test_the_config_stays_as_it_was(self):
    config = parity_mlp.tiny('extracted')
    changed = sweeps.variant(config, {'data.d': 30, 'teacher.width': 3})
    self.assertEqual((changed.data.d, changed.teacher.width), (30, 3))
    self.assertEqual((config.data.d, config.teacher.width), (8, 16))

  def test_a_field_that_does_not_exist_is_an_error(self):
    config = parity_mlp.tiny('extracted')
    with self.assertRaises(KeyError):
      sweeps.variant(config.lock(), {'extracted.law': 'sparse'})

  @parameterized.parameters(*ablations.VARIANTS)
  def test_ablations_change_fields_that_exist(self, name):
    config = parity_mlp.get_config('extracted').lock()
    sweeps.variant(config, ablations.VARIANTS[name])


class FolderTest(parameterized.TestCase):
  def folder(self, overrides, module=parity_mlp):
    return sweeps.folder(module.tiny('extracted'), overrides, WORKDIR)

  @parameterized.parameters(
    'num_steps', 'data.d', 'teacher.num_steps', 'student.width'
  )
  def test_is_of_what_the_run_depends_on(self, field):
    self.assertNotEqual(self.folder({field: 20}), self.folder({}))

  @parameterized.parameters(('mesh.cpu_devices', 2), ('custom.rate_factor', 2))
  def test_is_not_of_what_it_ignores(self, field, value):
    self.assertEqual(self.folder({field: value}), self.folder({}))

  def test_data_that_is_read_has_its_own_folder(self):
    one, same, other = (
      sweeps._resolved(text_bert.tiny('extracted'), overrides, WORKDIR)
      for overrides in ({}, {'num_steps': 10}, {'data.length': 8})
    )
    self.assertEqual(one.data.folder, same.data.folder)
    self.assertNotEqual(one.data.folder, other.data.folder)

  def test_teachers_are_shared(self):
    one, same, other = (
      sweeps._resolved(pcfg_bert.tiny('extracted'), overrides, WORKDIR)
      for overrides in ({}, {'num_steps': 10}, {'teacher.width': 8})
    )
    self.assertEqual(one.teacher.folder, same.teacher.folder)
    self.assertNotEqual(one.teacher.folder, other.teacher.folder)


@pytest.mark.slow
class RunTest(absltest.TestCase):
  def test_a_finished_run_is_read(self):
    workdir = pathlib.Path(self.create_tempdir().full_path)
    config = parity_mlp.tiny('extracted')
    with mock.patch('jax.config.update'):  # The cache is that of all tests.
      one = sweeps.run(config, {'num_steps': 20}, workdir)
      with mock.patch('cxjax.training.trainer.fit', side_effect=AssertionError):
        self.assertEqual(sweeps.run(config, {'num_steps': 20}, workdir), one)
      sweeps.run(config, {'num_steps': 30}, workdir)
    self.assertLen(list((workdir / 'teachers').iterdir()), 1)
    self.assertLen(list((workdir / 'runs').iterdir()), 2)
    cells = sweeps.table_cells(one)
    self.assertEqual(cells['at 99%'], '0 of 2')
    self.assertNotIn('seconds', cells)

  def test_settings_that_do_not_fit_are_an_error(self):
    workdir = pathlib.Path(self.create_tempdir().full_path)
    config = parity_mlp.tiny('extracted')
    with (
      mock.patch('jax.config.update'),
      self.assertRaisesRegex(errors.UserError, 'data.k=9'),
    ):
      sweeps.run(config, {'data.k': 9}, workdir)

  def test_every_ablation_can_run(self):
    workdir = pathlib.Path(self.create_tempdir().full_path)
    for overrides in ablations.VARIANTS.values():
      config = sweeps.variant(parity_mlp.get_config('extracted'), overrides)
      builders.check(builders.open_experiment(config, workdir))


if __name__ == '__main__':
  absltest.main()
