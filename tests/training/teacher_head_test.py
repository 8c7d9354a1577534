"""The head of a teacher whose hidden states are stored, on eight devices."""

import pathlib
from unittest import mock

from absl.testing import parameterized
import jax
import numpy as np
import pytest

from cxjax.parallel import mesh as mesh_lib
from cxjax.training import checkpoints
from cxjax.training import compiled_steps
from cxjax.training import target_cache
from cxjax.training import trainer
from tests.training.target_cache import fixtures

MESH = {'data': 2, 'fsdp': 2, 'model': 2, 'teacher': 'tensor'}


@pytest.mark.slow
class TeacherHeadTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def live(self, text, **mesh):
    config = fixtures.mlp_config()
    if text:
      config = fixtures.text_config(self.folder)
    config.mesh.update(mesh)
    return fixtures.live_spec(config, period=60, folder=self.folder)

  def stored(self, live, name='cache'):
    """The run on stored hidden states, without the teacher's parameters."""
    target_cache.write(self.folder / name, live, {}, 'float32', 'hidden')
    shapes = jax.eval_shape(lambda params: params, live.teacher.params)
    spec = fixtures.with_teacher(live, params=shapes, available=False)
    return target_cache.served(target_cache.load(self.folder / name), spec)

  def head(self, spec):
    """The weights of the output stage on the devices."""
    steps = compiled_steps.CompiledSteps(spec)
    with jax.set_mesh(spec.layout.mesh):
      return steps.stage_teacher(spec.plan()[1])

  @parameterized.parameters(
    ('tensor', 4 * (16 * 2 // 4 + 2 // 2)),
    ('fsdp', 4 * (16 * 2 // 2 + 2 // 2)),
    ('replicated', 4 * (16 * 2 + 2)),
  )
  def test_a_device_holds_its_share(self, mode, expected):
    """A kernel [16, 2] and a bias [1, 2]."""
    spec = self.stored(self.live(False, **{**MESH, 'teacher': mode}))
    held = dict.fromkeys(jax.devices(), 0)
    for leaf in self.head(spec):
      for shard in leaf.addressable_shards:
        held[shard.device] += shard.data.nbytes
    self.assertEqual(set(held.values()), {expected})

  @parameterized.parameters(('tensor', 4), ('fsdp', 2))
  def test_the_vocabulary_is_sharded_as_the_parameters(self, mode, parts):
    spec = self.stored(self.live(True, **{**MESH, 'teacher': mode}))
    weights = self.head(spec)
    kernel = max(weights, key=lambda leaf: leaf.nbytes)
    vocabulary = max(kernel.shape)
    self.assertGreater(vocabulary, 100)
    held = mesh_lib.bytes_per_device(kernel)
    self.assertEqual(held, kernel.nbytes // parts)
    axis = kernel.sharding.spec[kernel.shape.index(vocabulary)]
    self.assertEqual(axis, {'tensor': 'model', 'fsdp': 'fsdp'}[mode])

  @parameterized.parameters('tensor', 'fsdp')
  def test_losses_are_those_of_a_whole_head(self, mode):
    losses = []
    for name, mesh in (
      ('whole', {**MESH, 'model': 1, 'teacher': 'replicated'}),
      ('sharded', {**MESH, 'teacher': mode}),
    ):
      spec = self.stored(self.live(False, **mesh), f'cache {name}')
      result = trainer.fit(spec, self.folder / name, name)
      losses.append([record['loss'] for record in result.records])
    np.testing.assert_allclose(*losses, rtol=1e-5)

  def test_no_device_has_all_parameters_to_hash_them(self):
    spec = self.live(False, **MESH)
    whole, found = self.live(False), []

    def note(tree, *args):
      found.append(mesh_lib.bytes_per_device(tree))
      return fingerprint(tree, *args)

    fingerprint = checkpoints.fingerprint
    with mock.patch.object(checkpoints, 'fingerprint', note):
      one = target_cache.parameter_digests(spec)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(spec.teacher.params))
    self.assertLess(max(found), size / 2)
    self.assertEqual(one, target_cache.parameter_digests(whole))
