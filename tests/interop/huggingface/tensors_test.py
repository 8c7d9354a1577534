"""Tensors of files: dtypes, memory, shards."""

import json
import tracemalloc

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from cxjax import errors
from cxjax.interop import huggingface
from cxjax.interop.huggingface import tensors as tensors_lib
from cxjax.models import decoder
from tests.interop.huggingface import fixtures


class FileTest(fixtures.TestCase):
  def test_the_library_reads_what_is_written(self):
    tensors = {
      'a': np.arange(6, dtype=np.float32).reshape(2, 3).T,
      'b': jnp.ones((3,), jnp.bfloat16),
      'c': np.float16(2.5),
      'd': np.zeros((0, 4), np.float64),
    }
    path = self.folder() / 'model.safetensors'
    tensors_lib.write(path, tensors)
    found = safetensors.numpy.load_file(path)
    self.assertEqual(found.keys(), tensors.keys())
    stored = tensors_lib.read(path.parent)
    for name, want in tensors.items():
      want = np.asarray(want)
      np.testing.assert_array_equal(found[name], want)
      np.testing.assert_array_equal(np.asarray(stored[name]), want)
      self.assertEqual(found[name].dtype, want.dtype)
      self.assertEqual(stored[name].shape, want.shape)
    self.assertEqual(stored['a'].sum(), 15)
    self.assertEqual(stored['a'][1, 1], 4)

  def test_a_link_is_not_written_through(self):
    folder = self.folder()
    (folder / 'other').write_text('mine')
    for name in ('a', 'a.tmp'):
      (folder / name).symlink_to(folder / 'other')
    tensors_lib.write(folder / 'a', {'t': np.ones(3, np.float32)})
    self.assertEqual((folder / 'other').read_text(), 'mine')
    self.assertFalse((folder / 'a').is_symlink())

  def test_a_file_that_was_cut_off_meanwhile(self):
    path = self.folder() / 'model.safetensors'
    tensors_lib.write(path, {'a': np.ones(9)})
    stored = tensors_lib.read(path.parent)
    path.write_bytes(path.read_bytes()[:-1])
    with self.assertRaisesRegex(errors.UserError, 'a is cut off'):
      np.asarray(stored['a'])


class DtypeTest(fixtures.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    sizes = dict(vocab_size=64, max_length=16, num_classes=64, width=256)
    cls.module = decoder.Decoder(**sizes, heads=4, depth=3, mlp_width=512)
    cls.module, variables = fixtures.randomized(cls.module)
    cls.variables = jax.tree.map(
      lambda leaf: leaf.astype(jnp.bfloat16), variables
    )

  @pytest.mark.slow
  def test_bfloat16_stays_in_memory_and_in_files(self):
    folder = self.folder()
    huggingface.write(folder, self.module, self.variables)
    config = json.loads((folder / 'config.json').read_text())
    self.assertEqual(config['dtype'], 'bfloat16')
    module, variables = huggingface.read(folder)
    self.assertEqual(module.dtype, jnp.bfloat16)
    self.assert_same_tree(variables, self.variables)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
    count = sum(leaf.size for leaf in jax.tree.leaves(self.variables))
    self.assertEqual(size, 2 * count)
    logits, activations = jax.jit(module.apply)(variables, fixtures.TOKENS)
    self.assertEqual(logits.dtype, jnp.float32)
    self.assertEqual(activations['block1'].dtype, jnp.bfloat16)

  @pytest.mark.slow
  def test_memory_is_that_of_the_parameters_and_of_one_tensor(self):
    folder = self.folder()
    huggingface.write(folder, self.module, self.variables)
    huggingface.read(folder)  # What is traced once.
    tracemalloc.start()
    _, variables = huggingface.read(folder)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    leaves = jax.tree.leaves(variables)
    size = sum(leaf.nbytes for leaf in leaves)
    most = max(leaf.nbytes for leaf in leaves)
    self.assertGreater(size, 12 * most)
    # The tensor, its test for finite values, and 1 MB of Python.
    self.assertLess(peak, size + 2 * most + 2**20)
    for shard in (size, most):
      tracemalloc.start()
      huggingface.write(folder, self.module, variables, max_shard_bytes=shard)
      _, peak = tracemalloc.get_traced_memory()
      tracemalloc.stop()
      self.assertLess(peak, 2 * most + 2**20)

  def test_parameters_are_placed_one_by_one(self):
    folder = self.folder()
    huggingface.write(folder, self.module, self.variables)
    seen = []

    def place(path, array):
      seen.append(path)
      return jax.device_put(array)

    _, variables = huggingface.read(folder, place)
    self.assertIn('block0/query/kernel', seen)
    self.assertLen(set(seen), len(jax.tree.leaves(variables)))
    self.assertIsInstance(variables['params']['tokens']['embedding'], jax.Array)
    self.assert_same_tree(variables, self.variables)


if __name__ == '__main__':
  absltest.main()
