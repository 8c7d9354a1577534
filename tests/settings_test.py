"""Random numbers, runs and their folders under other settings of JAX."""

import pathlib
from unittest import mock

from absl import logging
from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax import errors
from cxjax import files
from cxjax import settings
from cxjax.data import masking
from cxjax.methods import projections
from cxjax.tasks import parity

OTHER = {
  'threefry': lambda: jax.threefry_partitionable(False),
  'implementation': lambda: jax.default_prng_impl('rbg'),
  'x64': lambda: jax.enable_x64(True),
  'promotion': lambda: jax.numpy_dtype_promotion('strict'),
}


def _drawn():
  """Random values of every kind, from seed 3."""
  key = settings.key(3)
  tokens = jnp.ones((4, 8), jnp.int32)
  return {
    'key': jax.random.key_data(key),
    'masked': masking.mask_tokens(
      key,
      tokens,
      tokens > 0,
      rate=0.5,
      slots=6,
      mask_id=2,
      random_ids=(3, 9),
    ),
    'parity': parity.make(d=40, k=3, depth=2, support='random', key=key).batch(
      key, 2, 8
    ),
    **{
      name: projections.random_projection(key, name, (6, 6))
      for name in projections.PROJECTIONS
    },
  }


class DrawTest(parameterized.TestCase):
  @parameterized.parameters(*OTHER)
  @pytest.mark.slow
  def test_no_setting_changes_what_a_seed_draws(self, name):
    want = _drawn()
    with OTHER[name]():
      got = _drawn()
    jax.tree.map(np.testing.assert_array_equal, got, want)
    jax.tree.map(lambda a, b: self.assertEqual(a.dtype, b.dtype), got, want)

  @parameterized.parameters(0, 1, 2**31, 2**32 - 1, -1)
  def test_a_key_is_that_of_jax(self, seed):
    want = jax.random.key_data(jax.random.key(seed))
    got = jax.random.key_data(settings.key(seed))
    np.testing.assert_array_equal(got, want)

  def test_a_draw_of_the_user_that_names_no_dtype(self):
    draw = lambda key, *shape: jax.random.normal(key, shape)
    with mock.patch.dict(projections.PROJECTIONS, mine=draw):
      drawn = lambda: projections.random_projection(
        settings.key(0), 'mine', (3, 2)
      )
      want = drawn()
      with jax.enable_x64(True):
        got = drawn()
    np.testing.assert_array_equal(got, want)
    self.assertEqual(got.dtype, jnp.float32)


class RecordedTest(absltest.TestCase):
  def test_defaults_are_not_recorded(self):
    self.assertEqual(settings.recorded(), {})

  def test_others_are_by_name(self):
    with jax.enable_x64(True), jax.default_matmul_precision('highest'):
      self.assertEqual(
        settings.recorded(),
        {'jax_default_matmul_precision': 'highest', 'jax_enable_x64': True},
      )


class WorkdirTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def test_another_setting_is_refused_by_name(self):
    settings.claim_workdir(self.folder, {'seed': 0})
    with (
      jax.enable_x64(True),
      self.assertRaisesRegex(
        errors.UserError, r'jax_enable_x64 \(False there, True here\)\.'
      ),
    ):
      settings.claim_workdir(self.folder, {'seed': 0})

  @parameterized.parameters('[]', '"x"', '3', 'null', '{}', '{"settings": 1}')
  def test_a_config_of_another_form_is_damaged(self, text):
    path = self.folder / 'config.json'
    path.write_text(text)
    with self.assertRaisesRegex(
      errors.UserError, f'^{path} is damaged. Restore it, or remove its folder'
    ):
      settings.claim_workdir(self.folder, {'seed': 0})

  @parameterized.parameters('{"seed": 1}', '{"seed": 0, "settings": "x"}')
  def test_an_edited_config_is_refused(self, text):
    (self.folder / 'config.json').write_text(text)
    with self.assertRaisesRegex(errors.UserError, 'What differs: '):
      settings.claim_workdir(self.folder, {'seed': 0})

  def test_a_damaged_environment_costs_no_run(self):
    settings.claim_workdir(self.folder, {'a': 1}, {'f': '0'})
    path = self.folder / settings.ENVIRONMENT
    path.write_text('')
    with self.assertRaisesRegex(
      errors.UserError, f'{path} cannot .* Restore it, or remove it: it has the'
    ):
      settings.claim_workdir(self.folder, {'a': 1}, {'f': '0'})
    path.unlink()
    settings.claim_workdir(self.folder, {'a': 1}, {'f': '0'})

  def test_another_version_is_warned_of(self):
    settings.claim_workdir(self.folder, {'seed': 0})
    with mock.patch.object(logging, 'warning') as warning:
      settings.claim_workdir(self.folder, {'seed': 0})
      warning.assert_not_called()
      path = self.folder / settings.ENVIRONMENT
      files.write_json(path, {**files.read_json(path), 'jax': '0.1'})
      settings.claim_workdir(self.folder, {'seed': 0})
    said = str(warning.call_args)
    self.assertIn('jax (0.1 there', said)


if __name__ == '__main__':
  absltest.main()
