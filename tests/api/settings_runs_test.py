"""Runs that are resumed under another setting of JAX, every seed of them."""

import contextlib

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cxjax

DRAW = np.random.default_rng(0).normal
BATCHES = [DRAW(size=(4, 3)).astype(np.float32) for _ in range(8)]


@contextlib.contextmanager
def _debugging():
  with jax.debug_nans(True), jax.debug_infs(True), jax.disable_jit():
    yield


# Settings that may change between two parts of a run, and fields that refuse.
SETTINGS = {
  'threefry': (lambda: jax.threefry_partitionable(False), ''),
  'implementation': (lambda: jax.default_prng_impl('rbg'), ''),
  'promotion': (lambda: jax.numpy_dtype_promotion('strict'), ''),
  'transfers': (lambda: jax.transfer_guard('disallow'), ''),
  'debugging': (_debugging, ''),
  'a mesh': (lambda: jax.set_mesh(jax.make_mesh((1,), ('x',))), ''),
  'x64': (lambda: jax.enable_x64(True), 'jax_enable_x64'),
  'precision': (
    lambda: jax.default_matmul_precision('highest'),
    'jax_default_matmul_precision',
  ),
}


def apply(params, x):
  h = jnp.tanh(x @ params['in'])
  return h @ params['out'], {'h': h}


def parameters(width):
  shapes = {'in': (3, width), 'out': (width, 2)}
  return {
    name: DRAW(size=shape).astype(np.float32) for name, shape in shapes.items()
  }


TEACHER = cxjax.from_fn(apply, parameters(5))
STUDENTS = cxjax.from_fn(apply, [parameters(2), parameters(2)])


def run(batches, **options):
  plan = cxjax.plan(
    TEACHER,
    STUDENTS,
    BATCHES[0],
    steps=(12, 4),
    num_steps=16,
    layers=[('h', 'h')],
    regressor=True,
    width=3,
  )
  return cxjax.distill(
    plan, batches, log_every=4, save_every=4, held_out=BATCHES[0], **options
  )


@pytest.mark.slow
class SettingsTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.whole, cls.records = run(BATCHES)

  def interrupted(self):
    """The folder of a run that has ended in its first stage."""

    def stop(record):
      if record['step'] == 8:
        raise InterruptedError

    folder = self.create_tempdir().full_path
    with self.assertRaises(InterruptedError):
      run(BATCHES, workdir=folder, on_record=stop)
    return folder

  @parameterized.parameters(*SETTINGS)
  def test_ends_as_a_whole_run_or_is_refused_by_its_field(self, name):
    setting, field = SETTINGS[name]
    folder = self.interrupted()
    with setting():
      if field:
        with self.assertRaisesRegex(cxjax.UserError, f'settings.*{field}'):
          run(BATCHES, workdir=folder)
        return
      students, records = run(BATCHES, workdir=folder)
    chex.assert_trees_all_equal(students, self.whole)
    self.assertEqual(records, self.records)
