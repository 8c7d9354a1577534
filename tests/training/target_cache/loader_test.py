"""A run from a cache is the live run."""

import pathlib

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax.methods import stage as stage_lib
from cxjax.training import compiled_steps
from cxjax.training import target_cache
from cxjax.training import trainer
from tests.training.target_cache import fixtures

pytestmark = pytest.mark.slow


def in_steps(tree, step, chunk=10):
  return jax.tree.map(lambda leaf: leaf[step % chunk], tree)


class CachedTargetLoaderTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def stored(self, spec):
    target_cache.write(self.folder / 'cache', spec, {}, 'float32')
    cache = target_cache.load(self.folder / 'cache')
    return fixtures.stored_spec(spec, cache)

  def losses(self, spec, name):
    result = trainer.fit(spec, self.folder / name, name)
    return [
      (record['step'], value)
      for record in result.records
      for key, value in record.items()
      if key.startswith('loss')
    ]

  def assert_same_run(self, spec):
    live = self.losses(spec, 'live')
    stored = self.losses(self.stored(spec), 'stored')
    np.testing.assert_allclose(live, stored, rtol=1e-4)
    return live

  def test_rows_and_targets_of_text(self):
    """The students share batches, and have projections of their own."""
    config = fixtures.text_config(self.folder)
    spec = fixtures.live_spec(config, period=20, folder=self.folder)
    stored = self.stored(spec)
    steps = compiled_steps.CompiledSteps(spec)
    planned = spec.plan()
    matrices = [steps.matrices(one, i) for i, one in enumerate(planned)]
    with (
      jax.set_mesh(spec.layout.mesh),
      spec.host.loader() as live,
      stored.host.loader() as loader,
    ):
      for start, stop, stage in ((0, 5, 0), (5, 10, 1), (10, 20, 1)):
        rows, targets = loader.rows(start), loader.targets(start)
        for step in range(start, stop):
          here = in_steps(rows, step)
          chex.assert_trees_all_equal(here, in_steps(live.rows(step), step))
          _, expected = steps.targets(
            planned[stage], step, here, spec.teacher.params, matrices[stage]
          )
          chex.assert_trees_all_close(
            in_steps(targets, step), expected, rtol=1e-4
          )
    self.assertEqual(targets['output']['classes'].shape, (10, 1, 8, 11, 4))
    self.assertEqual(rows['tokens'].shape, (10, 1, 8, 16))

  def test_batches_of_keys(self):
    stored = self.stored(fixtures.live_spec())
    with stored.host.loader() as loader:
      self.assertIsNone(loader.rows(0))
      self.assertEqual(loader.targets(0)['hidden0'].shape, (10, 2, 8, 8))
      self.assertIs(loader.targets(9), loader.targets(0))

  def test_restored(self):
    """The step says all; a stage that ends at 25 begins a chunk."""
    stored = self.stored(fixtures.live_spec())
    with stored.host.loader() as whole, stored.host.loader() as other:
      for step in (0, 10, 20):
        whole.rows(step)
      self.assertEqual(whole.state(25), {})
      whole.rows(25)
      other.restore(25, {}.__getitem__)
      chex.assert_trees_all_equal(whole.targets(25), other.targets(25))
      chex.assert_trees_all_equal(whole.targets(30), other.targets(30))
      self.assertIn('output', other.targets(30))

  def test_batches_come_again(self):
    """Both stages read 12 batches, and begin in the middle of them.

    Each has another checkpoint of the teacher.
    """
    config = fixtures.mlp_config('progressive')
    self.assert_same_run(fixtures.live_spec(config, period=12))

  def test_several_terms(self):
    """Stored by name; one fades out, and the labels are not stored."""
    terms = (
      stage_lib.Term(
        'hidden0', 'hidden0', projection='gaussian', name='hidden0/activation'
      ),
      stage_lib.Term(
        'hidden0',
        'hidden0',
        regressor=True,
        name='hidden0',
        weight=lambda fraction: 1.0 - fraction,
      ),
      stage_lib.Term(top_k=2, weight=0.5),
      stage_lib.Term(target='labels', weight=0.1),
    )
    stages = (
      stage_lib.Stage('joint', 25, terms),
      stage_lib.Stage('labels', 35, terms[3:]),
    )
    losses = self.assert_same_run(fixtures.live_spec(stages=stages))
    self.assertLen(losses, 3 * 5 + 4)  # Records of a stage, its terms and all.
    self.assertTrue(jnp.isfinite(jnp.array(losses)).all())
