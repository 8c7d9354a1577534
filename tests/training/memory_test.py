"""The memory that a run needs at least."""

from unittest import mock

from absl.testing import absltest
import jax
import jax.numpy as jnp
import pytest

from cxjax import errors
from cxjax.configs import builders
from cxjax.training import memory
from experiments import parity_mlp


class RequireTest(absltest.TestCase):
  def spec(self, **fields):
    config = parity_mlp.tiny('one_shot')
    config.update_from_flattened_dict(fields)
    opened = builders.open_experiment(config, self.create_tempdir().full_path)
    spec = builders.student_spec(opened, builders.abstract_teacher(opened))
    return spec, spec.plan()

  @pytest.mark.slow
  def test_a_run_that_fits(self):
    memory.require(*self.spec())

  def test_a_run_that_does_not_is_refused_with_what_it_needs(self):
    spec, planned = self.spec(num_seeds=3)
    params = memory.size(spec.student_shapes)
    states = memory.size(spec.state_shapes(planned[0]))
    self.assertGreaterEqual(states, 3 * params)
    with (
      mock.patch.object(memory, 'available', lambda mesh: states),
      self.assertRaisesRegex(errors.UserError, 'GB for 3 students'),
    ):
      memory.require(spec, planned)

  def test_the_held_out_set_is_refused_before_it_is_drawn(self):
    with self.assertRaisesRegex(
      errors.UserError, 'data.eval_size asks for 400.0 GB of examples'
    ):
      self.spec(**{'data.eval_size': 10**7, 'data.d': 10**4, 'data.k': 2})

  def test_projections_count(self):
    """Those of the stage that has most of them count, for every student."""
    spec, planned = self.spec(num_seeds=3)
    size = 4 * 1_000 * 500
    large = mock.Mock(matrices={'a': (1_000, 500)}, stage=planned[0].stage)
    with (
      mock.patch.object(type(spec), 'state_shapes', lambda *_: ()),
      mock.patch.object(memory, 'available', lambda mesh: 3 * size),
      self.assertRaisesRegex(errors.UserError, r'0\.0 GB for projections'),
    ):
      memory.require(spec, [planned[0], large])

  def test_size(self):
    tree = {'a': jnp.ones((2, 3)), 'b': jax.random.key(0)}
    self.assertEqual(memory.size(tree), 24)

  def test_this_machine_has_memory(self):
    mesh = jax.make_mesh((1,), ('data',), devices=jax.devices()[:1])
    self.assertGreater(memory.available(mesh), 2**28)


if __name__ == '__main__':
  absltest.main()
